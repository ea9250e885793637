"""The command line's flags, and the Experiment that they make. They are known here alone."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from absl import flags

from isl import flag_groups, statistic
from isl.experiment import (
  DEFAULT_BASE_DEPTH,
  DEFAULT_MODEL,
  DEFAULT_NUM_Z_VALUES,
  Corruption,
  Evaluation,
  Experiment,
  Inference,
  InferMethod,
  InputRange,
  Loss,
  Metric,
  Mode,
  Optimizer,
  Padding,
  Panel,
  PredictionFormat,
  Sampling,
  Training,
)
from isl.statistic import Statistic

FLAGS = flags.FLAGS


def _are_statistics(values: list[str]) -> bool:
  try:
    statistic.parse_all(values)
  except ValueError as e:
    raise flags.ValidationError(str(e)) from e
  return True


# fmt: off
_run = flag_groups.Group('what to run')
_run.choice('mode', 'TRAIN', [m.name for m in Mode], 'What to do.')
_run.choice('metric', 'LOSS', [m.name for m in Metric],
            'What an evaluation computes. TRAIN goes with LOSS, EXPORT with STITCH.')
_run.text('base_directory', '/tmp/minception/',
          'BASE: training writes to BASE/train, evaluations to BASE/eval_train_* and'
          ' BASE/eval_eval_*.')
_run.text('export_directory', '/tmp/minception_export/', 'Where EXPORT writes.')
_run.switch('dry_run', False,
            'Say what would be read and written, and do nothing.')
_run.integer('random_seed', None,
             'Decides all that is drawn at random; without it, every start draws anew.', least=0)
_run.switch('tensorcheck_enable_checks', False,
            'Check shapes, bounds and finiteness of tensors at run time.')

_data = flag_groups.Group('images')
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
_data.names('stretch_targets', [],
            "Target channels whose range in each field of view (from its 0.1 to its 99.9"
            " percentile) is stretched to [0, 1].")
_data.text('dataset_pattern', None, 'Name of the shards, with %d for the number.')
_data.integer('dataset_num_shards', 1024, 'Number of shards.')
_data.switch('is_recordio', True, 'Shards are TFRecord; false (SSTable) is refused.')
_data.switch('train_on_full_dataset', False, 'Train on the evaluation shards too.')
_data.integer('data_batch_size', 4, 'Examples read from shards at once.')
_data.integer('data_batch_num_threads', 4, 'Threads that read shards.')
_data.integer('data_batch_capacity', 8, 'Examples read ahead.')

_network = flag_groups.Group('network and checkpoint')
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

_training = flag_groups.Group('training')
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
for _name, _what in (('offset', 'offset of an image'), ('multiplier', 'factor of an image'),
                     ('noise', 'noise of a pixel')):
  _training.number(f'augment_{_name}_std', 0.0,
                   f'Standard deviation of the {_what}, in intensities from 0 to 1.')
_training.integer('number_of_steps', None,
                  'Global step to stop at; without it, training goes on until it is stopped.')
_training.integer('save_summaries_secs', 180, 'Seconds between summaries.')
_training.integer('save_interval_secs', 180, 'Seconds between checkpoints.')

_evaluation = flag_groups.Group('evaluation')
_evaluation.integer('eval_interval_secs', 15, 'Seconds between evaluations.', least=0)
_evaluation.integer('eval_delay_secs', 0, 'Seconds before the first evaluation.', least=0)
_evaluation.switch('eval_once', False, 'Evaluate the newest checkpoint, and exit.')
_evaluation.integer('metric_num_examples', 1024, 'Patches averaged in an evaluation of LOSS.')
_evaluation.integer('stitch_crop_size', 500,
                    "Crop at the image's top left for STITCH and INFER_FULL, in pixels; 0: the"
                    ' whole image.', least=0)

_inference = flag_groups.Group('inference (INFER_FULL)')
_inference.names('infer_channel_whitelist', None,
                 'Target channels to infer, in this order; without it, all that the checkpoint'
                 ' predicts.')
_inference.names('infer_statistics', [Statistic.MEDIAN.name],
                 'Statistics of the predicted distributions to write, a comma list of'
                 f' {statistic.ALLOWED}; empty: none.')
flags.register_validator('infer_statistics', _are_statistics)
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

_machines = flag_groups.Group('many machines')
_machines.text('master', 'local', "TensorFlow master; '' and local: in this process.")
_machines.integer('ps_tasks', 0, 'Parameter servers.', least=0)
_machines.integer('task', 0, "This worker's index; 0: chief.", least=0)
# fmt: on


def _path(text: str) -> pathlib.Path:
  """A path as flags give it.

  Raises:
    ValueError: it begins with the home of somebody who is not known here.
  """
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as e:
    raise ValueError(f'{text!r} has no home directory: {e}') from e


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
  if mode in (Mode.EXPORT, Mode.PS):
    raise ValueError(f'--mode {mode.name} is not in this version yet')
  if FLAGS.master not in ('', 'local') or FLAGS.ps_tasks or FLAGS.task:
    raise ValueError(
      '--master, --ps_tasks and --task are for many machines, which are not in this version yet;'
      " --master must be '' or local, the others 0"
    )
  if mode is not Mode.TRAIN and not (FLAGS.restore_logits and FLAGS.restore_inputs):
    raise ValueError(
      '--norestore_logits and --norestore_inputs go with --mode TRAIN: without these layers'
      ' nothing can be predicted'
    )
  if not FLAGS.read_pngs:
    raise ValueError(
      '--read_pngs is needed, with --dataset_eval_directory (or _train_): reading TFRecord shards'
      ' is not in this version yet'
    )


def _image_directories(mode: Mode) -> tuple[pathlib.Path, ...]:
  """The folders that the mode reads.

  Raises:
    ValueError: none is given.
  """
  if mode not in (Mode.TRAIN, Mode.EVAL_TRAIN, Mode.EVAL_EVAL):
    return ()
  name = 'dataset_eval_directory' if mode is Mode.EVAL_EVAL else 'dataset_train_directory'
  given = FLAGS[name].value
  folders = [given] if isinstance(given, str) else given
  if not folders or not all(folders):
    raise ValueError(
      f'--{name} is needed with --read_pngs and --mode {mode.name}: the folder of images'
    )
  return tuple(_path(folder) for folder in folders)


def _input_range() -> InputRange | None:
  """What --input_range says.

  Raises:
    ValueError: neither auto nor two numbers, the lower one first.
  """
  text = FLAGS.input_range
  if text is None or text == 'auto':
    return None if text is None else InputRange(ends=None)
  try:
    low, high = map(float, text.split(','))
  except ValueError:
    low, high = math.nan, math.nan
  if not -math.inf < low < high < math.inf:
    raise ValueError(f'--input_range must be auto or LOW,HIGH with LOW < HIGH, got {text!r}')
  return InputRange(ends=(low, high))


def _check_inference(mode: Mode, metric: Metric) -> None:
  """Flags of inference that exclude or need others.

  Raises:
    ValueError: naming them.
  """
  infers = mode in (Mode.EVAL_TRAIN, Mode.EVAL_EVAL) and metric is Metric.INFER_FULL
  for name in ('calibrate', 'calibrated', 'overwrite'):
    if FLAGS[name].value and not infers:
      raise ValueError(f'--{name} goes with --metric INFER_FULL and --mode EVAL_EVAL or EVAL_TRAIN')
  if FLAGS.calibrate and FLAGS.calibrated:
    raise ValueError(
      '--calibrate and --calibrated exclude each other: fit on some images, then predict others'
    )
  if FLAGS.calibrate and FLAGS.infer_continuously:
    raise ValueError('--calibrate fits one checkpoint; it does not go with --infer_continuously')
  asks_all = Statistic.DISTRIBUTION.name in FLAGS.infer_statistics
  if asks_all and FLAGS.prediction_format != PredictionFormat.OME_ZARR.name:
    raise ValueError(
      '--infer_statistics DISTRIBUTION has 256 channels and needs --prediction_format OME_ZARR, not'
      f' {FLAGS.prediction_format}'
    )
  if mode is not Mode.TRAIN:
    for name in ('input_channels', 'target_channels'):
      if FLAGS[name].value:
        raise ValueError(
          f"--{name} goes with --mode TRAIN; others take the checkpoint's channels, of which"
          ' --infer_channel_whitelist chooses'
        )


def make_experiment() -> Experiment:
  """The run that the command line describes.

  Raises:
    ValueError: its flags contradict each other, or one is missing.
  """
  mode, metric = Mode[FLAGS.mode], Metric[FLAGS.metric]
  _check_together(mode, metric)
  _check_inference(mode, metric)
  infers = metric is Metric.INFER_FULL
  return Experiment(
    mode=mode,
    metric=metric,
    base_directory=_path(FLAGS.base_directory),
    restore_directory=_path(FLAGS.restore_directory) if FLAGS.restore_directory else None,
    image_directories=_image_directories(mode),
    model=_given('model'),
    base_depth=_given('base_depth'),
    num_z_values=_given('num_z_values'),
    loss=Loss[FLAGS.loss],
    sampling=Sampling(
      crop_size=FLAGS.loss_crop_size,
      patch_stride=FLAGS.loss_patch_stride,
      output_size=FLAGS.loss_output_size,
      batch_size=FLAGS.preprocess_batch_size,
      num_threads=FLAGS.preprocess_shuffle_batch_num_threads,
      capacity=FLAGS.preprocess_batch_capacity,
    ),
    corruption=Corruption(
      multiplier_std=FLAGS.augment_multiplier_std,
      offset_std=FLAGS.augment_offset_std,
      noise_std=FLAGS.augment_noise_std,
    ),
    input_channels=tuple(FLAGS.input_channels or ()) or None,
    target_channels=tuple(FLAGS.target_channels or ()) or None,
    input_range=_input_range(),
    dry_run=FLAGS.dry_run,
    stretch_targets=tuple(FLAGS.stretch_targets),
    random_seed=FLAGS.random_seed,
    training=Training(
      optimizer=Optimizer[FLAGS.optimizer],
      learning_rate=FLAGS.learning_rate,
      learning_decay_steps=FLAGS.learning_decay_steps,
      number_of_steps=FLAGS.number_of_steps,
      restore_logits=FLAGS.restore_logits,
      restore_inputs=FLAGS.restore_inputs,
      save_summaries_secs=FLAGS.save_summaries_secs,
      save_interval_secs=FLAGS.save_interval_secs,
    ),
    evaluation=Evaluation(
      interval_secs=FLAGS.eval_interval_secs,
      delay_secs=FLAGS.eval_delay_secs,
      once=not FLAGS.infer_continuously if infers else FLAGS.eval_once,
      num_examples=FLAGS.metric_num_examples,
    ),
    inference=Inference(
      crop_size=FLAGS.stitch_crop_size,
      tile_size=FLAGS.infer_size,
      method=InferMethod[FLAGS.infer_method],
      panels=tuple(Panel[name] for name in FLAGS.infer_panels),
      simplify_panels=FLAGS.infer_simplify_error_panels,
      statistics=statistic.parse_all(FLAGS.infer_statistics),
      channels=tuple(FLAGS.infer_channel_whitelist or ()) or None,
      padding=Padding[FLAGS.infer_padding],
      prediction_format=PredictionFormat[FLAGS.prediction_format],
      calibrate=FLAGS.calibrate,
      calibrated=FLAGS.calibrated,
      overwrite=FLAGS.overwrite,
    ),
    flags=tuple(
      (flag.name, flag.value)
      for module, defined in FLAGS.flags_by_module_dict().items()
      if module.startswith(flag_groups.GROUP_PREFIX)
      for flag in defined
    ),
  )
