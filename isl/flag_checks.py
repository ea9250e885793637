"""What flags exclude or need each other."""

from __future__ import annotations

from isl.core.experiment import ExportFormat, Metric, Mode, PredictionFormat
from isl.core.statistic import Statistic
from isl.program_flags import FLAGS

# Parameter servers take the flags of the training that they serve.
_TRAINING = (Mode.TRAIN, Mode.PS)


def check_together(mode: Mode, metric: Metric) -> None:
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
  if mode not in _TRAINING and not (FLAGS.restore_logits and FLAGS.restore_inputs):
    raise ValueError(
      '--norestore_logits and --norestore_inputs go with --mode TRAIN: without these layers'
      ' nothing can be predicted'
    )


def check_inference(mode: Mode, metric: Metric) -> None:
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


def check_machines(mode: Mode, metric: Metric) -> None:
  """Flags of many machines that exclude or need others.

  Raises:
    ValueError: naming them.
  """
  infers = mode in (Mode.EVAL_TRAIN, Mode.EVAL_EVAL) and metric is Metric.INFER_FULL
  for name in ('dask_scheduler', 'dask_workers'):
    if FLAGS[name].value and not infers:
      raise ValueError(f'--{name} goes with --metric INFER_FULL and --mode EVAL_EVAL or EVAL_TRAIN')
    if FLAGS[name].value and FLAGS.calibrate:
      raise ValueError(f'--{name} spreads predictions; --calibrate fits in this process')
  if FLAGS.dask_scheduler and FLAGS.dask_workers:
    raise ValueError(
      '--dask_scheduler and --dask_workers exclude each other: a cluster, or processes here'
    )
  for name in ('ps_hosts', 'worker_hosts', 'sync_replicas', 'ps_tasks', 'task'):
    if FLAGS[name].value and mode not in _TRAINING:
      raise ValueError(f'--{name} goes with --mode TRAIN or PS, not {mode.name}')
  if mode is Mode.PS and FLAGS.dry_run:
    raise ValueError('--dry_run does not go with --mode PS, which reads and writes no files')
  if FLAGS.master not in ('', 'local') and mode is not Mode.TRAIN:
    raise ValueError(f'--master goes with --mode TRAIN, not {mode.name}; got {FLAGS.master!r}')
  if FLAGS.export_format != ExportFormat.SAVED_MODEL.name and mode is not Mode.EXPORT:
    raise ValueError(f'--export_format goes with --mode EXPORT, not {mode.name}')
