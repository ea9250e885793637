"""Tests of placement.py."""

import math

import pytest

from isl.images.placement import Placement


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
