"""Puts neurons, glia and what lies among them into a specimen, as phase objects with labels.

Lengths in the plane are in pixels, heights in micrometres. What is labeled cannot be read off a
pixel's intensity, on purpose:

- A nucleus has the mean phase of the cytoplasm that it displaces. It shows by its envelope, its
  nucleoli, and by being smooth where the cytoplasm is granular.
- A remnant of a cell is as high and wide as a neuron's body, but has neither granules nor a
  nucleus. A glial cell has a nucleus, but no MAP2. Debris, vacuoles and dust far from focus are as
  strong as nuclei and nucleoli, and nothing in them is stained.
- Dendrites are thick, taper, branch and are granular; axons are thin, long, uniform. Fibres are as
  thin as axons, but curly and beaded; grooves are as straight, but lack phase where axons add it.
- Unevenness of the medium changes the phase slowly by as much as cells do.
"""

from __future__ import annotations

import numpy as np
from shapes import Oval, Path, random_oval, tube_around, walk
from specimen import Specimen, texture

# Differences of refractive index from the medium's. Cytoplasm's is 0.02 to 0.04 in a real cell; it
# is less here so that most phases are weak, since the optical model is for weak phases alone.
_CYTOPLASM = 0.005
_NUCLEOLUS = 0.012
_ENVELOPE = 0.010

# There is one of each in so many pixels.
_AREA_PER_NEURON = 8500
_AREA_PER_GLIAL_CELL = 26000
_AREA_PER_REMNANT = 15000
_AREA_PER_PASSING_AXON = 34000
_AREA_PER_FIBRE = 8000
_AREA_PER_GROOVE = 11000
_AREA_PER_DEBRIS = 9000
_AREA_PER_DUST = 30000

# The least distance between the middles of cells, in pixels.
_DISTANCE = 56


class Culture:
  """Grows cells and what lies among them in a specimen."""

  def __init__(self, rng: np.random.Generator, specimen: Specimen):
    """Takes the specimen; what grows depends on `rng` and the specimen's size alone."""
    self._rng = rng
    self._specimen = specimen
    self._granules = texture(rng, specimen.size, 6)
    self._grain = texture(rng, specimen.size, 9)

  def grow(self) -> None:
    """Puts all cells, processes and debris into the specimen."""
    self._add_medium()
    cells = [
      *[self._add_neuron] * self._number(_AREA_PER_NEURON),
      *[self._add_glial_cell] * self._number(_AREA_PER_GLIAL_CELL),
      *[self._add_remnant] * self._number(_AREA_PER_REMNANT),
    ]
    places = self._places(len(cells))
    order = self._rng.permutation(len(cells))
    for i, place in zip(order, places, strict=False):
      cells[i](place)
    for add, area in (
      (self._add_passing_axon, _AREA_PER_PASSING_AXON),
      (self._add_fibre, _AREA_PER_FIBRE),
      (self._add_groove, _AREA_PER_GROOVE),
      (self._add_debris, _AREA_PER_DEBRIS),
      (self._add_dust, _AREA_PER_DUST),
    ):
      for _ in range(self._number(area)):
        add(self._anywhere())

  def _number(self, area: float) -> int:
    rows, columns = self._specimen.size
    return max(1, round(rows * columns / area))

  def _anywhere(self) -> tuple[float, float]:
    row, column = self._rng.uniform((0, 0), self._specimen.size)
    return float(row), float(column)

  def _direction(self) -> float:
    return self._rng.uniform(0, 2 * np.pi)

  def _sign(self) -> float:
    return float(self._rng.choice((-1.0, 1.0)))

  def _directions(self, number: int) -> np.ndarray:
    """Draws `number` directions, about evenly all around, in radians: float64 [number]."""
    uneven = self._rng.uniform(-0.2, 0.2, number)
    return self._direction() + (np.arange(number) + uneven) * 2 * np.pi / number

  def _staining(self) -> float:
    """Draws the factor by which a cell's staining differs from the usual, 0.8 to 1.2.

    It is near 1 so that the brightness of a label can be learned.
    """
    return float(np.clip(np.exp(self._rng.normal(0, 0.08)), 0.8, 1.2))

  def _places(self, number: int) -> list[tuple[float, float]]:
    """Draws points (row, column) apart from each other: `number`, or fewer if these do not fit."""
    points: list[tuple[float, float]] = []
    for _ in range(30 * number):
      row, column = self._anywhere()
      if all((row - y) ** 2 + (column - x) ** 2 >= _DISTANCE**2 for y, x in points):
        points.append((row, column))
      if len(points) == number:
        break
    return points

  def _add_medium(self) -> None:
    """Adds the medium's unevenness, at three heights."""
    everywhere = (slice(None), slice(None))
    for period, deviation in ((150, 0.3), (75, 0.3), (40, 0.15)):
      bottom = self._rng.uniform(6, 24)
      top = np.full(self._specimen.size, bottom + 1)
      uneven = texture(self._rng, self._specimen.size, period)
      self._specimen.put(everywhere, bottom, top, 5.5 * deviation * _CYTOPLASM * uneven)

  def _add_neuron(self, place: tuple[float, float]) -> None:
    """Adds a neuron: a body with a nucleus and vacuoles, three to five dendrites, an axon."""
    rng, specimen = self._rng, self._specimen
    base, height = rng.uniform(9, 18), rng.uniform(5, 7)
    body = random_oval(rng, place, rng.uniform(16, 21), wobble=0.06)
    middle = np.array(place) + rng.normal(0, 2, 2)
    nucleus = random_oval(rng, (middle[0], middle[1]), rng.uniform(9.5, 12), wobble=0.04)
    window = specimen.window(*place, body.reach)
    dome = body.dome(window)
    inside = np.clip((1 - nucleus.distance(window)) * 5 + 0.5, 0, 1)
    granular = 0.75 + 0.6 * self._granules[window] * (1 - inside)
    specimen.put(window, base, base + height * dome, _CYTOPLASM * granular)
    self._add_nucleus(nucleus, base + 0.45 * height, self._staining())
    for _ in range(rng.integers(0, 4)):
      away = 0.5 * (max(nucleus.radii) + min(body.radii))
      vacuole = body.point(self._direction(), away)
      index = self._sign() * _NUCLEOLUS
      self._add_ball(vacuole, rng.uniform(1.8, 3.0), base + 0.5 * height, index)
    staining = self._staining()
    specimen.stain(window, 'MAP2_CONFOCAL', staining * np.sqrt(dome) * (1 - 0.4 * inside))
    specimen.stain(window, 'NFH_CONFOCAL', 0.25 * np.sqrt(dome))
    *dendrites, axon = self._directions(int(rng.integers(4, 7)))
    for angle in dendrites:
      self._add_dendrite(body.point(angle, 12), angle, base + 0.3 * height, staining)
    self._add_axon(body.point(axon, 14), axon, base + 0.3 * height)

  def _add_nucleus(self, nucleus: Oval, height: float, staining: float) -> None:
    """Adds a nucleus: an ellipsoid around `height`, with the mean phase of its surroundings."""
    rng, specimen = self._rng, self._specimen
    window = specimen.window(nucleus.row, nucleus.column, nucleus.reach + 6)
    distance = nucleus.distance(window)
    half = 2.5 * nucleus.dome(window)
    if not half.any():
      return
    nucleoli = np.zeros_like(half)
    for angle in self._directions(int(rng.integers(2, 4))):
      place = nucleus.point(angle, rng.uniform(0.35, 0.5) * nucleus.radii[1])
      spot = random_oval(rng, place, rng.uniform(2.2, 3.2), wobble=0)
      np.maximum(nucleoli, spot.dome(window), out=nucleoli)
    specimen.put(window, height - 1.5 * nucleoli, height + 1.5 * nucleoli, _NUCLEOLUS)
    # The nucleus lacks as much phase as its nucleoli add.
    lack = _NUCLEOLUS * 1.5 * nucleoli.sum() / half.sum()
    specimen.put(window, height - half, height + half, -lack)
    # Across the outline, the envelope is a Gaussian's second derivative, which adds no phase in
    # all.
    across = (distance - 1) * np.sqrt(nucleus.radii[0] * nucleus.radii[1]) / 1.1
    envelope = (1 - across**2) * np.exp(-(across**2) / 2)
    specimen.put(window, height - 1, np.full_like(half, height + 1), _ENVELOPE * envelope)
    dapi = staining * np.sqrt(nucleus.dome(window)) * (1 - 0.3 * nucleoli)
    specimen.stain(window, 'DAPI_CONFOCAL', dapi)

  def _add_ball(
    self, place: tuple[float, float], radius: float, height: float, index: float
  ) -> None:
    """Adds a sphere around `place` (row, column) and `height`."""
    specimen = self._specimen
    window = specimen.window(*place, radius)
    rows, columns = np.ogrid[window]
    square = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
    half = specimen.microscope.pixel * np.sqrt(np.maximum(radius**2 - square, 0))
    specimen.put(window, height - half, height + half, index)

  def _add_glial_cell(self, place: tuple[float, float]) -> None:
    """Adds a glial cell: flat and wide, with a large nucleus."""
    rng, specimen = self._rng, self._specimen
    base = rng.uniform(7, 14)
    body = random_oval(rng, place, rng.uniform(28, 38), wobble=0.16)
    window = specimen.window(*place, body.reach)
    uneven = 1 + 0.35 * self._grain[window]
    specimen.put(window, base, base + 2.5 * body.dome(window) ** 0.8, _CYTOPLASM * uneven)
    nucleus = random_oval(rng, place, rng.uniform(11, 13.5), wobble=0.04)
    self._add_nucleus(nucleus, base + 2, 0.75 * self._staining())

  def _add_remnant(self, place: tuple[float, float]) -> None:
    """Adds the remnant of a cell: as high and wide as a neuron's body, with nothing in it."""
    rng, specimen = self._rng, self._specimen
    base, height = rng.uniform(9, 18), rng.uniform(5, 7)
    body = random_oval(rng, place, rng.uniform(13, 21), wobble=0.06)
    window = specimen.window(*place, body.reach)
    specimen.put(window, base, base + height * body.dome(window), 0.8 * _CYTOPLASM)

  def _add_tube(
    self, path: Path, index: float, *, granular: float = 0, channel: str = '', density: float = 0
  ) -> None:
    """Fills the tube around a path.

    Args:
      path: middle line of the tube.
      index: difference of the tube's refractive index from the medium's.
      granular: standard deviation of the index from place to place, as a share of it.
      channel: the label that stains the tube; '': none.
      density: density of the label in the tube's middle.
    """
    tube = tube_around(path, self._specimen)
    if tube is None:
      return
    half = self._specimen.microscope.pixel * tube.half
    uneven = index * (1 + granular * self._granules[tube.window])
    self._specimen.put(tube.window, tube.height - half, tube.height + half, uneven)
    if channel:
      across = np.sqrt(tube.half / np.maximum(tube.radius, 1e-9))
      self._specimen.stain(tube.window, channel, density * across)

  def _add_dendrite(
    self, start: tuple[float, float], angle: float, height: float, staining: float
  ) -> None:
    """Adds a dendrite: thick, tapering, granular, most often with a branch."""
    rng = self._rng
    length = rng.uniform(45, 95)
    path = walk(rng, start, angle, height, length, bend=0.035)
    path = path.widened(rng.uniform(4, 5) * np.linspace(1, 0.5, len(path.row)))
    paths = [path]
    if rng.random() < 0.6:
      at = int(rng.uniform(0.4, 0.6) * len(path.row))
      turned = path.direction(at) + self._sign() * rng.uniform(0.5, 0.9)
      fork = path.row[at], path.column[at]
      length *= rng.uniform(0.4, 0.6)
      branch = walk(rng, fork, turned, path.height[at], length, bend=0.035)
      paths.append(branch.widened(path.radius[at] * np.linspace(0.85, 0.5, len(branch.row))))
    for part in paths:
      self._add_tube(
        part, 0.6 * _CYTOPLASM, granular=0.8, channel='MAP2_CONFOCAL', density=0.8 * staining
      )

  def _add_axon(self, start: tuple[float, float], angle: float, height: float) -> None:
    """Adds an axon: thin, long, uniform."""
    rng = self._rng
    path = walk(rng, start, angle, height, rng.uniform(250, 500), bend=0.012)
    path = path.widened(rng.uniform(2.4, 2.8))
    self._add_tube(path, 1.2 * _CYTOPLASM, channel='NFH_CONFOCAL', density=self._staining())

  def _add_passing_axon(self, start: tuple[float, float]) -> None:
    """Adds an axon whose neuron is elsewhere."""
    self._add_axon(start, self._direction(), self._rng.uniform(9, 24))

  def _add_fibre(self, start: tuple[float, float]) -> None:
    """Adds a fibre: as thin as an axon, but curly and beaded."""
    rng = self._rng
    height, length = rng.uniform(9, 24), rng.uniform(60, 160)
    path = walk(rng, start, self._direction(), height, length, bend=0.2)
    # A bead every 7 to 10 pixels.
    beads = np.sin(np.pi * np.arange(len(path.row)) / rng.uniform(7, 10))
    self._add_tube(path.widened(rng.uniform(2.1, 2.5) * (1 + 0.3 * beads)), 1.6 * _CYTOPLASM)

  def _add_groove(self, start: tuple[float, float]) -> None:
    """Adds a groove: as thin and straight as an axon, but with less phase than the medium."""
    rng = self._rng
    height, length = rng.uniform(9, 24), rng.uniform(150, 400)
    path = walk(rng, start, self._direction(), height, length, bend=0.006)
    self._add_tube(path.widened(rng.uniform(2.0, 2.6)), -1.6 * _CYTOPLASM)

  def _add_debris(self, place: tuple[float, float]) -> None:
    """Adds debris: a cluster of grains, as dense as nucleoli and as small."""
    rng = self._rng
    height = rng.uniform(6, 30)
    for _ in range(rng.integers(1, 6)):
      row, column = np.array(place) + rng.normal(0, 7, 2)
      index = self._sign() * _NUCLEOLUS
      self._add_ball((row, column), rng.uniform(1.8, 4.0), height + rng.normal(0, 2), index)

  def _add_dust(self, place: tuple[float, float]) -> None:
    """Adds dust: a large grain at the lowest or the highest focal plane."""
    rng = self._rng
    height = rng.choice((0.0, 36.0))
    self._add_ball(place, rng.uniform(8, 14), height, self._sign() * 0.6 * _CYTOPLASM)
