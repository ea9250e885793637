"""Writes fields of view as microscopes' files and manifests for tests, from folders of PNGs."""

from __future__ import annotations

import csv
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import tifffile

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images.fields_of_view import FieldFiles


def stack_of(field: FieldFiles) -> np.ndarray:
  """Reads all images of a field of view: [channel, z, row, column], channels sorted by name.

  A label, of which there is only a projection, is at z 0 and black elsewhere, so that its
  projection stays the same.
  """
  images = field.read().images
  depths = 1 + max((key.z for key in images if isinstance(key.z, int)), default=0)
  first = np.asarray(next(iter(images.values()))[:, :])
  stack = np.zeros((len(field.channels), depths, *first.shape), first.dtype)
  for number, channel in enumerate(field.channels):
    for z in range(depths):
      key = ImageKey(z, channel)
      if key in images:
        stack[number, z] = images[key][:, :]
    if ImageKey(0, channel) not in images:
      stack[number, 0] = images[ImageKey(MAXPROJECT, channel)][:, :]
  return stack


def write_ome_tiff(
  path: pathlib.Path, field: FieldFiles, pixel_size: tuple[float, float] | None = None
) -> pathlib.Path:
  """Writes a field of view as an OME-TIFF of all its channels.

  Args:
    path: the file's name.
    field: the field of view, whose images have one dtype.
    pixel_size: a pixel's (height, width) in micrometres; None: the file does not say.

  Returns:
    `path`.
  """
  metadata: dict[str, object] = {'axes': 'CZYX', 'Channel': {'Name': list(field.channels)}}
  if pixel_size is not None:
    metadata |= {
      f'PhysicalSize{axis}{end}': value
      for axis, size in zip('YX', pixel_size, strict=True)
      for end, value in (('', size), ('Unit', 'µm'))
    }
  tifffile.imwrite(path, stack_of(field), photometric='minisblack', metadata=metadata, ome=True)
  return path


def write_ome_zarr(
  path: pathlib.Path,
  field: FieldFiles,
  pixel_size: tuple[float, float] | None = None,
  *,
  version: str = '0.5',
  chunk: int = 64,
) -> pathlib.Path:
  """Writes a field of view as an OME-Zarr of all its channels.

  Args:
    path: the folder's name.
    field: the field of view, whose images have one dtype.
    pixel_size: a pixel's (height, width) in micrometres; None: the file does not say.
    version: version of OME-Zarr: '0.4' or '0.5'.
    chunk: side of the chunks, in pixels.

  Returns:
    `path`.
  """
  import dask.array
  from bioio_ome_zarr import writers

  stack = stack_of(field)
  chunks = (1, 1, *(min(chunk, side) for side in stack.shape[2:]))
  space = None if pixel_size is None else 'micrometer'
  with warnings.catch_warnings():
    # With OME-Zarr 0.4, Dask warns if the chunks do not divide the image.
    warnings.simplefilter('ignore')
    with writers.OMEZarrWriter(
      str(path),
      level_shapes=stack.shape,
      dtype=stack.dtype,
      chunk_shape=chunks,
      zarr_format=2 if version == '0.4' else 3,
      channels=[writers.Channel(label=name, color='FFFFFF') for name in field.channels],
      axes_names=['c', 'z', 'y', 'x'],
      axes_units=[None, space, space, space],
      physical_pixel_size=[1.0, 1.0, *(pixel_size or (1.0, 1.0))],
    ) as writer:
      writer.write_full_volume(dask.array.from_array(stack, chunks))
  return path


def write_manifest(path: pathlib.Path, fields: Sequence[FieldFiles]) -> pathlib.Path:
  """Writes a manifest of fields of view whose images have a file each; returns `path`."""
  with path.open('w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(['field', 'z', 'channel', 'path'])
    for field in fields:
      for key, source in field.sources.items():
        file = source.path.absolute()
        folder = path.absolute().parent
        shown = file.relative_to(folder) if file.is_relative_to(folder) else file
        writer.writerow([field.name, key.z, key.channel, shown])
  return path
