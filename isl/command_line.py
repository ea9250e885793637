"""Makes the Experiment that the command line's flags describe, and checks flags with each other.

isl/program_flags.py defines the flags.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from isl.core import cluster, shard_names, statistic
from isl.core.cluster import Cluster
from isl.core.experiment import (
  Corruption,
  DaskWorkers,
  Evaluation,
  Experiment,
  Export,
  ExportFormat,
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
  ShardReading,
  Training,
)
from isl.core.statistic import Statistic
from isl.program_flags import FLAGS, own_flags

# The modes that read images or shards.
_READING = (Mode.TRAIN, Mode.EVAL_TRAIN, Mode.EVAL_EVAL)
# Parameter servers take the flags of the training that they serve.
_TRAINING = (Mode.TRAIN, Mode.PS)


def _path(text: str) -> pathlib.Path:
  """Makes a path of a flag's text; ~ is the home directory.

  Raises:
    ValueError: the path begins with the home of a user who is unknown here.
  """
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as e:
    raise ValueError(f'{text!r} has no home directory: {e}') from e


def _given(name: str) -> Any:
  """A flag's value; None if the command line does not have the flag."""
  return FLAGS[name].value if FLAGS[name].present else None


def _image_directories(mode: Mode) -> tuple[pathlib.Path, ...]:
  """The folders of images that the mode reads; none for modes that read no images.

  Raises:
    ValueError: no folder is given, and the mode needs one.
  """
  if mode not in _READING or not FLAGS.read_pngs:
    return ()
  name = 'dataset_eval_directory' if mode is Mode.EVAL_EVAL else 'dataset_train_directory'
  given = FLAGS[name].value
  folders = [given] if isinstance(given, str) else given
  if not folders or not all(folders):
    raise ValueError(
      f'--{name} is needed with --read_pngs and --mode {mode.name}: the folder of images'
    )
  return tuple(_path(folder) for folder in folders)


def _shards(mode: Mode) -> ShardReading | None:
  """The shards that the mode reads; None for modes that read images, or neither.

  Raises:
    ValueError: no pattern is given, or it makes no names, or no shard is for this mode.
  """
  if mode not in _READING or FLAGS.read_pngs:
    return None
  pattern = FLAGS.dataset_pattern
  if not pattern:
    raise ValueError(
      'either --read_pngs is needed, with --dataset_eval_directory (or _train_), for folders of'
      ' images, or --dataset_pattern, for TFRecord shards'
    )
  count = FLAGS.dataset_num_shards
  is_held_out = mode is Mode.EVAL_EVAL
  numbers = [i for i in range(count) if shard_names.is_for_evaluation(i) == is_held_out]
  if FLAGS.train_on_full_dataset and not is_held_out:
    numbers = list(range(count))
  if not numbers:
    raise ValueError(
      f'--dataset_num_shards {count} leaves none for --mode {mode.name}: of eight, the first is for'
      ' evaluation; make more, or give --train_on_full_dataset'
    )
  return ShardReading(
    paths=tuple(_path(shard_names.shard_name('--dataset_pattern', pattern, i)) for i in numbers),
    num_threads=FLAGS.data_batch_num_threads,
    batch_size=FLAGS.data_batch_size,
    capacity=FLAGS.data_batch_capacity,
    skip_corrupt=FLAGS.skip_corrupt_shards,
  )


def _cluster(mode: Mode) -> Cluster | None:
  """The machines that train together; None: this process trains alone.

  Raises:
    ValueError: the flags or TF_CONFIG do not describe a cluster, or contradict each other.
  """
  if mode not in (Mode.TRAIN, Mode.PS):
    return None
  is_ps = mode is Mode.PS
  if FLAGS.ps_hosts or FLAGS.worker_hosts:
    found = cluster.from_hosts(
      FLAGS.ps_hosts or (), FLAGS.worker_hosts or (), is_ps=is_ps, task=FLAGS.task
    )
  elif text := os.environ.get('TF_CONFIG'):
    made = cluster.from_tf_config(text)
    if made is None and not is_ps:
      _check_master(None)
      return None
    if made is None or (is_ps and not made.is_ps):
      raise ValueError('--mode PS is for parameter servers; TF_CONFIG makes this process none')
    if FLAGS['task'].present and FLAGS.task != made.task:
      raise ValueError(
        f'--task {FLAGS.task} is not what TF_CONFIG says: {made.job} {made.task}; leave it out'
      )
    found = made
  elif is_ps or FLAGS.ps_tasks or FLAGS.task or FLAGS.sync_replicas:
    raise ValueError(
      f'{"--mode PS" if is_ps else "--ps_tasks, --task and --sync_replicas"} needs --ps_hosts and'
      ' --worker_hosts (comma lists of host:port), or TF_CONFIG in the environment'
    )
  else:
    found = None
  _check_master(found)
  return found


def _check_master(found: Cluster | None) -> None:
  """Checks that --master and --ps_tasks agree with the cluster.

  Raises:
    ValueError: one of them differs.
  """
  own = f'grpc://{found.address}' if found else None
  if FLAGS.master not in ('', 'local', own):
    allowed = f', local or {own}, as the cluster says' if own else ' or local, without --ps_hosts'
    raise ValueError(f"--master must be ''{allowed}; got {FLAGS.master!r}")
  if found and FLAGS.ps_tasks not in (0, len(found.ps_hosts)):
    raise ValueError(
      f'--ps_tasks must be {len(found.ps_hosts)}, the number of parameter servers, got'
      f' {FLAGS.ps_tasks}'
    )


def _dask() -> DaskWorkers | None:
  if not FLAGS.dask_scheduler and not FLAGS.dask_workers:
    return None
  return DaskWorkers(scheduler=FLAGS.dask_scheduler, num_local=FLAGS.dask_workers)


def make_experiment() -> Experiment:
  """Makes the Experiment that the command line describes.

  Raises:
    ValueError: flags contradict each other, one is missing, or one has an impossible value.
  """
  mode, metric = Mode[FLAGS.mode], Metric[FLAGS.metric]
  _check_together(mode, metric)
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
    input_range=InputRange.parse(FLAGS.input_range),
    shards=_shards(mode),
    export=(
      Export(directory=_path(FLAGS.export_directory), format=ExportFormat[FLAGS.export_format])
      if mode is Mode.EXPORT
      else None
    ),
    cluster=_cluster(mode),
    sync_replicas=FLAGS.sync_replicas,
    dask=_dask(),
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
      once=(not FLAGS.infer_continuously if metric is Metric.INFER_FULL else FLAGS.eval_once),
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
    flags=tuple((flag.name, flag.value) for flag in own_flags()),
  )


def _check_together(mode: Mode, metric: Metric) -> None:
  """Compares flags that exclude or need others.

  Raises:
    ValueError: they contradict each other; it names them.
  """
  for of_mode, needed in ((Mode.TRAIN, Metric.LOSS), (Mode.EXPORT, Metric.STITCH)):
    if mode is of_mode and metric is not needed:
      raise ValueError(f'--mode {mode.name} goes with --metric {needed.name}, not {metric.name}')
  if not FLAGS.is_recordio:
    raise ValueError(
      '--is_recordio must be true: shards are TFRecord files; SSTable has no public reader'
    )
  if mode not in (*_TRAINING, Mode.DESCRIBE) and not (
    FLAGS.restore_logits and FLAGS.restore_inputs
  ):
    raise ValueError(
      '--norestore_logits and --norestore_inputs go with --mode TRAIN: without these layers'
      ' nothing can be predicted'
    )
  _check_inference(mode, metric)
  _check_machines(mode)
  if FLAGS.export_format != ExportFormat.SAVED_MODEL.name and mode is not Mode.EXPORT:
    raise ValueError(f'--export_format goes with --mode EXPORT, not {mode.name}')


def _check_inference(mode: Mode, metric: Metric) -> None:
  infers = mode in (Mode.EVAL_TRAIN, Mode.EVAL_EVAL) and metric is Metric.INFER_FULL
  for name in ('calibrate', 'calibrated', 'overwrite', 'dask_scheduler', 'dask_workers'):
    if FLAGS[name].value and not infers:
      raise ValueError(f'--{name} goes with --metric INFER_FULL and --mode EVAL_EVAL or EVAL_TRAIN')
  if FLAGS.calibrate and FLAGS.calibrated:
    raise ValueError(
      '--calibrate and --calibrated exclude each other: fit on some images, then predict others'
    )
  if FLAGS.calibrate and FLAGS.infer_continuously:
    raise ValueError('--calibrate fits one checkpoint; it does not go with --infer_continuously')
  for name in ('dask_scheduler', 'dask_workers'):
    if FLAGS[name].value and FLAGS.calibrate:
      raise ValueError(f'--{name} spreads predictions; --calibrate fits in this process')
  if FLAGS.dask_scheduler and FLAGS.dask_workers:
    raise ValueError(
      '--dask_scheduler and --dask_workers exclude each other: a cluster, or processes here'
    )
  asks_all = Statistic.DISTRIBUTION.name in FLAGS.infer_statistics
  to_zarr = mode is Mode.EXPORT or FLAGS.prediction_format == PredictionFormat.OME_ZARR.name
  if asks_all and not to_zarr:
    raise ValueError(
      '--infer_statistics DISTRIBUTION has 256 channels and needs --prediction_format OME_ZARR, not'
      f' {FLAGS.prediction_format}'
    )
  if mode not in _TRAINING:
    for name in ('input_channels', 'target_channels'):
      if FLAGS[name].value:
        raise ValueError(
          f"--{name} goes with --mode TRAIN; others take the checkpoint's channels, of which"
          ' --infer_channel_whitelist chooses'
        )


def _check_machines(mode: Mode) -> None:
  for name in ('ps_hosts', 'worker_hosts', 'sync_replicas', 'ps_tasks', 'task'):
    if FLAGS[name].value and mode not in _TRAINING:
      raise ValueError(f'--{name} goes with --mode TRAIN or PS, not {mode.name}')
  if mode is Mode.PS and FLAGS.dry_run:
    raise ValueError('--dry_run does not go with --mode PS, which reads and writes no files')
  if FLAGS.master not in ('', 'local') and mode is not Mode.TRAIN:
    raise ValueError(f'--master goes with --mode TRAIN, not {mode.name}; got {FLAGS.master!r}')
