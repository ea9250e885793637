"""INFER_FULL: labels whole fields of view.

Reads images, predicts every label of every field of view with a checkpoint, and writes

    BASE/{eval_eval,eval_train}_infer/{global step}/
      target_error_panel.png  input_error_panel.png
      predictions/*.png, predictions.ome.tif or predictions.ome.zarr
      reliability_*.png  thumbnails/  field.json
      metrics.csv  metrics.json  run.json  report.html

Several fields of view have a folder each for the first three lines. Those that are done already,
from the same images, checkpoint and flags, are not done again.

With --calibrate, it fits the checkpoint's temperatures instead, see calibration.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import platform
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl import (
  calibration,
  calibration_fit,
  datasets,
  field_labeling,
  field_record,
  fields,
  files,
  image_io,
  ome_zarr_io,
  prediction_files,
  reliability,
  restoration,
  run_results,
  thumbnails,
  visualize,
  watching,
)
from isl.checkpoints import Checkpoint
from isl.experiment import Experiment, Padding, PredictionFormat
from isl.field_prediction import FieldPrediction
from isl.field_record import FieldRecord, LabelRecord
from isl.placement import Placement

# Longest side of the report's pictures, in pixels; half of that in a page of so many fields of view
# that a browser would find it heavy.
_THUMBNAIL = 512
_MANY_FIELDS = 48


def run(experiment: Experiment) -> list[str]:
  """Labels every field of view with the newest checkpoint; on request again with every newer one.

  Returns:
    A line on each of several fields of view that could not be labeled with the last checkpoint.

  Raises:
    ValueError: the checkpoint or the only field of view is missing, damaged or does not fit.
    OSError: a file cannot be read or written.
  """
  failed: list[str] = []
  for checkpoint in watching.new_checkpoints(
    experiment.checkpoint_directory,
    experiment.evaluation,
    is_base=experiment.restore_directory is None,
  ):
    restoration.check_stretched_as_trained(experiment)
    if experiment.inference.calibrate:
      calibration_fit.run(experiment, checkpoint)
    else:
      failed = _Run(experiment, checkpoint).label_fields()
  return failed


class _Run:
  """The inference of all fields of view with one checkpoint."""

  def __init__(self, experiment: Experiment, checkpoint: Checkpoint):
    """Checks that everything fits, before anything is computed."""
    self._experiment = experiment
    simplified = experiment.inference.simplify_panels
    self._layout = visualize.Layout.SIMPLIFIED if simplified else visualize.Layout.FULL
    self._checkpoint_fingerprint = field_record.checkpoint_fingerprint(checkpoint)
    self._fields = fields.find_fields(experiment)
    temperatures = self._temperatures(checkpoint)
    self._labeler = field_labeling.FieldLabeler(
      checkpoint,
      field_labeling.make_network_plan(experiment, checkpoint),
      experiment.inference,
      temperatures,
    )
    held = self._labeler.held
    restoration.check_stretch_targets(experiment.stretch_targets, held.targets)
    fields.log_unused(experiment, self._fields, held)
    if experiment.inference.prediction_format is PredictionFormat.OME_ZARR:
      ome_zarr_io.require()
    self._folder = experiment.evaluation_directory / f'{held.global_step:08d}'
    files.check_writable(self._folder / 'run.json')
    self._settings = {
      'isl': isl.__version__,
      'checkpoint': self._checkpoint_fingerprint,
      'inference': dataclasses.asdict(
        dataclasses.replace(experiment.inference, overwrite=False, calibrated=False)
      ),
      'stretch_targets': sorted(experiment.stretch_targets),
      'input_range': experiment.input_range and dataclasses.asdict(experiment.input_range),
      'temperatures': temperatures,
    }
    self._results = run_results.RunResults(self._folder, self._what())

  def _temperatures(self, checkpoint: Checkpoint) -> dict[str, float] | None:
    if not self._experiment.inference.calibrated:
      return None
    fitted = calibration.load(checkpoint.prefix.parent)
    fitted.check_checkpoint(self._checkpoint_fingerprint)
    fitted.check_not_fitted_on(
      self._experiment.image_directories,
      calibration_fit.input_fingerprints(self._fields, checkpoint.describe().inputs.channels),
    )
    return dict(fitted.temperatures)

  def _what(self) -> dict[str, Any]:
    """What run.json and the page say of the run."""
    held = self._labeler.held
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    return {
      'checkpoint': str(self._labeler.checkpoint.prefix.absolute()),
      'global_step': held.global_step,
      'model': held.model,
      'base_depth': held.base_depth,
      'num_z_values': len(held.inputs.z_values),
      'input_channels': ', '.join(held.inputs.channels),
      'started': now,
      'versions': {
        'python': platform.python_version(),
        'isl': isl.__version__,
        'tensorflow': tf.__version__,
        'numpy': np.__version__,
        'opencv': cv2.__version__,
      },
      'flags': dict(self._experiment.flags),
    }

  def label_fields(self) -> list[str]:
    """Labels every field of view, writing its files as soon as it is done.

    Returns:
      A line on each that failed; where there is only one field of view, its exception is raised.
    """
    checkpoint = self._labeler.checkpoint
    logging.info('Checkpoint %s, step %d', checkpoint.prefix, self._labeler.held.global_step)
    try:
      for title, field in fields.numbered(self._fields):
        logging.info('%s: %s', title.capitalize(), field.name)
        try:
          self._label_field(field, title)
        except (ValueError, OSError) as e:
          if len(self._fields) == 1:
            raise
          self._results.fail(field.name, e)
          logging.error('%s: %s', title.capitalize(), self._results.failures[-1].reason)
        self._results.write_tables()
    finally:
      self._labeler.close()
    self._results.write_report()
    logging.info('Wrote %s', self._folder)
    return [f'field of view {f.name!r} failed: {f.reason}' for f in self._results.failures]

  def _label_field(self, field: image_io.ImageFiles, title: str) -> None:
    # Names that identify nothing are a field of view, too.
    folder = self._folder / (field.name or 'unnamed') if len(self._fields) > 1 else self._folder
    held = self._labeler.held
    selected = field.select(held.inputs.channels, self._labeler.targets.channels)
    fingerprint = field_record.fingerprint(
      self._settings, field.name, datasets.contents_fingerprint(selected)
    )
    record = None if self._experiment.inference.overwrite else field_record.read(folder)
    if record is not None and record.fingerprint == fingerprint:
      logging.info('%s is done already; --overwrite does it again', title.capitalize())
    else:
      # What it was does not hold any more while its files are replaced.
      field_record.path_in(folder).unlink(missing_ok=True)
      record = self._compute(selected, folder, fingerprint, title)
    self._results.add(folder, record)
    _log_scores(record)

  def _compute(
    self, field: image_io.ImageFiles, folder: pathlib.Path, fingerprint: str, title: str
  ) -> FieldRecord:
    start = time.monotonic()
    image_set = fields.read_selected(self._experiment, field)
    prediction = self._labeler.empty_prediction(
      image_set,
      self._layout,
      with_scores=True,
      thumbnail=_THUMBNAIL if len(self._fields) < _MANY_FIELDS else _THUMBNAIL // 2,
    )
    contents = self._contents(prediction, folder)
    written = prediction_files.prediction_files(
      self._experiment.inference.prediction_format, contents, prediction.store
    )
    panels = prediction.panel_paths(folder)
    for path in panels:
      files.check_writable(path)
    with prediction.writing(written):
      self._labeler.fill(prediction, self._layout, title)
    prediction.write_panels(folder)
    record = FieldRecord(
      field=image_set.name,
      fingerprint=fingerprint,
      image_size=image_set.size,
      output_size=prediction.size,
      output_offset=contents.placement.offset,
      padded_margin=contents.margin,
      pixel_size=image_set.pixel_size,
      seconds=round(time.monotonic() - start, 3),
      files=tuple(str(path.relative_to(folder)) for path in (*panels, *written.paths)),
      input=_write_thumbnail(folder, 'input', prediction.shown_input()),
      labels=tuple(_write_labels(folder, prediction)),
    )
    record.write(folder)
    return record

  def _contents(
    self, prediction: FieldPrediction, folder: pathlib.Path
  ) -> prediction_files.Contents:
    grid = prediction.grid
    return prediction_files.Contents(
      folder=folder,
      field=prediction.image_set.name,
      keys=self._labeler.targets.keys,
      statistics=self._experiment.inference.statistics,
      size=prediction.size,
      tile=self._labeler.tile_size(grid),
      placement=Placement(
        pixel_size=prediction.image_set.pixel_size, offset=(grid.offset, grid.offset)
      ),
      margin=0 if grid.padding is Padding.NONE else grid.geometry.margin,
    )


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


def _write_labels(folder: pathlib.Path, prediction: FieldPrediction) -> Iterator[LabelRecord]:
  """Writes each label's small pictures and diagram; yields its part of the record."""
  assert prediction.thumbnails is not None
  for key, thumbnail in prediction.thumbnails.predictions.items():
    channel, predicted = key.channel, thumbnail.picture()
    record = LabelRecord(
      channel=channel,
      prediction=_write_thumbnail(folder, f'{channel}_prediction', predicted),
    )
    if key in prediction.thumbnails.truths:
      truth = prediction.thumbnails.truths[key].picture()
      error = visualize.subtractive_error(_floats(predicted), _floats(truth))
      running = prediction.scores[channel]
      diagram = f'reliability_{channel}.png'
      with files.whole_file(folder / diagram) as partial:
        partial.write_bytes(reliability.diagram_png(running.reliability(), channel))
      record = dataclasses.replace(
        record,
        truth=_write_thumbnail(folder, f'{channel}_truth', truth),
        error=_write_thumbnail(folder, f'{channel}_error', np.rint(error * 255).astype(np.uint8)),
        reliability=diagram,
        scores=field_record.as_scores(dataclasses.asdict(running.scores())),
        calibration=running.reliability().as_dict(),
      )
    yield record


def _floats(picture: np.ndarray) -> np.ndarray:
  return picture * np.float32(1 / 255)


def _write_thumbnail(folder: pathlib.Path, name: str, picture: np.ndarray) -> str:
  """Writes a picture; returns its path as seen from the folder."""
  path = pathlib.Path('thumbnails') / f'{name}.jpg'
  with files.whole_file(folder / path) as partial:
    partial.write_bytes(thumbnails.encode(picture))
  return str(path)
