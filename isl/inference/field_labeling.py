"""Labels fields of view with a checkpoint: tile by tile, through one network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from isl.checkpoints.checkpoint import Checkpoint, Description
from isl.core.channels import ImageKey, StackSpec, target_stack
from isl.core.experiment import Experiment, Geometry, Inference, InferMethod, Padding, Panel
from isl.core.statistic import AnyStatistic, Statistic
from isl.data import data_provider
from isl.images.fields_of_view import FieldOfView
from isl.inference import tiling
from isl.inference.controller import HeadGroup, Labeler
from isl.inference.error_panels import PANEL_STATISTICS, FieldPrediction
from isl.models.plan import NetworkPlan
from isl.report import metrics, visualize
from isl.system.progress import Progress

# Single patches that --infer_method=PATCHES computes together; benchmarks/infer.py tries others.
PATCHES_AT_ONCE = 4


def make_network_plan(experiment: Experiment, checkpoint: Checkpoint) -> NetworkPlan:
  """The network that flags and checkpoint agree on.

  Raises:
    ValueError: they don't.
  """
  return checkpoint.check_fits(
    model=experiment.model,
    base_depth=experiment.base_depth,
    num_z_values=experiment.num_z_values,
  )


def find_targets(inference: Inference, checkpoint: Checkpoint) -> StackSpec:
  """The labels to predict, in the panel's order.

  Raises:
    ValueError: one is asked for that the checkpoint does not predict.
  """
  predicted = checkpoint.describe().targets.channels
  wanted = inference.channels or predicted
  unknown = [channel for channel in wanted if channel not in predicted]
  if unknown:
    raise ValueError(
      f'--infer_channel_whitelist has {", ".join(unknown)}, which checkpoint'
      f' {str(checkpoint.prefix)!r} does not predict; it predicts {", ".join(predicted)}'
    )
  return target_stack(wanted)


class Sink(Protocol):
  """What takes in the predictions of a field of view, part by part, row by row of tiles."""

  def true_classes(self, keys: Sequence[ImageKey], rows: slice, columns: slice) -> np.ndarray:
    """Classes of images in a part of the output, uint8 [image, row, column]; 0 if unknown."""

  def add(
    self, key: ImageKey, rows: slice, columns: slice, predicted: Mapping[AnyStatistic, np.ndarray]
  ) -> None:
    """Takes in what was computed of one image in a part of the output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """What is computed of a field of view.

  Attributes:
    targets: statistics of each label.
    inputs: statistics of the network's own input; empty: it is not predicted.
  """

  targets: tuple[AnyStatistic, ...]
  inputs: tuple[AnyStatistic, ...] = ()


class FieldLabeler:
  """A checkpoint's network for fields of view, one after the other.

  Attributes:
    checkpoint: whose values it uses.
    description: what the checkpoint holds.
    plan: the network.
    targets: the labels that it predicts, in the panel's order.
  """

  def __init__(
    self,
    checkpoint: Checkpoint,
    plan: NetworkPlan,
    inference: Inference,
    temperatures: Mapping[str, float] | None = None,
  ):
    """Checks that settings and checkpoint fit, before anything is computed.

    Args:
      checkpoint: whose values are used.
      plan: its network.
      inference: what is predicted.
      temperatures: of the labels' distributions; 1 where there is none. None: all are 1.

    Raises:
      ValueError: they don't fit.
    """
    self.checkpoint = checkpoint
    self.description: Description = checkpoint.describe()
    self.plan = plan
    self.targets = find_targets(inference, checkpoint)
    self._inference = inference
    self._temperatures = temperatures
    self._labeler: Labeler | None = None
    self._wanted: Wanted | None = None
    smallest = self._geometry.patch if inference.padding is Padding.NONE else 1
    if 0 < inference.crop_size < smallest:
      raise ValueError(
        f'--stitch_crop_size must be at least {smallest} pixels for {self.description.model},'
        f' or 0 for the whole image; got {inference.crop_size}'
      )

  @property
  def _geometry(self) -> Geometry:
    return self.plan.spec.geometry

  def grid(self, name: str, size: tuple[int, int]) -> tiling.Grid:
    """Where the blocks of a field of view lie.

    Args:
      name: of the field of view.
      size: (rows, columns) of its images.

    Raises:
      ValueError: it is smaller than a patch, and not padded.
    """
    rows, columns = (min(n, self._inference.crop_size or n) for n in size)
    grid = tiling.Grid(
      geometry=self._geometry, size=(rows, columns), padding=self._inference.padding
    )
    if not all(grid.blocks):
      patch, model = self._geometry.patch, self.description.model
      raise ValueError(
        f'field of view {name!r} is {size[0]} rows x {size[1]} columns; {model} needs at'
        f' least {patch} x {patch} pixels, or --infer_padding=REFLECT'
      )
    return grid

  def tile_size(self, grid: tiling.Grid) -> tuple[int, int]:
    """(rows, columns) of the outputs that are computed at once."""
    rows, columns = (n * self._geometry.output for n in self._tile_blocks(grid))
    return rows, columns

  def _tile_blocks(self, grid: tiling.Grid) -> tuple[int, int]:
    if self._inference.method is InferMethod.PATCHES:
      return 1, 1
    # The same with and without padding.
    covered = grid.inner_blocks if all(grid.inner_blocks) else grid.blocks
    rows, columns = (tiling.tile_blocks(n, self._inference.tile_size) for n in covered)
    return rows, columns

  def empty_prediction(
    self,
    field_of_view: FieldOfView,
    layout: visualize.Layout,
    *,
    with_scores: bool = False,
    thumbnail: int = 512,
  ) -> FieldPrediction:
    """Room for what is predicted of the crop of a field of view, to be filled by `compute`.

    Args:
      field_of_view: the field of view.
      layout: of the error panels.
      with_scores: see FieldPrediction.
      thumbnail: likewise.

    Raises:
      ValueError: the field of view is smaller than a patch.
    """
    return FieldPrediction(
      field_of_view,
      inputs=self.description.inputs,
      targets=self.targets,
      grid=self.grid(field_of_view.name, field_of_view.size),
      panels=self._inference.panels,
      layout=layout,
      with_scores=with_scores,
      thumbnail=thumbnail,
    )

  def fill(self, prediction: FieldPrediction, layout: visualize.Layout, title: str | None) -> None:
    """Computes what panels, scores and files want of a field of view.

    Args:
      prediction: made by `empty_prediction`.
      layout: of the error panels.
      title: what the progress is shown under; None: it is not.

    Raises:
      ValueError: the machine lacks the memory, or the checkpoint is damaged.
      OSError: a file cannot be read or written.
    """
    panels = self._inference.panels
    drawn = PANEL_STATISTICS[layout]
    wanted = {Statistic.MEDIAN, *self._inference.statistics, *(drawn if panels else ())}
    if prediction.is_scored:
      wanted |= set(metrics.NEEDED)
    self.compute(
      prediction.field_of_view,
      prediction.grid,
      prediction,
      Wanted(targets=_in_order(wanted), inputs=_in_order(drawn) if Panel.INPUT in panels else ()),
      title,
    )

  def compute(
    self,
    field_of_view: FieldOfView,
    grid: tiling.Grid,
    sink: Sink,
    wanted: Wanted,
    title: str | None,
  ) -> None:
    """Streams a field's tiles through the network.

    Args:
      field_of_view: the field of view.
      grid: where its blocks lie, see `grid`.
      sink: takes in what comes out.
      wanted: what that is.
      title: what the progress is shown under; None: it is not.

    Raises:
      ValueError: the machine lacks the memory, or the checkpoint is damaged.
    """
    labeler = self._make_labeler(self._tile_blocks(grid), wanted)
    tiles = tiling.split_grid(grid, labeler.blocks)
    with Progress(title, grid.blocks[0] * grid.blocks[1], 'block') as progress:
      for first in range(0, len(tiles), labeler.batch):
        batch = tiles[first : first + labeler.batch]
        # The network takes whole batches; what fills the last one is dropped.
        filled = batch + batch[-1:] * (labeler.batch - len(batch))
        inputs = [self._read_tile(field_of_view, grid, tile, labeler.blocks) for tile in filled]
        truth = [
          np.stack([_true_classes(sink, group.heads, grid, tile, labeler) for tile in filled], 1)
          for group in labeler.groups
        ]
        outputs = labeler(np.stack(inputs), truth)
        for i, tile in enumerate(batch):
          for group, of_group in zip(labeler.groups, outputs, strict=True):
            _pass_on(sink, group.heads, grid, tile, {s: v[:, i] for s, v in of_group.items()})
          progress.add(tile.num_blocks(self._geometry.output))

  def _make_labeler(self, blocks: tuple[int, int], wanted: Wanted) -> Labeler:
    """The network for tiles of some size; one for all fields of view with the same."""
    if self._labeler is not None:
      if self._labeler.blocks == blocks and self._wanted == wanted:
        return self._labeler
      self._labeler.close()
    temperatures = None
    if self._temperatures is not None:
      temperatures = tuple(self._temperatures.get(c, 1.0) for c in self.targets.channels)
    self._labeler = Labeler(
      self.plan,
      self.checkpoint,
      groups=(
        HeadGroup(heads=self.targets.keys, statistics=wanted.targets, temperatures=temperatures),
        HeadGroup(
          heads=self.description.inputs.keys if wanted.inputs else (), statistics=wanted.inputs
        ),
      ),
      batch=1 if self._inference.method is InferMethod.DENSE else PATCHES_AT_ONCE,
      blocks=blocks,
    )
    self._wanted = wanted
    return self._labeler

  def _read_tile(
    self,
    field_of_view: FieldOfView,
    grid: tiling.Grid,
    tile: tiling.Tile,
    blocks: tuple[int, int],
  ) -> np.ndarray:
    window = tile.input_window(self._geometry, blocks)
    rows, columns = (slice(w.start - grid.pad, w.stop - grid.pad) for w in window)
    return data_provider.padded_input_crop(
      field_of_view, self.description.inputs, rows, columns, size=grid.size, padding=grid.padding
    )

  def close(self) -> None:
    """Frees the network's memory."""
    if self._labeler is not None:
      self._labeler.close()


def _in_order(wanted: Iterable[AnyStatistic]) -> tuple[AnyStatistic, ...]:
  """Always the same order for the same statistics, so that a network can be used again."""
  return tuple(sorted(set(wanted), key=lambda statistic: statistic.name))


def _true_classes(
  sink: Sink,
  keys: Sequence[ImageKey],
  grid: tiling.Grid,
  tile: tiling.Tile,
  labeler: Labeler,
) -> np.ndarray:
  """uint8 [head, row, column] of a tile's outputs; 0 where they are not kept."""
  window = tile.output_window(grid.geometry, labeler.blocks)
  (rows, in_rows), (columns, in_columns) = (grid.kept(w, i) for i, w in enumerate(window))
  shape = [w.stop - w.start for w in window]
  classes = np.zeros((len(keys), *shape), np.uint8)
  if rows.start < rows.stop and columns.start < columns.stop:
    classes[:, in_rows, in_columns] = sink.true_classes(keys, rows, columns)
  return classes


def _pass_on(
  sink: Sink,
  keys: Sequence[ImageKey],
  grid: tiling.Grid,
  tile: tiling.Tile,
  predicted: Mapping[AnyStatistic, np.ndarray],
) -> None:
  """Gives the sink what belongs to a tile and is kept.

  Args:
    sink: takes it.
    keys: of the heads.
    grid: where the blocks lie.
    tile: what was computed.
    predicted: each statistic, [head, row, column] and, of distributions, class.
  """
  (rows, in_rows), (columns, in_columns) = (
    grid.kept(w, i) for i, w in enumerate((tile.rows, tile.columns))
  )
  if rows.start == rows.stop or columns.start == columns.stop:
    return
  # From the tile's own part to the whole tile.
  in_rows, in_columns = (
    slice(inside.start + own.start - first, inside.stop + own.start - first)
    for inside, own, first in (
      (in_rows, tile.rows, tile.row),
      (in_columns, tile.columns, tile.column),
    )
  )
  for i, key in enumerate(keys):
    sink.add(key, rows, columns, {s: v[i, in_rows, in_columns] for s, v in predicted.items()})
