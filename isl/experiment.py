"""What a run is: frozen dataclasses that say it in the field's terms. No TensorFlow, no I/O."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
from collections.abc import Sequence
from typing import Any

MAXPROJECT = 'MAXPROJECT'
TRANSMISSION = 'TRANSMISSION'

# A field of view has one of these; the network sees it as TRANSMISSION.
TRANSMITTED_LIGHT_CHANNELS = ('BRIGHTFIELD', 'PHASE_CONTRAST', 'DIC')

# In the canonical order. NEURITE_CONFOCAL is made from two others, see SYNTHETIC_CHANNELS.
TARGET_CHANNELS = (
  'DAPI_CONFOCAL',
  'DAPI_WIDEFIELD',
  'CELLMASK_CONFOCAL',
  'TUJ1_WIDEFIELD',
  'NFH_CONFOCAL',
  'MAP2_CONFOCAL',
  'ISLET_WIDEFIELD',
  'DEAD_CONFOCAL',
  'NEURITE_CONFOCAL',
)

# A channel that no microscope records: the mean of these, masked by the geometric mean of theirs.
SYNTHETIC_CHANNELS = {'NEURITE_CONFOCAL': ('NFH_CONFOCAL', 'MAP2_CONFOCAL')}

# The published checkpoint's network: what TRAIN makes unless a checkpoint or a flag says otherwise.
DEFAULT_MODEL = 'CONCORDANCE'
DEFAULT_BASE_DEPTH = 400
DEFAULT_NUM_Z_VALUES = 26

# A pixel's intensity is one of this many classes; class k has the value k / (NUM_CLASSES - 1).
NUM_CLASSES = 256


class Statistic(enum.Enum):
  """What is reported of a pixel's predicted distribution; formulas in ops.py."""

  MODE = 'MODE'
  MEDIAN = 'MEDIAN'
  MEAN = 'MEAN'
  STANDARD_DEVIATION = 'STANDARD_DEVIATION'
  PROBABILITY_NONZERO = 'PROBABILITY_NONZERO'
  ENTROPY = 'ENTROPY'
  CROSS_ENTROPY = 'CROSS_ENTROPY'
  RANKED_PROBABILITY_SCORE = 'RANKED_PROBABILITY_SCORE'


# Those that need no truth, and so can be written as pictures of any field of view.
PREDICTION_STATISTICS = tuple(
  s for s in Statistic if s not in (Statistic.CROSS_ENTROPY, Statistic.RANKED_PROBABILITY_SCORE)
)


@dataclasses.dataclass(frozen=True)
class ImageKey:
  """Which image of a field of view.

  Attributes:
    z: on disk, the depth's index (an int) or MAXPROJECT; for the network, the position in [0, 1]
      (a float) or MAXPROJECT.
    channel: what was recorded, DAPI_CONFOCAL say.
  """

  z: int | float | str
  channel: str

  def __str__(self) -> str:
    """`{z}/{channel}` as in the checkpoint's variable names: Python prints the z, so 0.0, 0.04."""
    return f'{self.z}/{self.channel}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackSpec:
  """The images that the network reads or predicts, synthetic channels included.

  Attributes:
    z_values: positions in [0, 1], or MAXPROJECT alone.
    channels: channels at each of these.
  """

  z_values: tuple[float | str, ...]
  channels: tuple[str, ...]

  @property
  def keys(self) -> tuple[ImageKey, ...]:
    """Every image's key in the canonical order: z slowest."""
    return tuple(ImageKey(z, channel) for z in self.z_values for channel in self.channels)


def input_stack(num_z_values: int) -> StackSpec:
  """The transmitted-light stack at `num_z_values` evenly spaced positions in [0, 1]."""
  last = max(num_z_values - 1, 1)
  # Rounded, because the variables' names hold these numbers as Python prints them.
  return StackSpec(
    z_values=tuple(round(i / last, 4) for i in range(num_z_values)), channels=(TRANSMISSION,)
  )


def target_stack(channels: Sequence[str] = TARGET_CHANNELS) -> StackSpec:
  """The fluorescent labels, all at z MAXPROJECT."""
  return StackSpec(z_values=(MAXPROJECT,), channels=tuple(channels))


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
    statistics: a file with predictions is written for each of these.
    channels: labels to predict, in this order; None: all that the checkpoint predicts.
  """

  crop_size: int
  tile_size: int
  method: InferMethod
  panels: tuple[Panel, ...]
  simplify_panels: bool
  statistics: tuple[Statistic, ...]
  channels: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, whole and read-only.

  Attributes:
    mode: what it does.
    metric: what an evaluation computes.
    base_directory: where training and evaluations write.
    restore_directory: folder of the checkpoint to start from or to use; None: the newest in
      BASE/train.
    image_directories: the folders of images that this mode reads.
    model: the network's name; None: as the checkpoint says.
    base_depth: its width; None: likewise.
    num_z_values: z depths that it reads; None: likewise.
    loss: what training minimizes and LOSS reports.
    sampling: how patches are taken from fields of view.
    corruption: how the input of TRAIN and JITTER_STITCH is changed at random.
    stretch_targets: channels whose range in each field of view becomes [0, 1].
    random_seed: decides all that is drawn at random; None: another at every start.
    training: what TRAIN does.
    evaluation: when the evaluations happen.
    inference: what INFER_FULL, STITCH and JITTER_STITCH do.
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
