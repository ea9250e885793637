r"""Writes fields of view of smooth random content: for tests, and to try a command line.

    python -m isl.programs.random_field --directory images --rows 512 --columns 512 \
      --target_channels GFP

The files are named like a microscope's, in either dialect. The images mean nothing.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from isl.core.channels import MAXPROJECT
from isl.images import png_folders, png_io
from isl.images.png_folders import SAMPLE

_CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


def write_field(
  directory: pathlib.Path,
  *,
  rows: int = 20,
  columns: int = 30,
  depths: int = 3,
  transmitted_light: str = 'PHASE_CONTRAST',
  further_inputs: Sequence[str] = (),
  channels: Sequence[str] = _CHANNELS,
  wells: Sequence[str] = ('A4',),
  dialect: str = SAMPLE,
  bits: int = 16,
  seed: int = 0,
) -> list[str]:
  """Writes small fields of view of smooth random content, a different one for each well.

  Args:
    directory: the folder, made if it is missing.
    rows: rows of each image, in pixels.
    columns: columns of each image, in pixels.
    depths: number of transmitted-light images, which change smoothly with z.
    transmitted_light: channel of the transmitted-light images.
    further_inputs: channels of other z-stacks, with as many depths. They do not change the other
      images.
    channels: target channels, at z MAXPROJECT.
    wells: names of the wells, each of which gets a field of view.
    dialect: dialect of the file names, SAMPLE or PUBLISHED.
    bits: bits of a pixel, 8 or 16.
    seed: seed of the content.

  Returns:
    The names of the fields of view, in the order of `wells`.
  """
  directory.mkdir(parents=True, exist_ok=True)
  dtype = {8: np.uint8, 16: np.uint16}[bits]

  def write(well: str, z: int | str, channel: str, intensity: np.ndarray) -> None:
    image = np.rint(intensity * (2**bits - 1)).astype(dtype)
    png_io.write_png(directory / png_folders.image_name(well, z, channel, dialect=dialect), image)

  for i, well in enumerate(wells):
    rng = np.random.default_rng([seed, i])
    for z, image in enumerate(_z_stack(rng, depths, rows, columns)):
      write(well, z, transmitted_light, image)
    for channel in channels:
      # Squared for a dark background, as fluorescence has.
      write(well, MAXPROJECT, channel, _texture(rng, rows, columns) ** 2)
    for channel in further_inputs:
      for z, image in enumerate(_z_stack(rng, depths, rows, columns)):
        write(well, z, channel, image)
  return [png_folders.field_name(well, dialect) for well in wells]


def _z_stack(rng: np.random.Generator, depths: int, rows: int, columns: int) -> list[np.ndarray]:
  """Makes `depths` images that change smoothly with z, each float32 [row, column] in [0, 1]."""
  near, far = _texture(rng, rows, columns), _texture(rng, rows, columns)
  shares = [z / max(depths - 1, 1) for z in range(depths)]
  return [(1 - share) * near + share * far for share in shares]


def _texture(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """Makes an image of blobs of about 8 pixels, float32 [row, column] in [0, 1]."""
  coarse = rng.random((rows // 8 + 2, columns // 8 + 2), dtype=np.float32)
  return np.clip(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), 0, 1)


def main() -> None:
  """Runs the program: writes a field of view as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--directory', required=True, help='made if it is missing')
  parser.add_argument('--rows', type=int, default=512, help='of each image, in pixels')
  parser.add_argument('--columns', type=int, default=512, help='of each image, in pixels')
  parser.add_argument('--depths', type=int, default=13, help='transmitted-light images')
  parser.add_argument(
    '--target_channels', default=','.join(_CHANNELS), help='a comma list; %(default)s if left out'
  )
  parser.add_argument(
    '--further_inputs', default='', help='z-stacks beside the transmitted light, a comma list'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the content')
  arguments = parser.parse_args()
  write_field(
    pathlib.Path(arguments.directory),
    rows=arguments.rows,
    columns=arguments.columns,
    depths=arguments.depths,
    channels=list(filter(None, arguments.target_channels.split(','))),
    further_inputs=list(filter(None, arguments.further_inputs.split(','))),
    seed=arguments.seed,
  )


if __name__ == '__main__':
  main()
