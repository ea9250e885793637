"""Tests of tiling.py: properties, over ragged sizes."""

import itertools
import math

import numpy as np
import pytest

from isl.core.experiment import Geometry, Padding
from isl.inference import tiling
from isl.inference.tiling import Grid
from isl.models.networks import NETWORKS

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
_GEOMETRIES = {name: spec.geometry for name, spec in NETWORKS.items()}
_SIZES = ((250, 250), (251, 263), (300, 257), (1024, 704))


def _pixels(num_blocks):
  return tuple(n * _GEOMETRY.output for n in num_blocks)


def _split(num_blocks, blocks):
  rows, columns = map(_GEOMETRY.input_size, num_blocks)
  return tiling.split_grid(Grid(geometry=_GEOMETRY, size=(rows, columns)), blocks)


@_TILINGS
def test_each_pixel_belongs_to_one_tile(num_blocks, blocks):
  owners = np.zeros(_pixels(num_blocks), int)
  for tile in _split(num_blocks, blocks):
    owners[tile.rows, tile.columns] += 1
  np.testing.assert_array_equal(owners, 1)


@_TILINGS
def test_tiles_of_one_shape_stay_inside(num_blocks, blocks):
  crop = [_GEOMETRY.input_size(n) for n in num_blocks]
  for tile in _split(num_blocks, blocks):
    for window, limits, sizes in (
      (tile.input_window(_GEOMETRY, blocks), crop, map(_GEOMETRY.input_size, blocks)),
      (tile.output_window(_GEOMETRY, blocks), _pixels(num_blocks), _pixels(blocks)),
    ):
      for part, limit, size in zip(window, limits, sizes, strict=True):
        assert 0 <= part.start < part.stop <= limit
        assert part.stop - part.start == size


@_TILINGS
def test_what_belongs_to_a_tile_is_in_its_output(num_blocks, blocks):
  for tile in _split(num_blocks, blocks):
    own = (tile.rows, tile.columns)
    for inner, outer in zip(own, tile.output_window(_GEOMETRY, blocks), strict=True):
      assert outer.start <= inner.start < inner.stop <= outer.stop


@_TILINGS
def test_tiles_have_all_blocks_between_them(num_blocks, blocks):
  tiles = _split(num_blocks, blocks)
  assert sum(tile.num_blocks(_GEOMETRY.output) for tile in tiles) == math.prod(num_blocks)
  assert len(tiles) == math.prod(math.ceil(n / m) for n, m in zip(num_blocks, blocks, strict=True))


@_TILINGS
def test_stitching_undoes_tiling(num_blocks, blocks):
  """A network that hands on the centre of what it reads gives the centre of the crop."""
  margin = _GEOMETRY.margin
  crop = np.random.default_rng(0).random([2, *map(_GEOMETRY.input_size, num_blocks)])
  stitched = np.full((2, *_pixels(num_blocks)), np.nan)
  for tile in _split(num_blocks, blocks):
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


def _grid(model, size, padding):
  return Grid(geometry=_GEOMETRIES[model], size=size, padding=padding)


@pytest.mark.parametrize('size', _SIZES)
@pytest.mark.parametrize('model', _GEOMETRIES)
def test_without_padding_the_grid_begins_where_the_crop_does(model, size):
  grid, geometry = _grid(model, size, Padding.NONE), _GEOMETRIES[model]
  assert (grid.pad, grid.cut, grid.offset) == (0, 0, geometry.margin)
  for blocks, output, pixels in zip(grid.blocks, grid.output_size, size, strict=True):
    assert geometry.input_size(blocks) <= pixels < geometry.input_size(blocks + 1)
    assert output == 8 * blocks


@pytest.mark.parametrize('size', [*_SIZES, (1, 1), (7, 130)])
@pytest.mark.parametrize('padding', [Padding.REFLECT, Padding.ZERO])
@pytest.mark.parametrize('model', _GEOMETRIES)
def test_with_padding_the_output_is_the_crop(model, padding, size):
  """No block is computed in vain, and each where it would be without padding."""
  grid, geometry = _grid(model, size, padding), _GEOMETRIES[model]
  assert grid.output_size == size
  assert grid.offset == 0
  assert grid.pad % 16 == 0
  assert 0 <= grid.pad - geometry.margin == grid.cut < 16
  for blocks, pixels in zip(grid.blocks, size, strict=True):
    assert 8 * (blocks - 1) < grid.cut + pixels <= 8 * blocks


def test_published_network_is_padded_by_128_and_cut_by_7():
  grid = _grid('CONCORDANCE', (301, 1024), Padding.REFLECT)
  assert (grid.pad, grid.cut) == (128, 7)
  assert grid.blocks == (39, 129)


def test_crop_that_is_too_small_has_no_block():
  assert _grid('CONCORDANCE', (249, 300), Padding.NONE).blocks == (0, 7)


@pytest.mark.parametrize('size', [(250, 251), (9, 300), (1, 1)])
@pytest.mark.parametrize('padding', Padding)
def test_every_pixel_is_kept_once(padding, size):
  grid = _grid('FOVEA', size, padding)
  in_rows, in_columns = (tiling.tile_blocks(n, 5) if n else 0 for n in grid.blocks)
  blocks = (in_rows, in_columns)
  if not all(blocks):
    assert padding is Padding.NONE
    return
  counts: dict[tuple[int, int], int] = {}
  for tile in tiling.split_grid(grid, blocks):
    (rows, inside_rows), (columns, inside_columns) = (
      grid.kept(window, i) for i, window in enumerate((tile.rows, tile.columns))
    )
    assert inside_rows.stop - inside_rows.start == rows.stop - rows.start
    assert inside_columns.stop - inside_columns.start == columns.stop - columns.start
    # Where it lies in the crop is where its input lies, less the pad, plus the margin.
    assert tile.rows.start + inside_rows.start == rows.start + grid.cut
    assert tile.columns.start + inside_columns.start == columns.start + grid.cut
    for pixel in itertools.product(
      range(rows.start, rows.stop), range(columns.start, columns.stop)
    ):
      counts[pixel] = counts.get(pixel, 0) + 1
  assert set(counts) == set(itertools.product(*map(range, grid.output_size)))
  assert set(counts.values()) == {1}


def test_window_that_is_not_kept_is_empty():
  grid = _grid('CONCORDANCE', (100, 100), Padding.REFLECT)
  for window in (slice(0, 7), slice(107, 200)):
    kept, inside = grid.kept(window, 0)
    assert kept.start == kept.stop
    assert inside.start == inside.stop


@pytest.mark.parametrize('size', [(250, 251), (301, 290), (474, 800)])
@pytest.mark.parametrize('model', _GEOMETRIES)
def test_what_does_not_depend_on_padding_is_tiled_as_without(model, size):
  """Each block is in the same place of a tile of the same shape, which reads the same pixels."""
  none, padded = (_grid(model, size, padding) for padding in (Padding.NONE, Padding.REFLECT))
  assert padded.inner_blocks == none.blocks
  rows, columns = (tiling.tile_blocks(n, 5) for n in none.blocks)
  moved = {
    tuple(n + padded.pad for n in (t.row, t.column, t.rows.start, t.rows.stop, t.columns.start))
    for t in tiling.split_grid(none, (rows, columns))
  }
  found = {
    (t.row, t.column, t.rows.start, t.rows.stop, t.columns.start)
    for t in tiling.split_grid(padded, (rows, columns))
  }
  assert moved <= found
