"""Cutting a crop into tiles that are computed one by one, and where their outputs belong.

Coordinates are pixels of the crop, with one convention: an output is where its input starts. The
patch whose top left is at (row, column) of the crop gives the block at (row, column) of the output
image, which as a whole lies `Geometry.margin` pixels inside the crop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from isl.core.experiment import Geometry, Padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """A part of the output that is computed at once.

  Tiles of a crop all have one size, so that the network is built for one. Where they don't divide
  the crop, the last of a row or column reaches back over its neighbour's; each pixel belongs to
  one of them.

  Attributes:
    row: of the output's first row, and of the input's, in pixels.
    column: likewise.
    rows: rows of the output that belong to this tile.
    columns: columns likewise.
  """

  row: int
  column: int
  rows: slice
  columns: slice

  def input_window(self, geometry: Geometry, blocks: tuple[int, int]) -> tuple[slice, slice]:
    """(rows, columns) of the crop that a tile of `blocks` outputs reads."""
    height, width = (geometry.input_size(n) for n in blocks)
    return slice(self.row, self.row + height), slice(self.column, self.column + width)

  def output_window(self, geometry: Geometry, blocks: tuple[int, int]) -> tuple[slice, slice]:
    """(rows, columns) of the output image that a tile of `blocks` outputs computes."""
    height, width = (n * geometry.output for n in blocks)
    return slice(self.row, self.row + height), slice(self.column, self.column + width)

  def num_blocks(self, output: int) -> int:
    """Blocks of `output` pixels' side that belong to this tile."""
    rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
    return rows // output * (columns // output)

  def own(self, output: np.ndarray) -> np.ndarray:
    """The part of this tile's output [.., row, column] that belongs to it."""
    rows = slice(self.rows.start - self.row, self.rows.stop - self.row)
    columns = slice(self.columns.start - self.column, self.columns.stop - self.column)
    return output[..., rows, columns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """How the blocks that are computed lie on a crop. Pairs are (rows, columns), in pixels.

  Without padding, the first block's input begins where the crop does. With padding, the grid begins
  `pad` pixels in front of the crop, and its outputs, which then cover more than the crop, are cut.
  Blocks are where they would be without: `pad` is a multiple of two outputs, so that even the
  parity of their numbers, and with it how they are computed, stays.

  Attributes:
    geometry: the network's.
    size: of the crop.
    padding: what is around it.
  """

  geometry: Geometry
  size: tuple[int, int]
  padding: Padding = Padding.NONE

  @property
  def pad(self) -> int:
    """From the grid's beginning to the crop's."""
    if self.padding is Padding.NONE:
      return 0
    step = 2 * self.geometry.output
    return math.ceil(self.geometry.margin / step) * step

  @property
  def cut(self) -> int:
    """What the outputs have in front of the crop."""
    return max(self.pad - self.geometry.margin, 0)

  @property
  def offset(self) -> int:
    """From the crop's beginning to the first output that is kept."""
    return 0 if self.pad else self.geometry.margin

  @property
  def blocks(self) -> tuple[int, int]:
    """How many blocks there are in rows and columns; 0 where the crop is too small for one."""
    output = self.geometry.output
    if self.pad:
      rows, columns = (math.ceil((n + self.cut) / output) for n in self.size)
      return rows, columns
    return self.inner_blocks

  @property
  def inner_blocks(self) -> tuple[int, int]:
    """Those that do not depend on padding."""
    rows, columns = (self.geometry.num_blocks(n) for n in self.size)
    return rows, columns

  @property
  def output_size(self) -> tuple[int, int]:
    """Of the outputs that are kept: with padding the crop's."""
    if self.pad:
      return self.size
    rows, columns = (n * self.geometry.output for n in self.blocks)
    return rows, columns

  def kept(self, window: slice, direction: int) -> tuple[slice, slice]:
    """What is kept of outputs.

    Args:
      window: of the grid's outputs, in a direction.
      direction: 0 for rows, 1 for columns.

    Returns:
      Where it lies among those that are kept, and where it lies in the window; both are empty if
      nothing is.
    """
    length = self.output_size[direction]
    start = min(max(window.start - self.cut, 0), length)
    stop = min(max(window.stop - self.cut, start), length)
    inside = slice(start + self.cut - window.start, stop + self.cut - window.start)
    return slice(start, stop), inside


def tile_blocks(num_blocks: int, tile_size: int) -> int:
  """The blocks of a tile in a direction: as few tiles as possible, and these as small as possible.

  Even, where that is possible: of an odd number the network's second phase is padded.

  Args:
    num_blocks: that the tiles have to cover.
    tile_size: blocks that a tile has at most.
  """
  blocks = math.ceil(num_blocks / math.ceil(num_blocks / tile_size))
  return min(blocks + blocks % 2, tile_size, num_blocks)


def split(
  num_blocks: tuple[int, int],
  blocks: tuple[int, int],
  output: int,
) -> list[Tile]:
  """The tiles of `blocks` outputs that cover `num_blocks`, row by row.

  Args:
    num_blocks: outputs in the crop, in rows and columns.
    blocks: outputs in a tile, not more than these.
    output: side of an output in pixels.
  """
  rows, columns = (
    _split_direction(total, part, [0, total], output)
    for total, part in zip(num_blocks, blocks, strict=True)
  )
  return _tiles(rows, columns)


def split_grid(grid: Grid, blocks: tuple[int, int]) -> list[Tile]:
  """The tiles of `blocks` outputs that cover a grid, row by row.

  With padding, those that do not depend on it are where they are without; then come others, that
  reach over these. Sums of floats depend in their last bits on where in a tile a block lies.

  Args:
    grid: the blocks.
    blocks: outputs in a tile; see `inner_blocks` for how many.
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
  return _tiles(rows, columns)


def _tiles(rows: list[tuple[int, slice]], columns: list[tuple[int, slice]]) -> list[Tile]:
  return [
    Tile(row=row, column=column, rows=own_rows, columns=own_columns)
    for (row, own_rows), (column, own_columns) in itertools.product(rows, columns)
  ]


def _split_direction(
  total: int, part: int, ends: list[int], output: int
) -> list[tuple[int, slice]]:
  """(start, what belongs to it) of each tile in a direction, in pixels.

  Args:
    total: blocks in it.
    part: blocks in a tile.
    ends: between two of these, blocks are split for themselves.
    output: side of a block in pixels.
  """
  tiles = []
  for begin, end in itertools.pairwise(ends):
    # A section that is shorter than a tile lets it reach over others, where these are.
    latest = max(end - part, 0) if end - begin >= part else total - part
    for first in range(begin, end, part):
      own = slice(first * output, min(first + part, end) * output)
      tiles.append((min(first, latest) * output, own))
  return tiles
