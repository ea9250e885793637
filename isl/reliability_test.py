"""Tests of reliability.py: what the picture shows, and that it is the same everywhere."""

import dataclasses
import sys

import cv2
import numpy as np
import pytest

from isl import reliability
from isl.metrics import Reliability
from isl.testing import python_process

# RGB as drawn, of matplotlib's tab:blue.
_BLUE = (31, 119, 180)


def _reliability(pit):
  """Of a PIT with this distribution function."""
  levels = np.linspace(0, 1, 41)
  return Reliability(
    pixels=10,
    pit=tuple(float(pit(u)) for u in levels),
    bin_pixels=(0,) * 14 + (10,),
    bin_confidence=(0.0,) * 14 + (9.5,),
    bin_correct=(0,) * 14 + (9,),
  )


_CALIBRATED = _reliability(lambda u: u)
_TOO_NARROW = _reliability(lambda u: u + np.sin(4 * np.pi * u) / (4 * np.pi))
_TOO_WIDE = _reliability(lambda u: u - np.sin(2 * np.pi * u) / (2 * np.pi))


def _picture(png):
  decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
  assert decoded is not None
  return decoded[:, :, ::-1].astype(int)


def _line(png):
  """Where the curve of the coverage is: rows and columns of pixels."""
  width = reliability.SIZE[0]
  left = _picture(png)[:, : width // 2]
  return np.nonzero((np.abs(left - _BLUE) < 30).all(-1))


def test_size_and_kind():
  png = reliability.diagram_png(_CALIBRATED, 'DAPI_CONFOCAL')
  assert png.startswith(b'\x89PNG')
  assert _picture(png).shape == (*reliability.SIZE[::-1], 3)
  assert len(png) < 50_000


def _bulge(png):
  """How far the curve's middle is above the straight line between its ends, in pixels."""
  rows, columns = _line(png)
  left, right = columns.min(), columns.max()
  ends = (rows[columns <= left + 1].mean() + rows[columns >= right - 1].mean()) / 2
  return ends - rows[columns == (left + right) // 2].mean()


def test_curve_is_on_its_side_of_the_diagonal():
  assert abs(_bulge(reliability.diagram_png(_CALIBRATED, 'x'))) < 4
  assert _bulge(reliability.diagram_png(_TOO_WIDE, 'x')) > 10
  # A half of the interval's coverage is 1/2 + sin(pi) / .. at its middle: look at a quarter's.
  assert _TOO_NARROW.coverage(25) > 0.25


def test_bytes_depend_on_the_arguments_alone():
  first = reliability.diagram_png(_CALIBRATED, 'x')
  assert reliability.diagram_png(_TOO_WIDE, 'x') != first
  assert reliability.diagram_png(_CALIBRATED, 'y') != first
  assert reliability.diagram_png(_CALIBRATED, 'x') == first
  assert b'atplotlib' not in first
  assert b'Date' not in first
