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

  def stack(self, panel: Panel) -> StackSpec:
    """The images that an error panel shows, in its order."""
    return self.targets if panel is Panel.TARGET else self.description.inputs

  def compute(self, field_of_view: FieldOfView, sinks: Sequence[Sink], title: str | None) -> None:
    """Streams a field's tiles through the network, which computes what the sinks need.

    Args:
      field_of_view: the field of view.
      sinks: take in what comes out, part by part and in this order.
      title: what the progress is shown under; None: it is not.

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
    """The network for tiles of some size; one for all fields of view with the same."""
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
  """What sinks need of a stack's images; always in one order, so that networks can be kept."""
  needed = {
    statistic
    for sink in sinks
    if not set(sink.keys).isdisjoint(stack.keys)
    for statistic in sink.statistics
  }
  return tuple(sorted(needed, key=lambda statistic: statistic.name))


class _TiledField:
  """What tiles read of a field of view, and the parts that they compute of it."""

  def __init__(self, field_of_view: FieldOfView, grid: tiling.Grid, blocks: tuple[int, int]):
    """Reads nothing yet.

    Args:
      field_of_view: the field of view.
      grid: where its blocks lie.
      blocks: rows and columns of these in a tile.
    """
    self._field_of_view = field_of_view
    self._grid = grid
    self._blocks = blocks
    self._truth = TruthReader(field_of_view, grid.offset, grid.output_size)

  def input(self, stack: StackSpec, tile: tiling.Tile) -> np.ndarray:
    """What the network reads, float32 [row, column, z, channel, mask]."""
    grid = self._grid
    window = tile.input_window(grid.geometry, self._blocks)
    rows, columns = (slice(w.start - grid.pad, w.stop - grid.pad) for w in window)
    return data_provider.padded_input_crop(
      self._field_of_view, stack, rows, columns, size=grid.size, padding=grid.padding
    )

  def truth(self, stack: StackSpec, tile: tiling.Tile) -> np.ndarray:
    """The images where a tile's outputs are, in [0, 1]; 0 where these are not kept, or unknown.

    Returns:
      float32 [image, row, column].
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
    """What belongs to a tile and is kept, of one image after the other.

    Args:
      stack: the images.
      tile: what was computed.
      predicted: each statistic, [image, row, column] and, of distributions, class.
      truth: as `truth` returns it.

    Yields:
      A part of each image, or none.
    """
    (rows, in_rows), (columns, in_columns) = (
      self._grid.kept(w, i) for i, w in enumerate((tile.rows, tile.columns))
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
    for i, key in enumerate(stack.keys):
      yield Part(
        key=key,
        rows=rows,
        columns=columns,
        predicted={s: values[i, in_rows, in_columns] for s, values in predicted.items()},
        truth=truth[i, in_rows, in_columns] if self._truth.is_known(key) else None,
      )
