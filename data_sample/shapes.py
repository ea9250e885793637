"""Outlines of cells and middle lines of their processes. Lengths are in pixels, heights in um."""

from __future__ import annotations

import dataclasses

import numpy as np
from specimen import Specimen, Window

# Heights of processes, so that all of them cross focal planes of the z-stack.
_LOWEST, _HIGHEST = 6.0, 28.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oval:
  """A wobbly ellipse.

  Attributes:
    row: row of the centre.
    column: column of the centre.
    radii: radii along the two axes.
    angle: angle of the first axis from the direction of columns, in radians.
    wobble: (amplitude, phase) of the outline's waves of 2, 3 and 4 periods.
  """

  row: float
  column: float
  radii: tuple[float, float]
  angle: float
  wobble: tuple[tuple[float, float], ...]

  @property
  def reach(self) -> float:
    """A distance from the centre beyond which there is no part of the oval."""
    return max(self.radii) * (1 + sum(amplitude for amplitude, _ in self.wobble))

  def distance(self, window: Window) -> np.ndarray:
    """The distance from the centre, 0, to the outline, 1: float64 of the window's shape."""
    rows, columns = np.ogrid[window]
    y, x = rows - self.row, columns - self.column
    u = (x * np.cos(self.angle) + y * np.sin(self.angle)) / self.radii[0]
    v = (y * np.cos(self.angle) - x * np.sin(self.angle)) / self.radii[1]
    around = np.arctan2(v, u)
    outline = np.ones_like(around)
    for periods, (amplitude, phase) in enumerate(self.wobble, start=2):
      outline += amplitude * np.cos(periods * around + phase)
    return np.hypot(u, v) / outline

  def dome(self, window: Window) -> np.ndarray:
    """The upper half of an ellipsoid of height 1: sqrt(1 - distance^2), 0 outside."""
    return np.sqrt(np.maximum(1 - self.distance(window) ** 2, 0))

  def point(self, angle: float, away: float) -> tuple[float, float]:
    """The point (row, column) in a direction from the centre, `away` pixels from it."""
    return self.row + away * np.sin(angle), self.column + away * np.cos(angle)


def random_oval(
  rng: np.random.Generator, place: tuple[float, float], radius: float, *, wobble: float
) -> Oval:
  """Draws an oval around `place` (row, column).

  It is stretched by up to 1.25, and its outline has waves of an amplitude of up to `wobble`.
  """
  stretch = rng.uniform(1.0, 1.25)
  return Oval(
    row=place[0],
    column=place[1],
    radii=(radius * stretch, radius / stretch),
    angle=rng.uniform(0, np.pi),
    wobble=tuple((rng.uniform(0, wobble), rng.uniform(0, 2 * np.pi)) for _ in range(3)),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
  """The middle line of a tube, a point for each half pixel; arrays are float64 [point].

  Attributes:
    row: row of each point.
    column: column of each point.
    height: height of each point, in micrometres.
    radius: radius of the tube at each point.
  """

  row: np.ndarray
  column: np.ndarray
  height: np.ndarray
  radius: np.ndarray

  def widened(self, radius: np.ndarray | float) -> Path:
    """Gives this line another radius, which broadcasts to [point]."""
    return dataclasses.replace(self, radius=np.broadcast_to(radius, self.row.shape))

  def direction(self, point: int) -> float:
    """The line's direction at a point, in radians from the direction of columns."""
    before = max(point - 8, 0)
    across, along = self.row[point] - self.row[before], self.column[point] - self.column[before]
    return float(np.arctan2(across, along))


def walk(
  rng: np.random.Generator,
  start: tuple[float, float],
  angle: float,
  height: float,
  length: float,
  *,
  bend: float,
  climb: float = 0.05,
) -> Path:
  """Draws a line that more or less keeps its direction.

  Args:
    rng: generator of the random numbers.
    start: (row, column) at which the line begins.
    angle: direction in which the line begins, in radians from the direction of columns.
    height: height at which the line begins, in micrometres.
    length: length of the line, in pixels.
    bend: standard deviation of the line's turn in a pixel, in radians.
    climb: standard deviation of the change of height in a pixel, in micrometres.

  Returns:
    The line, of radius 1.
  """
  steps = 2 * int(length)
  turns = np.convolve(rng.normal(0, bend, steps + 15), np.ones(16) / 16, 'valid')
  angles = angle + np.cumsum(turns) * np.sqrt(2)
  heights = height + np.cumsum(rng.normal(0, climb / np.sqrt(2), steps))
  # Heights are reflected at the lowest and the highest.
  span = _HIGHEST - _LOWEST
  heights = _LOWEST + np.abs((heights - _LOWEST + span) % (2 * span) - span)
  return Path(
    row=start[0] + np.cumsum(np.sin(angles)) / 2,
    column=start[1] + np.cumsum(np.cos(angles)) / 2,
    height=heights,
    radius=np.ones(steps),
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tube:
  """The tube around a path, at the pixels of a window; arrays are float64 [row, column].

  Attributes:
    window: the pixels of the specimen that the arrays are of.
    half: half the tube's thickness, in pixels; 0 outside of the tube.
    height: height of the tube's middle, in micrometres.
    radius: radius, in pixels, of the part of the tube that a pixel belongs to.
  """

  window: Window
  half: np.ndarray
  height: np.ndarray
  radius: np.ndarray


def tube_around(path: Path, specimen: Specimen) -> Tube | None:
  """Computes the tube around a path at the specimen's pixels; None if it reaches none of them."""
  reach = int(np.ceil(path.radius.max())) + 1
  offsets = np.arange(-reach, reach + 1)
  line_row, line_column, height, radius = (
    x[:, np.newaxis, np.newaxis] for x in (path.row, path.column, path.height, path.radius)
  )
  rows, columns = np.broadcast_arrays(
    np.rint(line_row).astype(int) + offsets[:, np.newaxis],
    np.rint(line_column).astype(int) + offsets,
  )
  square = (rows - line_row) ** 2 + (columns - line_column) ** 2
  half = np.sqrt(np.maximum(radius**2 - square, 0))
  limits = specimen.size
  kept = (half > 0) & (rows >= 0) & (rows < limits[0]) & (columns >= 0) & (columns < limits[1])
  if not kept.any():
    return None
  # Where points of the line reach the same pixel, the thickest part is the last to be written.
  order = np.argsort(half[kept], kind='stable')
  pixels = rows[kept][order], columns[kept][order]
  window = slice(pixels[0].min(), pixels[0].max() + 1), slice(pixels[1].min(), pixels[1].max() + 1)
  at = pixels[0] - window[0].start, pixels[1] - window[1].start

  def drawn(values: np.ndarray) -> np.ndarray:
    image = np.zeros([part.stop - part.start for part in window])
    image[at] = np.broadcast_to(values, half.shape)[kept][order]
    return image

  return Tube(window=window, half=drawn(half), height=drawn(height), radius=drawn(radius))
