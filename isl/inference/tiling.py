"""Divides a crop into tiles that are computed one by one, and says where their outputs belong.

Coordinates are in pixels, with one convention: an output is where its input starts. The patch whose
top left is at (row, column) of the crop gives the block at (row, column) of the output image, which
as a whole lies `Geometry.margin` pixels inside the crop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from isl.core.experiment import Geometry, Padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """A part of the output that is computed at once.

  All tiles of a crop have the same size, so that the network's graph is built for one. If they do
  not divide the crop evenly, the last tile of a row or column reaches back over its neighbour; each
  pixel belongs to one tile.

  Attributes:
    row: row at which the tile's output begins in the output image, and its input in the crop.
    column: column at which the tile's output begins in the output image, and its input in the crop.
    rows: rows of the output image that belong to this tile.
    columns: columns of the output image that belong to this tile.
  """

  row: int
  column: int
  rows: slice
  columns: slice

  def input_window(self, geometry: Geometry, blocks: tuple[int, int]) -> tuple[slice, slice]:
    """The (rows, columns) of the crop that this tile reads.

    Args:
      geometry: sizes of the network's patches and outputs.
      blocks: number of blocks in a tile, in rows and columns.
    """
    height, width = (geometry.input_size(n) for n in blocks)
    return slice(self.row, self.row + height), slice(self.column, self.column + width)

  def output_window(self, geometry: Geometry, blocks: tuple[int, int]) -> tuple[slice, slice]:
    """The (rows, columns) of the output image that this tile computes.

    Args:
      geometry: sizes of the network's patches and outputs.
      blocks: number of blocks in a tile, in rows and columns.
    """
    height, width = (n * geometry.output for n in blocks)
    return slice(self.row, self.row + height), slice(self.column, self.column + width)

  def num_blocks(self, output: int) -> int:
    """The number of blocks, `output` pixels wide, that belong to this tile."""
    rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
    return rows // output * (columns // output)

  def own(self, output: np.ndarray) -> np.ndarray:
    """The part that belongs to this tile of its output, [.., row, column]."""
    rows = slice(self.rows.start - self.row, self.rows.stop - self.row)
    columns = slice(self.columns.start - self.column, self.columns.stop - self.column)
    return output[..., rows, columns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Where the blocks that are computed lie on a crop. Pairs are (rows, columns).

  Without padding, the first block's input begins where the crop does. With padding, the grid begins
  `pad` pixels in front of the crop, and its outputs, which then cover more than the crop, are cut.
  Blocks inside are at the same places with and without padding: `pad` is a multiple of two outputs,
  so that even the parity of their numbers, and with it how they are computed, stays the same.

  Attributes:
    geometry: sizes of the network's patches and outputs.
    size: (rows, columns) of the crop, in pixels.
    padding: what is put around the crop.
  """

  geometry: Geometry
  size: tuple[int, int]
  padding: Padding = Padding.NONE

  @property
  def pad(self) -> int:
    """Pixels from the grid's beginning to the crop's; 0 without padding."""
    if self.padding is Padding.NONE:
      return 0
    step = 2 * self.geometry.output
    return math.ceil(self.geometry.margin / step) * step

  @property
  def cut(self) -> int:
    """Pixels that the outputs have in front of the crop, which are cut off."""
    return max(self.pad - self.geometry.margin, 0)

  @property
  def offset(self) -> int:
    """Pixels from the crop's beginning to the first output that is kept."""
    return 0 if self.pad else self.geometry.margin

  @property
  def padded_margin(self) -> int:
    """Rows and columns at each border of the outputs that depend on padding."""
    return 0 if self.padding is Padding.NONE else self.geometry.margin

  @property
  def blocks(self) -> tuple[int, int]:
    """The number of blocks in rows and columns; 0 where the crop is too small for one."""
    output = self.geometry.output
    if self.pad:
      rows, columns = (math.ceil((n + self.cut) / output) for n in self.size)
      return rows, columns
    return self.inner_blocks

  @property
  def inner_blocks(self) -> tuple[int, int]:
    """The number of blocks in rows and columns that do not depend on padding."""
    rows, columns = (self.geometry.num_blocks(n) for n in self.size)
    return rows, columns

  @property
  def output_size(self) -> tuple[int, int]:
    """(rows, columns) of the outputs that are kept, in pixels; with padding, the crop's size."""
    if self.pad:
      return self.size
    rows, columns = (n * self.geometry.output for n in self.blocks)
    return rows, columns

  def kept(self, window: slice, direction: int) -> tuple[slice, slice]:
    """Finds the part of a window of outputs that is kept, in one direction.

    Args:
      window: a window of the grid's outputs, in pixels.
      direction: 0 for rows, 1 for columns.

    Returns:
      Where the part lies among the outputs that are kept, and where it lies in the window, in
      pixels; both are empty if nothing is kept.
    """
    length = self.output_size[direction]
    start = min(max(window.start - self.cut, 0), length)
    stop = min(max(window.stop - self.cut, start), length)
    inside = slice(start + self.cut - window.start, stop + self.cut - window.start)
    return slice(start, stop), inside


def ceil_divide(a: Any, b: Any) -> Any:
  """a / b rounded up, of positive integers or of tensors of these."""
  # Not -(-a // b): ONNX rounds the quotient of negative integers towards zero.
  return (a + b - 1) // b


def tile_blocks(num_blocks: Any, tile_size: int, minimum: Callable[[Any, Any], Any] = min) -> Any:
  """The number of blocks of a tile in one direction.

  It makes as few tiles as possible, and these as small as possible. It is even where that is
  possible: with an odd number, the network's second phase is padded.

  Args:
    num_blocks: number of blocks that the tiles have to cover: an int, or in a graph a tensor.
    tile_size: number of blocks that a tile has at most.
    minimum: gives the lesser of two of these; of tensors, tf.minimum does.
  """
  blocks = ceil_divide(num_blocks, ceil_divide(num_blocks, tile_size))
  return minimum(blocks + blocks % 2, minimum(tile_size, num_blocks))


def split_grid(grid: Grid, blocks: tuple[int, int]) -> list[Tile]:
  """Divides a grid into tiles, row by row.

  With padding, the blocks that do not depend on it are in the same tiles as without; the other
  tiles reach over these. Sums of floats depend in their last bits on where in a tile a block lies.

  Args:
    grid: the grid of blocks.
    blocks: number of blocks in a tile, in rows and columns; see `Grid.inner_blocks`.
  """
  lead = grid.pad // grid.geometry.output
  rows, columns = (
    _split_direction(
      total,
      part,
      [0, lead, lead + inner, total] if grid.pad and all(grid.inner_blocks) else [0, total],
      grid.geometry.output,
    )
    for total, inner, part in zip(grid.blocks, grid.inner_blocks, blocks, strict=True)
  )
  return [
    Tile(row=row, column=column, rows=own_rows, columns=own_columns)
    for (row, own_rows), (column, own_columns) in itertools.product(rows, columns)
  ]


def _split_direction(
  total: int, part: int, ends: list[int], output: int
) -> list[tuple[int, slice]]:
  """Divides blocks into tiles in one direction.

  Args:
    total: number of blocks in this direction.
    part: number of blocks in a tile.
    ends: numbers of blocks at which sections begin and end, each of which is divided by itself.
    output: side of a block's output, in pixels.

  Returns:
    For each tile, in pixels: where it begins, and the pixels that belong to it.
  """
  tiles = []
  for begin, end in itertools.pairwise(ends):
    # A section that is shorter than a tile lets it reach over others, where these are.
    latest = max(end - part, 0) if end - begin >= part else total - part
    for first in range(begin, end, part):
      own = slice(first * output, min(first + part, end) * output)
      tiles.append((min(first, latest) * output, own))
  return tiles
