"""Simulates fields of view: neurons in transmitted light, with their fluorescent labels.

    python data_sample/make_synthetic.py --directory images --seed 3

writes z-stacks of 13 depths and the labels DAPI_CONFOCAL (nuclei), MAP2_CONFOCAL (neurons' bodies
and dendrites) and NFH_CONFOCAL (axons, and bodies weakly), a field of view for each well, named as
in the published sample. What is in a field of view is in data_sample/cells.py; how transmitted
light shows it, with formulas and their sources, is in data_sample/optics.py. This module adds a
slightly uneven illumination and the camera:

- The camera counts photons: N fill a pixel, so that intensity I in [0, 1] has Poisson's noise, of
  variance I / N, which for so many photons is Gaussian. Reading adds noise of a variance of its own
  (Janesick, Photon Transfer, SPIE 2007).
- A label is the largest density of its dye along z, blurred by the confocal microscope's point
  spread function, which is close to a Gaussian (Zhang, Zerubia, Olivo-Marin, Applied Optics 46,
  1819-1829, 2007), over a background, with a little noise.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import cv2
import numpy as np
from cells import Culture
from optics import TRANSFERS, Microscope, focal_stack
from specimen import CHANNELS, Specimen

from isl.core.channels import MAXPROJECT
from isl.images import png_io
from isl.images.png_folders import image_name

# Light without a specimen, the photons that fill a pixel, and the standard deviation of reading it;
# intensities are shares of a pixel's full range.
_MEAN = 0.5
_PHOTONS = 20000.0
_READ_NOISE = 0.002
# Pixels simulated around the field of view, so that what lies outside of it reaches in.
_MARGIN = 48
# A label's blur in pixels, its intensity where there is no dye, the intensity that a density of 1
# adds, and the standard deviation of its noise.
_CONFOCAL_BLUR = 1.2
_BACKGROUND = 0.06
_BRIGHT = 0.7
_LABEL_NOISE = 0.004


def simulate(
  rng: np.random.Generator, rows: int, columns: int, transmitted_light: str
) -> dict[tuple[int | str, str], np.ndarray]:
  """Simulates a field of view.

  Args:
    rng: generator of all that is random.
    rows: rows of each image, in pixels.
    columns: columns of each image, in pixels.
    transmitted_light: PHASE_CONTRAST, DIC or BRIGHTFIELD.

  Returns:
    The images by (z, channel): intensities in [0, 1], float64 [row, column].
  """
  microscope = Microscope()
  specimen = Specimen(rows + 2 * _MARGIN, columns + 2 * _MARGIN, microscope)
  Culture(rng, specimen).grow()
  field = (slice(_MARGIN, _MARGIN + rows), slice(_MARGIN, _MARGIN + columns))
  images: dict[tuple[int | str, str], np.ndarray] = {}
  light = illumination(rng, rows, columns)
  for z, image in enumerate(focal_stack(specimen.phase, transmitted_light, microscope)):
    images[z, transmitted_light] = _camera(rng, light * image[field])
  for channel in CHANNELS:
    density = cv2.GaussianBlur(specimen.density[channel], (0, 0), _CONFOCAL_BLUR)[field]
    noise = rng.normal(0, _LABEL_NOISE, density.shape)
    label = _BACKGROUND + _BRIGHT * density + noise
    images[MAXPROJECT, channel] = np.clip(label, 0, 1)
  return images


def illumination(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """Draws the light without a specimen, slightly brighter on one side: float64 [row, column]."""
  slope = rng.uniform(-0.03, 0.03, 2)
  return (
    _MEAN
    + slope[0] * np.linspace(-1, 1, rows)[:, np.newaxis]
    + slope[1] * np.linspace(-1, 1, columns)
  )


def _camera(rng: np.random.Generator, intensity: np.ndarray) -> np.ndarray:
  """Simulates a camera: adds noise to intensities in [0, 1], and clips them."""
  deviation = np.sqrt(np.maximum(intensity, 0) / _PHOTONS + _READ_NOISE**2)
  return np.clip(intensity + deviation * rng.standard_normal(intensity.shape), 0, 1)


def write_fields(
  directory: pathlib.Path,
  *,
  rows: int,
  columns: int,
  wells: Sequence[str],
  transmitted_light: str = 'PHASE_CONTRAST',
  bits: int = 8,
  seed: int = 0,
) -> None:
  """Writes a field of view for each well.

  Args:
    directory: the folder, made if it is missing.
    rows: rows of each image, in pixels.
    columns: columns of each image, in pixels.
    wells: names of the wells. A field of view depends on the seed and its well's place in this
      list.
    transmitted_light: PHASE_CONTRAST, DIC or BRIGHTFIELD.
    bits: bits of a pixel, 8 or 16.
    seed: seed of all that is random.
  """
  directory.mkdir(parents=True, exist_ok=True)
  kind = {8: np.uint8, 16: np.uint16}[bits]
  for i, well in enumerate(wells):
    images = simulate(np.random.default_rng([seed, i]), rows, columns, transmitted_light)
    for (z, channel), intensity in images.items():
      image = np.rint(intensity * (2**bits - 1)).astype(kind)
      png_io.write_png(directory / image_name(well, z, channel), image)


class _Parser(argparse.ArgumentParser):
  """A parser of the command line that says in one line what is wrong with it."""

  def error(self, message: str) -> NoReturn:
    """Ends the program with status 2, without the usage that argparse would print."""
    self.exit(2, f'{self.prog}: error: {message}\n')


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the command line; ends the program with status 2 and one line if it is wrong."""
  parser = _Parser(description=__doc__.split('\n')[0])
  parser.add_argument('--directory', required=True, help='made if it is missing')
  parser.add_argument('--seed', type=_whole(0), default=0, help='of all that is random')
  parser.add_argument('--rows', type=_whole(32, 8192), default=512, help='of each image, in pixels')
  parser.add_argument('--columns', type=_whole(32, 8192), default=512, help='in pixels')
  parser.add_argument('--transmitted_light', choices=list(TRANSFERS), default='PHASE_CONTRAST')
  parser.add_argument('--wells', type=_well_names, default='1', help='how many, or which: A4,B2')
  parser.add_argument('--bits', type=int, choices=(8, 16), default=8, help='of a pixel')
  return parser.parse_args(arguments)


def _whole(smallest: int, largest: float = np.inf) -> Callable[[str], int]:
  """The type of a flag that is a whole number from `smallest` to `largest`."""

  def whole(text: str) -> int:
    if not re.fullmatch('[0-9]{1,18}', text) or not smallest <= int(text) <= largest:
      limit = 'up' if largest == np.inf else f'to {largest}'
      raise argparse.ArgumentTypeError(
        f'must be a whole number from {smallest} {limit}, got {text!r}'
      )
    return int(text)

  return whole


def _well_names(text: str) -> list[str]:
  """The type of --wells: how many (2 is A1,A2), or which (A4,B2)."""
  if re.fullmatch('[0-9]{1,3}', text) and 1 <= int(text) <= 96:
    return [f'{"ABCDEFGH"[i // 12]}{i % 12 + 1}' for i in range(int(text))]
  names = text.split(',')
  if len(set(names)) < len(names) or not all(re.fullmatch('[A-P][1-9][0-9]?', n) for n in names):
    raise argparse.ArgumentTypeError(
      f'must be a number from 1 to 96, or different wells (A4,B2), got {text!r}'
    )
  return names


def main() -> None:
  """Runs the program: writes fields of view as the command line says."""
  arguments = parse_arguments()
  try:
    write_fields(
      pathlib.Path(arguments.directory),
      rows=arguments.rows,
      columns=arguments.columns,
      wells=arguments.wells,
      transmitted_light=arguments.transmitted_light,
      bits=arguments.bits,
      seed=arguments.seed,
    )
  except OSError as error:
    sys.exit(f'--directory: {error}')


if __name__ == '__main__':
  main()
