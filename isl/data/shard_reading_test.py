"""Tests of shard_reading.py: damage of any kind is named, or left out where that is asked for."""

import pathlib
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.experiment import ShardReading
from isl.data import shard_reading, shard_writing
from isl.data.shard_examples import DamagedError
from isl.data.shard_reading import Shards
from isl.data.shard_writing import Cut
from isl.images import finding
from tests.support.program import write_field

_COUNT = 3
_WELLS = ('A1', 'A2', 'A3')


def _reading(*paths: pathlib.Path, skip_corrupt=False) -> ShardReading:
  return ShardReading(
    paths=paths, num_threads=2, batch_size=2, capacity=2, skip_corrupt=skip_corrupt
  )


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> pathlib.Path:
  """A folder of small fields of view."""
  folder = tmp_path_factory.mktemp('images')
  write_field(folder, rows=9, columns=8, wells=_WELLS)
  return folder


@pytest.fixture(params=[False, True], ids=['plain', 'gzip'])
def shard(request, images, tmp_path) -> pathlib.Path:
  """A shard of all of them."""
  pattern = str(tmp_path / 's-%d')
  (path,) = shard_writing.write_shards(
    finding.find_all([images]), pattern, 1, Cut(overlap=0, gzip=request.param)
  )
  return path


def _decoded(shards: Shards) -> list[str]:
  """The fields of view that can be read of all shards, in full."""
  tiles = (shards.decode(record) for record in shards.every_record())
  read = [tile.files.read() for tile in tiles if tile is not None]
  return [field_of_view.name for field_of_view in read]


def test_examples_come_one_after_the_other(shard):
  assert shard_reading.compression(shard) == ('GZIP' if shard.read_bytes()[0] == 0x1F else '')
  records = list(shard_reading.records(shard))
  assert [record.number for record in records] == list(range(_COUNT))
  names = _decoded(Shards(_reading(shard)))
  assert all(well in name for well, name in zip(_WELLS, names, strict=True))


def _ends(data: bytes) -> list[int]:
  """Where the records of a plain shard end.

  A record is the length, its checksum, the contents, and their checksum.
  """
  ends = [0]
  while ends[-1] < len(data):
    length = int.from_bytes(data[ends[-1] : ends[-1] + 8], 'little')
    ends.append(ends[-1] + 8 + 4 + length + 4)
  return ends


def _contents(shard: pathlib.Path) -> bytes:
  data = shard.read_bytes()
  return zlib.decompress(data, wbits=31) if shard_reading.compression(shard) else data


@pytest.mark.parametrize('shard', [False], indirect=True)
def test_shard_that_is_cut_off_is_named(shard):
  data = shard.read_bytes()
  ends = _ends(data)
  # Within a record, at the beginning of its length, and exactly behind one.
  for length in (1, 11, 13, ends[1] - 1, ends[1], ends[1] + 5, ends[2], ends[2] + 100, ends[3] - 1):
    shard.write_bytes(data[:length])
    whole = sum(end <= length for end in ends[1:])
    with pytest.raises(DamagedError, match='cut off') as raised:
      _decoded(Shards(_reading(shard)))
    assert str(shard) in str(raised.value)
    shards = Shards(_reading(shard, skip_corrupt=True))
    assert len(_decoded(shards)) == whole
    assert len(shards.left_out) == 1


def test_shard_that_is_cut_off_anywhere_is_named_however_it_is_compressed(shard):
  data = shard.read_bytes()
  for length in range(1, len(data) - 8, 97):
    shard.write_bytes(data[:length])
    with pytest.raises(DamagedError, match='s-0'):
      _decoded(Shards(_reading(shard)))


@pytest.mark.parametrize('skip_corrupt', [False, True])
def test_shard_whose_bits_are_flipped_is_named(shard, skip_corrupt):
  _check_flips(shard, 60, skip_corrupt)


@pytest.mark.soak
@pytest.mark.parametrize('skip_corrupt', [False, True])
def test_a_thousand_shards_whose_bits_are_flipped(shard, skip_corrupt):
  _check_flips(shard, 1000, skip_corrupt)


def _check_flips(shard: pathlib.Path, count: int, skip_corrupt: bool) -> None:
  """Flips one bit at a time; bits of lengths and checksums more often than their share."""
  data = shard.read_bytes()
  whole = [record.data for record in shard_reading.records(shard)]
  rng = np.random.default_rng(0)
  is_plain = not shard_reading.compression(shard)
  starts = _ends(data)[:-1] if is_plain else [0]
  for i in range(count):
    place = int(rng.integers(len(data)))
    if i % 3 == 0:
      place = starts[i // 3 % len(starts)] + i // 9 % 12
    damaged = bytearray(data)
    damaged[place] ^= 1 << int(rng.integers(8))
    shard.write_bytes(damaged)
    shards = Shards(_reading(shard, skip_corrupt=skip_corrupt))
    read = []
    try:
      for record in shards.every_record():
        if shards.decode(record) is not None:
          read.append(record.data)
    except ValueError as e:
      assert str(shard) in str(e) and not skip_corrupt
    else:
      # Some bits of a compressed file's frame say nothing of its contents.
      assert shards.left_out or (not is_plain and read == whole)
    assert read == whole[: len(read)]
  shard.write_bytes(data)


def _write(path: pathlib.Path, *records: bytes) -> pathlib.Path:
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)
  return path


def test_example_of_another_schema_is_left_out_alone(shard, tmp_path):
  first, second, third = (record.data for record in shard_reading.records(shard))
  other = _write(tmp_path / 'other', first, tf.train.Example().SerializeToString(), third)
  with pytest.raises(DamagedError, match=r"other', example 1 has no feature 'image/channel'"):
    _decoded(Shards(_reading(other)))
  shards = Shards(_reading(other, skip_corrupt=True))
  assert len(_decoded(shards)) == 2
  assert list(shards.left_out) == [f'example 1 of {str(other)!r}']
  # An example that is missing, or there twice, moves the others.
  for records in ((second, third), (first, first, second)):
    with pytest.raises(DamagedError, match='says that it is number'):
      _decoded(Shards(_reading(_write(tmp_path / 'other', *records))))


@pytest.mark.parametrize('contents', [b'no TFRecord, but long enough', b'\x1f\x8b\x08\x00 no gzip'])
def test_what_is_no_shard_is_named(tmp_path, contents):
  path = tmp_path / 's-0'
  path.write_bytes(contents)
  with pytest.raises(DamagedError, match='s-0'):
    _decoded(Shards(_reading(path)))


def test_missing_shards_are_counted_before_anything_is_read(shard, tmp_path):
  with pytest.raises(ValueError, match=r"2 of 3 shards are missing, the first is '.*/none-1'"):
    Shards(_reading(shard, tmp_path / 'none-1', tmp_path / 'none-2'))


def test_end_of_a_shard_is_looked_at_where_it_is_too_early(shard):
  shards = Shards(_reading(shard))
  shards.check_end(shard, _COUNT)
  for _ in map(shards.decode, shards.every_record()):
    pass
  shard.unlink()
  # Nothing need be read where the count is right.
  shards.check_end(shard, _COUNT)
  with pytest.raises(OSError, match='s-0'):
    shards.check_end(shard, _COUNT - 1)


def test_fields_of_view_are_found_and_read_when_they_are_needed(shard, images):
  found = shard_reading.read_tiles(_reading(shard))
  originals = finding.find_all([images])
  assert [field.name for field in found] == [field.name for field in originals]
  for field, original in zip(found, originals, strict=True):
    assert set(field.paths.values()) == {shard}
    read, wanted = field.read(), original.read()
    for key, image in wanted.images.items():
      np.testing.assert_array_equal(read.images[key], image)
  prints = {finding.contents_fingerprint(field) for field in found}
  assert len(prints) == _COUNT
  assert prints == {finding.contents_fingerprint(field) for field in found}


def test_shards_with_one_example_twice_are_refused(shard, tmp_path):
  other = tmp_path / 'again'
  other.write_bytes(shard.read_bytes())
  with pytest.raises(ValueError, match=r"s-0', example 0 and shard '.*again', example 0 are both"):
    shard_reading.read_tiles(_reading(shard, other))


@pytest.mark.parametrize('gzip', [False, True])
def test_shards_without_an_example_are_an_error_if_all_are(shard, tmp_path, gzip):
  (empty,) = shard_writing.write_shards(
    [], str(tmp_path / 'empty-%d'), 1, Cut(overlap=0, gzip=gzip)
  )
  assert len(shard_reading.read_tiles(_reading(empty, shard))) == _COUNT
  with pytest.raises(ValueError, match=r"none of 1 shards, from '.*empty-0' on, has an example"):
    shard_reading.read_tiles(_reading(empty))


def test_shard_of_no_bytes_is_damaged(shard, tmp_path):
  """An interrupted copy leaves no bytes; a shard without fields of view has an Example."""
  empty = tmp_path / 'empty'
  empty.touch()
  with pytest.raises(DamagedError, match=r"empty' is cut off before its first example"):
    shard_reading.read_tiles(_reading(empty, shard))
  assert len(shard_reading.read_tiles(_reading(empty, shard, skip_corrupt=True))) == _COUNT
