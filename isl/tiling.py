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

from isl.experiment import Geometry


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


def tile_blocks(num_blocks: int, tile_size: int) -> int:
  """The blocks of a tile in a direction: as few tiles as possible, and these as small as possible.

  Even, where that is possible: of an odd number the network's second phase is padded.

  Args:
    num_blocks: that the tiles have to cover.
    tile_size: blocks that a tile has at most.
  """
  blocks = math.ceil(num_blocks / math.ceil(num_blocks / tile_size))
  return min(blocks + blocks % 2, tile_size, num_blocks)


def split(num_blocks: tuple[int, int], blocks: tuple[int, int], output: int) -> list[Tile]:
  """The tiles of `blocks` outputs that cover `num_blocks`, row by row.

  Args:
    num_blocks: outputs in the crop, in rows and columns.
    blocks: outputs in a tile, not more than these.
    output: side of an output in pixels.
  """
  rows, columns = (
    _split_direction(total, part, output) for total, part in zip(num_blocks, blocks, strict=True)
  )
  return [
    Tile(row=row, column=column, rows=own_rows, columns=own_columns)
    for (row, own_rows), (column, own_columns) in itertools.product(rows, columns)
  ]


def _split_direction(total: int, part: int, output: int) -> list[tuple[int, slice]]:
  """(start, what belongs to it) of each tile in a direction, in pixels."""
  return [
    (min(first, total - part) * output, slice(first * output, min(first + part, total) * output))
    for first in range(0, total, part)
  ]
