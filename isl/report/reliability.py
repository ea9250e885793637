"""Draws the reliability diagram of predicted distributions: observed against nominal coverage."""

from __future__ import annotations

import functools
import io
import threading
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from isl.report.metrics import NOMINAL, Reliability

# (width, height) in pixels.
SIZE = (640, 320)
_DOTS_PER_INCH = 100
_PIT_BINS = 20
_LONGEST_TITLE = 80

# As shares of the picture. Found anew for each picture (matplotlib's constrained layout), they took
# more than half of its time.
_MARGINS = {'left': 0.085, 'right': 0.985, 'bottom': 0.135, 'top': 0.85, 'wspace': 0.25}
# Of the diagrams' height. Without it, matplotlib measures all that might be in a title's way.
_TITLE_HEIGHT = 1.01

_NOMINAL = [0, *NOMINAL, 100]
_OBSERVED = 'tab:blue'
_IDEAL: dict[str, Any] = {'color': '0.4', 'linewidth': 1, 'linestyle': '--'}
# There is one figure, which one thread draws on at a time.
_LOCK = threading.Lock()


def diagram_png(reliability: Reliability, title: str) -> bytes:
  """Draws observed against nominal coverage, and the histogram of the PIT.

  The PIT (probability integral transform) is the share of a pixel's distribution up to the truth.
  For a calibrated forecast, the coverage is on the diagonal and the histogram is flat. Below the
  diagonal, and with a histogram like a U, distributions are too narrow; above, and with a hump, too
  wide. A slope means that they are too dark or too bright: a PIT of 1 is a truth brighter than all
  that was predicted.

  Args:
    reliability: the observed coverage and PIT.
    title: the picture's title, in one line: the label's name, for example.

  Returns:
    The bytes of a PNG of `SIZE`, always the same for the same arguments.
  """
  with _LOCK:
    return _diagram().png(reliability, _drawable(title)[:_LONGEST_TITLE])


class _Diagram:
  """A diagram whose curves and titles change: to make axes and ticks takes longer than to draw."""

  def __init__(self) -> None:
    width, height = (pixels / _DOTS_PER_INCH for pixels in SIZE)
    self._figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    # With parse_math, dollars in a label's name would begin a formula.
    self._title = self._figure.suptitle('', fontsize=10, parse_math=False)
    coverage, self._pit = self._figure.subplots(1, 2, gridspec_kw=_MARGINS)
    self._coverage_title = _describe(
      coverage, 'nominal coverage (%)', 'observed coverage (%)', 'coverage'
    )
    coverage.plot([0, 100], [0, 100], **_IDEAL)
    (self._curve,) = coverage.plot(_NOMINAL, _NOMINAL, color=_OBSERVED, marker='.', clip_on=False)
    coverage.set(xlim=(0, 100), ylim=(0, 100), aspect='equal')
    _describe(
      self._pit,
      'share of the distribution up to the truth (PIT)',
      'density',
      'PIT histogram, flat if calibrated',
    )
    edges = np.linspace(0, 1, _PIT_BINS + 1)
    self._histogram = self._pit.stairs(edges[1:], edges, fill=True, color=_OBSERVED, alpha=0.6)
    self._pit.axhline(1, **_IDEAL)
    self._pit.set_xlim(0, 1)

  def png(self, reliability: Reliability, title: str) -> bytes:
    """Draws the diagram of a label, see `diagram_png`."""
    self._title.set_text(title)
    observed = [0.0, *(100 * reliability.coverage(percent) for percent in _NOMINAL[1:])]
    self._curve.set_ydata(observed)
    error = 100 * reliability.coverage_error
    self._coverage_title.set_text(f'coverage, mean error {error:.1f}%')
    levels = np.linspace(0, 1, len(reliability.pit))
    edges = self._histogram.get_data().edges
    density = np.diff(np.interp(edges, levels, reliability.pit)) * _PIT_BINS
    self._histogram.set_data(density)
    self._pit.set_ylim(0, max(2, 1.05 * density.max()))
    stream = io.BytesIO()
    # Without matplotlib's version, which would change the bytes.
    FigureCanvasAgg(self._figure).print_png(stream, metadata={'Software': None})
    return stream.getvalue()


@functools.cache
def _diagram() -> _Diagram:
  return _Diagram()


def _describe(axes: Axes, x_label: str, y_label: str, title: str) -> Text:
  axes.set_xlabel(x_label, fontsize=8)
  axes.set_ylabel(y_label, fontsize=8)
  axes.tick_params(labelsize=8)
  axes.spines[['top', 'right']].set_visible(False)
  return axes.set_title(title, fontsize=9, y=_TITLE_HEIGHT)


def _drawable(text: str) -> str:
  """Replaces characters that the font lacks, of which matplotlib would warn, by their codes."""
  font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
  return ''.join(
    c if font.get_char_index(ord(c)) else c.encode('unicode_escape').decode('ascii') for c in text
  )
