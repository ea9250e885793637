"""The program's flags: names, defaults and meanings, in the groups of --helpfull.

`FLAGS` has their values for isl/launch.py and isl/command_line.py; all other modules read an
Experiment. `Group` is what the flags are defined with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

from isl.core import statistic
from isl.core.experiment import (
  DEFAULT_BASE_DEPTH,
  DEFAULT_MODEL,
  DEFAULT_NUM_Z_VALUES,
  ExportFormat,
  InferMethod,
  InputRange,
  Loss,
  Metric,
  Mode,
  Optimizer,
  Padding,
  Panel,
  PredictionFormat,
)
from isl.core.statistic import Statistic

GROUP_PREFIX = 'isl: '
FLAGS = flags.FLAGS


class Group:
  """Defines flags under a title of --helpfull."""

  def __init__(self, title: str):
    self._module_name = GROUP_PREFIX + title

  def _define(self, define: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> None:
    define(name, *args, module_name=self._module_name, **kwargs)
    flags.declare_key_flag(name)

  def text(self, name: str, default: str | None, meaning: str) -> None:
    """Defines a flag that is a text."""
    self._define(flags.DEFINE_string, name, default, meaning)

  def switch(self, name: str, default: bool, meaning: str) -> None:
    """Defines a flag that is given as --name or --noname."""
    self._define(flags.DEFINE_boolean, name, default, meaning)

  def integer(self, name: str, default: int | None, meaning: str, *, least: int = 1) -> None:
    """Defines a flag that is a whole number of at least `least`."""
    self._define(flags.DEFINE_integer, name, default, meaning, lower_bound=least)

  def number(self, name: str, default: float, meaning: str) -> None:
    """Defines a flag that is a finite number of at least 0."""
    self._define(flags.DEFINE_float, name, default, meaning, lower_bound=0.0)
    flags.register_validator(name, math.isfinite, 'must be a finite number')

  def choice(self, name: str, default: str, allowed: Iterable[str], meaning: str) -> None:
    """Defines a flag that is one of the texts `allowed`."""
    self._define(flags.DEFINE_enum, name, default, list(allowed), meaning)

  def names(self, name: str, default: list[str] | None, meaning: str) -> None:
    """Defines a flag that is a comma list without repetitions."""
    self._define(flags.DEFINE_list, name, default, meaning)
    flags.register_validator(name, _no_name_twice)

  def choices(self, name: str, default: list[str], allowed: list[str], meaning: str) -> None:
    """Defines a flag that is a comma list of some of the texts `allowed`."""
    self.names(name, default, f'{meaning} A comma list of {", ".join(allowed)}.')

    def all_allowed(values: list[str]) -> bool:
      wrong = [value for value in values if value not in allowed]
      if wrong:
        raise flags.ValidationError(f'{", ".join(wrong)} is not one of {", ".join(allowed)}')
      return True

    flags.register_validator(name, all_allowed)


def _no_name_twice(values: list[str] | None) -> bool:
  if values and len(set(values)) < len(values):
    raise flags.ValidationError('names one of them twice')
  return True


def _must_suit(name: str, parse: Callable[[Any], object]) -> None:
  """Refuses a flag's value that `parse` refuses with a ValueError, in its words."""

  def suits(value: Any) -> bool:
    try:
      parse(value)
    except ValueError as e:
      raise flags.ValidationError(str(e)) from e
    return True

  flags.register_validator(name, suits)


def own_flags() -> list[flags.Flag]:
  """All that are defined here, in the groups' order."""
  return [
    flag
    for module, defined in FLAGS.flags_by_module_dict().items()
    if module.startswith(GROUP_PREFIX)
    for flag in defined
  ]


# fmt: off
_run = Group('what to run')
_run.choice('mode', 'TRAIN', [m.name for m in Mode], 'What to do.')
_run.choice('metric', 'LOSS', [m.name for m in Metric],
            'What an evaluation computes. TRAIN goes with LOSS, EXPORT with STITCH.')
_run.text('base_directory', '/tmp/minception/',
          'BASE: training writes to BASE/train, evaluations to BASE/eval_train_* and'
          ' BASE/eval_eval_*.')
_run.text('export_directory', '/tmp/minception_export/', 'Where EXPORT writes.')
_run.choice('export_format', 'SAVED_MODEL', [f.name for f in ExportFormat],
            'What EXPORT writes: a SavedModel, or an ONNX model.')
_run.switch('dry_run', False,
            'Say what would be read and written, and do nothing.')
_run.integer('random_seed', None,
             'Decides all that is drawn at random; without it, every start draws anew.', least=0)
_run.switch('tensorcheck_enable_checks', False,
            'Check shapes, bounds and finiteness of tensors at run time.')

_data = Group('images')
_data.switch('read_pngs', False,
             'Read images (PNGs or what bioio reads); otherwise TFRecord shards.')
_data.names('dataset_train_directory', None,
            'Images for TRAIN and EVAL_TRAIN (--read_pngs), as a comma list of folders, files and'
            ' manifests; each is drawn equally often.')
_data.text('dataset_eval_directory', None,
           'Images for EVAL_EVAL (--read_pngs): a folder, a file or a manifest.')
_data.names('input_channels', None,
            'What the network reads at each z depth (TRAIN); without it, TRANSMISSION: one of'
            " BRIGHTFIELD, PHASE_CONTRAST, DIC. Else the checkpoint's.")
_data.names('target_channels', None,
            "Labels to train on (TRAIN), in this order; without it, the original's nine. Else the"
            " checkpoint's.")
_data.text('input_range', None,
           'low,high: what becomes 0 and 1 in the input, as on disk; auto: the 0.1 and 99.9'
           " percentiles of each field of view. Without it, the type's whole range.")
_must_suit('input_range', InputRange.parse)
_data.names('stretch_targets', [],
            "Target channels whose range in each field of view (from its 0.1 to its 99.9"
            " percentile) is stretched to [0, 1].")
_data.text('dataset_pattern', None,
           'Name of the shards, with %d (or %05d) for the number from 0 on. Every eighth is for'
           ' evaluation.')
_data.integer('dataset_num_shards', 1024, 'Number of shards.')
_data.switch('skip_corrupt_shards', False,
             'Leave out the rest of a damaged shard instead of stopping.')
_data.switch('is_recordio', True, 'Shards are TFRecord; false (SSTable) is refused.')
_data.switch('train_on_full_dataset', False, 'Train on the evaluation shards too.')
_data.integer('data_batch_size', 4, 'Examples of shards decoded at once.')
_data.integer('data_batch_num_threads', 4, 'Shards read at the same time.')
_data.integer('data_batch_capacity', 8, 'Examples of shards among which the next is drawn.')

_network = Group('network and checkpoint')
_network.text('restore_directory', '',
              'Folder of the checkpoint to start from (TRAIN) or to use (all others); without it,'
              ' these use the newest in BASE/train.')
_network.switch('restore_logits', True, 'Restore the heads (TRAIN).')
_network.switch('restore_inputs', True,
                'Restore the first layer (TRAIN); false: the number of z depths may change.')
_network.choice('model', DEFAULT_MODEL, ['CONCORDANCE', 'FOVEA'],
                "The network. Where not given, the checkpoint's.")
_network.integer('base_depth', DEFAULT_BASE_DEPTH,
                 "The network's width. Where not given, the checkpoint's.")
_network.integer('num_z_values', DEFAULT_NUM_Z_VALUES,
                 "z depths that the network reads. Where not given, the checkpoint's.")

_training = Group('training')
_training.choice('optimizer', 'ADAM', [o.name for o in Optimizer], 'The optimizer.')
_training.number('learning_rate', 1e-4, 'The learning rate.')
flags.register_validator('learning_rate', lambda rate: rate > 0, 'must be positive')
_training.integer('learning_decay_steps', 4096,
                  'Steps in which the rate of MOMENTUM decays by 0.999.')
_training.choice('loss', 'CROSS_ENTROPY', [x.name for x in Loss],
                 'The loss.')
_training.integer('loss_crop_size', 520, 'Crop for LOSS, in pixels.')
_training.integer('loss_patch_stride', 256, 'Stride of the patches in that crop, in pixels.')
_training.integer('loss_output_size', 8, 'Outputs of a training patch, in pixels: 8 or 8 + 16 k.')
flags.register_validator('loss_output_size', lambda n: n % 16 == 8,
                         'must be 8, 24, 40, .. (8 + 16 k)')
_training.integer('preprocess_batch_size', 16, 'Patches in a training batch.')
_training.integer('preprocess_shuffle_batch_num_threads', 16, 'Threads that make batches.')
_training.integer('preprocess_batch_capacity', 64, 'Patches among which a batch is drawn.')
for _name, _what in (('offset', 'offset of an image, in intensities from 0 to 1'),
                     ('multiplier', 'factor of an image, around 1'),
                     ('noise', 'noise of a pixel, in intensities from 0 to 1')):
  _training.number(f'augment_{_name}_std', 0.0, f'Standard deviation of the {_what}.')
_training.integer('number_of_steps', None,
                  'Global step to stop at; without it, training goes on until it is stopped.')
_training.integer('save_summaries_secs', 180, 'Seconds between summaries.')
_training.integer('save_interval_secs', 180, 'Seconds between checkpoints.')

_evaluation = Group('evaluation')
_evaluation.integer('eval_interval_secs', 15, 'Seconds between evaluations.', least=0)
_evaluation.integer('eval_delay_secs', 0, 'Seconds before the first evaluation.', least=0)
_evaluation.switch('eval_once', False, 'Evaluate the newest checkpoint, and exit.')
_evaluation.integer('metric_num_examples', 1024, 'Patches averaged in an evaluation of LOSS.')
_evaluation.integer('stitch_crop_size', 500,
                    "Crop at the image's top left for STITCH and INFER_FULL, in pixels; 0: the"
                    ' whole image.', least=0)

_inference = Group('inference (INFER_FULL)')
_inference.names('infer_channel_whitelist', None,
                 'Target channels to infer, in this order; without it, all that the checkpoint'
                 ' predicts.')
_inference.names('infer_statistics', [Statistic.MEDIAN.name],
                 'Statistics of the predicted distributions to write, a comma list of'
                 f' {statistic.ALLOWED}; empty: none.')
_must_suit('infer_statistics', statistic.parse_all)
_inference.choice('prediction_format', 'PNG', [f.name for f in PredictionFormat],
                  'PNG: a 16-bit file for each label and statistic; OME_TIFF, OME_ZARR: one for all'
                  ' of a field of view, floats.')
_inference.choice('infer_padding', 'NONE', [p.name for p in Padding],
                  "NONE: predict the crop's middle, of which the network sees all surroundings;"
                  ' REFLECT, ZERO: the whole crop, with mirrored or no light around it.')
_inference.switch('calibrate', False,
                  'Fit the temperatures of the distributions to these images and their labels, and'
                  ' keep them beside the checkpoint.')
_inference.switch('calibrated', False, 'Predict with the fitted temperatures.')
_inference.switch('overwrite', False, 'Label fields of view again that are done already.')
_inference.choices('infer_panels', [p.name for p in Panel], [p.name for p in Panel],
                   'Error panels to draw; empty: none.')
_inference.switch('infer_simplify_error_panels', True,
                  'Draw three columns in the error panels: median, truth, error; otherwise all'
                  ' twelve.')
_inference.integer('infer_size', 16,
                   "A tile's side, in blocks of 8 x 8 outputs; a tile is computed at once.")
_inference.choice('infer_method', 'DENSE', [m.name for m in InferMethod],
                  'DENSE: a tile at once, sharing what patches have in common; PATCHES: each'
                  ' patch by itself. The same numbers.')
_inference.switch('infer_continuously', False, 'Infer again whenever a new checkpoint appears.')

_machines = Group('many machines')
_machines.text('master', 'local',
               "TensorFlow master; '' and local: in this process. Else this worker's own address,"
               ' grpc://host:port.')
_machines.integer('ps_tasks', 0, 'Parameter servers.', least=0)
_machines.integer('task', 0, 'Number of this worker (0: chief) or parameter server.', least=0)
_machines.names('ps_hosts', None, 'Addresses of the parameter servers, a comma list of host:port.')
_machines.names('worker_hosts', None,
                'Addresses of the workers, a comma list of host:port; the first is the chief.')
_machines.switch('sync_replicas', False,
                 'A step is the mean of one batch of each worker, for which all wait.')
_machines.text('dask_scheduler', None,
               'INFER_FULL: label fields of view on the workers of this Dask scheduler,'
               ' tcp://host:port.')
_machines.integer('dask_workers', None,
                  'INFER_FULL: label fields of view in so many processes on this machine, which'
                  ' divide its cores.')
# fmt: on
