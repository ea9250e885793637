"""Labels fields of view with a checkpoint: tile by tile, through one network."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from isl import data_provider, image_io, tiling, visualize
from isl.checkpoints import Checkpoint, Description
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


def _targets(experiment: Experiment, checkpoint: Checkpoint) -> StackSpec:
  """The labels to predict, in the panel's order."""
  predicted = checkpoint.describe().targets.channels
  wanted = experiment.inference.channels or predicted
  unknown = [channel for channel in wanted if channel not in predicted]
  if unknown:
    raise ValueError(
      f'--infer_channel_whitelist has {", ".join(unknown)}, which checkpoint'
      f' {str(checkpoint.prefix)!r} does not predict; it predicts {", ".join(predicted)}'
    )
  return target_stack(wanted)


def find_fields(experiment: Experiment) -> list[image_io.ImageFiles]:
  """The fields of view of all folders.

  Those of one name in several folders have the folder's name in theirs, as `folder-NAME`: results
  are named by them.

  Raises:
    OSError: a folder is missing.
    ValueError: there are no images in one, or a field of view is in two folders of one name.
  """
  found = [
    (folder, field)
    for folder in experiment.image_directories
    for field in image_io.find_image_sets(folder)
  ]
  counts = collections.Counter(field.name for _, field in found)
  fields: dict[str, image_io.ImageFiles] = {}
  for folder, field in found:
    name = field.name
    if counts[name] > 1:
      name = ','.join(filter(None, (name, f'folder-{folder.resolve().name}')))
    if name in fields:
      raise ValueError(
        f'field of view {field.name!r} is in several folders named {folder.resolve().name!r}; their'
        ' results would have the same names'
      )
    fields[name] = dataclasses.replace(field, name=name)
  return list(fields.values())


def numbered(fields: Sequence[image_io.ImageFiles]) -> Iterator[tuple[str, image_io.ImageFiles]]:
  """Each field of view after what logs call it: field 1 of 3."""
  for number, field in enumerate(fields, start=1):
    yield f'field {number} of {len(fields)}', field


def read_field(experiment: Experiment, field: image_io.ImageFiles) -> image_io.ImageSet:
  """Decodes a field of view, and stretches the labels that are to be stretched.

  Raises:
    OSError: a file cannot be read.
    ValueError: a file is damaged, or cannot be stretched.
  """
  return data_provider.with_stretched(field.read(), experiment.stretch_targets)


class FieldLabeler:
  """A checkpoint's network for fields of view, one after the other.

  Attributes:
    checkpoint: whose values it uses.
    held: what the checkpoint holds.
    plan: the network.
    targets: the labels that it predicts, in the panel's order.
  """

  def __init__(self, experiment: Experiment, checkpoint: Checkpoint, layout: visualize.Layout):
    """Checks that flags and checkpoint fit, before anything is computed.

    Args:
      experiment: its `inference` says what is predicted.
      checkpoint: whose values are used.
      layout: of the error panels.

    Raises:
      ValueError: they don't fit.
    """
    self.checkpoint = checkpoint
    self.held: Description = checkpoint.describe()
    self.plan = make_network_plan(experiment, checkpoint)
    self.targets = _targets(experiment, checkpoint)
    self._inference = experiment.inference
    self._layout = layout
    self._labeler: Labeler | None = None
    if 0 < self._inference.crop_size < self._geometry.patch:
      raise ValueError(
        f'--stitch_crop_size must be at least {self._geometry.patch} pixels for {self.held.model},'
        f' or 0 for the whole image; got {self._inference.crop_size}'
      )

  @property
  def _geometry(self) -> Geometry:
    return self.plan.spec.geometry

  def empty_prediction(self, image_set: image_io.ImageSet) -> FieldPrediction:
    """Room for what is predicted of the crop of a field of view, to be filled by `compute`.

    Raises:
      ValueError: the field of view is smaller than a patch.
    """
    rows, columns = (min(n, self._inference.crop_size or n) for n in image_set.size)
    blocks = (self._geometry.num_blocks(rows), self._geometry.num_blocks(columns))
    if not all(blocks):
      patch = self._geometry.patch
      raise ValueError(
        f'field of view {image_set.name!r} is {image_set.size[0]} rows x {image_set.size[1]}'
        f' columns; {self.held.model} needs at least {patch} x {patch} pixels'
      )
    return FieldPrediction(
      image_set,
      inputs=self.held.inputs,
      targets=self.targets,
      margin=self._geometry.margin,
      size=(blocks[0] * self._geometry.output, blocks[1] * self._geometry.output),
      panels=self._inference.panels,
      layout=self._layout,
      statistics=self._inference.statistics,
    )

  def compute(self, prediction: FieldPrediction, title: str) -> None:
    """Streams a field's tiles through the network.

    Args:
      prediction: made by `empty_prediction`.
      title: what the progress is shown under.

    Raises:
      ValueError: the machine lacks the memory, or the checkpoint is damaged.
    """
    rows, columns = (n // self._geometry.output for n in prediction.size)
    labeler = self._make_labeler((rows, columns))
    tiles = tiling.split((rows, columns), labeler.blocks, self._geometry.output)
    with Progress(title, rows * columns, 'block') as progress:
      for first in range(0, len(tiles), labeler.batch):
        batch = tiles[first : first + labeler.batch]
        # The network takes whole batches; what fills the last one is dropped.
        filled = batch + batch[-1:] * (labeler.batch - len(batch))
        inputs = [self._read_tile(prediction.image_set, tile, labeler.blocks) for tile in filled]
        truth = [self._true_classes(prediction, tile, labeler) for tile in filled]
        outputs = labeler(np.stack(inputs), np.stack(truth, axis=1))
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
    inputs = self.held.inputs.keys if Panel.INPUT in self._inference.panels else ()
    self._labeler = Labeler(
      self.plan,
      self.checkpoint,
      heads=(*self.targets.keys, *inputs),
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
    return data_provider.input_crop(image_set, self.held.inputs, *window)

  def _true_classes(
    self, prediction: FieldPrediction, tile: tiling.Tile, labeler: Labeler
  ) -> np.ndarray:
    """uint8 [head, row, column]."""
    window = tile.output_window(self._geometry, labeler.blocks)
    classes = [prediction.true_classes(Panel.TARGET, *window)]
    if Panel.INPUT in self._inference.panels:
      classes.append(prediction.true_classes(Panel.INPUT, *window))
    return np.concatenate(classes)

  def close(self) -> None:
    """Frees the network's memory."""
    if self._labeler is not None:
      self._labeler.close()
