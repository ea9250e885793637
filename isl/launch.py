"""The program: reads the command line and runs what it asks for.

    isl-launch --mode EVAL_EVAL --metric INFER_FULL --restore_directory CHECKPOINTS --read_pngs \\
      --dataset_eval_directory IMAGES --base_directory OUT

The same as `python -m isl.launch FLAGS` and `bazel run isl:launch -- FLAGS`. Flags are known here
alone: they become an Experiment, which the modes read.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from isl.experiment import (
  PREDICTION_STATISTICS,
  Experiment,
  Inference,
  InferMethod,
  Metric,
  Mode,
  Panel,
  Statistic,
)

FLAGS = flags.FLAGS

# What the flags are grouped by in --helpfull.
_RUN, _DATA, _NETWORK = 'what to run', 'images', 'network and checkpoint'
_TRAINING, _EVALUATION, _INFERENCE = 'training', 'evaluation', 'inference (INFER_FULL)'
_MACHINES = 'many machines'


def _define(define: Callable[..., Any], group: str, name: str, *args: Any, **kwargs: Any) -> None:
  define(name, *args, module_name=f'isl: {group}', **kwargs)
  flags.declare_key_flag(name)


def _names(enumeration: Any) -> list[str]:
  return [member.name for member in enumeration]


def _define_run_flags() -> None:
  string, enum, boolean = flags.DEFINE_string, flags.DEFINE_enum, flags.DEFINE_boolean
  _define(enum, _RUN, 'mode', 'TRAIN', _names(Mode), 'What to do.')
  _define(
    enum,
    _RUN,
    'metric',
    'LOSS',
    _names(Metric),
    'What an evaluation computes. TRAIN goes with LOSS, EXPORT with STITCH.',
  )
  _define(
    string,
    _RUN,
    'base_directory',
    '/tmp/minception/',
    'BASE: training writes to BASE/train, evaluations to BASE/eval_train_* and BASE/eval_eval_*.',
  )
  _define(string, _RUN, 'export_directory', '/tmp/minception_export/', 'Where EXPORT writes.')
  _define(
    boolean,
    _RUN,
    'tensorcheck_enable_checks',
    False,
    'Check shapes, bounds and finiteness of tensors at run time.',
  )
  _define(string, _MACHINES, 'master', 'local', "TensorFlow master; '' and local: in this process.")
  _define(flags.DEFINE_integer, _MACHINES, 'ps_tasks', 0, 'Parameter servers.', lower_bound=0)
  _define(
    flags.DEFINE_integer, _MACHINES, 'task', 0, "This worker's index; 0: chief.", lower_bound=0
  )


def _define_network_flags() -> None:
  string, enum, boolean = flags.DEFINE_string, flags.DEFINE_enum, flags.DEFINE_boolean
  integer = flags.DEFINE_integer
  _define(
    string,
    _NETWORK,
    'restore_directory',
    '',
    'Folder of the checkpoint to start from (TRAIN) or to use (all others); without it, these use'
    ' the newest in BASE/train.',
  )
  _define(boolean, _NETWORK, 'restore_logits', True, 'Restore the heads (TRAIN).')
  _define(
    boolean,
    _NETWORK,
    'restore_inputs',
    True,
    'Restore the first layer (TRAIN); false: the number of z depths may change.',
  )
  _define(
    enum,
    _NETWORK,
    'model',
    'CONCORDANCE',
    ['CONCORDANCE', 'FOVEA'],
    "The network. Where not given, the checkpoint's.",
  )
  _define(
    integer,
    _NETWORK,
    'base_depth',
    400,
    "The network's width. Where not given, the checkpoint's.",
    lower_bound=1,
  )
  _define(
    integer,
    _NETWORK,
    'num_z_values',
    26,
    "z depths that the network reads. Where not given, the checkpoint's.",
    lower_bound=1,
  )


def _define_data_flags() -> None:
  string, boolean, integer = flags.DEFINE_string, flags.DEFINE_boolean, flags.DEFINE_integer
  _define(boolean, _DATA, 'read_pngs', False, 'Read folders of PNGs; otherwise TFRecord shards.')
  _define(
    string, _DATA, 'dataset_train_directory', None, 'Images for TRAIN and EVAL_TRAIN (--read_pngs).'
  )
  _define(string, _DATA, 'dataset_eval_directory', None, 'Images for EVAL_EVAL (--read_pngs).')
  _define(string, _DATA, 'dataset_pattern', None, 'Name of the shards, with %d for the number.')
  _define(integer, _DATA, 'dataset_num_shards', 1024, 'Number of shards.', lower_bound=1)
  _define(boolean, _DATA, 'is_recordio', True, 'Shards are TFRecord; false (SSTable) is refused.')
  _define(boolean, _DATA, 'train_on_full_dataset', False, 'Train on the evaluation shards too.')
  for name, default, meaning in (
    ('data_batch_size', 4, 'Examples read from shards at once.'),
    ('data_batch_num_threads', 4, 'Threads that read shards.'),
    ('data_batch_capacity', 8, 'Examples read ahead.'),
    ('preprocess_batch_size', 16, 'Patches in a training batch.'),
    ('preprocess_shuffle_batch_num_threads', 16, 'Threads that make batches.'),
    ('preprocess_batch_capacity', 64, 'Patches among which a batch is drawn.'),
  ):
    _define(integer, _DATA, name, default, meaning, lower_bound=1)
  for name, what in (
    ('augment_offset_std', 'offset added to an image'),
    ('augment_multiplier_std', 'factor, around 1, of an image'),
    ('augment_noise_std', 'noise added to a pixel'),
  ):
    meaning = f'Standard deviation of the {what} in training; intensities are in [0, 1].'
    _define(flags.DEFINE_float, _DATA, name, 0.0, meaning, lower_bound=0.0)


def _define_training_flags() -> None:
  enum, integer = flags.DEFINE_enum, flags.DEFINE_integer
  _define(enum, _TRAINING, 'optimizer', 'ADAM', ['ADAM', 'ADAGRAD', 'MOMENTUM'], 'The optimizer.')
  _define(flags.DEFINE_float, _TRAINING, 'learning_rate', 1e-4, 'The learning rate.')
  flags.register_validator(
    'learning_rate', lambda rate: 0 < rate < math.inf, 'must be a positive number'
  )
  _define(
    integer,
    _TRAINING,
    'learning_decay_steps',
    4096,
    'Steps in which the rate of MOMENTUM decays by 0.999.',
    lower_bound=1,
  )
  _define(
    enum,
    _TRAINING,
    'loss',
    'CROSS_ENTROPY',
    ['CROSS_ENTROPY', 'RANKED_PROBABILITY_SCORE'],
    'The loss.',
  )
  for name, default, meaning in (
    ('loss_crop_size', 520, 'Crop for LOSS, in pixels.'),
    ('loss_patch_stride', 256, 'Stride of the patches in that crop, in pixels.'),
    ('loss_output_size', 8, 'Outputs of a training patch, in pixels: 8 or 8 + 16 k.'),
    ('save_summaries_secs', 180, 'Seconds between summaries.'),
    ('save_interval_secs', 180, 'Seconds between checkpoints.'),
  ):
    _define(integer, _TRAINING, name, default, meaning, lower_bound=1)
  flags.register_validator(
    'loss_output_size', lambda size: size % 16 == 8, 'must be 8, 24, 40, .. (8 + 16 k)'
  )


def _define_evaluation_flags() -> None:
  integer = flags.DEFINE_integer
  _define(
    integer, _EVALUATION, 'eval_interval_secs', 15, 'Pause between evaluations.', lower_bound=0
  )
  _define(
    integer, _EVALUATION, 'eval_delay_secs', 0, 'Wait before the first evaluation.', lower_bound=0
  )
  _define(
    integer,
    _EVALUATION,
    'metric_num_examples',
    1024,
    'Patches averaged in an evaluation of LOSS.',
    lower_bound=1,
  )
  _define(
    integer,
    _EVALUATION,
    'stitch_crop_size',
    500,
    "Crop at the image's top left for STITCH and INFER_FULL, in pixels; 0: the whole image.",
    lower_bound=0,
  )


def _define_inference_flags() -> None:
  boolean, list_flag = flags.DEFINE_boolean, flags.DEFINE_list
  _define(
    flags.DEFINE_integer,
    _INFERENCE,
    'infer_size',
    16,
    "A tile's side, in blocks of 8 x 8 outputs; a tile is computed at once.",
    lower_bound=1,
  )
  _define(
    flags.DEFINE_enum,
    _INFERENCE,
    'infer_method',
    'DENSE',
    _names(InferMethod),
    'DENSE: a tile at once, sharing what patches have in common; PATCHES: each patch by itself.'
    ' The same numbers.',
  )
  _define(
    boolean,
    _INFERENCE,
    'infer_continuously',
    False,
    'Infer again whenever a new checkpoint appears.',
  )
  _define(
    list_flag,
    _INFERENCE,
    'infer_channel_whitelist',
    None,
    'Target channels to infer, in this order; without it, all that the checkpoint predicts.',
  )
  _define(
    boolean,
    _INFERENCE,
    'infer_simplify_error_panels',
    True,
    'Draw three columns in the error panels: median, truth, error; otherwise all twelve.',
  )
  _define_choices(
    'infer_panels', _names(Panel), _names(Panel), 'Error panels to draw; empty: none.'
  )
  _define_choices(
    'infer_statistics',
    [Statistic.MEDIAN.name],
    [statistic.name for statistic in PREDICTION_STATISTICS],
    'Statistics of the predicted distributions to write as images; empty: none.',
  )


def _define_choices(name: str, default: list[str], allowed: list[str], meaning: str) -> None:
  """A comma list of some of `allowed`."""
  help_text = f'{meaning} A comma list of {", ".join(allowed)}.'
  _define(flags.DEFINE_list, _INFERENCE, name, default, help_text)

  def check(values: list[str]) -> bool:
    wrong = [value for value in values if value not in allowed]
    if wrong:
      raise flags.ValidationError(f'{", ".join(wrong)} is not one of {", ".join(allowed)}')
    if len(set(values)) < len(values):
      raise flags.ValidationError('names one of them twice')
    return True

  flags.register_validator(name, check)


_define_run_flags()
_define_network_flags()
_define_data_flags()
_define_training_flags()
_define_evaluation_flags()
_define_inference_flags()


def _path(text: str) -> pathlib.Path:
  """A relative path counts from where the user stands; Bazel starts the program elsewhere."""
  here = os.environ.get('BUILD_WORKING_DIRECTORY', '')
  return pathlib.Path(here, os.path.expanduser(text))


def _given(name: str) -> Any:
  """A flag's value, or None if the command line doesn't have it."""
  return FLAGS[name].value if FLAGS[name].present else None


def _check_together(mode: Mode, metric: Metric) -> None:
  """Flags that exclude or need each other.

  Raises:
    ValueError: naming them.
  """
  if mode is Mode.TRAIN and metric is not Metric.LOSS:
    raise ValueError(f'--mode TRAIN goes with --metric LOSS, not {metric.name}')
  if mode is Mode.EXPORT and metric is not Metric.STITCH:
    raise ValueError(f'--mode EXPORT goes with --metric STITCH, not {metric.name}')
  if not FLAGS.is_recordio:
    raise ValueError(
      '--is_recordio must be true: shards are TFRecord files; SSTable has no public reader'
    )
  if mode is Mode.DESCRIBE:
    return
  if mode in (Mode.TRAIN, Mode.EXPORT, Mode.PS) or metric is not Metric.INFER_FULL:
    raise ValueError(
      f'--mode {mode.name} with --metric {metric.name} is not in this version yet; it has --mode'
      ' EVAL_EVAL and EVAL_TRAIN with --metric INFER_FULL, and --mode DESCRIBE'
    )
  if FLAGS.master not in ('', 'local') or FLAGS.ps_tasks or FLAGS.task:
    raise ValueError(
      '--master, --ps_tasks and --task are for many machines, which are not in this version yet;'
      " --master must be '' or local, the others 0"
    )
  if not (FLAGS.restore_logits and FLAGS.restore_inputs):
    raise ValueError(
      '--norestore_logits and --norestore_inputs go with --mode TRAIN: without these layers'
      ' nothing can be predicted'
    )
  if not FLAGS.read_pngs:
    raise ValueError(
      '--read_pngs is needed, with a folder of images: TFRecord shards are not in this version yet'
    )


def _image_directory(mode: Mode) -> pathlib.Path | None:
  """The folder that the mode reads.

  Raises:
    ValueError: it is not given.
  """
  if mode not in (Mode.EVAL_TRAIN, Mode.EVAL_EVAL):
    return None
  name = 'dataset_train_directory' if mode is Mode.EVAL_TRAIN else 'dataset_eval_directory'
  if not FLAGS[name].value:
    raise ValueError(f'--{name} is needed with --read_pngs and --mode {mode.name}')
  return _path(FLAGS[name].value)


def make_experiment() -> Experiment:
  """The run that the command line describes.

  Raises:
    ValueError: its flags contradict each other, or one is missing.
  """
  mode, metric = Mode[FLAGS.mode], Metric[FLAGS.metric]
  _check_together(mode, metric)
  base_directory = _path(FLAGS.base_directory)
  restore = FLAGS.restore_directory
  channels = FLAGS.infer_channel_whitelist
  if channels and len(set(channels)) < len(channels):
    raise ValueError(f'--infer_channel_whitelist names a channel twice: {",".join(channels)}')
  return Experiment(
    mode=mode,
    metric=metric,
    base_directory=base_directory,
    checkpoint_directory=_path(restore) if restore else base_directory / 'train',
    image_directory=_image_directory(mode),
    model=_given('model'),
    base_depth=_given('base_depth'),
    num_z_values=_given('num_z_values'),
    eval_interval_secs=FLAGS.eval_interval_secs,
    eval_delay_secs=FLAGS.eval_delay_secs,
    inference=Inference(
      crop_size=FLAGS.stitch_crop_size,
      tile_size=FLAGS.infer_size,
      method=InferMethod[FLAGS.infer_method],
      panels=tuple(Panel[name] for name in FLAGS.infer_panels),
      simplify_panels=FLAGS.infer_simplify_error_panels,
      statistics=tuple(Statistic[name] for name in FLAGS.infer_statistics),
      channels=tuple(channels) if channels else None,
      continuously=FLAGS.infer_continuously,
    ),
    flags=tuple(
      (flag.name, flag.value)
      for module, defined in FLAGS.flags_by_module_dict().items()
      if module.startswith('isl: ')
      for flag in defined
    ),
  )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
  """Drops what native code writes to stderr; Python's exceptions go on."""
  sys.stderr.flush()
  saved = os.dup(2)
  with open(os.devnull, 'wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


def _run_mode(experiment: Experiment) -> None:
  # Loading TensorFlow says in four lines what no user asked for; no environment variable stops it.
  with _quiet_stderr():
    # Not at the top: it takes seconds, for which a misspelt flag should not have to wait.
    from isl import checkpoints, infer, tensorcheck

  if FLAGS.tensorcheck_enable_checks:
    tensorcheck.enable()
  if experiment.mode is Mode.DESCRIBE:
    checkpoint = checkpoints.Checkpoint(checkpoints.find_newest(experiment.checkpoint_directory))
    print(f'checkpoint: {checkpoint.prefix}\n{checkpoint.describe()}')
  else:
    infer.run(experiment)


def main(argv: Sequence[str]) -> None:
  """Runs the mode that the flags name; what a user can mend is said in one line."""
  if not FLAGS['verbosity'].present:
    logging.set_verbosity(logging.INFO)
  # TensorFlow's own chatter on machines without a GPU would hide what a user has to read.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    if len(argv) > 1:
      raise ValueError(f'{argv[1]!r} is not a flag; see --helpfull')
    _run_mode(make_experiment())
  except (ValueError, OSError) as e:
    logging.debug('Where it happened:', exc_info=True)
    _exit(e, 1)
  except KeyboardInterrupt:
    _exit('stopped', 130)


def _exit(message: object, status: int) -> NoReturn:
  print(f'isl-launch: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(status)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return FLAGS(argv)
  except flags.Error as e:
    _exit(e, 1)


def run() -> None:
  """The console script."""
  app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  run()
