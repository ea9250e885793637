"""Draws overview.svg, the README's picture of how a prediction is made.

    python docs/make_overview.py > docs/overview.svg

The towers' crops and the margin come from the network's own specification.
"""

from __future__ import annotations

from isl.models.concordance import CONCORDANCE

_WIDTH, _HEIGHT = 900, 330
_INK, _SOFT = '#24292f', '#8c959f'


def _rect(x: float, y: float, w: float, h: float, fill: str, stroke: str = _INK) -> str:
  return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}"/>'


def _text(x: float, y: float, text: str, *, size: int = 14, fill: str = _INK) -> str:
  return (
    f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="middle">{text}</text>'
  )


def _arrow(x: float, y: float, length: float) -> str:
  return (
    f'<path d="M{x:g} {y:g}h{length:g}m-7 -5l7 5l-7 5" fill="none" stroke="{_INK}"'
    ' stroke-width="1.5"/>'
  )


def _stack(x: float, y: float, side: float) -> list[str]:
  """Draws the transmitted-light z-stack, with rings around phase objects in its front image."""
  parts = [_rect(x + 6 * i, y - 6 * i, side, side, '#d0d7de') for i in range(5, -1, -1)]
  for cx, cy, r in ((45, 50, 18), (100, 85, 24), (60, 110, 14), (112, 30, 15)):
    parts.append(
      f'<circle cx="{x + cx}" cy="{y + cy}" r="{r}" fill="#afb8c1" stroke="#f6f8fa"'
      ' stroke-width="4"/>'
    )
  return parts


def _towers(x: float, y: float) -> list[str]:
  """Draws the five towers' crops, each as high as what its tower sees."""
  parts = []
  for scale, crop in enumerate(CONCORDANCE.crops):
    height = crop / CONCORDANCE.geometry.patch * 150
    parts.append(_rect(x + 34 * scale, y - height / 2, 24, height, '#ddf4ff', '#0969da'))
    parts.append(_text(x + 34 * scale + 12, y + 95, f'1/{2**scale}', size=12, fill=_SOFT))
  return parts


def _label(x: float, y: float, colour: str, name: str) -> list[str]:
  """Draws a predicted label, dark, with spots where the z-stack has phase objects."""
  parts = [_rect(x, y, 90, 90, '#0d1117')]
  for cx, cy, r in ((28, 31, 9), (62, 53, 12), (37, 68, 7), (70, 19, 8)):
    parts.append(f'<circle cx="{x + cx}" cy="{y + cy}" r="{r}" fill="{colour}"/>')
  return [*parts, _text(x + 45, y + 108, name, size=13)]


def _histogram(x: float, y: float) -> list[str]:
  """Draws the distribution of a pixel over classes, as a histogram."""
  heights = (3, 5, 9, 16, 27, 42, 55, 50, 36, 22, 12, 7, 4, 2, 2)
  bars = [_rect(x + 8 * i, y - h, 7, h, '#8250df', '#8250df') for i, h in enumerate(heights)]
  return [*bars, f'<path d="M{x - 4} {y}h128" stroke="{_INK}"/>']


def draw() -> str:
  """Draws the whole picture, as SVG."""
  middle = 150
  margin = CONCORDANCE.geometry.margin
  parts = [
    *_stack(30, 95, 140),
    _text(115, 275, 'transmitted-light z-stack'),
    _text(115, 295, 'phase contrast, DIC or bright field', size=12, fill=_SOFT),
    _arrow(218, middle, 40),
    *_towers(275, middle),
    _text(355, 275, 'five resolutions'),
    _text(355, 295, f'up to {margin} pixels around', size=12, fill=_SOFT),
    _arrow(452, middle, 40),
    *_histogram(512, 175),
    _text(570, 200, '0 .. 255', size=12, fill=_SOFT),
    _text(570, 275, 'a distribution for each pixel'),
    _text(570, 295, 'median, mean, deviation, entropy ..', size=12, fill=_SOFT),
    _arrow(648, middle, 40),
    *_label(705, 20, '#54aeff', 'DAPI'),
    *_label(800, 20, '#4ac26b', 'MAP2'),
    *_label(705, 145, '#ff8182', 'NFH'),
    *_label(800, 145, '#d4a72c', 'CELLMASK'),
    _text(797, 295, 'fluorescent labels'),
  ]
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
      f' width="{_WIDTH}" font-family="sans-serif">',
      _rect(0, 0, _WIDTH, _HEIGHT, 'white', 'none'),
      *parts,
      '</svg>',
    ]
  )


if __name__ == '__main__':
  print(draw())
