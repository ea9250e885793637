"""The contents of a TFRecord shard: tf.train.Examples, each a field of view or a tile of one.

A tile has pixels of its own, and around them an overlap with its neighbours, so that patches whose
outputs are its own see what they would see in the whole field of view. All images of a tile are of
one size. An Example has these features, of which the one in brackets may be missing:

    field           bytes     name of the field of view
    field_size      int64 x2  rows and columns of the field of view
    offset          int64 x2  row and column of the first pixel of the tile's own
    size            int64 x2  number of rows and columns that are the tile's own
    image_offset    int64 x2  row and column of the images' first pixel, overlap included
    [pixel_size]    float x2  height and width of a pixel, in micrometres
    record          int64 x2  the Example's number in its shard, from 0, and the number of Examples
    image/channel   bytes xn  each image's channel
    image/z         bytes xn  each image's depth: 0, 1, .. or MAXPROJECT
    image/png       bytes xn  each image's pixels: a 16-bit PNG; 65535 is the intensity 1
    range/channel   bytes xm  channels whose percentiles in the whole field of view follow
    range/z         bytes xm  STACK: of all depths of an input channel; MAXPROJECT: of a label
    range/low       float xm  the 0.1 percentile, as an intensity from 0 to 1
    range/high      float xm  the 99.9 percentile

8-bit images are multiplied by 257 when they are written and so keep their intensities exactly. A
shard to which no field of view belongs has one Example, whose only feature is the record (0, 0). A
shard of no bytes is damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images.fields_of_view import FieldFiles, Percentiles
from isl.images.sources import EncodedSource

_STACK = 'STACK'


class DamagedError(ValueError):
  """Raised for a shard, or an Example, that is damaged or that isl did not write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where a tile lies in its field of view; all numbers are in the field of view's pixels.

  Attributes:
    field_size: (rows, columns) of the field of view.
    offset: (row, column) of the first pixel that is the tile's own.
    size: (rows, columns) that are the tile's own.
    image_offset: (row, column) of the first pixel of the tile's images, overlap included.
    image_size: (rows, columns) of the tile's images, overlap included.
  """

  field_size: tuple[int, int]
  offset: tuple[int, int]
  size: tuple[int, int]
  image_offset: tuple[int, int]
  image_size: tuple[int, int]

  @property
  def is_whole(self) -> bool:
    """Whether the tile is the whole field of view."""
    return self.size == self.field_size

  def is_possible(self) -> bool:
    """Whether the tile's own pixels are within its images, and these within the field of view."""
    return all(
      0 <= begin <= own < own + size <= begin + length <= whole
      for begin, own, size, length, whole in zip(
        self.image_offset, self.offset, self.size, self.image_size, self.field_size, strict=True
      )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTile:
  """An Example of a shard: a field of view, or a tile of one.

  Attributes:
    files: the tile's images, under the name of its field of view and, unless it is the whole, its
      place in it: NAME,tile-ROW-COLUMN.
    place: where the tile lies in its field of view.
    record: the Example's number in its shard, from 0, and the number of Examples there.
  """

  files: FieldFiles
  place: Place
  record: tuple[int, int]


def encode(
  name: str,
  place: Place,
  images: Mapping[ImageKey, bytes],
  *,
  percentiles: Percentiles,
  pixel_size: tuple[float, float] | None,
  record: tuple[int, int],
) -> bytes:
  """Makes the bytes of an Example, always the same for the same arguments.

  Args:
    name: the field of view's name.
    place: where the tile lies in its field of view.
    images: the tile's images, as 16-bit PNGs, by key.
    percentiles: percentiles of the whole field of view.
    pixel_size: a pixel's (height, width) in micrometres; None: unknown.
    record: the Example's number in its shard, from 0, and the number of Examples there.
  """
  ranges = [
    (channel, z, low, high)
    for z, by_channel in ((_STACK, percentiles.inputs), (MAXPROJECT, percentiles.targets))
    for channel, (low, high) in sorted(by_channel.items())
  ]
  keys = sorted(images, key=str)
  features = {
    'field': _bytes([name]),
    'field_size': _integers(place.field_size),
    'offset': _integers(place.offset),
    'size': _integers(place.size),
    'image_offset': _integers(place.image_offset),
    'record': _integers(record),
    'image/channel': _bytes([key.channel for key in keys]),
    'image/z': _bytes([str(key.z) for key in keys]),
    'image/png': _bytes([images[key] for key in keys]),
    'range/channel': _bytes([channel for channel, *_ in ranges]),
    'range/z': _bytes([z for _, z, *_ in ranges]),
    'range/low': _floats([low for *_, low, _ in ranges]),
    'range/high': _floats([high for *_, high in ranges]),
  }
  if pixel_size is not None:
    features['pixel_size'] = _floats(pixel_size)
  return _serialize(features)


def _serialize(features: Mapping[str, tf.train.Feature]) -> bytes:
  example = tf.train.Example(features=tf.train.Features(feature=features))
  # Without `deterministic`, the features would be in any order.
  data: bytes = example.SerializeToString(deterministic=True)
  return data


def _bytes(values: Sequence[str | bytes]) -> tf.train.Feature:
  # Names of files may contain bytes that are no text.
  encoded = [v.encode(errors='surrogateescape') if isinstance(v, str) else v for v in values]
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))


def _integers(values: Sequence[int]) -> tf.train.Feature:
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _floats(values: Sequence[float]) -> tf.train.Feature:
  return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def decode(data: bytes, path: pathlib.Path, shown: str) -> ShardTile:
  """Parses an Example; its images are decoded only when they are read.

  Args:
    data: the Example's bytes.
    path: the shard that the Example is in.
    shown: name of the Example in errors.

  Raises:
    DamagedError: the bytes are no Example, or it lacks a feature or has an impossible one.
  """
  try:
    feature = tf.train.Example.FromString(data).features.feature
  # protobuf's exceptions differ from one implementation to the next.
  except Exception as e:
    raise DamagedError(f'{shown} is no tf.train.Example; {_WANTED}') from e
  read = _Features(feature, shown)
  images = read.images(path)
  try:
    sizes = {source.size for source in images.values()}
  except ValueError as e:
    raise DamagedError(str(e)) from e
  place = read.place(sizes)
  name = read.text('field', 1)[0]
  if not place.is_whole:
    name = ','.join(filter(None, (name, f'tile-{place.offset[0]}-{place.offset[1]}')))
  # 7 digits are as many as a float32 has.
  sides = (
    [float(f'{x:.7g}') for x in read.floats('pixel_size', 2)] if 'pixel_size' in feature else ()
  )
  return ShardTile(
    files=FieldFiles(
      name=name,
      origin=shown,
      sources=images,
      pixel_size=_pair(sides) if sides else None,
      percentiles=read.percentiles(),
    ),
    place=place,
    record=_pair(read.integers('record', 2)),
  )


_WANTED = 'expected Examples as isl.programs.make_shards writes them'


def _pair(values: Sequence[Any]) -> tuple[Any, Any]:
  first, second = values
  return first, second


class _Features:
  """Reads the features of an Example; all methods raise DamagedError for a wrong feature."""

  def __init__(self, feature: Mapping[str, tf.train.Feature], shown: str):
    """Takes an Example's features by name, and the Example's name in errors."""
    self._feature = feature
    self._shown = shown

  def _values(self, name: str, kind: str, count: int | None) -> Sequence[Any]:
    if name not in self._feature:
      raise DamagedError(f'{self._shown} has no feature {name!r}; {_WANTED}')
    values: Sequence[Any] = getattr(self._feature[name], f'{kind}_list').value
    if count is not None and len(values) != count:
      raise DamagedError(
        f'{self._shown} has {len(values)} values of {kind} in {name!r}, not {count}; {_WANTED}'
      )
    return values

  def integers(self, name: str, count: int) -> Sequence[int]:
    """Reads a feature of `count` whole numbers."""
    return tuple(self._values(name, 'int64', count))

  def floats(self, name: str, count: int) -> Sequence[float]:
    """Reads a feature of `count` floats."""
    return tuple(self._values(name, 'float', count))

  def text(self, name: str, count: int | None) -> Sequence[str]:
    """Reads a feature of `count` texts; None: of any number."""
    return [v.decode(errors='surrogateescape') for v in self._values(name, 'bytes', count)]

  def images(self, path: pathlib.Path) -> dict[ImageKey, EncodedSource]:
    """Reads the images, by key, without decoding them."""
    channels = self.text('image/channel', None)
    depths = self.text('image/z', len(channels))
    # Each look at one of protobuf's values copies it.
    pngs = list(self._values('image/png', 'bytes', len(channels)))
    if not channels:
      raise DamagedError(f'{self._shown} has no image; {_WANTED}')
    images = {}
    for i, (channel, depth) in enumerate(zip(channels, depths, strict=True)):
      if depth != MAXPROJECT and not depth.isdecimal():
        raise DamagedError(f'{self._shown} has an image at z {depth!r}; {_WANTED}')
      key = ImageKey(depth if depth == MAXPROJECT else int(depth), channel)
      images[key] = EncodedSource(
        path, f'{self._shown}, {key}', functools.partial(pngs.__getitem__, i)
      )
    return images

  def place(self, sizes: set[tuple[int, int]]) -> Place:
    """Reads where the tile lies, given the sizes (rows, columns) that its images have."""
    if len(sizes) > 1:
      raise DamagedError(f'{self._shown} has images of several sizes: {sorted(sizes)}; {_WANTED}')
    (image_size,) = sizes
    names = ('field_size', 'offset', 'size', 'image_offset')
    place = Place(image_size=image_size, **{name: _pair(self.integers(name, 2)) for name in names})
    if not place.is_possible():
      raise DamagedError(f'{self._shown} is nowhere in its field of view: {place}; {_WANTED}')
    return place

  def percentiles(self) -> Percentiles:
    """Reads the percentiles of the whole field of view."""
    channels = self.text('range/channel', None)
    depths = self.text('range/z', len(channels))
    lows, highs = (self.floats(f'range/{end}', len(channels)) for end in ('low', 'high'))
    by_kind: dict[str, dict[str, tuple[float, float]]] = {_STACK: {}, MAXPROJECT: {}}
    for channel, depth, low, high in zip(channels, depths, lows, highs, strict=True):
      if depth not in by_kind:
        raise DamagedError(f'{self._shown} has a range at z {depth!r}; {_WANTED}')
      by_kind[depth][channel] = (low, high)
    return Percentiles(inputs=by_kind[_STACK], targets=by_kind[MAXPROJECT])


# The only Example of a shard to which no field of view belongs.
EMPTY: bytes = _serialize({'record': _integers((0, 0))})
