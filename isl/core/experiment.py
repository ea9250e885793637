"""What a run is: frozen dataclasses that say it in the field's terms. No TensorFlow, no I/O."""

from __future__ import annotations

import dataclasses
import enum
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
  """How a network's outputs lie on its input, in pixels: the same for rows and columns.

  A square patch gives a square output at its centre; neighbouring patches are a stride apart, and
  their outputs abut.

  Attributes:
    patch: side of the input of one patch.
    output: side of its output, also the stride of dense outputs.
  """

  patch: int
  output: int

  @property
  def margin(self) -> int:
    """From the patch's border to its output's: what an output image lacks on each side."""
    return (self.patch - self.output) // 2

  def num_blocks(self, size: int) -> int:
    """How many whole outputs fit behind each other into `size` pixels of input, in a direction."""
    return max((size - self.patch) // self.output + 1, 0)

  def input_size(self, num_blocks: int) -> int:
    """The pixels of input that `num_blocks` neighbouring outputs need, in a direction."""
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
  """What files predictions are written as."""

  PNG = 'PNG'
  OME_TIFF = 'OME_TIFF'
  OME_ZARR = 'OME_ZARR'


class Padding(enum.Enum):
  """What the network sees around a crop, so that it predicts all of it; NONE: only its middle."""

  NONE = 'NONE'
  REFLECT = 'REFLECT'
  ZERO = 'ZERO'


class ExportFormat(enum.Enum):
  """What EXPORT writes."""

  SAVED_MODEL = 'SAVED_MODEL'
  ONNX = 'ONNX'


class Optimizer(enum.Enum):
  """How weights follow their gradients."""

  ADAM = 'ADAM'
  ADAGRAD = 'ADAGRAD'
  MOMENTUM = 'MOMENTUM'


class Loss(enum.Enum):
  """How far a predicted distribution is from the true class; formulas in losses.py."""

  CROSS_ENTROPY = 'CROSS_ENTROPY'
  RANKED_PROBABILITY_SCORE = 'RANKED_PROBABILITY_SCORE'


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRange:
  """Which part of its range a camera used: what becomes 0 and 1 in the input.

  Attributes:
    ends: (low, high) as on disk; None: percentiles of each field of view.
  """

  ends: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How patches are taken from fields of view, for a loss. Sizes are in pixels.

  Attributes:
    crop_size: side of a random crop.
    patch_stride: stride of the patches in it, in both directions.
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
  """Which TFRecord shards are read, and how.

  Attributes:
    paths: the shards.
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
  """What EXPORT writes, and where.

  Attributes:
    directory: holds a folder for each exported step.
    format: what is in it.
  """

  directory: pathlib.Path
  format: ExportFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaskWorkers:
  """Which processes label fields of view; one of the two is None.

  Attributes:
    scheduler: address of a cluster's scheduler.
    num_local: processes on this machine.
  """

  scheduler: str | None
  num_local: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
  """Random changes of the input, as standard deviations in intensities from 0 to 1.

  Attributes:
    multiplier_std: of an image's factor, around 1.
    offset_std: of an image's offset.
    noise_std: of a pixel's noise.
  """

  multiplier_std: float
  offset_std: float
  noise_std: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """How TRAIN goes about it.

  Attributes:
    optimizer: how weights follow their gradients.
    learning_rate: its rate.
    learning_decay_steps: steps in which the rate of MOMENTUM decays by 0.999.
    number_of_steps: the global step to stop at; None: until stopped.
    restore_logits: whether the heads start from the restored checkpoint, too.
    restore_inputs: whether the first layer does.
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
  """When EVAL_TRAIN and EVAL_EVAL compute their metric, and of how much.

  Attributes:
    interval_secs: pause between looks for a new checkpoint.
    delay_secs: wait before the first.
    once: whether the newest checkpoint is the only one.
    num_examples: patches averaged for LOSS.
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
    method: dense, or patch by patch.
    panels: error panels to draw.
    simplify_panels: whether they have only the columns that are needed most.
    statistics: of the predicted distributions, to be written.
    channels: labels to predict, in this order; None: all that the checkpoint predicts.
    padding: what is put around the crop.
    prediction_format: what files the statistics are written as.
    calibrate: whether the images serve to fit the checkpoint's temperatures, and nothing else.
    calibrated: whether distributions are predicted with fitted temperatures.
    overwrite: whether fields of view that are done already are done again.
  """

  crop_size: int
  tile_size: int
  method: InferMethod
  panels: tuple[Panel, ...]
  simplify_panels: bool
  statistics: tuple[AnyStatistic, ...]
  channels: tuple[str, ...] | None
  padding: Padding = Padding.NONE
  prediction_format: PredictionFormat = PredictionFormat.PNG
  calibrate: bool = False
  calibrated: bool = False
  overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, whole and read-only.

  Attributes:
    mode: what it does.
    metric: what an evaluation computes.
    base_directory: where training and evaluations write.
    restore_directory: folder of the checkpoint to start from or to use; None: the newest in
      BASE/train.
    image_directories: the folders of images (or files, or manifests) that this mode reads.
    model: the network's name; None: as the checkpoint says.
    base_depth: its width; None: likewise.
    num_z_values: z depths that it reads; None: likewise.
    loss: what training minimizes and LOSS reports.
    sampling: how patches are taken from fields of view.
    corruption: how the input of TRAIN and JITTER_STITCH is changed at random.
    input_channels: what the network reads at each z depth; None: as the checkpoint says.
    target_channels: the labels that it predicts; None: likewise.
    input_range: which part of the camera's range the input uses; None: all of it.
    stretch_targets: channels whose range in each field of view becomes [0, 1].
    random_seed: decides all that is drawn at random; None: another at every start.
    training: what TRAIN does.
    evaluation: when the evaluations happen.
    inference: what INFER_FULL, STITCH and JITTER_STITCH do.
    shards: TFRecord shards that this mode reads instead of images; None: it reads images.
    export: what EXPORT writes; None: for other modes.
    cluster: the machines that train together; None: this process alone.
    sync_replicas: whether these wait for each other at every step.
    dask: the processes that label fields of view; None: this one alone.
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
  input_channels: tuple[str, ...] | None = None
  target_channels: tuple[str, ...] | None = None
  input_range: InputRange | None = None
  shards: ShardReading | None = None
  export: Export | None = None
  cluster: Cluster | None = None
  sync_replicas: bool = False
  dask: DaskWorkers | None = None
  dry_run: bool = False
  flags: tuple[tuple[str, Any], ...] = ()

  @property
  def train_directory(self) -> pathlib.Path:
    """Where training writes its checkpoints and summaries."""
    return self.base_directory / 'train'

  @property
  def checkpoint_directory(self) -> pathlib.Path:
    """Where an evaluation finds its checkpoint."""
    return self.restore_directory or self.train_directory

  @property
  def evaluation_directory(self) -> pathlib.Path:
    """Where this mode and metric write: BASE/eval_eval_infer, say."""
    name = {
      Metric.INFER_FULL: 'infer',
      Metric.LOSS: f'loss_{self.loss.value}',
      Metric.STITCH: 'stitch',
      Metric.JITTER_STITCH: 'jitter_stitch',
    }[self.metric]
    return self.base_directory / f'{self.mode.value.lower()}_{name}'
