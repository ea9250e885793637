"""INFER_FULL: labels whole fields of view.

It reads images, predicts every label of every field of view with a checkpoint, and writes

    BASE/{eval_eval,eval_train}_infer/{global step}/
      target_error_panel.png  input_error_panel.png
      predictions/*.png, predictions.ome.tif or predictions.ome.zarr
      reliability_*.png  thumbnails/  field.json
      metrics.csv  metrics.json  run.json  report.html

If there are several fields of view, each has a folder for the files of the first three lines.
Fields of view that are done already, from the same images, checkpoint and flags, are not done
again.

With --calibrate, it fits the checkpoint's temperatures instead, see isl/inference/calibration.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

from absl import logging

from isl.checkpoints import watching
from isl.checkpoints.checkpoint import Checkpoint
from isl.checkpoints.training_record import check_stretch_targets, check_stretched_as_trained
from isl.core.experiment import Experiment, PredictionFormat
from isl.core.version import versions
from isl.data import field_reading
from isl.images import ome_zarr_io
from isl.inference import calibrate, calibration, dask_fields, run_results
from isl.inference.field_run import FieldRun, Settings
from isl.report.field_record import FieldRecord
from isl.report.page import Failure
from isl.system import files
from isl.system.progress import Progress


def run(experiment: Experiment) -> list[str]:
  """Labels every field of view with the newest checkpoint, or with every new one if asked to.

  Returns:
    A line on each field of view that could not be labeled with the last checkpoint, if there are
    several.

  Raises:
    ValueError: the checkpoint or the only field of view is missing, damaged or does not fit.
    OSError: a file cannot be read or written.
  """
  with contextlib.ExitStack() as stack:
    workers = None
    if experiment.dask is not None:
      workers = stack.enter_context(dask_fields.Workers(experiment.dask))
      # Workers have other working directories.
      experiment = _with_absolute_paths(experiment)
    failed: list[str] = []
    for checkpoint in watching.new_checkpoints(
      experiment.checkpoint_directory,
      experiment.evaluation,
      is_base=experiment.restore_directory is None,
    ):
      check_stretched_as_trained(experiment)
      if experiment.inference.calibrate:
        calibrate.run(experiment, checkpoint)
      else:
        failed = _Run(experiment, checkpoint).label_fields(workers)
  return failed


def _with_absolute_paths(experiment: Experiment) -> Experiment:
  restored, shards = experiment.restore_directory, experiment.shards
  if shards is not None:
    shards = dataclasses.replace(shards, paths=tuple(path.absolute() for path in shards.paths))
  return dataclasses.replace(
    experiment,
    base_directory=experiment.base_directory.absolute(),
    restore_directory=restored and restored.absolute(),
    image_directories=tuple(path.absolute() for path in experiment.image_directories),
    shards=shards,
  )


class _Run:
  """The inference of all fields of view with one checkpoint."""

  def __init__(self, experiment: Experiment, checkpoint: Checkpoint):
    """Finds the fields of view and checks that all fits, before anything is computed."""
    self._experiment = experiment
    self._checkpoint_fingerprint = checkpoint.fingerprint()
    self._fields = field_reading.fields_of(experiment)
    self._settings = Settings(
      experiment=experiment,
      prefix=checkpoint.prefix.absolute(),
      checkpoint_fingerprint=self._checkpoint_fingerprint,
      temperatures=self._temperatures(checkpoint),
      num_fields=len(self._fields),
    )
    self._field_run = FieldRun(self._settings, checkpoint)
    self._checkpoint, self._description = checkpoint, self._field_run.labeler.description
    check_stretch_targets(experiment.stretch_targets, self._description.targets)
    field_reading.log_unused(
      experiment, self._fields, self._description.inputs, self._description.targets
    )
    if experiment.inference.prediction_format is PredictionFormat.OME_ZARR:
      ome_zarr_io.require()
    self._folder = self._field_run.folder
    files.check_writable(self._folder / 'run.json')
    self._results = run_results.RunResults(self._folder, self._what())

  def _temperatures(self, checkpoint: Checkpoint) -> dict[str, float] | None:
    if not self._experiment.inference.calibrated:
      return None
    fitted = calibration.load(checkpoint.prefix.parent)
    fitted.check_checkpoint(self._checkpoint_fingerprint)
    fitted.check_not_fitted_on(
      self._experiment.image_directories,
      calibrate.input_fingerprints(self._fields, checkpoint.describe().inputs.channels),
    )
    return dict(fitted.temperatures)

  def _what(self) -> dict[str, Any]:
    """What run.json and report.html say of the run as a whole, by name."""
    description = self._description
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    return {
      'checkpoint': str(self._checkpoint.prefix.absolute()),
      'global_step': description.global_step,
      'model': description.model,
      'base_depth': description.base_depth,
      'num_z_values': len(description.inputs.z_values),
      'input_channels': ', '.join(description.inputs.channels),
      'started': now,
      'versions': versions(),
      'flags': dict(self._experiment.flags),
    }

  def label_fields(self, workers: dask_fields.Workers | None) -> list[str]:
    """Labels every field of view; its files are written as soon as it is done.

    Args:
      workers: Dask's workers that label; None: this process labels.

    Returns:
      A line on each field of view that failed. If there is only one, its exception is raised.

    Raises:
      ValueError: the only field of view is damaged or does not fit.
      OSError: a file of the only field of view cannot be read, or one of the run not written.
    """
    logging.info('Checkpoint %s, step %d', self._checkpoint.prefix, self._description.global_step)
    titles = [title.capitalize() for title, _ in field_reading.numbered(self._fields)]
    labeled = self._label_here() if workers is None else self._label_with(workers)
    for number, result in labeled:
      name = self._fields[number].name
      if isinstance(result, Exception):
        if len(self._fields) == 1:
          raise result
        failure = Failure(name=name, reason=' '.join(str(result).split()))
        self._results.fail(number, failure)
        logging.error('%s: %s', titles[number], failure.reason)
      else:
        self._results.add(number, self._field_run.folder_of(name), result)
        _log_scores(result)
      self._results.write_tables()
    self._results.write_report()
    logging.info('Wrote %s', self._folder)
    return [f'field of view {f.name!r} failed: {f.reason}' for f in self._results.failures]

  def _label_here(self) -> Iterator[tuple[int, FieldRecord | Exception]]:
    """Labels the fields of view in this process.

    Yields:
      The number of each field of view, and its record or the error because of which it has none.
    """
    try:
      for number, (title, field) in enumerate(field_reading.numbered(self._fields)):
        logging.info('%s: %s', title.capitalize(), field.name)
        result: FieldRecord | Exception
        try:
          result = self._field_run.label(field, title)
        except (ValueError, OSError) as e:
          result = e
        yield number, result
    finally:
      self._field_run.labeler.close()

  def _label_with(
    self, workers: dask_fields.Workers
  ) -> Iterator[tuple[int, FieldRecord | Exception]]:
    """Labels the fields of view in other processes.

    Yields:
      The number of each field of view, as soon as it is done, and its record or the error because
      of which it has none.
    """
    titles = [title.capitalize() for title, _ in field_reading.numbered(self._fields)]
    with Progress('fields of view', len(self._fields), 'field') as progress:
      for done in workers.label(self._settings, self._fields):
        name = self._fields[done.number].name
        if not isinstance(done.result, Exception):
          logging.info('%s: %s, by %s', titles[done.number], name, done.worker)
        yield done.number, done.result
        progress.add(1)


def _log_scores(record: FieldRecord) -> None:
  for label in record.labels:
    if label.scores:
      logging.info(
        "%s: Pearson's r %.3f, mean absolute error %.4f, cross entropy %.3f",
        label.channel,
        float(label.scores['pearson_r']),
        float(label.scores['mae']),
        float(label.scores['cross_entropy']),
      )
