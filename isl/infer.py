"""INFER_FULL: labels whole fields of view.

Reads a folder of images, predicts every label of every field of view with a checkpoint, and writes

    BASE/{eval_eval,eval_train}_infer/{global step}/
      target_error_panel.png  input_error_panel.png
      predictions/*.png
      metrics.csv  run.json

Several fields of view have a folder each for their panels and predictions.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import pathlib
import platform
from typing import Any

import cv2
import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl import field_labeling, files, image_io, metrics, restoration, visualize, watching
from isl.checkpoints import Checkpoint
from isl.experiment import Experiment
from isl.field_prediction import FieldPrediction


def run(experiment: Experiment) -> None:
  """Labels every field of view with the newest checkpoint; on request again with every newer one.

  Raises:
    ValueError: the checkpoint or an image is missing, damaged or does not fit.
    OSError: a file cannot be read or written.
  """
  for checkpoint in watching.new_checkpoints(
    experiment.checkpoint_directory,
    experiment.evaluation,
    is_base=experiment.restore_directory is None,
  ):
    restoration.check_stretched_as_trained(experiment)
    _Run(experiment, checkpoint).label_fields()


class _Run:
  """The inference of all fields of view with one checkpoint."""

  def __init__(self, experiment: Experiment, checkpoint: Checkpoint):
    """Checks that everything fits, before anything is computed."""
    simplified = experiment.inference.simplify_panels
    layout = visualize.Layout.SIMPLIFIED if simplified else visualize.Layout.FULL
    self._experiment = experiment
    self._labeler = field_labeling.FieldLabeler(experiment, checkpoint, layout)
    self._fields = field_labeling.find_fields(experiment)
    step = f'{self._labeler.held.global_step:08d}'
    self._folder = experiment.evaluation_directory / step
    files.check_writable(self._folder / 'run.json')
    self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    self._rows: list[list[object]] = []
    self._records: list[dict[str, Any]] = []

  def label_fields(self) -> None:
    """Labels every field of view, writing its files as soon as it is done."""
    checkpoint = self._labeler.checkpoint
    logging.info('Checkpoint %s, step %d', checkpoint.prefix, self._labeler.held.global_step)
    for title, field in field_labeling.numbered(self._fields):
      logging.info('%s: %s', title.capitalize(), field.name)
      # Names that identify nothing are a field of view, too.
      name = field.name or 'unnamed'
      folder = self._folder / name if len(self._fields) > 1 else self._folder
      self._label_field(field_labeling.read_field(self._experiment, field), folder, title)
    self._labeler.close()
    logging.info('Wrote %s', self._folder)

  def _label_field(self, image_set: image_io.ImageSet, folder: pathlib.Path, title: str) -> None:
    prediction = self._labeler.empty_prediction(image_set)
    for path in prediction.paths(folder):
      files.check_writable(path)
    self._labeler.compute(prediction, title)
    prediction.write(folder)
    for channel, scores in prediction.scores():
      values = [f'{value:.6g}' for value in dataclasses.astuple(scores)[1:]]
      self._rows.append([image_set.name, channel, scores.pixels, *values])
      logging.info(
        "%s: Pearson's r %.3f, mean absolute error %.4f, cross entropy %.3f",
        channel,
        scores.pearson_r,
        scores.mae,
        scores.cross_entropy,
      )
    self._records.append(self._record(image_set, prediction, folder))
    self._write_tables()

  def _record(
    self,
    image_set: image_io.ImageSet,
    prediction: FieldPrediction,
    folder: pathlib.Path,
  ) -> dict[str, Any]:
    """What run.json says of a field of view."""
    margin = self._labeler.plan.spec.geometry.margin
    return {
      'field': image_set.name,
      'image_size': list(image_set.size),
      'output_size': list(prediction.size),
      'output_offset': [margin, margin],
      'files': [str(path.relative_to(self._folder)) for path in prediction.paths(folder)],
    }

  def _write_tables(self) -> None:
    """metrics.csv and run.json, of all fields of view done so far."""
    with (
      files.whole_file(self._folder / 'metrics.csv') as partial,
      # A field's name is of files' names, which on Linux may be any bytes.
      partial.open('w', newline='', encoding='utf-8', errors='backslashreplace') as stream,
    ):
      writer = csv.writer(stream)
      score_names = [field.name for field in dataclasses.fields(metrics.Scores)]
      writer.writerow(['field', 'channel', *score_names])
      writer.writerows(self._rows)
    with files.whole_file(self._folder / 'run.json') as partial:
      partial.write_text(json.dumps(self._run_record(), indent=2) + '\n', encoding='utf-8')

  def _run_record(self) -> dict[str, Any]:
    held = self._labeler.held
    return {
      'checkpoint': str(self._labeler.checkpoint.prefix.absolute()),
      'global_step': held.global_step,
      'model': held.model,
      'base_depth': held.base_depth,
      'num_z_values': len(held.inputs.z_values),
      'started': self._started,
      'versions': {
        'python': platform.python_version(),
        'isl': isl.__version__,
        'tensorflow': tf.__version__,
        'numpy': np.__version__,
        'opencv': cv2.__version__,
      },
      'flags': dict(self._experiment.flags),
      'fields': self._records,
      'tables': ['metrics.csv', 'run.json'],
    }
