"""Fields of view of smooth random content: for tests, and to try a command line without data.

    python -m isl.random_field --directory images --rows 512 --columns 512

Their files are named as a microscope's, in either dialect. What they show means nothing.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from isl import experiment, png_io

SAMPLE = 'sample'
PUBLISHED = 'published'

# What names begin with.
_LAB = {
  SAMPLE: 'lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0',
  PUBLISHED: 'lab-Finkbeiner,condition-kevan_0_8,acquisition_date,year-2015,month-10,day-5',
}


def field_name(well: str, dialect: str = SAMPLE) -> str:
  """What identifies a field of view in the names that `image_name` gives, as isl prints it."""
  return f'{_LAB[dialect]},well-{well}' + (
    ',tile_computation-STITCHED' if dialect == SAMPLE else ''
  )


def image_name(
  well: str, z: int | str, channel: str, *, dialect: str = SAMPLE, is_mask: bool = False
) -> str:
  """The file name of an image: of depth `z`, or with z MAXPROJECT."""
  mask = f'is_mask-{"true" if is_mask else "false"}'
  if dialect == SAMPLE:
    depth = f'depth_computation-{z}' if z == experiment.MAXPROJECT else f'z_depth-{z}'
    return f'{field_name(well, dialect)},{depth},channel-{channel},{mask}.png'
  depth = f'depth_computation,value-{z}' if z == experiment.MAXPROJECT else f'z_depth,value-{z}'
  return (
    f'{field_name(well, dialect)},{depth},channel,value-{channel},{mask},kind,value-ORIGINAL.png'
  )


def write_image_set(
  directory: pathlib.Path,
  *,
  rows: int = 20,
  columns: int = 30,
  depths: int = 3,
  transmitted_light: str = 'PHASE_CONTRAST',
  channels: Sequence[str] = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL'),
  wells: Sequence[str] = ('A4',),
  dialect: str = SAMPLE,
  bits: int = 16,
  seed: int = 0,
) -> list[str]:
  """Writes small fields of view of smooth random content, a different one for each well.

  Args:
    directory: the folder, made if it is missing.
    rows: of each image, in pixels.
    columns: of each image, in pixels.
    depths: transmitted-light images; these change smoothly with z.
    transmitted_light: their channel.
    channels: target channels, at z MAXPROJECT.
    wells: a field of view for each.
    dialect: of the file names, SAMPLE or PUBLISHED.
    bits: 8 or 16.
    seed: of the content.

  Returns:
    The names of the fields of view, in the order of `wells`.
  """
  directory.mkdir(parents=True, exist_ok=True)
  for i, well in enumerate(wells):
    rng = np.random.default_rng([seed, i])
    keys: list[tuple[int | str, str]] = [(z, transmitted_light) for z in range(depths)]
    keys += [(experiment.MAXPROJECT, channel) for channel in channels]
    near, far = _texture(rng, rows, columns), _texture(rng, rows, columns)
    for z, channel in keys:
      if z == experiment.MAXPROJECT:
        # Squared for a dark background, as fluorescence has.
        intensity = _texture(rng, rows, columns) ** 2
      else:
        share = int(z) / max(depths - 1, 1)
        intensity = (1 - share) * near + share * far
      image = np.rint(intensity * (2**bits - 1)).astype({8: np.uint8, 16: np.uint16}[bits])
      png_io.write_png(directory / image_name(well, z, channel, dialect=dialect), image)
  return [field_name(well, dialect) for well in wells]


def _texture(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """Blobs of about 8 pixels: float32 [row, column] in [0, 1]."""
  coarse = rng.random((rows // 8 + 2, columns // 8 + 2), dtype=np.float32)
  return np.clip(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), 0, 1)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--directory', required=True, help='made if it is missing')
  parser.add_argument('--rows', type=int, default=512, help='of each image, in pixels')
  parser.add_argument('--columns', type=int, default=512, help='of each image, in pixels')
  parser.add_argument('--depths', type=int, default=13, help='transmitted-light images')
  parser.add_argument('--seed', type=int, default=0, help='of the content')
  arguments = parser.parse_args()
  write_image_set(
    pathlib.Path(arguments.directory),
    rows=arguments.rows,
    columns=arguments.columns,
    depths=arguments.depths,
    seed=arguments.seed,
  )


if __name__ == '__main__':
  main()
