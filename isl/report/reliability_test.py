"""Tests of reliability.py: that the curves are where they should be, and always the same."""

import cv2
import numpy as np
import pytest

from isl.report import reliability
from isl.report.metrics import Reliability
from tests.support.program import python_process

# RGB of matplotlib's tab:blue, as a line and, at 60% on white, as an area.
_LINE = np.array([31, 119, 180])
_AREA = 0.6 * _LINE + 0.4 * 255


def _reliability(excess):
  """The PIT's density is 1 + excess * cos(2 pi u): a U if that is positive, a hump if negative."""
  u = np.linspace(0, 1, 41)
  return Reliability(
    pixels=10,
    pit=tuple((u + excess * np.sin(2 * np.pi * u) / (2 * np.pi)).tolist()),
    bin_pixels=(0,) * 14 + (10,),
    bin_confidence=(0.0,) * 14 + (9.5,),
    bin_correct=(0,) * 14 + (9,),
  )


def _half(png, half):
  """The left (0) or the right half of a picture, RGB [row, column, 3]."""
  picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
  assert picture is not None
  assert picture.shape == (*reliability.SIZE[::-1], 3)
  return np.split(picture[:, :, ::-1].astype(int), 2, axis=1)[half]


def _places(picture, colour):
  return np.nonzero((np.abs(picture - colour) < 12).all(-1))


@pytest.mark.parametrize('excess', [-0.9, 0, 0.9])
def test_curve_of_the_coverage(excess):
  """The curve's middle is below the line between its ends by what coverage lacks there."""
  observed = _reliability(excess)
  assert observed.coverage(50) == pytest.approx(0.5 - excess / np.pi)
  rows, columns = _places(_half(reliability.diagram_png(observed, 'DAPI'), 0), _LINE)
  left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
  middle = rows[np.abs(columns - (left + right) / 2) <= 1].mean()
  assert (bottom - middle) / (bottom - top) == pytest.approx(observed.coverage(50), abs=0.03)


@pytest.mark.parametrize('excess', [-0.9, 0, 0.9])
def test_histogram_of_the_pit(excess):
  """Heights of its outermost and its middle bars are as their densities."""
  rows, columns = _places(_half(reliability.diagram_png(_reliability(excess), 'DAPI'), 1), _AREA)
  heights = np.bincount(columns - columns.min())
  outermost, middle = heights[3], heights[len(heights) // 2 + 3]
  # Of a bar's 20th part of the PIT, at its end and in its middle.
  mean = excess * np.sin(2 * np.pi / 20) / (2 * np.pi / 20)
  assert outermost / middle == pytest.approx((1 + mean) / (1 - mean), rel=0.15)
  assert len(rows) == heights.sum()


def test_bytes_depend_on_the_arguments_alone():
  first = reliability.diagram_png(_reliability(0), 'x')
  assert reliability.diagram_png(_reliability(0.1), 'x') != first
  assert reliability.diagram_png(_reliability(0), 'y') != first
  assert reliability.diagram_png(_reliability(0), 'x') == first
  assert b'atplotlib' not in first
  assert b'tIME' not in first
  assert len(first) < 60_000


@pytest.mark.parametrize(
  'title', ['', '$x_1', r'$\nonsense{$', '細胞', 'well-\udcff', 'two\nlines', 'x' * 1000]
)
@pytest.mark.filterwarnings('error')
def test_any_title_will_do(title):
  _half(reliability.diagram_png(_reliability(0), title), 0)


def test_display_and_shared_state_are_not_touched():
  code = """if True:
    import sys
    import isl.report.reliability
    print('matplotlib.pyplot' in sys.modules, 'tensorflow' in sys.modules)
  """
  printed, _ = python_process(code).communicate(timeout=60)
  assert printed.split() == ['False', 'False']
