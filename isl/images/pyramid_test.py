"""Tests of pyramid.py."""

import itertools

import numpy as np
import pytest

from isl.images import pyramid

_SIZES = [(1, 1), (1, 6), (7, 1), (7, 5), (8, 6)]


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
  half = pyramid.halved(image)
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
  np.testing.assert_array_equal(pyramid.halved(image), np.full((3, 2), image[0, 0]))


@pytest.mark.parametrize('row', [2, 4])
@pytest.mark.parametrize('column', [2, 4])
def test_parts_are_halved_like_the_whole(row, column):
  image = _image(np.float32, (7, 5))
  parts = [
    [image[rows, columns] for columns in (slice(column), slice(column, None))]
    for rows in (slice(row), slice(row, None))
  ]
  halves = np.block([[pyramid.halved(part) for part in band] for band in parts])
  np.testing.assert_array_equal(halves, pyramid.halved(image))


@pytest.mark.parametrize('size', [(1, 1), (256, 256), (257, 1), (7, 513), (1000, 4097)])
def test_levels_halve_down_to_the_smallest(size):
  sizes = pyramid.level_sizes(size)
  assert sizes[0] == size
  assert max(sizes[-1]) <= pyramid.SMALLEST
  assert all(max(larger) > pyramid.SMALLEST for larger in sizes[:-1])
  for (rows, columns), smaller in itertools.pairwise(sizes):
    assert smaller == ((rows + 1) // 2, (columns + 1) // 2)
