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
import time
from typing import Any

import cv2
import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl import data_provider, files, image_io, metrics, tiling, visualize
from isl.checkpoints import Checkpoint, Description, find_newest
from isl.controller import Labeler
from isl.experiment import (
  Experiment,
  Geometry,
  InferMethod,
  Panel,
  StackSpec,
  Statistic,
  target_stack,
)
from isl.field_prediction import PANEL_STATISTICS, FieldPrediction
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan
from isl.progress import Progress

# Single patches that --infer_method=PATCHES computes together; benchmarks/infer.py tries others.
PATCHES_AT_ONCE = 4


def run(experiment: Experiment) -> None:
  """Labels every field of view with the newest checkpoint; on request again with every newer one.

  Raises:
    ValueError: the checkpoint or an image is missing, damaged or does not fit.
    OSError: a file cannot be read or written.
  """
  time.sleep(experiment.eval_delay_secs)
  done: pathlib.Path | None = None
  while True:
    newest = _newest(experiment)
    if newest is not None and newest != done:
      _Run(experiment, Checkpoint(newest)).label_fields()
      done = newest
    if not experiment.inference.continuously:
      return
    logging.info('Waiting for a new checkpoint in %s', experiment.checkpoint_directory)
    while _newest(experiment) == done:
      time.sleep(experiment.eval_interval_secs)


def _newest(experiment: Experiment) -> pathlib.Path | None:
  """The newest checkpoint; None if a training is still to write its first."""
  folder = experiment.checkpoint_directory
  if experiment.inference.continuously and not list(folder.glob('*.index')):
    return None
  return find_newest(folder)


def make_network_plan(experiment: Experiment, checkpoint: Checkpoint) -> NetworkPlan:
  """The network that flags and checkpoint agree on.

  Raises:
    ValueError: they don't.
  """
  held = checkpoint.describe()
  model = experiment.model or held.model
  base_depth = experiment.base_depth or held.base_depth
  num_z_values = experiment.num_z_values or len(held.inputs.z_values)
  checkpoint.check_fits(model=model, base_depth=base_depth, num_z_values=num_z_values)
  return make_plan(NETWORKS[model], base_depth, num_z_values)


def _targets(experiment: Experiment, checkpoint: Checkpoint, held: Description) -> StackSpec:
  """The labels to predict, in the panel's order."""
  wanted = experiment.inference.channels or held.targets.channels
  unknown = [channel for channel in wanted if channel not in held.targets.channels]
  if unknown:
    raise ValueError(
      f'--infer_channel_whitelist has {", ".join(unknown)}, which checkpoint'
      f' {str(checkpoint.prefix)!r} does not predict; it predicts'
      f' {", ".join(held.targets.channels)}'
    )
  return target_stack(wanted)


class _Run:
  """The inference of all fields of view with one checkpoint."""

  def __init__(self, experiment: Experiment, checkpoint: Checkpoint):
    """Checks that everything fits, before anything is computed."""
    self._experiment = experiment
    self._inference = experiment.inference
    self._checkpoint = checkpoint
    self._held = checkpoint.describe()
    self._plan = make_network_plan(experiment, checkpoint)
    self._targets = _targets(experiment, checkpoint, self._held)
    geometry = self._geometry
    if 0 < self._inference.crop_size < geometry.patch:
      raise ValueError(
        f'--stitch_crop_size must be at least {geometry.patch} pixels for {self._held.model}, or 0'
        f' for the whole image; got {self._inference.crop_size}'
      )
    assert experiment.image_directory is not None
    self._fields = image_io.find_image_sets(experiment.image_directory)
    step = f'{self._held.global_step:08d}'
    self._folder = experiment.evaluation_directory / step
    files.check_writable(self._folder / 'run.json')
    self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    self._rows: list[list[object]] = []
    self._records: list[dict[str, Any]] = []
    self._labeler: Labeler | None = None

  @property
  def _layout(self) -> visualize.Layout:
    simplified = self._inference.simplify_panels
    return visualize.Layout.SIMPLIFIED if simplified else visualize.Layout.FULL

  @property
  def _geometry(self) -> Geometry:
    return self._plan.spec.geometry

  def label_fields(self) -> None:
    """Labels every field of view, writing its files as soon as it is done."""
    logging.info('Checkpoint %s, step %d', self._checkpoint.prefix, self._held.global_step)
    for number, field in enumerate(self._fields, start=1):
      title = f'field {number} of {len(self._fields)}'
      logging.info('%s: %s', title.capitalize(), field.name)
      # Names that identify nothing are a field of view, too.
      name = field.name or 'unnamed'
      folder = self._folder / name if len(self._fields) > 1 else self._folder
      self._label_field(field.read(), folder, title)
    if self._labeler is not None:
      self._labeler.close()
    logging.info('Wrote %s', self._folder)

  def _label_field(self, image_set: image_io.ImageSet, folder: pathlib.Path, title: str) -> None:
    num_blocks = self._num_blocks(image_set)
    output = self._geometry.output
    prediction = FieldPrediction(
      image_set,
      inputs=self._held.inputs,
      targets=self._targets,
      margin=self._geometry.margin,
      size=(num_blocks[0] * output, num_blocks[1] * output),
      panels=self._inference.panels,
      layout=self._layout,
      statistics=self._inference.statistics,
    )
    for path in prediction.paths(folder):
      files.check_writable(path)
    self._compute(image_set, num_blocks, prediction, title)
    prediction.write(folder)
    self._rows += [
      [image_set.name, channel, scores.pixels]
      + [f'{value:.6g}' for value in dataclasses.astuple(scores)[1:]]
      for channel, scores in prediction.scores()
    ]
    self._records.append(self._record(image_set, prediction, folder))
    self._write_tables()

  def _num_blocks(self, image_set: image_io.ImageSet) -> tuple[int, int]:
    rows, columns = (min(n, self._inference.crop_size or n) for n in image_set.size)
    blocks = (self._geometry.num_blocks(rows), self._geometry.num_blocks(columns))
    if not all(blocks):
      patch = self._geometry.patch
      raise ValueError(
        f'field of view {image_set.name!r} is {image_set.size[0]} rows x {image_set.size[1]}'
        f' columns; {self._held.model} needs at least {patch} x {patch} pixels'
      )
    return blocks

  def _compute(
    self,
    image_set: image_io.ImageSet,
    num_blocks: tuple[int, int],
    prediction: FieldPrediction,
    title: str,
  ) -> None:
    """Streams the field's tiles through the network."""
    labeler = self._make_labeler(num_blocks)
    tiles = tiling.split(num_blocks, labeler.blocks, self._geometry.output)
    with Progress(title, num_blocks[0] * num_blocks[1], 'block') as progress:
      for first in range(0, len(tiles), labeler.batch):
        batch = tiles[first : first + labeler.batch]
        # The network takes whole batches; what fills the last one is dropped.
        filled = batch + batch[-1:] * (labeler.batch - len(batch))
        inputs = np.stack([self._read_tile(image_set, tile, labeler.blocks) for tile in filled])
        truth = [self._true_classes(prediction, tile, labeler) for tile in filled]
        outputs = labeler(inputs, np.stack(truth, axis=1))
        for i, tile in enumerate(batch):
          for head, key in enumerate(labeler.heads):
            own = {s: tile.own(values[head, i]) for s, values in outputs.items()}
            prediction.add(key, tile.rows, tile.columns, own)
          progress.add(tile.num_blocks(self._geometry.output))

  def _make_labeler(self, num_blocks: tuple[int, int]) -> Labeler:
    """The network for tiles of the field's size; one for all fields of that size."""
    method = self._inference.method
    rows, columns = (
      tiling.tile_blocks(n, self._inference.tile_size) if method is InferMethod.DENSE else 1
      for n in num_blocks
    )
    if self._labeler is not None:
      if self._labeler.blocks == (rows, columns):
        return self._labeler
      self._labeler.close()
    inputs = self._held.inputs.keys if Panel.INPUT in self._inference.panels else ()
    self._labeler = Labeler(
      self._plan,
      self._checkpoint,
      heads=(*self._targets.keys, *inputs),
      statistics=self._needed_statistics(),
      batch=1 if method is InferMethod.DENSE else PATCHES_AT_ONCE,
      blocks=(rows, columns),
    )
    return self._labeler

  def _needed_statistics(self) -> tuple[Statistic, ...]:
    needed = {Statistic.MEDIAN, Statistic.CROSS_ENTROPY, *self._inference.statistics}
    if self._inference.panels:
      needed |= set(PANEL_STATISTICS[self._layout])
    return tuple(s for s in Statistic if s in needed)

  def _read_tile(
    self, image_set: image_io.ImageSet, tile: tiling.Tile, blocks: tuple[int, int]
  ) -> np.ndarray:
    window = tile.input_window(self._geometry, blocks)
    return data_provider.input_crop(image_set, self._held.inputs, *window)

  def _true_classes(
    self, prediction: FieldPrediction, tile: tiling.Tile, labeler: Labeler
  ) -> np.ndarray:
    """uint8 [head, row, column]; 0 for the input heads, whose cross entropy is not reported."""
    rows, columns = tile.output_window(self._geometry, labeler.blocks)
    labels = np.zeros(
      (len(labeler.heads), rows.stop - rows.start, columns.stop - columns.start), np.uint8
    )
    labels[: len(self._targets.keys)] = prediction.true_classes(rows, columns)
    return labels

  def _record(
    self,
    image_set: image_io.ImageSet,
    prediction: FieldPrediction,
    folder: pathlib.Path,
  ) -> dict[str, Any]:
    """What run.json says of a field of view."""
    margin = self._geometry.margin
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
    held = self._held
    return {
      'checkpoint': str(self._checkpoint.prefix.absolute()),
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
