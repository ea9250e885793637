"""Trainings whose steps benchmarks do themselves, and their losses on held-out images."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

from isl import command_line
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.checkpoints.saving import make_saver
from isl.core.channels import ImageKey, StackSpec
from isl.core.experiment import Experiment, Padding
from isl.core.statistic import Statistic
from isl.data import data_provider
from isl.images.fields_of_view import FieldOfView
from isl.inference import tiling
from isl.inference.controller import HeadGroup, Labeler
from isl.models import losses
from isl.training import train
from isl.training.graph import TrainingGraph
from isl.training.start import find_start


def make_experiment(**options: object) -> Experiment:
  """Makes the Experiment that flags of the program describe, given by name; others are defaults."""
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(['benchmark', *(f'--{name}={value}' for name, value in options.items())])
  return command_line.make_experiment()


def start_training(**options: object) -> tuple[TrainingGraph, tf.Session]:
  """Builds the graph of TRAIN, and a session in which a training has begun; writes nothing.

  Args:
    **options: flags of the program, by name.
  """
  experiment = make_experiment(**options)
  return train.make_session(experiment, find_start(experiment), seed=0)


class HeldOut:
  """Computes losses on all blocks of a held-out field of view, with moving averages."""

  def __init__(self, field_of_view: FieldOfView, inputs: StackSpec, targets: StackSpec):
    """Takes a field of view, and the images that the network reads and predicts."""
    self._field_of_view = field_of_view
    self._inputs = inputs
    self._targets = targets

  def losses(self, checkpoint: Checkpoint, tile_size: int = 16) -> dict[ImageKey, float]:
    """Computes the mean cross entropy, over ln 256, of each head whose truth is known.

    Args:
      checkpoint: checkpoint of the network.
      tile_size: longest side of a tile, in blocks.
    """
    plan = checkpoint.describe().plan()
    geometry = plan.spec.geometry
    heads = (*self._inputs.keys, *self._targets.keys)
    grid = tiling.Grid(geometry=geometry, size=self._field_of_view.size, padding=Padding.NONE)
    blocks = tuple(tiling.tile_blocks(n, tile_size) for n in grid.blocks)
    labeler = Labeler(
      plan,
      checkpoint,
      groups=[HeadGroup(heads=tuple(heads), statistics=(Statistic.CROSS_ENTROPY,))],
      batch=1,
      blocks=(blocks[0], blocks[1]),
    )
    sums, pixels = np.zeros(len(heads)), 0
    for tile in tiling.split_grid(grid, labeler.blocks):
      window = tile.input_window(geometry, labeler.blocks)
      crop = data_provider.input_crop(self._field_of_view, self._inputs, *window)
      # Outputs begin a margin inside the image.
      rows, columns = (
        slice(window.start + geometry.margin, window.stop + geometry.margin)
        for window in tile.output_window(geometry, labeler.blocks)
      )
      truth = data_provider.classes_of(self._truth(rows, columns))
      (outputs,) = labeler(crop[np.newaxis], [np.moveaxis(truth, -1, 0)[:, np.newaxis]])
      own = tile.own(outputs[Statistic.CROSS_ENTROPY][:, 0])
      sums += own.sum(axis=(1, 2))
      pixels += own[0].size
    labeler.close()
    means = dict(zip(heads, sums / pixels, strict=True))
    absent = [
      key
      for key in self._targets.keys
      if not data_provider.has_truth(self._field_of_view, key.channel)
    ]
    return {key: float(mean) for key, mean in means.items() if key not in absent}

  def _truth(self, rows: slice, columns: slice) -> np.ndarray:
    """Reads the heads' true intensities in [0, 1] in a window of the image, [row, column, head]."""
    light = data_provider.input_crop(self._field_of_view, self._inputs, rows, columns)
    targets = data_provider.target_crop(self._field_of_view, self._targets, rows, columns)
    images = light[..., 0].reshape(*light.shape[:2], len(self._inputs.keys))
    return np.concatenate([images, targets[:, :, 0, :, 0]], axis=-1)

  def total(self, by_head: dict[ImageKey, float]) -> float:
    """The total loss, in which labels without truth count as 0."""
    of_inputs = sum(by_head[key] for key in self._inputs.keys) / len(self._inputs.keys)
    of_targets = sum(by_head.get(key, 0.0) for key in self._targets.keys)
    return float(losses.total(of_inputs, of_targets / len(self._targets.keys)))

  def of_labels(self, losses: dict[ImageKey, float]) -> float:
    """The mean loss of the labels that have truth."""
    return float(np.mean([losses[key] for key in self._targets.keys if key in losses]))


class Saver:
  """Writes checkpoints of a training whose steps a benchmark does, for evaluation."""

  def __init__(self, graph: TrainingGraph, session: tf.Session, folder: pathlib.Path):
    """Adds what saving needs to the graph, and makes the folder of the checkpoints."""
    self._session = session
    self._folder = folder
    self._graph = graph
    folder.mkdir(parents=True, exist_ok=True)
    with session.graph.as_default():
      tensors = graph.variables.named_tensors(graph.optimizer)
      self._saver = make_saver(tensors, max_to_keep=1)

  def save(self) -> Checkpoint:
    """Writes and opens a checkpoint of the training as it is now; deletes the one before."""
    step = self._session.run(self._graph.global_step)
    path = os.fspath(self._folder / 'model.ckpt')
    # A Saver looks for its operations in the current graph.
    with self._session.graph.as_default():
      self._saver.save(self._session, path, global_step=step, write_meta_graph=False)
    return Checkpoint(find_newest(self._folder))
