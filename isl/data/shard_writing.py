"""Writes fields of view into TFRecord shards.

A fixed hash of a field of view's name decides its shard. So a field of view with all its tiles is
always on the same side of training and evaluation, which has every eighth shard. The same images
give the same bytes. One field of view is in memory at a time.

No shard has its final name before all shards are whole and on the disk. A program that is killed
while it renames them leaves some new shards, and some older ones that were to be replaced.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from isl.core import shard_names
from isl.core.channels import MAXPROJECT, SYNTHETIC_CHANNELS, ImageKey
from isl.data import data_provider, shard_examples
from isl.data.shard_examples import Place
from isl.images import png_io
from isl.images.fields_of_view import FieldFiles, FieldOfView, Percentiles
from isl.images.pixels import Pixels
from isl.system import files
from isl.system.progress import Progress

# In bytes: the most that a protocol buffer may take, less some for what is not pixels.
_MOST_BYTES = (1 << 31) - (1 << 20)
_UINT16_MAX = np.iinfo(np.uint16).max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """How fields of view are cut into tiles, and compressed.

  Attributes:
    tile_size: approximate side of a tile in pixels; None: fields of view are written whole.
    overlap: pixels by which a tile's images reach into its neighbours on each side.
    compression: zlib's level for the PNGs, from 0 (none) to 9.
    gzip: whether whole shards are compressed.
  """

  tile_size: int | None = None
  overlap: int
  compression: int = 0
  gzip: bool = False


def shard_of(name: str, num_shards: int) -> int:
  """The number of the shard that a field of view belongs to, from the SHA-256 of its name."""
  digest = hashlib.sha256(name.encode(errors='surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') % num_shards


def places(size: tuple[int, int], cut: Cut) -> list[Place]:
  """Cuts a field of view into tiles, row by row, such that each pixel is one tile's own.

  In each direction there are as many tiles as come nearest to the size asked for, all equal but for
  a pixel, so that none is narrow.

  Args:
    size: (rows, columns) of the field of view, in pixels.
    cut: size and overlap of the tiles.
  """
  windows = []
  for length in size:
    count = max(round(length / cut.tile_size), 1) if cut.tile_size else 1
    edges = [i * length // count for i in range(count + 1)]
    windows.append(list(itertools.pairwise(edges)))
  return [_place(size, window, cut.overlap) for window in itertools.product(*windows)]


def _place(size: tuple[int, int], window: tuple[tuple[int, int], ...], overlap: int) -> Place:
  (top, bottom), (left, right) = window
  image_offset = max(top - overlap, 0), max(left - overlap, 0)
  ends = min(bottom + overlap, size[0]), min(right + overlap, size[1])
  return Place(
    field_size=size,
    offset=(top, left),
    size=(bottom - top, right - left),
    image_offset=image_offset,
    image_size=(ends[0] - image_offset[0], ends[1] - image_offset[1]),
  )


def write_shards(
  found: Sequence[FieldFiles], pattern: str, num_shards: int, cut: Cut, *, overwrite: bool = False
) -> list[pathlib.Path]:
  """Writes fields of view into shards.

  Args:
    found: the fields of view.
    pattern: path of the shards, with a %d for a shard's number.
    num_shards: number of shards; some may have no field of view.
    cut: how fields of view are cut and compressed.
    overwrite: whether all older shards of this pattern are replaced.

  Returns:
    Paths of the shards, by number.

  Raises:
    ValueError: an image is damaged or has no 16-bit form, a field of view has no images or is too
      large for an Example, the pattern lacks its %d, or there are older shards.
    OSError: a file cannot be read or written.
  """
  paths = [pathlib.Path(shard_names.shard_name('--output', pattern, i)) for i in range(num_shards)]
  older = _find_shards(pattern)
  if older and not overwrite:
    raise ValueError(
      f'{len(older)} shards are there already, the first is {str(older[0])!r}; give --overwrite to'
      ' replace all of them, or another --output'
    )
  by_shard: list[list[FieldFiles]] = [[] for _ in paths]
  for field in sorted(found, key=lambda field: field.name):
    by_shard[shard_of(field.name, num_shards)].append(field)
  with contextlib.ExitStack() as stack, Progress('make_shards', len(found), 'field') as progress:
    for path, of_shard in zip(paths, by_shard, strict=True):
      partial = stack.enter_context(files.whole_file(path))
      _write_shard(partial, of_shard, cut, progress)
  # Older shards that were not replaced: there were more of them.
  for path in set(older) - set(paths):
    path.unlink()
  return paths


def _find_shards(pattern: str) -> list[pathlib.Path]:
  """All files that have a name of this pattern, with any number, sorted."""
  number = re.search(r'%\d*d', pattern)
  if number is None:
    raise ValueError(f'--output must have one %d (or %05d) for the number, got {pattern!r}')
  before, after = pattern[: number.start()] % (), pattern[number.end() :] % ()
  result = []
  # Not pathlib's glob, with which the number could not be in the name of a folder.
  for path in glob.glob(f'{glob.escape(before)}*{glob.escape(after)}'):  # noqa: PTH207
    middle = path[len(before) : len(path) - len(after)]
    if middle.isdecimal() and pattern % int(middle) == path:
      result.append(pathlib.Path(path))
  return sorted(result)


def _write_shard(
  path: pathlib.Path, of_shard: Sequence[FieldFiles], cut: Cut, progress: Progress
) -> None:
  """Writes a shard: the Examples of all fields of view that belong to it."""
  tiles = [places(_size(field), cut) for field in of_shard]
  count = sum(map(len, tiles))
  number = 0
  try:
    with tf.io.TFRecordWriter(str(path), 'GZIP' if cut.gzip else '') as writer:
      for field, of_field in zip(of_shard, tiles, strict=True):
        for tile, images, percentiles in _encoded(field, of_field, cut):
          writer.write(
            shard_examples.encode(
              field.name,
              tile,
              images,
              percentiles=percentiles,
              pixel_size=field.pixel_size,
              record=(number, count),
            )
          )
          number += 1
        progress.add(1)
      if not count:
        writer.write(shard_examples.EMPTY)
  except tf.errors.OpError as e:
    raise OSError(f'{str(path)!r} cannot be written: {" ".join(e.message.split())}') from e
  # Some file systems find out only here that the disk is full: before the first is renamed.
  with path.open('r+b') as stream:
    os.fsync(stream.fileno())


def _size(field: FieldFiles) -> tuple[int, int]:
  if field.problem is not None:
    raise ValueError(field.problem)
  if not field.sources:
    raise ValueError(f'field of view {field.name!r} has none of the images that are to be written')
  return next(iter(field.sources.values())).size


def _encoded(
  field: FieldFiles, tiles: Sequence[Place], cut: Cut
) -> Iterator[tuple[Place, dict[ImageKey, bytes], Percentiles]]:
  """Yields each tile of a field of view, its images' PNGs, and the field of view's percentiles."""
  field_of_view = field.read()
  _check_memory(field, tiles)
  percentiles = _percentiles(field_of_view)

  def encode(item: tuple[ImageKey, Pixels], tile: Place) -> bytes:
    (row, column), (rows, columns) = tile.image_offset, tile.image_size
    key, image = item
    pixels = image[row : row + rows, column : column + columns]
    return png_io.encode_plain_png(_to_16_bit(pixels, field, key), cut.compression)

  # OpenCV lets other threads run while it encodes.
  with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
    for tile in tiles:
      pngs = pool.map(encode, field_of_view.images.items(), itertools.repeat(tile))
      yield tile, dict(zip(field_of_view.images, pngs, strict=True)), percentiles


def _check_memory(field: FieldFiles, tiles: Sequence[Place]) -> None:
  largest = max(tile.image_size[0] * tile.image_size[1] for tile in tiles)
  needed = 2 * largest * len(field.sources)
  if needed > _MOST_BYTES:
    raise ValueError(
      f'field of view {field.name!r} has {len(field.sources)} images, {needed >> 20} MiB in an'
      f' example, which holds {_MOST_BYTES >> 20} MiB; give a smaller --tile_size'
    )


def _percentiles(field_of_view: FieldOfView) -> Percentiles:
  """Computes the percentiles of all input channels and labels of a field of view."""
  keys = field_of_view.images
  labels = [key.channel for key in keys if key.z == MAXPROJECT]
  labels += [c for c in SYNTHETIC_CHANNELS if data_provider.has_truth(field_of_view, c)]
  depths = [key.channel for key in field_of_view.input_keys]
  return Percentiles(
    inputs={c: data_provider.input_percentiles(field_of_view, c) for c in dict.fromkeys(depths)},
    targets={c: data_provider.label_percentiles(field_of_view, c) for c in dict.fromkeys(labels)},
  )


def _to_16_bit(pixels: np.ndarray, field: FieldFiles, key: ImageKey) -> np.ndarray:
  """Converts pixels to uint16 of the same intensities; those of floats are rounded.

  Raises:
    ValueError: the pixels are floats and not in [0, 1].
  """
  if pixels.dtype == np.uint16:
    return pixels
  if pixels.dtype == np.uint8:
    return pixels * np.uint16(_UINT16_MAX // np.iinfo(np.uint8).max)
  low, high = float(pixels.min()), float(pixels.max())
  if not 0 <= low <= high <= 1:
    raise ValueError(
      f'field of view {field.name!r}: {key.channel} at z {key.z} has values from {low:.6g} to'
      f' {high:.6g}; expected 8- or 16-bit images, or floats in [0, 1]'
    )
  return np.rint(pixels * np.float32(_UINT16_MAX)).astype(np.uint16)
