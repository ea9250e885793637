"""Draws the reliability diagram of predicted distributions: observed against nominal coverage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from isl.report.metrics import NOMINAL, Reliability

# (width, height) in pixels.
SIZE = (640, 320)
_DOTS_PER_INCH = 100
_PIT_BINS = 20
_LONGEST_TITLE = 80

_OBSERVED = 'tab:blue'
_IDEAL: dict[str, Any] = {'color': '0.4', 'linewidth': 1, 'linestyle': '--'}


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
  width, height = (pixels / _DOTS_PER_INCH for pixels in SIZE)
  figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout='constrained')
  # With parse_math, dollars in a label's name would begin a formula.
  figure.suptitle(_drawable(title)[:_LONGEST_TITLE], fontsize=10, parse_math=False)
  left, right = figure.subplots(1, 2)
  _draw_coverage(left, reliability)
  _draw_pit(right, reliability)
  for axes in (left, right):
    axes.tick_params(labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
  stream = io.BytesIO()
  # Without matplotlib's version, which would change the bytes.
  FigureCanvasAgg(figure).print_png(stream, metadata={'Software': None})
  return stream.getvalue()


def _drawable(text: str) -> str:
  """Replaces characters that the font lacks, of which matplotlib would warn, by their codes."""
  font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
  return ''.join(
    c if font.get_char_index(ord(c)) else c.encode('unicode_escape').decode('ascii') for c in text
  )


def _draw_coverage(axes: Axes, reliability: Reliability) -> None:
  nominal = [0, *NOMINAL, 100]
  observed = [0.0, *(100 * reliability.coverage(percent) for percent in nominal[1:])]
  axes.plot([0, 100], [0, 100], **_IDEAL)
  axes.plot(nominal, observed, color=_OBSERVED, marker='.', clip_on=False)
  axes.set(xlim=(0, 100), ylim=(0, 100), aspect='equal')
  axes.set_xlabel('nominal coverage (%)', fontsize=8)
  axes.set_ylabel('observed coverage (%)', fontsize=8)
  axes.set_title(f'coverage, mean error {100 * reliability.coverage_error:.1f}%', fontsize=9)


def _draw_pit(axes: Axes, reliability: Reliability) -> None:
  levels = np.linspace(0, 1, len(reliability.pit))
  edges = np.linspace(0, 1, _PIT_BINS + 1)
  density = np.diff(np.interp(edges, levels, reliability.pit)) * _PIT_BINS
  axes.stairs(density, edges, fill=True, color=_OBSERVED, alpha=0.6)
  axes.axhline(1, **_IDEAL)
  axes.set(xlim=(0, 1), ylim=(0, max(2, 1.05 * density.max())))
  axes.set_xlabel('share of the distribution up to the truth (PIT)', fontsize=8)
  axes.set_ylabel('density', fontsize=8)
  axes.set_title('PIT histogram, flat if calibrated', fontsize=9)
