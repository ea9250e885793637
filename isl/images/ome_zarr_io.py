"""Writes predictions as OME-Zarr 0.5, tile by tile, so that an image may be larger than memory.

zarr writes the pixels, ome_zarr the metadata. The pyramid is made here: ome_zarr's own needs a
whole image, which it then writes a second time (together that took five times as long), and takes
an offset only by a deprecated argument. bioio's pyramid has single pixels instead of means, and
does not record that they are shifted.
"""

from __future__ import annotations

import colorsys
import contextlib
import itertools
import json
import math
import os
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from isl.core.statistic import NUM_CLASSES
from isl.images.placement import Placement, halved, level_sizes
from isl.system import files

# The group's attribute that marks an OME-Zarr as written by isl: only these may be replaced.
_KEY = 'isl'
_DTYPES = ('float16', 'float32', 'uint16')
# In pixels, the shortest and longest sides of chunks: for pictures, which people look at, and for
# distributions, where a chunk has all classes (at most 2 MB).
_PICTURE_SIDES = (256, 1024)
_DISTRIBUTION_SIDES = (32, 64)
# Viewers that mix channels draw six at most.
_MAX_ACTIVE = 6
_GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


def require() -> None:
  """Checks that OME-Zarr can be written, before long work whose result would be lost.

  Raises:
    ValueError: zarr or ome_zarr is missing or too old.
  """
  try:
    # Older versions, which do not write OME-Zarr 0.5, lack one of these.
    from ome_zarr.format import FormatV05  # noqa: F401
    from ome_zarr.writer import write_multiscales_metadata  # noqa: F401
    from zarr import create_group  # noqa: F401
  except ImportError as error:
    raise ValueError(
      f"OME-Zarr needs zarr 3 and ome-zarr, got {error}: pip install 'isl[bioio]'"
    ) from error


class OmeZarrImage:
  """An OME-Zarr 0.5 of axes c, y, x that is being written, region by region.

      with OmeZarrImage('predicted.zarr', size=(5000, 6000), channels=names, ...) as image:
        image.write(0, slice(0, 500), slice(0, 500), values)

  The image appears under its name, with a pyramid, when the `with` block ends without an exception;
  until then it is the folder `{path}.partial`, see `files.whole_folder`. An earlier image of that
  name that this class has written is replaced. Pixels that are never written are 0. Memory is
  needed for the chunks that a region touches, or for four of them and their mean, whatever the
  image's size.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int],
    channels: Sequence[str],
    dtype: npt.DTypeLike,
    tile: tuple[int, int],
    placement: Placement,
    attributes: Mapping[str, Any] | None = None,
  ) -> None:
    """Checks the arguments; nothing is written yet.

    Args:
      path: the folder's final name.
      size: (rows, columns) of the image, in pixels.
      channels: names of the channels, in order.
      dtype: float32, uint16 (65535 being the intensity 1), or float16: probabilities, which are
        stored so that a pixel's whole distribution is in one chunk.
      tile: (rows, columns) of the regions that will be written, in pixels, for chunks that fit
        them. Other regions may be written, more slowly.
      placement: where the image lies in the microscope's image, and its pixels' size.
      attributes: anything that JSON can express, to go beside OME's own attributes, as 'isl'.

    Raises:
      ValueError: the dtype is another, there are no channels or pixels, or `attributes` has numbers
        that are not finite.
    """
    self._path = pathlib.Path(path)
    self._dtype = np.dtype(dtype)
    self._channels = tuple(channels)
    self._shape = (len(self._channels), *size)
    self._placement = placement
    self._attributes = json.loads(json.dumps(dict(attributes or {}), allow_nan=False))
    if self._dtype.name not in _DTYPES:
      raise ValueError(f'dtype must be one of {", ".join(_DTYPES)}, got {self._dtype}')
    if min(*self._shape, *tile) < 1:
      raise ValueError(
        'an image needs channels and pixels, and so do its tiles, got'
        f' {len(self._channels)} channels, the size {size} and the tile {tile}'
      )
    if self._dtype == np.float16:
      most, sides = NUM_CLASSES, _DISTRIBUTION_SIDES
    else:
      most, sides = 1, _PICTURE_SIDES
    self._chunks = (most, *(chunk_side(side, *sides) for side in tile))
    self._levels: list[Any] = []
    self._group: Any = None
    self._folder = contextlib.ExitStack()

  def __enter__(self) -> Self:
    """Makes the temporary folder with an empty image.

    Raises:
      OSError: the folder cannot be written.
      ValueError: a folder of that name is there that isl has not written, or zarr or ome_zarr is
        missing.
    """
    require()
    import zarr

    with contextlib.ExitStack() as stack:
      partial = stack.enter_context(files.whole_folder(self._path, _is_ours))
      self._group = zarr.create_group(partial, zarr_format=3)
      sizes = level_sizes(self._shape[1:])
      self._levels = [self._create_level(level, size) for level, size in enumerate(sizes)]
      self._folder = stack.pop_all()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    exception: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    """Finishes the image, see `finish`; after an exception, removes what was written."""
    if exception is None:
      self.finish()
    else:
      self._folder.__exit__(kind, exception, traceback)

  def write(self, channels: slice | int, rows: slice, columns: slice, values: np.ndarray) -> None:
    """Writes a region of the image.

    Args:
      channels: the number of a channel, or a slice of channels.
      rows: rows of the region, in pixels.
      columns: columns of the region, in pixels.
      values: [row, column], or for a slice of channels [channel, row, column]; of the image's
        dtype, or floats of any precision if the image is of floats.

    Raises:
      OSError: the region cannot be written.
      ValueError: the region is not within the image, or the values are not of its shape or dtype.
    """
    region = self._region(channels, rows, columns)
    sizes = [side.stop - side.start for side in region]
    shape = sizes[1:] if isinstance(channels, int) else sizes
    held = values.dtype == self._dtype or values.dtype.kind == self._dtype.kind == 'f'
    if list(values.shape) != shape or not held:
      raise ValueError(
        f'{str(self._path)!r}: expected {self._dtype} {shape}, got {values.dtype}'
        f' {list(values.shape)}'
      )
    values = values.reshape(sizes)
    # One chunk at a time: of several, zarr would go on writing the others when it has raised an
    # error for one, into a folder that is being removed.
    for part in _parts(region, self._levels[0].chunks):
      within = tuple(
        slice(some.start - whole.start, some.stop - whole.start)
        for some, whole in zip(part, region, strict=True)
      )
      self._levels[0][part] = values[within].astype(self._dtype, copy=False)

  def read(self, channel: int, rows: slice, columns: slice) -> np.ndarray:
    """Reads a region of a channel that was written before, [row, column].

    Raises:
      ValueError: the region is not within the image.
    """
    self._region(channel, rows, columns)
    return np.asarray(self._levels[0][channel, rows, columns])

  def finish(self) -> None:
    """Writes the pyramid and the metadata, and gives the folder its final name.

    The end of the `with` block does this, too; a second call does nothing.

    Raises:
      OSError: the image cannot be written. Then nothing is left of it.
    """
    # At the end of this block the folder is renamed, or removed after an exception.
    with self._folder:
      if self._group is None:
        return
      for source, target in itertools.pairwise(self._levels):
        for region in _regions(target.shape, target.chunks):
          channels, *sides = region
          covered = (slice(2 * side.start, 2 * side.stop) for side in sides)
          target[region] = halved(source[channels, *covered])
      self._describe()
      self._group.attrs[_KEY] = self._attributes
      self._group = None

  def _create_level(self, level: int, size: tuple[int, int]) -> Any:
    shape = (self._shape[0], *size)
    return self._group.create_array(
      str(level),
      shape=shape,
      chunks=tuple(map(min, self._chunks, shape)),
      dtype=self._dtype,
      dimension_names=['c', 'y', 'x'],
    )

  def _region(self, channels: slice | int, rows: slice, columns: slice) -> tuple[slice, ...]:
    """A region with all its starts and stops; raises ValueError unless it is within the image."""
    region = []
    for name, index, length in zip(
      ('channels', 'rows', 'columns'), (channels, rows, columns), self._shape, strict=True
    ):
      part = index if isinstance(index, slice) else slice(index, index + 1)
      start, stop = part.start or 0, length if part.stop is None else part.stop
      if part.step not in (None, 1) or not 0 <= start <= stop <= length:
        raise ValueError(f'{str(self._path)!r}: {name} must be within 0:{length}, got {index}')
      region.append(slice(start, stop))
    return tuple(region)

  def _describe(self) -> None:
    """Writes OME's metadata: https://ngff.openmicroscopy.org/0.5/#multiscale-md and #omero-md."""
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import write_multiscales_metadata

    unit = self._placement.unit
    space: dict[str, str] = {'type': 'space'} | ({} if unit is None else {'unit': unit})
    name = self._path.stem
    write_multiscales_metadata(
      self._group,
      [self._dataset(level) for level in range(len(self._levels))],
      fmt=FormatV05(),
      axes=[{'name': 'c', 'type': 'channel'}, {'name': 'y', **space}, {'name': 'x', **space}],
      name=name,
      metadata={'omero': {'name': name, **self._rendering()}},
    )
    # ome_zarr has no argument for how the pyramid was made.
    ome = self._group.attrs['ome']
    ome['multiscales'][0]['type'] = 'local_mean'
    self._group.attrs['ome'] = ome

  def _dataset(self, level: int) -> dict[str, Any]:
    """The metadata of a level of the pyramid: its path, and where it lies under the microscope."""
    return {
      'path': str(level),
      'coordinateTransformations': [
        {'type': 'scale', 'scale': [1.0, *self._placement.scale(level)]},
        {'type': 'translation', 'translation': [0.0, *self._placement.translation(level)]},
      ],
    }

  def _rendering(self) -> dict[str, Any]:
    """The metadata that tell viewers how to show the channels."""
    highest = 1 if self._dtype.kind == 'f' else np.iinfo(self._dtype).max
    channels = [
      {
        'label': channel,
        'color': colour(index),
        'active': index < _MAX_ACTIVE,
        'window': {'min': 0, 'max': highest, 'start': 0, 'end': highest},
      }
      for index, channel in enumerate(self._channels)
    ]
    return {'channels': channels, 'rdefs': {'model': 'color', 'defaultT': 0, 'defaultZ': 0}}


def chunk_side(tile: int, shortest: int, longest: int) -> int:
  """The side of chunks that fit tiles of a given side; all are in pixels.

  Args:
    tile: side of the tiles.
    shortest: shortest side that a chunk may have.
    longest: longest side that a chunk has if it is shorter than a tile.

  Returns:
    The tile's side; if that is shorter than `shortest`, its smallest multiple that is not; if it is
    longer than `longest`, an equal part of it, rounded up.
  """
  if tile < shortest:
    return -(-shortest // tile) * tile
  return -(-tile // -(-tile // longest))


def colour(index: int) -> str:
  """The colour of the channel of a number, as RGB in hexadecimal.

  Channel 0 is blue; each hue is far from those of the channels just before.
  """
  hue = 2 / 3 + index / _GOLDEN_RATIO
  return ''.join(f'{round(255 * value):02X}' for value in colorsys.hsv_to_rgb(hue % 1, 0.7, 1))


def _regions(shape: tuple[int, ...], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
  """Yields regions of at most the shape `step` that cover each element of an array once."""
  return itertools.product(
    *(
      [slice(start, min(start + side, length)) for start in range(0, length, side)]
      for length, side in zip(shape, step, strict=True)
    )
  )


def _parts(region: tuple[slice, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
  """Yields the parts of a region that are each in one chunk."""
  borders = (
    [side.start, *range(side.start // length * length + length, side.stop, length), side.stop]
    for side, length in zip(region, chunks, strict=True)
  )
  return itertools.product(*([slice(*p) for p in itertools.pairwise(b)] for b in borders))


def _is_ours(folder: pathlib.Path) -> bool:
  """Whether a folder is an OME-Zarr that this module has written."""
  try:
    group = json.loads((folder / 'zarr.json').read_bytes())
    return _KEY in group['attributes']
  except (OSError, ValueError, KeyError, TypeError):
    return False
