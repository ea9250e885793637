"""Tests of tiling.py: properties, over ragged sizes."""

import math

import numpy as np
import pytest

from isl.core.experiment import Geometry
from isl.inference import tiling

_GEOMETRY = Geometry(patch=20, output=8)

_TILINGS = pytest.mark.parametrize(
  ('num_blocks', 'blocks'),
  [
    ((1, 1), (1, 1)),
    ((1, 7), (1, 2)),
    ((5, 3), (2, 3)),
    ((4, 6), (2, 2)),
    ((17, 10), (16, 10)),
    ((9, 33), (4, 16)),
    ((7, 7), (5, 3)),
    ((8, 5), (1, 1)),
  ],
)


def _pixels(num_blocks):
  return tuple(n * _GEOMETRY.output for n in num_blocks)


@_TILINGS
def test_each_pixel_belongs_to_one_tile(num_blocks, blocks):
  owners = np.zeros(_pixels(num_blocks), int)
  for tile in tiling.split(num_blocks, blocks, _GEOMETRY.output):
    owners[tile.rows, tile.columns] += 1
  np.testing.assert_array_equal(owners, 1)


@_TILINGS
def test_tiles_of_one_shape_stay_inside(num_blocks, blocks):
  crop = [_GEOMETRY.input_size(n) for n in num_blocks]
  for tile in tiling.split(num_blocks, blocks, _GEOMETRY.output):
    for window, limits, sizes in (
      (tile.input_window(_GEOMETRY, blocks), crop, map(_GEOMETRY.input_size, blocks)),
      (tile.output_window(_GEOMETRY, blocks), _pixels(num_blocks), _pixels(blocks)),
    ):
      for part, limit, size in zip(window, limits, sizes, strict=True):
        assert 0 <= part.start < part.stop <= limit
        assert part.stop - part.start == size


@_TILINGS
def test_what_belongs_to_a_tile_is_in_its_output(num_blocks, blocks):
  for tile in tiling.split(num_blocks, blocks, _GEOMETRY.output):
    own = (tile.rows, tile.columns)
    for inner, outer in zip(own, tile.output_window(_GEOMETRY, blocks), strict=True):
      assert outer.start <= inner.start < inner.stop <= outer.stop


@_TILINGS
def test_tiles_have_all_blocks_between_them(num_blocks, blocks):
  tiles = tiling.split(num_blocks, blocks, _GEOMETRY.output)
  assert sum(tile.num_blocks(_GEOMETRY.output) for tile in tiles) == math.prod(num_blocks)
  assert len(tiles) == math.prod(math.ceil(n / m) for n, m in zip(num_blocks, blocks, strict=True))


@_TILINGS
def test_stitching_undoes_tiling(num_blocks, blocks):
  """A network that hands on the centre of what it reads gives the centre of the crop."""
  margin = _GEOMETRY.margin
  crop = np.random.default_rng(0).random([2, *map(_GEOMETRY.input_size, num_blocks)])
  stitched = np.full((2, *_pixels(num_blocks)), np.nan)
  for tile in tiling.split(num_blocks, blocks, _GEOMETRY.output):
    read = crop[:, *tile.input_window(_GEOMETRY, blocks)]
    output = read[:, margin:-margin, margin:-margin]
    stitched[:, tile.rows, tile.columns] = tile.own(output)
  np.testing.assert_array_equal(stitched, crop[:, margin:-margin, margin:-margin])


@pytest.mark.parametrize('tile_size', range(1, 20))
def test_tiles_are_few_then_small_then_even(tile_size):
  for num_blocks in range(1, 70):
    blocks = tiling.tile_blocks(num_blocks, tile_size)
    largest = min(tile_size, num_blocks)
    assert 1 <= blocks <= largest
    fewest = math.ceil(num_blocks / largest)
    assert math.ceil(num_blocks / blocks) == fewest
    smallest = next(n for n in range(1, largest + 1) if math.ceil(num_blocks / n) == fewest)
    assert blocks in (smallest, smallest + 1)
    assert blocks % 2 == 0 or blocks == largest
