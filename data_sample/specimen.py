"""The specimen that objects are put into: layers of phase, and how densely each label stains.

An object is a column at each pixel, from a bottom to a top, and the difference dn of its refractive
index from the medium's. A column's thickness t in a layer delays light of the wavelength lambda by
the phase 2 pi / lambda * dn * t (Born & Wolf, Principles of Optics, section 3.1: the optical path).
"""

from __future__ import annotations

import numpy as np
from optics import Microscope

DEPTHS = 13
CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')

Window = tuple[slice, slice]


class Specimen:
  """The phase objects in a field of view, and their labels.

  Attributes:
    microscope: the microscope, which has the size of pixels and the pitch of layers.
    phase: phases in radians, float64 [layer, row, column].
    density: by label, the largest density of its dye along z, about 1 where well stained: float64
      [row, column].
  """

  def __init__(self, rows: int, columns: int, microscope: Microscope):
    """Makes an empty specimen of `rows` x `columns` pixels and DEPTHS layers."""
    self.microscope = microscope
    self.phase = np.zeros((DEPTHS, rows, columns))
    self.density = {channel: np.zeros((rows, columns)) for channel in CHANNELS}

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of the specimen, in pixels."""
    return self.phase.shape[1], self.phase.shape[2]

  def window(self, row: float, column: float, radius: float) -> Window:
    """The window of pixels within `radius` of a point, as far as the specimen reaches."""
    parts = []
    for middle, size in zip((row, column), self.size, strict=True):
      first, last = np.ceil(middle - radius), np.floor(middle + radius)
      parts.append(slice(int(np.clip(first, 0, size)), int(np.clip(last + 1, 0, size))))
    return parts[0], parts[1]

  def put(
    self, window: Window, bottom: np.ndarray | float, top: np.ndarray, index: np.ndarray | float
  ) -> None:
    """Adds an object's phase to the layers that it reaches into.

    Args:
      window: the pixels that the object is at.
      bottom: height of the object's bottom, in micrometres above the lowest layer's middle;
        broadcasts to the window's shape.
      top: height of the object's top, in micrometres above the lowest layer's middle, [row,
        column]; there is no object where it is not above the bottom.
      index: difference of refractive index from the medium's; broadcasts to the window's shape.
    """
    if not top.size:
      return
    per_length = 2 * np.pi / self.microscope.wavelength * np.asarray(index)
    pitch = self.microscope.pitch
    for layer in range(DEPTHS):
      # Parts below the lowest layer or above the highest count as in it.
      floor = -np.inf if layer == 0 else (layer - 0.5) * pitch
      ceiling = np.inf if layer == DEPTHS - 1 else (layer + 0.5) * pitch
      if floor < top.max() and ceiling > np.min(bottom):
        thickness = np.minimum(top, ceiling) - np.maximum(bottom, floor)
        self.phase[layer][window] += per_length * np.maximum(thickness, 0)

  def stain(self, window: Window, channel: str, density: np.ndarray) -> None:
    """Adds an object to a label: its density becomes at least `density`, [row, column]."""
    stained = self.density[channel][window]
    np.maximum(stained, density, out=stained)


def texture(rng: np.random.Generator, size: tuple[int, int], period: float) -> np.ndarray:
  """Draws noise whose spectrum f exp(-(period f)^2 / 2) is largest at f = 1 / period.

  Args:
    rng: generator of the random numbers.
    size: (rows, columns) of the noise, in pixels.
    period: the period that is strongest, in pixels.

  Returns:
    float64 [row, column] of mean 0 and standard deviation 1.
  """
  f = np.hypot(np.fft.fftfreq(size[0])[:, np.newaxis], np.fft.rfftfreq(size[1])[np.newaxis])
  band = f * np.exp(-((period * f) ** 2) / 2)
  noise = np.fft.irfft2(band * np.fft.rfft2(rng.standard_normal(size)), s=size)
  return noise / noise.std()
