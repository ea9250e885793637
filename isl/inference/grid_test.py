"""Tests of tiling.Grid: where blocks lie on a crop, with and without padding."""

import itertools

import pytest

from isl.core.experiment import Padding
from isl.inference import tiling
from isl.inference.tiling import Grid
from isl.models.networks import NETWORKS

_GEOMETRIES = {name: spec.geometry for name, spec in NETWORKS.items()}
_SIZES = ((250, 250), (251, 263), (300, 257), (1024, 704))


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
  """Each block in the same place of a tile of the same shape, which reads the same pixels."""
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
