"""What is in a microscope's file, by way of bioio: scenes, their channels, sizes and pixels."""

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
# What bioio and its plugins read, but for pictures and films (.png, .jpg, .mp4..).
SUFFIXES = (*_TIFF, _ZARR, '.czi', '.nd2', '.lif', '.dv', '.r3d', '.sld', '.ims', '.vsi', '.oir')
# Plugins that pip gets with an extra of ours.
_CZI = {'.czi': 'bioio_czi'}
# Of an OME-Zarr folder, one of these says what is in it.
_ZARR_FILES = ('zarr.json', '.zattrs', '.zgroup')
_WANTED = 'expected an image of the axes C, Z, Y and X that bioio reads'
_LONGEST_REASON = 300
# In bytes; at 12 is the size of all.
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
  """An image of a microscope's file.

  Attributes:
    name: what the file calls it.
    channels: their names, without spaces around them.
    stack: a Dask array [channel, z, row, column], as stored.
    pixel_size: (row, column) in micrometres; None: the file does not say.
    array: of an OME-Zarr, the zarr array; otherwise None.
    axes: that array's: 'TCZYX', 'CYX'..
  """

  name: str
  channels: tuple[str, ...]
  stack: Any
  pixel_size: tuple[float, float] | None
  array: Any = None
  axes: str = ''

  @property
  def depths(self) -> int:
    """How many planes each channel has."""
    return int(self.stack.shape[1])

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) in pixels."""
    return int(self.stack.shape[2]), int(self.stack.shape[3])

  @property
  def stored_dtype(self) -> np.dtype[Any]:
    """As in the file."""
    return np.dtype(self.stack.dtype)

  @property
  def dtype(self) -> np.dtype[Any]:
    """Of what is read: uint8 and uint16 as stored, float32 of all else."""
    native = self.stored_dtype.newbyteorder('=')
    return native if native in (np.uint8, np.uint16) else np.dtype(np.float32)

  @property
  def chunk(self) -> tuple[int, ...]:
    """The size of chunks [channel, z, row, column]; the last along an axis may be smaller."""
    return tuple(sides[0] for sides in self.stack.chunks)

  def read_channel(self, channel: int) -> np.ndarray:
    """Decodes all planes of a channel, as stored: [z, row, column]."""
    return np.asarray(self.stack[channel].compute(scheduler='synchronous'))

  def read_chunk(self, index: tuple[int, ...]) -> np.ndarray:
    """Decodes a chunk of an OME-Zarr, as stored: [channel, z, row, column].

    Args:
      index: which, along each of these axes.
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
  """Whether a path is a folder of Zarr, under whatever name."""
  return path.is_dir() and (
    path.suffix.lower() == _ZARR or any((path / name).is_file() for name in _ZARR_FILES)
  )


def check_installed() -> None:
  """ValueError unless the libraries that read microscopes' files are there."""
  missing = [n for n in ('bioio', 'bioio_ome_tiff', 'bioio_ome_zarr') if not _installed(n)]
  if missing:
    raise ValueError(
      f"microscopes' files need {', '.join(missing)}, not installed: pip install 'isl[bioio]'"
    )


def open_scenes(path: pathlib.Path) -> tuple[Scene, ...]:
  """Finds out what is in a file.

  Args:
    path: of a file, or of the folder of an OME-Zarr.

  Returns:
    Its scenes, at least one.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: it is damaged or not of a kind that isl reads, or a library for it is missing.
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
  """Makes of whatever the libraries raise an error of one line.

  Raises:
    OSError: the file cannot be read.
    ValueError: all else.
  """
  try:
    yield
  except _RefusedError:
    raise
  except Exception as error:
    if isinstance(error, OSError) and error.errno and error.filename:
      raise
    # Of bioio's errors that part says what is wrong; the rest is the path and general advice.
    said = getattr(error, 'msg_extra', None) or str(error)
    # Where the path is repeated, a long one would leave no room for what is wrong.
    for repeated in (f'file://{path.absolute()}', str(path.absolute()), str(path)):
      said = said.replace(repeated, path.name)
    reason = ' '.join(said.split())[:_LONGEST_REASON] or type(error).__name__
    raise ValueError(f'{str(path)!r} cannot be read ({reason}); {_WANTED}') from error


class _RefusedError(ValueError):
  """A file that can be read but is not what isl wants."""


def _refuse(path: pathlib.Path, problem: str) -> NoReturn:
  raise _RefusedError(f'{str(path)!r} {problem}; {_WANTED}')


def _installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """What bioio, its plugins and tifffile log is said by our errors, or does not matter."""
  plugins = importlib.metadata.entry_points(group='bioio.readers')
  modules = {plugin.module.partition('.')[0] for plugin in plugins}
  for name in {'bioio', 'bioio_base', 'tifffile', 'xmlschema', 'ome_types'} | modules:
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
  with _quiet_lock, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _opened(path: pathlib.Path) -> Any:
  """The bioio.BioImage. Readers are named where known, for errors that say what is wrong."""
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
    # Not by BioImage, whose error hides the reader's.
    readers[0](str(path.absolute()))
  return bioio.BioImage(path.absolute(), reader=readers)


def _check_tiff(path: pathlib.Path) -> bool:
  """Whether a TIFF has OME's metadata; refuses one that lacks pixels, which would be black."""
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
  """Refuses a TIFF that ends within a plane."""
  for page in pages:
    size = page.parent.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
      if offset + count > size:
        _refuse(path, f'is truncated at {size} bytes')


def _scene(path: pathlib.Path, image: Any, index: int) -> Scene:
  """One of the scenes of a bioio.BioImage."""
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
  # The reader's are there even if an OME-Zarr has one channel and no axis for it.
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
  """ValueError if a chunk ends early: Blosc's decoder would go on with whatever is in memory there.

  Its header says how many bytes there are: https://github.com/Blosc/c-blosc, README_CHUNK_FORMAT.
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
  """The array of the largest images of a scene of an OME-Zarr, opened."""
  import zarr

  group = zarr.open_group(path, mode='r')
  attributes: Any = group.attrs.get('ome') or group.attrs
  return group[attributes['multiscales'][index]['datasets'][0]['path']]


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
