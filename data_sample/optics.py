"""Simulates how a microscope sees a weak phase object, by transfer functions of transmitted light.

The specimen is a stack of thin layers that shift the phase of light, by phi(x, y) radians each, and
absorb nothing. Where the phases are small, the image's intensity is linear in them (Born & Wolf,
Principles of Optics, section 8.6; Streibl, J. Opt. Soc. Am. A 2, 121-127, 1985), so that every
layer has a transfer function of its own, by its distance z from the plane in focus:

    I(x, y) / I0 = 1 + sum over layers of F^-1[H(f; z) * F[phi](f)](x, y)

A layer scatters i * phi at spatial frequency f. The way to the focal plane, z below it (light comes
from above, as in an inverted microscope), turns this by exp(-i chi) against the unscattered light,
chi = pi * lambda / n * z * |f|^2, lambda / n being the wavelength in the medium (Fresnel
propagation). A plate in the objective's back focal plane turns the unscattered light by theta. Up
to phi^2, the intensity is |exp(i theta) + i phi exp(-i chi)|^2 = 1 + 2 phi sin(chi + theta):

    BRIGHTFIELD     H = 2 sin(chi) A E             theta = 0: no contrast in focus, and contrast
                                                   that changes its sign with that of z
    PHASE_CONTRAST  H = -2 cos(chi) A E R          theta = -pi / 2: what is dense is dark in focus
                                                   (Zernike, Physica 9, 686-698, 1942)
    DIC             H = 2 (i sin(pi f . s) cot(b / 2) cos(chi) + cos(pi f . s) sin(chi)) A E
                                                   two images at a distance s (the shear) that
                                                   interfere with bias b: in focus, the phase's
                                                   gradient (Preza, Snyder, Conchello, J. Opt.
                                                   Soc. Am. A 16, 2185-2199, 1999, for weak phases)

with A the objective's aperture, E the loss of contrast out of focus to a light source of finite
extent, and R what Zernike's plate, a ring of finite width, takes from the lowest frequencies, which
it shifts as if they were unscattered: this makes the halos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Microscope:
  """A microscope; lengths are in micrometres, spatial frequencies in cycles per micrometre.

  Attributes:
    pixel: side of a pixel, in the specimen.
    pitch: distance from one depth of the z-stack to the next.
    wavelength: wavelength of the light, in vacuum.
    refractive_index: refractive index of the medium.
    aperture: numerical aperture of the objective.
    source_angle: half the angle at which the light source is seen, in radians.
    ring_frequency: spatial frequency at which the ring of the phase plate ends.
    shear: distance (rows, columns) between DIC's two images.
    bias: phase difference between DIC's two images, in radians.
  """

  pixel: float = 0.5
  pitch: float = 3.0
  wavelength: float = 0.55
  refractive_index: float = 1.33
  aperture: float = 0.45
  source_angle: float = 0.04
  ring_frequency: float = 0.05
  shear: tuple[float, float] = (0.35, 0.35)
  bias: float = np.pi / 4

  def frequencies(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of rows [row, 1] and columns [1, column], in the order of numpy.fft.rfft2."""
    return (
      np.fft.fftfreq(rows, self.pixel)[:, np.newaxis],
      np.fft.rfftfreq(columns, self.pixel)[np.newaxis],
    )

  def delay(self, f: np.ndarray, z: float) -> np.ndarray:
    """Computes chi = pi * wavelength / refractive_index * z * f^2, in radians."""
    return np.pi * self.wavelength / self.refractive_index * z * f**2

  def passed(self, f: np.ndarray, z: float) -> np.ndarray:
    """Computes the share of contrast that aperture and light source leave, A * E.

    A is 1 up to the aperture's edge, aperture / wavelength, where it falls to 0 within a tenth of
    that. A source whose brightness falls as a Gaussian of the angle blurs what is out of focus as a
    Gaussian: E = exp(-(pi * source_angle * z * f)^2).

    Args:
      f: spatial frequencies, any shape.
      z: distance from the focal plane.
    """
    edge = self.aperture / self.wavelength
    aperture = np.clip((edge - f) / (0.1 * edge) + 0.5, 0, 1)
    return aperture * np.exp(-((np.pi * self.source_angle * z * f) ** 2))

  def ring(self, f: np.ndarray) -> np.ndarray:
    """Computes what the phase plate's ring leaves: R = 1 - exp(-(f / ring_frequency)^2)."""
    return 1 - np.exp(-((f / self.ring_frequency) ** 2))


Transfer = Callable[[Microscope, np.ndarray, np.ndarray, float], np.ndarray]


def brightfield(
  microscope: Microscope, f_row: np.ndarray, f_column: np.ndarray, z: float
) -> np.ndarray:
  """Computes H of a layer at distance `z`: 2 sin(chi) A E. Frequencies broadcast."""
  f = np.hypot(f_row, f_column)
  return 2 * np.sin(microscope.delay(f, z)) * microscope.passed(f, z)


def phase_contrast(
  microscope: Microscope, f_row: np.ndarray, f_column: np.ndarray, z: float
) -> np.ndarray:
  """Computes H of a layer at distance `z`: -2 cos(chi) A E R. Frequencies broadcast."""
  f = np.hypot(f_row, f_column)
  plate = -2 * np.cos(microscope.delay(f, z))
  return plate * microscope.passed(f, z) * microscope.ring(f)


def dic(microscope: Microscope, f_row: np.ndarray, f_column: np.ndarray, z: float) -> np.ndarray:
  """Computes H of a layer at distance `z`; frequencies broadcast.

      2 (i sin(pi f . s) cot(b / 2) cos(chi) + cos(pi f . s) sin(chi)) A E

  With u = 1 + p + i q the wave in the focal plane, where p is phi turned by sin(chi) and q by
  cos(chi), the intensity is |u(x + s / 2) exp(i b / 2) - u(x - s / 2) exp(-i b / 2)|^2. Over its
  value without a specimen, 4 sin(b / 2)^2, the part that is linear in phi is q(x + s / 2) - q(x - s
  / 2), times cot(b / 2), plus p(x + s / 2) + p(x - s / 2).
  """
  f = np.hypot(f_row, f_column)
  along_shear = f_row * microscope.shear[0] + f_column * microscope.shear[1]
  chi = microscope.delay(f, z)
  difference = 1j * np.sin(np.pi * along_shear) / np.tan(microscope.bias / 2)
  both = difference * np.cos(chi) + np.cos(np.pi * along_shear) * np.sin(chi)
  return 2 * both * microscope.passed(f, z)


TRANSFERS: dict[str, Transfer] = {
  'PHASE_CONTRAST': phase_contrast,
  'DIC': dic,
  'BRIGHTFIELD': brightfield,
}


def focal_stack(phase: np.ndarray, transmitted_light: str, microscope: Microscope) -> np.ndarray:
  """Computes images of a specimen, focused on each of its layers in turn.

  Args:
    phase: phases in radians, float [layer, row, column], layers `pitch` apart; they are taken to
      repeat beyond the borders.
    transmitted_light: a key of TRANSFERS.
    microscope: the microscope that sees the specimen.

  Returns:
    I / I0, float64 [layer, row, column], around 1.
  """
  layers, rows, columns = phase.shape
  f_row, f_column = microscope.frequencies(rows, columns)
  transfer = {
    step: TRANSFERS[transmitted_light](microscope, f_row, f_column, step * microscope.pitch)
    for step in range(1 - layers, layers)
  }
  spectra = np.fft.rfft2(phase)
  stack = np.empty(phase.shape)
  for focus in range(layers):
    spectrum = sum(transfer[layer - focus] * spectra[layer] for layer in range(layers))
    stack[focus] = 1 + np.fft.irfft2(spectrum, s=(rows, columns))
  return stack
