"""Reads a microscope's file by way of bioio: its scenes, their channels, sizes and pixels.

isl/images/microscope_files.py makes fields of view of the scenes. Here, too, is what depends on the
libraries: whether they are installed, errors of one line in place of theirs, the size of a pixel,
and checks for truncated files, whose missing pixels the libraries would make up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import logging
import math
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import tifffile

_TIFF = ('.tif', '.tiff')
_ZARR = '.zarr'
# The suffixes that bioio and its plugins read, but for pictures and films (.png, .jpg, .mp4..).
SUFFIXES = (*_TIFF, _ZARR, '.czi', '.nd2', '.lif', '.dv', '.r3d', '.sld', '.ims', '.vsi', '.oir')
# By suffix, the plugin that pip installs with isl[czi].
_CZI = {'.czi': 'bioio_czi'}
# The folder of an OME-Zarr has one of these files, which says what is in it.
_ZARR_FILES = ('zarr.json', '.zattrs', '.zgroup')
_WANTED = 'expected an image of the axes C, Z, Y and X that bioio reads'
_LONGEST_REASON = 300
# In bytes; the four at 12 are the chunk's size.
_BLOSC_HEADER = 16

# Warnings' filters belong to the whole process.
_quiet_lock = threading.Lock()
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
  """A scene of a microscope's file: z-stacks of one or several channels, all of one size.

  Attributes:
    name: the scene's name in the file.
    channels: the channels' names, without spaces around them.
    stack: the pixels as stored: a Dask array [channel, z, row, column].
    pixel_size: a pixel's (height, width) in micrometres; None: the file does not say.
    array: the zarr array of an OME-Zarr; None for other files.
    axes: the axes of the pixels in the file: 'TCZYX', 'CYX'..
  """

  name: str
  channels: tuple[str, ...]
  stack: Any
  pixel_size: tuple[float, float] | None
  array: Any
  axes: str

  @property
  def depths(self) -> int:
    """The number of planes of each channel."""
    return int(self.stack.shape[1])

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) in pixels."""
    return int(self.stack.shape[2]), int(self.stack.shape[3])

  @property
  def stored_dtype(self) -> np.dtype[Any]:
    """The dtype of the pixels in the file."""
    return np.dtype(self.stack.dtype)

  @property
  def dtype(self) -> np.dtype[Any]:
    """The dtype of the pixels as isl reads them: uint8 or uint16 if stored so, else float32."""
    native = self.stored_dtype.newbyteorder('=')
    return native if native in (np.uint8, np.uint16) else np.dtype(np.float32)

  @property
  def chunk(self) -> tuple[int, ...]:
    """The chunks' size as [channel, z, row, column]; the last along an axis may be smaller."""
    return tuple(sides[0] for sides in self.stack.chunks)

  def read_channel(self, channel: int) -> np.ndarray:
    """Decodes all planes of a channel, as stored: [z, row, column]."""
    return np.asarray(self.stack[channel].compute(scheduler='synchronous'))

  def read_chunk(self, index: tuple[int, ...]) -> np.ndarray:
    """Decodes a chunk of an OME-Zarr, as stored: [channel, z, row, column].

    Args:
      index: the chunk's index along each of these axes.

    Raises:
      ValueError: the chunk is truncated.
    """
    # Through Dask, a chunk of 256 x 256 pixels took 3 ms, four times as long.
    first, side = dict(zip('CZYX', index, strict=True)), dict(zip('CZYX', self.chunk, strict=True))
    starts = [first.get(axis, 0) * side.get(axis, 1) for axis in self.axes]
    ends = [start + side.get(axis, 1) for start, axis in zip(starts, self.axes, strict=True)]
    _check_chunk(self.array, tuple(first.get(axis, 0) for axis in self.axes))
    block = np.asarray(self.array[tuple(map(slice, starts, ends))])
    sizes = dict(zip(self.axes, block.shape, strict=True))
    order = sorted(range(len(self.axes)), key=lambda i: 'CZYX'.find(self.axes[i]))
    return block.transpose(order).reshape([sizes.get(axis, 1) for axis in 'CZYX'])


def is_zarr(path: pathlib.Path) -> bool:
  """Whether a path is a Zarr folder: by its suffix, or by a Zarr's metadata file in it."""
  return path.is_dir() and (
    path.suffix.lower() == _ZARR or any((path / name).is_file() for name in _ZARR_FILES)
  )


def check_installed() -> None:
  """Raises ValueError unless the libraries that read microscopes' files are installed."""
  missing = [n for n in ('bioio', 'bioio_ome_tiff', 'bioio_ome_zarr') if not _installed(n)]
  if missing:
    raise ValueError(
      f"microscopes' files need {', '.join(missing)}, not installed: pip install 'isl[bioio]'"
    )


def open_scenes(path: pathlib.Path) -> tuple[Scene, ...]:
  """Opens a microscope's file and lists its scenes; no pixel is decoded.

  Args:
    path: the file, or the folder of an OME-Zarr.

  Returns:
    The file's scenes, at least one.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is damaged or not of a kind that isl reads, or a library that reads it is
      missing.
  """
  if not path.exists():
    raise FileNotFoundError(f'{str(path)!r} does not exist; expected a microscope file')
  check_installed()
  plugin = _CZI.get(path.suffix.lower())
  if plugin and not _installed(plugin):
    raise ValueError(f"{str(path)!r} needs {plugin}, not installed: pip install 'isl[czi]'")
  with explained(path), _quiet():
    image = _opened(path)
    scenes = tuple(_scene(path, image, index) for index in range(len(image.scenes)))
  if not scenes:
    _refuse(path, 'has no image in it, only folders of images or none')
  return scenes


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever the libraries raise in the `with` block into an error of one line.

  Args:
    path: the file that is read, which the error names.

  Raises:
    OSError: the file cannot be read.
    ValueError: the libraries raised anything else.
  """
  try:
    yield
  except _RefusedError:
    raise
  except Exception as error:
    if isinstance(error, OSError) and error.errno and error.filename:
      raise
    # The part of bioio's errors that says what is wrong; the rest is the path and general advice.
    said = getattr(error, 'msg_extra', None) or str(error)
    # Where the path is repeated, a long one would leave no room for what is wrong.
    for repeated in (f'file://{path.absolute()}', str(path.absolute()), str(path)):
      said = said.replace(repeated, path.name)
    reason = ' '.join(said.split())[:_LONGEST_REASON] or type(error).__name__
    raise ValueError(f'{str(path)!r} cannot be read ({reason}); {_WANTED}') from error


class _RefusedError(ValueError):
  """Raised for a file that can be read but is not what isl wants."""


def _refuse(path: pathlib.Path, problem: str) -> NoReturn:
  raise _RefusedError(f'{str(path)!r} {problem}; {_WANTED}')


def _installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences what bioio, its plugins and tifffile log and warn of in the `with` block.

  What matters of it, isl's own errors say.
  """
  plugins = importlib.metadata.entry_points(group='bioio.readers')
  modules = {plugin.module.partition('.')[0] for plugin in plugins}
  for name in {'bioio', 'bioio_base', 'tifffile', 'xmlschema', 'ome_types'} | modules:
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
  with _quiet_lock, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _opened(path: pathlib.Path) -> Any:
  """Opens a file as a bioio.BioImage.

  The readers are named where they are known, for errors that say what is wrong.
  """
  import bioio

  suffix = path.suffix.lower()
  readers: list[Any] | None = None
  if is_zarr(path):
    import bioio_ome_zarr

    readers = [bioio_ome_zarr.Reader]
  elif suffix in _TIFF:
    import bioio_ome_tiff
    import bioio_tifffile

    readers = [bioio_tifffile.Reader]
    if _check_tiff(path):
      readers.insert(0, bioio_ome_tiff.Reader)
  elif suffix == '.czi':
    import bioio_czi

    readers = [bioio_czi.Reader]
  if readers and len(readers) == 1:
    # Called here, because BioImage's error hides the reader's.
    readers[0](str(path.absolute()))
  return bioio.BioImage(path.absolute(), reader=readers)


def _check_tiff(path: pathlib.Path) -> bool:
  """Whether a TIFF has OME's metadata.

  Raises:
    ValueError: pixels or planes are missing, which would be read as black.
  """
  with tifffile.TiffFile(path, is_mmstack=False) as tiff:
    for series in tiff.series:
      pages = [*series.pages]
      if series.dataoffset is not None:
        if series.dataoffset + series.nbytes > tiff.filehandle.size:
          _refuse(path, f'is truncated at {tiff.filehandle.size} bytes')
      elif None in pages or len(pages) * math.prod(pages[0].shape) < series.size:
        _refuse(path, f'lacks planes: of its {len(pages)} some are not in the file')
      else:
        _check_pages(path, pages)
    return bool(tiff.is_ome)


def _check_pages(path: pathlib.Path, pages: list[Any]) -> None:
  """Raises ValueError if a TIFF ends within a plane."""
  for page in pages:
    size = page.parent.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
      if offset + count > size:
        _refuse(path, f'is truncated at {size} bytes')


def _scene(path: pathlib.Path, image: Any, index: int) -> Scene:
  """Describes the scene of a number in a bioio.BioImage.

  Raises:
    ValueError: the scene is not a z-stack of grey values, is empty, or lacks channels' names.
  """
  image.set_scene(index)
  data = image.xarray_dask_data
  sizes = dict(zip(data.dims, data.shape, strict=True))
  for axis, problem in (
    ('T', '{} time points; expected one'),
    ('S', '{} samples per pixel (colour); expected one, a grey value'),
    ('M', '{} tiles that bioio cannot stitch; expected a stitched image'),
  ):
    if sizes.get(axis, 1) != 1:
      raise _RefusedError(f'{str(path)!r} has {problem.format(sizes[axis])}')
  dtype = np.dtype(data.dtype)
  if dtype.kind not in 'uif':
    _refuse(path, f'holds {dtype}, neither whole numbers nor floats')
  if not all(sizes.values()):
    _refuse(path, f'is empty, of the shape {dict(sizes)}')
  # The reader knows the name even if an OME-Zarr has one channel and no axis for it.
  names = image.reader.channel_names or []
  if len(names) != sizes['C']:
    names = image.channel_names or []
  if len(names) != sizes['C']:
    _refuse(path, f'names {len(names)} channels but has {sizes["C"]}')
  return Scene(
    name=str(image.current_scene),
    channels=tuple(str(name).strip() for name in names),
    stack=data.isel({axis: 0 for axis in data.dims if axis not in 'CZYX'}).data,
    pixel_size=pixel_size(path, image, index),
    array=_zarr_array(path, index) if is_zarr(path) else None,
    axes=image.reader.dims.order,
  )


def _check_chunk(array: Any, index: tuple[int, ...]) -> None:
  """Raises ValueError if a chunk compressed by Blosc ends early.

  Blosc's decoder would go on with whatever is in memory there. A chunk's header gives its number of
  bytes: https://github.com/Blosc/c-blosc, README_CHUNK_FORMAT.
  """
  kinds = [type(compressor).__name__ for compressor in array.compressors]
  if array.shards is not None or kinds[-1:] not in (['Blosc'], ['BloscCodec']):
    return
  path = array.store.root / array.path / array.metadata.encode_chunk_key(index)
  with contextlib.suppress(FileNotFoundError), path.open('rb') as stream:
    header = stream.read(_BLOSC_HEADER)
    size = stream.seek(0, os.SEEK_END)
    if len(header) < _BLOSC_HEADER or int.from_bytes(header[12:16], 'little') != size:
      raise ValueError(f'chunk {index} is truncated at {size} bytes')


def _zarr_array(path: pathlib.Path, index: int) -> Any:
  """Opens the zarr array of an OME-Zarr's scene at full resolution."""
  import zarr

  group = zarr.open_group(path, mode='r')
  attributes: Any = group.attrs.get('ome') or group.attrs
  return group[attributes['multiscales'][index]['datasets'][0]['path']]


def pixel_size(path: pathlib.Path, image: Any, index: int) -> tuple[float, float] | None:
  """Reads the size of a scene's pixels from the file's metadata; never raises.

  Args:
    path: the file, or the folder of an OME-Zarr.
    image: the file's bioio.BioImage, at the scene in question.
    index: the scene's number, from 0.

  Returns:
    A pixel's (height, width) in micrometres; None where the file does not give both, with a unit.
  """
  try:
    rows, columns = (float(side) for side in _sides(path, image, index))
  except Exception:
    # Metadata that are missing or wrong make several libraries raise all kinds of exceptions.
    return None
  if not (0 < rows < math.inf and 0 < columns < math.inf):
    return None
  return rows, columns


def _sides(path: pathlib.Path, image: Any, index: int) -> tuple[float, float]:
  """Reads a pixel's (height, width) in micrometres; raises anything, or gives nan, if unknown.

  bioio's own sizes lack the unit, so for TIFF and OME-Zarr the unit is read from the metadata.
  """
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
  """Reads a pixel's (height, width) from the tags of a plain TIFF, or of one that ImageJ wrote."""
  with tifffile.TiffFile(path, is_mmstack=False) as tiff:
    tags = tiff.series[index].keyframe.tags
    imagej = tiff.imagej_metadata or {}
    unit = imagej.get('unit') if tiff.is_imagej else tags['ResolutionUnit'].value
    scale = _MICROMETRES.get(unit, math.nan)
    (y, per_y), (x, per_x) = tags['YResolution'].value, tags['XResolution'].value
    return scale * per_y / y, scale * per_x / x
