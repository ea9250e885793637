"""Tests of shard_examples.py: Examples come back as they were, and others are refused."""

import pathlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import MAXPROJECT, ImageKey
from isl.data import shard_examples
from isl.data.shard_examples import DamagedError, Place
from isl.images import png_io
from isl.images.fields_of_view import Percentiles

_PATH = pathlib.Path('shards/some-00003')
_PLACE = Place(
  field_size=(50, 70), offset=(10, 0), size=(5, 6), image_offset=(8, 0), image_size=(9, 8)
)
_KEYS = (ImageKey(0, 'DIC'), ImageKey(10, 'DIC'), ImageKey(2, 'DIC'), ImageKey(MAXPROJECT, 'GFP'))


def _images() -> dict[ImageKey, np.ndarray]:
  rng = np.random.default_rng(0)
  return {key: rng.integers(0, 65535, _PLACE.image_size, np.uint16, endpoint=True) for key in _KEYS}


def _encode(pixel_size=(0.325, 0.65), place=_PLACE, record=(2, 5), name='plate 1', **pngs) -> bytes:
  images = {key: png_io.encode_plain_png(image, 0) for key, image in _images().items()}
  return shard_examples.encode(
    name,
    place,
    images | {ImageKey(MAXPROJECT, channel): png for channel, png in pngs.items()},
    percentiles=Percentiles(inputs={'DIC': (0.25, 0.5)}, targets={'GFP': (0.125, 1.0)}),
    pixel_size=pixel_size,
    record=record,
  )


def _decode(data: bytes) -> shard_examples.ShardTile:
  return shard_examples.decode(data, _PATH, 'example 2')


def test_what_was_encoded_comes_back():
  tile = _decode(_encode())
  assert (tile.place, tile.record) == (_PLACE, (2, 5))
  assert tile.files.name == 'plate 1,tile-10-0'
  assert tile.files.pixel_size == (0.325, 0.65)
  assert tile.files.percentiles == Percentiles(
    inputs={'DIC': (0.25, 0.5)}, targets={'GFP': (0.125, 1.0)}
  )
  field_of_view = tile.files.read()
  assert field_of_view.images.keys() == set(_KEYS)
  for key, image in _images().items():
    np.testing.assert_array_equal(field_of_view.images[key], image)


def test_whole_field_of_view_keeps_its_name_whatever_bytes_it_has():
  place = Place(
    field_size=(9, 8), offset=(0, 0), size=(9, 8), image_offset=(0, 0), image_size=(9, 8)
  )
  name = b'\xff,plate'.decode(errors='surrogateescape')
  tile = _decode(_encode(place=place, name=name, pixel_size=None))
  assert (tile.files.name, tile.files.pixel_size) == (name, None)


def test_bytes_are_always_the_same():
  assert _encode() == _encode()


def test_png_that_others_wrote_is_read_too():
  image = _images()[_KEYS[0]]
  tile = _decode(_encode(GFP=png_io.encode_png(image)))
  key = ImageKey(MAXPROJECT, 'GFP')
  np.testing.assert_array_equal(tile.files.sources[key].read(), image)


@pytest.mark.parametrize('compression', [0, 1, 9])
def test_plain_png_is_a_png(compression):
  image = _images()[_KEYS[0]]
  data = png_io.encode_plain_png(image, compression)
  np.testing.assert_array_equal(png_io.decode_png(data, 'it'), image)
  np.testing.assert_array_equal(png_io.decode_plain_png(data, 'it'), image)


@pytest.mark.parametrize('compression', [0, 1])
def test_no_damage_of_a_plain_png_goes_unnoticed(compression):
  image = _images()[_KEYS[0]]
  data = png_io.encode_plain_png(image, compression)
  for bit in range(8 * len(data)):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
      found = png_io.decode_plain_png(bytes(damaged), "'it'")
    except ValueError as e:
      assert str(e).startswith("'it' ")
    else:
      # Of the checksums around pixels that are right, or the compression's hint of its own effort.
      np.testing.assert_array_equal(found, image)
  for length in range(len(data)):
    with pytest.raises(ValueError, match="'it' "):
      png_io.decode_plain_png(data[:length], "'it'")


def _changed(**features) -> bytes:
  """An Example's bytes with other features; those that are None are left out."""
  example = tf.train.Example.FromString(_encode())
  for name, feature in features.items():
    name = name.replace('__', '/')
    del example.features.feature[name]
    if feature is not None:
      example.features.feature[name].CopyFrom(feature)
  return example.SerializeToString()


def _integers(*values: int) -> tf.train.Feature:
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _bytes(*values: bytes) -> tf.train.Feature:
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


@pytest.mark.parametrize(
  ('features', 'what'),
  [
    ({name: None}, f"has no feature '{name.replace('__', '/')}'")
    for name in ('field', 'size', 'record', 'image__png', 'image__z', 'range__low')
  ]
  + [
    ({'offset': _integers(1)}, "has 1 values of int64 in 'offset', not 2"),
    ({'offset': _bytes(b'1', b'2')}, "has 0 values of int64 in 'offset', not 2"),
    ({'offset': _integers(11, 0)}, None),
    ({'size': _integers(0, 6)}, 'is nowhere in its field of view'),
    ({'size': _integers(8, 6)}, 'is nowhere in its field of view'),
    ({'image_offset': _integers(-1, 0)}, 'is nowhere in its field of view'),
    ({'image_offset': _integers(45, 0)}, 'is nowhere in its field of view'),
    ({'image__z': _bytes(b'0', b'1')}, "has 2 values of bytes in 'image/z', not 4"),
    ({'image__z': _bytes(b'0', b'1', b'-1', b'2')}, "has an image at z '-1'"),
    ({'range__z': _bytes(b'MAXPROJECT', b'5')}, "has a range at z '5'"),
    ({'image__png': _bytes(b'', b'', b'', b'')}, 'is empty'),
    (
      {name: _bytes() for name in ('image__png', 'image__z', 'image__channel')},
      'has no image',
    ),
  ],
)
def test_what_is_not_of_the_schema_is_named(features, what):
  data = _changed(**features)
  if what is None:
    assert _decode(data).place.offset == (11, 0)
    return
  with pytest.raises(DamagedError, match=what) as raised:
    _decode(data)
  assert str(raised.value).startswith('example 2')


@pytest.mark.parametrize('data', [b'', b'\xff\xff\xff', b'text'])
def test_what_is_no_example_is_named(data):
  with pytest.raises(DamagedError, match='example 2'):
    _decode(data)


def test_images_of_several_sizes_are_refused():
  other = png_io.encode_plain_png(np.zeros((3, 4), np.uint16), 0)
  with pytest.raises(DamagedError, match='images of several sizes'):
    _decode(_encode(GFP=other))
