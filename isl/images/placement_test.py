"""Tests of placement.py."""

import itertools
import math

import numpy as np
import pytest

from isl.images.placement import SMALLEST, Placement, halved, level_sizes

_SIZES = [(1, 1), (1, 6), (7, 1), (7, 5), (8, 6)]


def test_without_a_pixel_size_all_is_in_pixels():
  placement = Placement(offset=(3, 5))
  assert placement.unit is None
  assert placement.scale() == (1, 1)
  assert placement.translation() == (3, 5)


def test_a_known_pixel_size_gives_micrometres():
  placement = Placement(pixel_size=(0.5, 0.25), offset=(3, 5))
  assert placement.unit == 'micrometer'
  assert placement.scale() == (0.5, 0.25)
  assert placement.translation() == (3 * 0.5, 5 * 0.25)


@pytest.mark.parametrize('level', [0, 1, 2, 5])
@pytest.mark.parametrize('pixel_size', [None, (0.5, 0.25)])
def test_levels_have_their_upper_left_corner_in_common(level, pixel_size):
  placement = Placement(pixel_size=pixel_size, offset=(3, 5))

  def corner(level):
    both = zip(placement.translation(level), placement.scale(level), strict=True)
    return [centre - size / 2 for centre, size in both]

  assert corner(level) == corner(0)
  assert placement.scale(level) == tuple(2**level * size for size in placement.scale())


@pytest.mark.parametrize('size', [0.0, -0.5, math.nan, math.inf])
def test_no_such_pixel_size(size):
  with pytest.raises(ValueError, match=r'pixel_size must be.*, got \(0.5, '):
    Placement(pixel_size=(0.5, size))


def _image(dtype, shape):
  random = np.random.default_rng(0)
  if np.issubdtype(dtype, np.integer):
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
  return random.random(shape).astype(dtype)


@pytest.mark.parametrize('size', _SIZES)
@pytest.mark.parametrize(
  ('dtype', 'error'), [(np.uint8, 0.5), (np.uint16, 0.5), (np.float16, 3e-4), (np.float32, 1e-7)]
)
def test_a_pixel_is_the_mean_of_those_that_it_covers(size, dtype, error):
  image = _image(dtype, (2, *size))
  half = halved(image)
  assert half.dtype == dtype
  assert half.shape == (2, -(-size[0] // 2), -(-size[1] // 2))
  for channel, row, column in np.ndindex(half.shape):
    covered = image[channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    mean = covered.astype(np.float64).mean()
    assert half[channel, row, column] == pytest.approx(mean, abs=error, rel=0)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize('share', [0, 1 / 3, 1])
def test_a_constant_stays(dtype, share):
  largest = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
  image = np.full((5, 3), share * largest).astype(dtype)
  np.testing.assert_array_equal(halved(image), np.full((3, 2), image[0, 0]))


@pytest.mark.parametrize('row', [2, 4])
@pytest.mark.parametrize('column', [2, 4])
def test_parts_are_halved_like_the_whole(row, column):
  image = _image(np.float32, (7, 5))
  parts = [
    [image[rows, columns] for columns in (slice(column), slice(column, None))]
    for rows in (slice(row), slice(row, None))
  ]
  halves = np.block([[halved(part) for part in band] for band in parts])
  np.testing.assert_array_equal(halves, halved(image))


@pytest.mark.parametrize('size', [(1, 1), (256, 256), (257, 1), (7, 513), (1000, 4097)])
def test_levels_halve_down_to_the_smallest(size):
  sizes = level_sizes(size)
  assert sizes[0] == size
  assert max(sizes[-1]) <= SMALLEST
  assert all(max(larger) > SMALLEST for larger in sizes[:-1])
  for (rows, columns), smaller in itertools.pairwise(sizes):
    assert smaller == ((rows + 1) // 2, (columns + 1) // 2)
