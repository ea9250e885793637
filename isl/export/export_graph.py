"""A network's predictions as a graph that needs no code of isl, for EXPORT."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES, AnyStatistic, Statistic
from isl.inference import tiling
from isl.models import model_util, ops, towers
from isl.models.plan import NetworkPlan

INPUT = 'transmission'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedGraph:
  """Makes the graph of a network's predictions for z-stacks of any size.

  Attributes:
    plan: plan of the network.
    checkpoint: checkpoint with the network's values.
    keys: keys of the labels to predict.
    statistics: statistics of each pixel's distribution to give.
    tile_size: longest side of a tile, in blocks; a tile is computed at once.
  """

  plan: NetworkPlan
  checkpoint: Checkpoint
  keys: tuple[ImageKey, ...]
  statistics: tuple[AnyStatistic, ...]
  tile_size: int

  def output_name(self, key: ImageKey, statistic: AnyStatistic) -> str:
    """The name of a label's statistic among the outputs: DAPI_CONFOCAL_MEDIAN, for example."""
    return f'{key.channel}_{statistic.value}'

  def make_input(self) -> tf.Tensor:
    """Makes a placeholder for z-stacks, float32 [n, row, column, image]."""
    depth = self.plan.input_depth // 2
    return tf.placeholder(tf.float32, [None, None, None, depth], name=INPUT)

  def predict(self, stacks: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes predictions tile by tile.

    This needs a constant memory, plus some times that of the outputs. Tiles have the shapes and the
    places that INFER_FULL gives them.

    Args:
      stacks: z-stacks, float32 [n, row, column, image], intensities in [0, 1].

    Returns:
      By `output_name`, float32 [n, row, column]; DISTRIBUTION has a further axis, class. The
      network's margin is missing on each side, and at the bottom and right the pixels that make no
      whole block.
    """
    patch = self.plan.spec.geometry.patch
    size = tf.shape(stacks)
    enough = tf.Assert(
      tf.reduce_all(size[1:3] >= patch),
      [f'{INPUT} must have at least {patch} rows and columns, got the shape', size],
    )
    with tf.control_dependencies([enough]):
      stacks = tf.identity(stacks)
    directions = [
      _Direction.make(self._num_blocks(size), self.tile_size) for size in ops.shape_of(stacks)[1:3]
    ]
    rows, columns = directions
    names = [self.output_name(key, s) for key in self.keys for s in self.statistics]

    @tf.autograph.experimental.do_not_convert
    def compute(number: tf.Tensor) -> list[tf.Tensor]:
      firsts = [rows.first(number // columns.tiles), columns.first(number % columns.tiles)]
      predicted = self._predict(self._cut(stacks, firsts, [rows.blocks, columns.blocks]))
      return [predicted[name] for name in names]

    tiles = tf.map_fn(
      compute,
      tf.range(rows.tiles * columns.tiles),
      fn_output_signature=[tf.float32] * len(names),
      parallel_iterations=1,
    )
    return {
      name: self._join(of_name, rows, columns) for name, of_name in zip(names, tiles, strict=True)
    }

  def _num_blocks(self, size: Any) -> Any:
    geometry = self.plan.spec.geometry
    return (size - geometry.patch) // geometry.output + 1

  def _cut(self, stacks: tf.Tensor, firsts: list[Any], blocks: list[Any]) -> tf.Tensor:
    """Cuts out what a tile reads.

    Args:
      stacks: the z-stacks, [n, row, column, image].
      firsts: the tile's first block in rows and in columns.
      blocks: the tile's number of blocks in rows and in columns.
    """
    geometry = self.plan.spec.geometry
    sizes = [geometry.input_size(count) for count in blocks]
    starts = [first * geometry.output for first in firsts]
    depth = stacks.shape.as_list()[-1]
    cut = tf.slice(stacks, [0, *starts, 0], [-1, *sizes, depth])
    return tf.ensure_shape(cut, [None, None, None, depth])

  def _predict(self, stacks: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes all outputs, by name, of z-stacks whose size makes whole blocks."""
    results: dict[str, tf.Tensor] = {}
    with tf.variable_scope('', custom_getter=self.checkpoint.custom_getter, reuse=tf.AUTO_REUSE):
      features = towers.features(model_util.with_masks(stacks), self.plan)
      for key in self.keys:
        head = model_util.head_variables(self.plan.output_depth, key)
        # One after the other, so that only one head's logits are in memory at a time.
        with tf.control_dependencies(list(results.values())):
          logits = model_util.head_logits(tf.identity(features), head)
        results |= self._report(key, logits)
    return results

  def _report(self, key: ImageKey, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes a label's outputs, by name, from its logits, [n, row, column, class]."""
    pictures = [s for s in self.statistics if s is not Statistic.DISTRIBUTION]
    size = ops.shape_of(logits)[:3]
    flat = tf.reshape(logits, [-1, NUM_CLASSES])
    # None of these statistics needs the truth.
    nobody = tf.zeros([1], tf.int32)
    values = ops.distribution_statistics(flat, nobody, pictures)
    # Rounding may make them slightly more than 1 or less than 0.
    results = {
      self.output_name(key, s): tf.clip_by_value(tf.reshape(value, size), 0, 1)
      for s, value in zip(pictures, values, strict=True)
    }
    if Statistic.DISTRIBUTION in self.statistics:
      name = self.output_name(key, Statistic.DISTRIBUTION)
      results[name] = tf.reshape(tf.nn.softmax(flat), [*size, NUM_CLASSES])
    return results

  def _join(self, tiles: tf.Tensor, rows: _Direction, columns: _Direction) -> tf.Tensor:
    """Puts one output of all tiles, [tile, n, row, column, ..], together: [n, row, column, ..]."""
    output = self.plan.spec.geometry.output
    count, *rest = ops.shape_of(tiles)[1:]
    inner = [output * rows.blocks, output * columns.blocks, *rest[2:]]
    grid = tf.reshape(tiles, [rows.tiles, columns.tiles, count, *inner])
    others = list(range(5, 5 + len(rest[2:])))
    grid = tf.transpose(grid, [2, 0, 3, 1, 4, *others])
    joined = [rows.tiles * output * rows.blocks, columns.tiles * output * columns.blocks]
    whole = tf.reshape(grid, [count, *joined, *rest[2:]])
    whole = tf.gather(whole, rows.pixels(output), axis=1)
    return tf.gather(whole, columns.pixels(output), axis=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Direction:
  """The tiles in one direction, rows or columns, as scalar tensors.

  It does in the graph what isl/inference/tiling.py does outside of it.

  Attributes:
    total: number of blocks in this direction.
    blocks: number of blocks in a tile.
    tiles: number of tiles.
  """

  total: tf.Tensor
  blocks: tf.Tensor
  tiles: tf.Tensor

  @classmethod
  def make(cls, total: tf.Tensor, tile_size: int) -> _Direction:
    """Divides a direction as `tiling.tile_blocks` says."""
    blocks = tiling.tile_blocks(total, tile_size, tf.minimum)
    return cls(total=total, blocks=blocks, tiles=tiling.ceil_divide(total, blocks))

  def first(self, number: tf.Tensor) -> tf.Tensor:
    """The first block of the tile of a number; the last tile reaches back over the one before."""
    return tf.minimum(number * self.blocks, self.total - self.blocks)

  def pixels(self, output: int) -> tf.Tensor:
    """Where each pixel of the output is among the pixels of all tiles, one behind the other.

    Args:
      output: side of a block's output, in pixels.
    """
    places = tf.range(self.total * output)
    tile = places // (self.blocks * output)
    return tile * self.blocks * output + places - self.first(tile) * output
