"""Writes predictions as OME-TIFF, plane by plane: one channel is in memory at a time."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from isl.images.placement import Placement, halved, level_sizes
from isl.system import files

# OME's pixel types that predictions can have; OME has none for float16.
_DTYPES = ('uint8', 'uint16', 'float32')
_TILE = (256, 256)
# zlib's level: half the time of its default, 6, for files that are 2 to 8% larger.
_COMPRESSION = 2
# Rows that are halved at a time.
_BAND = 512
# In bytes. A classic TIFF ends at 4 GB; tables, and pixels that zlib enlarges, need some of that.
_MAX_CLASSIC = (1 << 32) - (1 << 26)
_MICROMETRES_PER_CENTIMETRE = 1e4


def write_ome_tiff(
  path: str | os.PathLike[str],
  planes: Iterable[np.ndarray],
  *,
  size: tuple[int, int],
  channels: Sequence[str],
  dtype: npt.DTypeLike,
  placement: Placement,
  description: str = '',
) -> None:
  """Writes an image of axes c, y, x: tiled, compressed without loss, each plane with its pyramid.

  Args:
    path: the file's name; it is written whole, see `files.whole_file`.
    planes: the channels' images, [row, column], in the channels' order. Each is asked for only
      after the one before is written.
    size: (rows, columns) of the image, in pixels.
    channels: names of the channels.
    dtype: dtype of the file's pixels: uint8, uint16 or float32.
    placement: where the image lies in the microscope's image, and its pixels' size.
    description: text for people who open the file; '': none.

  Raises:
    OSError: the file cannot be written.
    ValueError: the dtype is another, there are no channels or pixels, the planes differ in number,
      size or dtype from what was given, or a text has characters that XML cannot express.
  """
  dtype, shown = np.dtype(dtype), repr(str(path))
  if dtype.name not in _DTYPES:
    raise ValueError(f'dtype must be one of {", ".join(_DTYPES)}, got {dtype}')
  if min(len(channels), *size) < 1:
    raise ValueError(
      f'{shown}: an image needs channels and pixels, got {len(channels)} channels and the size'
      f' {size}'
    )
  shape = (len(channels), *size)
  xml = _ome_xml(pathlib.Path(path).name, shape, dtype, channels, placement, description)
  with (
    files.whole_file(path) as partial,
    tifffile.TiffWriter(partial, bigtiff=_is_big(shape, dtype), ome=False) as tiff,
  ):
    written = 0
    for plane in planes:
      if written == len(channels) or plane.shape != size or not _holds(dtype, plane):
        raise ValueError(
          f'{shown}: expected {len(channels)} planes of {dtype} {list(size)}, got one of'
          f' {plane.dtype} {list(plane.shape)} behind {written}'
        )
      _write_plane(tiff, plane.astype(dtype, copy=False), placement, None if written else xml)
      written += 1
      # Before the next one is made.
      del plane
    if written != len(channels):
      raise ValueError(f'{shown}: expected {len(channels)} planes, got {written}')


def _holds(dtype: np.dtype, plane: np.ndarray) -> bool:
  """Whether a plane's values can be the file's: of the same dtype, or both floats."""
  return plane.dtype == dtype or plane.dtype.kind == dtype.kind == 'f'


def _is_big(shape: tuple[int, int, int], dtype: np.dtype) -> bool:
  """Whether the file might outgrow a classic TIFF if zlib does not make it smaller at all."""
  channels, *size = shape
  pixels = sum(rows * columns for rows, columns in level_sizes((size[0], size[1])))
  return pixels * channels * dtype.itemsize > _MAX_CLASSIC


def _write_plane(
  tiff: tifffile.TiffWriter, plane: np.ndarray, placement: Placement, xml: bytes | None
) -> None:
  """Writes a plane, and the smaller levels of its pyramid as its SubIFDs."""
  common: dict[str, Any] = {
    'photometric': 'minisblack',
    'tile': _TILE,
    'compression': 'zlib',
    'compressionargs': {'level': _COMPRESSION},
    'software': 'isl',
    # What tifffile would say of the shape, OME-XML says.
    'metadata': None,
  }
  levels = len(level_sizes((plane.shape[0], plane.shape[1])))
  tiff.write(plane, subifds=levels - 1, description=xml, **common, **_resolution(placement, 0))
  for level in range(1, levels):
    bands = (plane[row : row + _BAND] for row in range(0, len(plane), _BAND))
    plane = np.concatenate([halved(band) for band in bands])
    tiff.write(plane, subfiletype=1, **common, **_resolution(placement, level))


def _resolution(placement: Placement, level: int) -> dict[str, Any]:
  """A level's TIFF tags for the size of a pixel, for readers that know nothing of OME."""
  if placement.unit is None:
    return {}
  height, width = placement.scale(level)
  return {
    'resolution': (_MICROMETRES_PER_CENTIMETRE / width, _MICROMETRES_PER_CENTIMETRE / height),
    'resolutionunit': 'CENTIMETER',
  }


def _ome_xml(
  name: str,
  shape: tuple[int, int, int],
  dtype: np.dtype,
  channels: Sequence[str],
  placement: Placement,
  description: str,
) -> bytes:
  """Makes the OME-XML that describes the image.

  See https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html.

  Raises:
    ValueError: a text has characters that XML cannot express.
  """
  metadata: dict[str, Any] = {'Name': name, 'Channel': {'Name': list(channels)}}
  if description:
    metadata['Description'] = description
  if placement.unit is not None:
    height, width = placement.scale()
    metadata |= {'PhysicalSizeX': width, 'PhysicalSizeXUnit': 'µm'}
    metadata |= {'PhysicalSizeY': height, 'PhysicalSizeYUnit': 'µm'}
  row, column = placement.translation()
  unit = 'pixel' if placement.unit is None else 'µm'
  metadata['Plane'] = {
    f'Position{axis}{key}': [value] * len(channels)
    for axis, position in (('X', column), ('Y', row))
    for key, value in (('', position), ('Unit', unit))
  }
  # The identifier that tifffile would make tells the machine's address.
  document = tifffile.OmeXml(Creator='isl', UUID=str(uuid.uuid4()))
  document.addimage(dtype, shape, (shape[0], 1, 1, *shape[1:], 1), axes='CYX', **metadata)
  xml = document.tostring(declaration=True).encode()
  try:
    ElementTree.fromstring(xml)
  except ElementTree.ParseError as error:
    raise ValueError(
      f'channels and description must be text that XML can hold, got {list(channels)} and'
      f' {description!r}'
    ) from error
  return xml
