"""The size of a pixel as microscopes' files have it, in micrometres."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import tifffile

# Names of units in plain TIFFs, in micrometres. Their writers' spellings differ. Inches are for
# printers and screens: 72 of what a microscope's camera sees do not make an inch.
_MICROMETRES = {
  'nm': 1e-3,
  'um': 1.0,
  'µm': 1.0,
  'μm': 1.0,
  '\\u00B5m': 1.0,
  'micron': 1.0,
  'microns': 1.0,
  'mm': 1e3,
  'cm': 1e4,
  tifffile.RESUNIT.CENTIMETER: 1e4,
  tifffile.RESUNIT.MILLIMETER: 1e3,
  tifffile.RESUNIT.MICROMETER: 1.0,
}


def pixel_size(path: pathlib.Path, image: Any, index: int) -> tuple[float, float] | None:
  """What a file says of its pixels' size, with a unit; never an error.

  Args:
    path: of the file.
    image: the bioio.BioImage, at the scene in question.
    index: the scene's number.

  Returns:
    (row, column) in micrometres, or None where it does not say.
  """
  try:
    rows, columns = (float(side) for side in _sides(path, image, index))
  except Exception:
    # What is not there, or not as it should be, comes as any exception of several libraries.
    return None
  if not (0 < rows < math.inf and 0 < columns < math.inf):
    return None
  return rows, columns


def _sides(path: pathlib.Path, image: Any, index: int) -> tuple[float, float]:
  """As `pixel_size`; any exception or nan where that is unknown. bioio's sizes lack the unit."""
  reader = type(image.reader).__module__.partition('.')[0]
  if reader == 'bioio_ome_tiff':
    pixels = image.ome_metadata.images[index].pixels
    sides = (pixels.physical_size_y_quantity, pixels.physical_size_x_quantity)
    return sides[0].to('micrometer').magnitude, sides[1].to('micrometer').magnitude
  sizes = image.physical_pixel_sizes
  if reader == 'bioio_ome_zarr':
    units = image.dimension_properties
    return (
      (sizes.Y * units.Y.unit).to('micrometer').magnitude,
      (sizes.X * units.X.unit).to('micrometer').magnitude,
    )
  if reader == 'bioio_tifffile':
    return _sides_of_tiff(path, index)
  return sizes.Y, sizes.X


def _sides_of_tiff(path: pathlib.Path, index: int) -> tuple[float, float]:
  """From the tags of a plain TIFF, or of one that ImageJ has written."""
  with tifffile.TiffFile(path, is_mmstack=False) as tiff:
    tags = tiff.series[index].keyframe.tags
    imagej = tiff.imagej_metadata or {}
    unit = imagej.get('unit') if tiff.is_imagej else tags['ResolutionUnit'].value
    scale = _MICROMETRES.get(unit, math.nan)
    (y, per_y), (x, per_x) = tags['YResolution'].value, tags['XResolution'].value
    return scale * per_y / y, scale * per_x / x
