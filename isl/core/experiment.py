"""Describes a run in frozen dataclasses, in the field's terms. No TensorFlow, no I/O."""

from __future__ import annotations

import dataclasses
import enum
import math
import pathlib
from typing import Any

from isl.core.cluster import Cluster
from isl.core.statistic import AnyStatistic

# The published checkpoint's network: what TRAIN makes unless a checkpoint or a flag says otherwise.
DEFAULT_MODEL = 'CONCORDANCE'
DEFAULT_BASE_DEPTH = 400
DEFAULT_NUM_Z_VALUES = 26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
  """Where a network's outputs lie on its input, in pixels; the same for rows and columns.

  A square patch gives a square output at its centre; neighbouring patches are a stride apart, and
  their outputs abut.

  Attributes:
    patch: side of a patch's input.
    output: side of a patch's output, and the stride between the outputs of dense evaluation.
  """

  patch: int
  output: int

  @property
  def margin(self) -> int:
    """Pixels from a patch's border to its output's, which an output image lacks on each side."""
    return (self.patch - self.output) // 2

  def num_blocks(self, size: int) -> int:
    """The number of neighbouring outputs that `size` pixels of input give in one direction."""
    return max((size - self.patch) // self.output + 1, 0)

  def input_size(self, num_blocks: int) -> int:
    """The pixels of input that `num_blocks` neighbouring outputs need in one direction."""
    return self.patch + (num_blocks - 1) * self.output


class Mode(enum.Enum):
  """What a run does."""

  TRAIN = 'TRAIN'
  EVAL_TRAIN = 'EVAL_TRAIN'
  EVAL_EVAL = 'EVAL_EVAL'
  EXPORT = 'EXPORT'
  DESCRIBE = 'DESCRIBE'
  PS = 'PS'


class Metric(enum.Enum):
  """What an evaluation computes."""

  LOSS = 'LOSS'
  JITTER_STITCH = 'JITTER_STITCH'
  STITCH = 'STITCH'
  INFER_FULL = 'INFER_FULL'


class InferMethod(enum.Enum):
  """How INFER_FULL evaluates the network: all patches of a tile at once, or each by itself."""

  DENSE = 'DENSE'
  PATCHES = 'PATCHES'


class Panel(enum.Enum):
  """The error panels: of the labels, and of the network's own input."""

  TARGET = 'TARGET'
  INPUT = 'INPUT'


class PredictionFormat(enum.Enum):
  """The file format that predictions are written in."""

  PNG = 'PNG'
  OME_TIFF = 'OME_TIFF'
  OME_ZARR = 'OME_ZARR'


class Padding(enum.Enum):
  """What is put around a crop so that all of it is predicted; NONE predicts only its middle."""

  NONE = 'NONE'
  REFLECT = 'REFLECT'
  ZERO = 'ZERO'


class ExportFormat(enum.Enum):
  """The format of the model that EXPORT writes."""

  SAVED_MODEL = 'SAVED_MODEL'
  ONNX = 'ONNX'


class Optimizer(enum.Enum):
  """The optimizer that changes the weights along their gradients."""

  ADAM = 'ADAM'
  ADAGRAD = 'ADAGRAD'
  MOMENTUM = 'MOMENTUM'


class Loss(enum.Enum):
  """How far a predicted distribution is from the true class; formulas in isl/models/losses.py."""

  CROSS_ENTROPY = 'CROSS_ENTROPY'
  RANKED_PROBABILITY_SCORE = 'RANKED_PROBABILITY_SCORE'


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRange:
  """The part of its range that a camera used: the intensities that become 0 and 1 in the input.

  Attributes:
    ends: (low, high) in the units of the files' pixels; None: the 0.1 and 99.9 percentiles of each
      field of view.
  """

  ends: tuple[float, float] | None

  @classmethod
  def parse(cls, given: Any) -> InputRange | None:
    """Makes the range that a flag or an argument named input_range gives.

    Args:
      given: 'auto', (low, high), or these as text, 'LOW,HIGH'; None: no range.

    Raises:
      ValueError: `given` is something else, or not finite, or low is not less than high.
    """
    if given is None:
      return None
    if isinstance(given, str) and given == 'auto':
      return cls(ends=None)
    try:
      low, high = map(float, given.split(',') if isinstance(given, str) else given)
    except (TypeError, ValueError):
      low, high = math.nan, math.nan
    if not -math.inf < low < high < math.inf:
      raise ValueError(f'input_range must be auto, or LOW,HIGH with low < high, got {given!r}')
    return cls(ends=(low, high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How training and LOSS take patches from fields of view; sizes are in pixels.

  Attributes:
    crop_size: side of the random crops of fields of view, which patches are cut from.
    patch_stride: stride of the patches in a crop, in both directions.
    output_size: side of a patch's output.
    batch_size: patches computed at once.
    num_threads: threads that read patches.
    capacity: consecutive patches that are shuffled among each other.
  """

  crop_size: int
  patch_stride: int
  output_size: int
  batch_size: int
  num_threads: int
  capacity: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardReading:
  """The TFRecord shards that training or LOSS reads, and how it reads them.

  Attributes:
    paths: files of the shards.
    num_threads: shards read at the same time.
    batch_size: examples decoded at once.
    capacity: examples that are shuffled among each other.
    skip_corrupt: whether the rest of a damaged shard is left out instead of ending the run.
  """

  paths: tuple[pathlib.Path, ...]
  num_threads: int
  batch_size: int
  capacity: int
  skip_corrupt: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """What EXPORT writes and where it writes it.

  Attributes:
    directory: folder that gets a subfolder for each exported global step.
    format: format of the exported model.
  """

  directory: pathlib.Path
  format: ExportFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaskWorkers:
  """The Dask processes that label fields of view; one of the two attributes is None.

  Attributes:
    scheduler: address of a running cluster's scheduler.
    num_local: number of processes to start on this machine.
  """

  scheduler: str | None
  num_local: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
  """Random changes of the input: standard deviations, where intensities are in [0, 1].

  Attributes:
    multiplier_std: standard deviation of the factor that multiplies an image, around 1.
    offset_std: standard deviation of the offset that is added to an image, around 0.
    noise_std: standard deviation of the noise that is added to each pixel, around 0.
  """

  multiplier_std: float
  offset_std: float
  noise_std: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """Settings of TRAIN.

  Attributes:
    optimizer: optimizer that changes the weights along their gradients.
    learning_rate: the optimizer's learning rate.
    learning_decay_steps: number of steps after which MOMENTUM's learning rate has decayed by the
      factor 0.999.
    number_of_steps: the global step to stop at; None: training goes on until it is stopped.
    restore_logits: whether the heads, too, start from the restored checkpoint.
    restore_inputs: whether the first layer, too, starts from the restored checkpoint.
    save_summaries_secs: seconds between summaries.
    save_interval_secs: seconds between checkpoints.
  """

  optimizer: Optimizer
  learning_rate: float
  learning_decay_steps: int
  number_of_steps: int | None
  restore_logits: bool
  restore_inputs: bool
  save_summaries_secs: float
  save_interval_secs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """When EVAL_TRAIN and EVAL_EVAL compute their metric, and on how many patches.

  Attributes:
    interval_secs: seconds between two looks for a new checkpoint.
    delay_secs: seconds before the first look.
    once: whether only the newest checkpoint is evaluated.
    num_examples: number of patches that LOSS averages over.
  """

  interval_secs: float
  delay_secs: float
  once: bool
  num_examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
  """What INFER_FULL, STITCH and JITTER_STITCH compute of a field of view, and what is written.

  Attributes:
    crop_size: side of the crop at the image's top left, in pixels; 0: the whole image.
    tile_size: side of a tile, in blocks; a tile is computed at once.
    method: whether the network is evaluated densely or patch by patch.
    panels: error panels to draw.
    simplify_panels: whether error panels have only the columns that are needed most.
    statistics: statistics of the predicted distributions to write.
    channels: labels to predict, in this order; None: all that the checkpoint predicts.
    padding: what is put around the crop.
    prediction_format: file format that the statistics are written in.
    calibrate: whether the images only serve to fit the checkpoint's temperatures.
    calibrated: whether distributions are predicted with fitted temperatures.
    overwrite: whether fields of view whose results exist are predicted again.
  """

  crop_size: int
  tile_size: int
  method: InferMethod
  panels: tuple[Panel, ...]
  simplify_panels: bool
  statistics: tuple[AnyStatistic, ...]
  channels: tuple[str, ...] | None
  padding: Padding
  prediction_format: PredictionFormat
  calibrate: bool
  calibrated: bool
  overwrite: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that decides what a run does, read-only.

  Attributes:
    mode: what the run does.
    metric: what an evaluation computes.
    base_directory: folder under which training and evaluations write, BASE below.
    restore_directory: folder of the checkpoint to start from or to use; None: BASE/train.
    image_directories: folders of images (or files, or manifests) that this mode reads.
    model: the network's name; None: as the checkpoint says.
    base_depth: the network's width; None: as the checkpoint says.
    num_z_values: number of z depths that the network reads; None: as the checkpoint says.
    loss: what training minimizes and LOSS reports.
    sampling: how patches are taken from fields of view.
    corruption: how the input of TRAIN and JITTER_STITCH is changed at random.
    input_channels: channels that the network reads at each z depth; None: as the checkpoint says.
    target_channels: labels that the network predicts; None: as the checkpoint says.
    input_range: which part of the camera's range the input uses; None: all of it.
    stretch_targets: target channels whose range in each field of view becomes [0, 1].
    random_seed: seed of all that is drawn at random; None: another seed at every start.
    training: settings of TRAIN.
    evaluation: settings of EVAL_TRAIN and EVAL_EVAL.
    inference: settings of INFER_FULL, STITCH and JITTER_STITCH.
    shards: TFRecord shards that this mode reads instead of images; None: it reads images.
    export: what EXPORT writes; None in other modes.
    cluster: the machines that train together; None: this process trains alone.
    sync_replicas: whether the cluster's workers wait for each other at every step.
    dask: the Dask processes that label fields of view; None: this process labels them.
    dry_run: whether the run only says what it would read and write.
    flags: the command line's flags and their values, for the record.
  """

  mode: Mode
  metric: Metric
  base_directory: pathlib.Path
  restore_directory: pathlib.Path | None
  image_directories: tuple[pathlib.Path, ...]
  model: str | None
  base_depth: int | None
  num_z_values: int | None
  loss: Loss
  sampling: Sampling
  corruption: Corruption
  stretch_targets: tuple[str, ...]
  random_seed: int | None
  training: Training
  evaluation: Evaluation
  inference: Inference
  input_channels: tuple[str, ...] | None
  target_channels: tuple[str, ...] | None
  input_range: InputRange | None
  shards: ShardReading | None
  export: Export | None
  cluster: Cluster | None
  sync_replicas: bool
  dask: DaskWorkers | None
  dry_run: bool
  flags: tuple[tuple[str, Any], ...]

  @property
  def train_directory(self) -> pathlib.Path:
    """The folder in which training writes its checkpoints and summaries: BASE/train."""
    return self.base_directory / 'train'

  @property
  def checkpoint_directory(self) -> pathlib.Path:
    """The folder in which an evaluation finds its checkpoint."""
    return self.restore_directory or self.train_directory

  @property
  def evaluation_directory(self) -> pathlib.Path:
    """The folder that this mode and metric write to: BASE/eval_eval_infer, for example."""
    name = {
      Metric.INFER_FULL: 'infer',
      Metric.LOSS: f'loss_{self.loss.value}',
      Metric.STITCH: 'stitch',
      Metric.JITTER_STITCH: 'jitter_stitch',
    }[self.metric]
    return self.base_directory / f'{self.mode.value.lower()}_{name}'
