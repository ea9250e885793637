"""Labels fields of view with a checkpoint: tile by tile, through one network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from isl.checkpoints.checkpoint import Checkpoint, Description
from isl.core.channels import StackSpec, target_stack
from isl.core.experiment import Experiment, Geometry, Inference, InferMethod, Padding, Panel
from isl.core.parts import Part, Sink
from isl.core.statistic import AnyStatistic
from isl.data import data_provider
from isl.data.data_provider import TruthReader
from isl.images.fields_of_view import FieldOfView
from isl.inference import tiling
from isl.inference.controller import HeadGroup, Labeler
from isl.models.plan import NetworkPlan
from isl.system.progress import Progress

# Single patches that --infer_method=PATCHES computes together; benchmarks/infer.py tries others.
PATCHES_AT_ONCE = 4


def make_network_plan(experiment: Experiment, checkpoint: Checkpoint) -> NetworkPlan:
  """Makes the plan of the network that flags and checkpoint agree on.

  Raises:
    ValueError: the flags ask for another network than the checkpoint's.
  """
  return checkpoint.check_fits(
    model=experiment.model,
    base_depth=experiment.base_depth,
    num_z_values=experiment.num_z_values,
  )


def find_targets(inference: Inference, checkpoint: Checkpoint) -> StackSpec:
  """Finds the labels to predict, in the order of the error panel's rows.

  Raises:
    ValueError: the checkpoint does not predict one of the labels that are asked for.
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


class FieldLabeler:
  """Labels fields of view with a checkpoint's network, one after the other.

  Attributes:
    checkpoint: the checkpoint, whose values the network has.
    description: description of the checkpoint's network.
    plan: plan of the network's layers.
    targets: the labels to predict, in the order of the error panel's rows.
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
      checkpoint: the checkpoint, whose values the network gets.
      plan: plan of the network's layers.
      inference: which labels are predicted, of which crop, and how.
      temperatures: temperatures of the labels' distributions, by channel; a label without one has
        1. None: all are 1.

    Raises:
      ValueError: the checkpoint does not predict one of the labels, or the crop is smaller than a
        patch.
    """
    self.checkpoint = checkpoint
    self.description: Description = checkpoint.describe()
    self.plan = plan
    self.targets = find_targets(inference, checkpoint)
    self._inference = inference
    self._temperatures = temperatures
    self._labeler: Labeler | None = None
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
    """Lays out the blocks to compute on the crop of a field of view.

    Args:
      name: name of the field of view, for the error.
      size: (rows, columns) of the field of view's images, in pixels.

    Raises:
      ValueError: the field of view is smaller than a patch, and is not padded.
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
    """(rows, columns) of the outputs that are computed at once, in pixels."""
    rows, columns = (n * self._geometry.output for n in self._tile_blocks(grid))
    return rows, columns

  def _tile_blocks(self, grid: tiling.Grid) -> tuple[int, int]:
    if self._inference.method is InferMethod.PATCHES:
      return 1, 1
    # The same with and without padding.
    covered = grid.inner_blocks if all(grid.inner_blocks) else grid.blocks
    rows, columns = (tiling.tile_blocks(n, self._inference.tile_size) for n in covered)
    return rows, columns

  def stack(self, panel: Panel) -> StackSpec:
    """The images that an error panel shows, in the order of its rows."""
    return self.targets if panel is Panel.TARGET else self.description.inputs

  def compute(self, field_of_view: FieldOfView, sinks: Sequence[Sink], title: str | None) -> None:
    """Streams a field of view's tiles through the network, which computes what the sinks need.

    Args:
      field_of_view: the field of view.
      sinks: what takes in the predictions; each part is given to all of them, in this order.
      title: title under which the progress is shown; None: it is not shown.

    Raises:
      ValueError: the field of view is smaller than a patch, the machine lacks the memory, or the
        checkpoint is damaged.
      OSError: a file cannot be read or written.
    """
    grid = self.grid(field_of_view.name, field_of_view.size)
    stacks = [s for s in (self.targets, self.description.inputs) if _needed(sinks, s)]
    labeler = self._make_labeler(self._tile_blocks(grid), [self._group(sinks, s) for s in stacks])
    field = _TiledField(field_of_view, grid, labeler.blocks)
    tiles = tiling.split_grid(grid, labeler.blocks)
    with Progress(title, grid.blocks[0] * grid.blocks[1], 'block') as progress:
      for first in range(0, len(tiles), labeler.batch):
        batch = tiles[first : first + labeler.batch]
        # The network takes whole batches; what fills the last one is dropped.
        filled = batch + batch[-1:] * (labeler.batch - len(batch))
        inputs = np.stack([field.input(self.description.inputs, tile) for tile in filled])
        truths = [np.stack([field.truth(s, tile) for tile in filled], axis=1) for s in stacks]
        outputs = labeler(inputs, [data_provider.classes_of(truth) for truth in truths])
        for i, tile in enumerate(batch):
          for stack, truth, of_stack in zip(stacks, truths, outputs, strict=True):
            predicted = {statistic: values[:, i] for statistic, values in of_stack.items()}
            for part in field.parts(stack, tile, predicted, truth[:, i]):
              for sink in sinks:
                if part.key in sink.keys:
                  sink.add(part)
          progress.add(tile.num_blocks(self._geometry.output))

  def _group(self, sinks: Sequence[Sink], stack: StackSpec) -> HeadGroup:
    temperatures = None
    if self._temperatures is not None and stack is self.targets:
      temperatures = tuple(self._temperatures.get(c, 1.0) for c in stack.channels)
    return HeadGroup(heads=stack.keys, statistics=_needed(sinks, stack), temperatures=temperatures)

  def _make_labeler(self, blocks: tuple[int, int], groups: Sequence[HeadGroup]) -> Labeler:
    """Makes the network for tiles of a size, or gives the last one if it is of that size."""
    if self._labeler is not None:
      if self._labeler.blocks == blocks and self._labeler.groups == tuple(groups):
        return self._labeler
      self._labeler.close()
    self._labeler = Labeler(
      self.plan,
      self.checkpoint,
      groups=groups,
      batch=1 if self._inference.method is InferMethod.DENSE else PATCHES_AT_ONCE,
      blocks=blocks,
    )
    return self._labeler

  def close(self) -> None:
    """Frees the network's memory."""
    if self._labeler is not None:
      self._labeler.close()


def _needed(sinks: Sequence[Sink], stack: StackSpec) -> tuple[AnyStatistic, ...]:
  """The statistics that sinks need of a stack's images, always in one order."""
  needed = {
    statistic
    for sink in sinks
    if not set(sink.keys).isdisjoint(stack.keys)
    for statistic in sink.statistics
  }
  # In one order, so that a network can be kept for the next field of view.
  return tuple(sorted(needed, key=lambda statistic: statistic.name))


class _TiledField:
  """A field of view in tiles: reads their input and truth, and cuts parts out of their output."""

  def __init__(self, field_of_view: FieldOfView, grid: tiling.Grid, blocks: tuple[int, int]):
    """Takes the field of view and how it is divided; reads nothing yet.

    Args:
      field_of_view: the field of view.
      grid: where the blocks lie on the field of view's crop.
      blocks: number of blocks in a tile, in rows and columns.
    """
    self._field_of_view = field_of_view
    self._grid = grid
    self._blocks = blocks
    self._truth = TruthReader(field_of_view, grid.offset, grid.output_size)

  def input(self, stack: StackSpec, tile: tiling.Tile) -> np.ndarray:
    """Reads the network's input for a tile, float32 [row, column, z, channel, mask]."""
    grid = self._grid
    window = tile.input_window(grid.geometry, self._blocks)
    rows, columns = (slice(w.start - grid.pad, w.stop - grid.pad) for w in window)
    return data_provider.padded_input_crop(
      self._field_of_view, stack, rows, columns, size=grid.size, padding=grid.padding
    )

  def truth(self, stack: StackSpec, tile: tiling.Tile) -> np.ndarray:
    """Reads the true images where a tile's outputs are.

    Returns:
      Intensities in [0, 1], float32 [image, row, column]; 0 where the truth is unknown or the
      output is not kept.
    """
    window = tile.output_window(self._grid.geometry, self._blocks)
    (rows, in_rows), (columns, in_columns) = (self._grid.kept(w, i) for i, w in enumerate(window))
    shape = [w.stop - w.start for w in window]
    truth = np.zeros((len(stack.keys), *shape), np.float32)
    if rows.start < rows.stop and columns.start < columns.stop:
      truth[:, in_rows, in_columns] = self._truth.images(stack, rows, columns)
    return truth

  def parts(
    self,
    stack: StackSpec,
    tile: tiling.Tile,
    predicted: Mapping[AnyStatistic, np.ndarray],
    truth: np.ndarray,
  ) -> Iterator[Part]:
    """Cuts what belongs to a tile, and is kept, out of the tile's outputs.

    Args:
      stack: the images that were predicted.
      tile: the tile that was computed.
      predicted: by statistic, the tile's outputs, [image, row, column]; DISTRIBUTION has a further
        axis, class.
      truth: the true images, as `truth` gives them.

    Yields:
      A part of each image; nothing if no output of the tile is kept.
    """
    (rows, in_rows), (columns, in_columns) = (
      self._grid.kept(w, i) for i, w in enumerate((tile.rows, tile.columns))
    )
    if rows.start == rows.stop or columns.start == columns.stop:
      return
    # From places in the part that belongs to the tile to places in the whole tile.
    in_rows, in_columns = (
      slice(inside.start + own.start - first, inside.stop + own.start - first)
      for inside, own, first in (
        (in_rows, tile.rows, tile.row),
        (in_columns, tile.columns, tile.column),
      )
    )
    for i, key in enumerate(stack.keys):
      yield Part(
        key=key,
        rows=rows,
        columns=columns,
        predicted={s: values[i, in_rows, in_columns] for s, values in predicted.items()},
        truth=truth[i, in_rows, in_columns] if self._truth.is_known(key) else None,
      )
