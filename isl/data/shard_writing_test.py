"""Tests of shard_writing.py: what is in the shards is what was in the images."""

import pathlib

import cv2
import numpy as np
import pytest

from isl.core.channels import ImageKey
from isl.core.experiment import ShardReading
from isl.data import data_provider, shard_reading, shard_writing
from isl.data.shard_writing import Cut
from isl.images import finding, png_io
from isl.images.fields_of_view import FieldFiles, FieldOfView
from isl.images.sources import EncodedSource
from tests.support.program import files_in, write_field

_CHANNELS = ('GFP', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


def _images(folder: pathlib.Path, rows=40, columns=30, **arguments) -> list[FieldFiles]:
  write_field(folder, rows=rows, columns=columns, channels=_CHANNELS, **arguments)
  return finding.find_all([folder])


def _read(paths: list[pathlib.Path]) -> list[FieldFiles]:
  return shard_reading.read_tiles(
    ShardReading(paths=tuple(paths), num_threads=1, batch_size=1, capacity=1, skip_corrupt=False)
  )


def _whole(tiles: list[FieldFiles], paths: list[pathlib.Path]) -> dict[ImageKey, np.ndarray]:
  """Joins the pixels that are tiles' own; each pixel must be one's own."""
  result: dict[ImageKey, np.ndarray] = {}
  counts: dict[ImageKey, np.ndarray] = {}
  for path in paths:
    for record in shard_reading.records(path):
      tile = record.decode()
      own = tuple(slice(a, a + n) for a, n in zip(tile.place.offset, tile.place.size, strict=True))
      rows, columns = (
        slice(w.start - a, w.stop - a) for w, a in zip(own, tile.place.image_offset, strict=True)
      )
      for key, image in tile.files.read().images.items():
        result.setdefault(key, np.zeros(tile.place.field_size, image.dtype))[own] = image[
          rows, columns
        ]
        counts.setdefault(key, np.zeros(tile.place.field_size, int))[own] += 1
  assert len(tiles) == sum(1 for path in paths for _ in shard_reading.records(path))
  assert all((count == 1).all() for count in counts.values())
  return result


@pytest.mark.parametrize('gzip', [False, True])
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('tile_size', [None, 17])
def test_images_come_back_to_the_bit(tmp_path, bits, tile_size, gzip):
  (field,) = _images(tmp_path / 'images', bits=bits)
  cut = Cut(tile_size=tile_size, overlap=5, gzip=gzip, compression=1)
  paths = shard_writing.write_shards([field], str(tmp_path / 's-%d'), 2, cut)
  found = _whole(_read(paths), paths)
  field_of_view = field.read()
  assert found.keys() == field_of_view.images.keys()
  for key, image in field_of_view.images.items():
    # 257 * 255 == 65535.
    pixels = np.asarray(image)
    np.testing.assert_array_equal(found[key], pixels * np.uint16(257) if bits == 8 else pixels)


@pytest.mark.parametrize('size', [(40, 30), (1, 7), (33, 100)])
@pytest.mark.parametrize(('tile_size', 'overlap'), [(None, 3), (10, 0), (10, 4), (13, 100)])
def test_tiles_own_each_pixel_once_and_see_their_neighbours(size, tile_size, overlap):
  counts = np.zeros(size, int)
  for place in shard_writing.places(size, Cut(tile_size=tile_size, overlap=overlap)):
    assert place.is_possible()
    counts[tuple(slice(a, a + n) for a, n in zip(place.offset, place.size, strict=True))] += 1
    for axis in range(2):
      before = place.offset[axis] - place.image_offset[axis]
      assert before == min(overlap, place.offset[axis])
      behind = size[axis] - place.offset[axis] - place.size[axis]
      end = place.image_offset[axis] + place.image_size[axis]
      assert end - place.offset[axis] - place.size[axis] == min(overlap, behind)
      if tile_size:
        # As many as come nearest to the size asked for, so never twice as large or half as small.
        assert place.size[axis] < 1.5 * tile_size + 1
        assert place.size[axis] > tile_size / 2 or place.size[axis] == size[axis]
  assert (counts == 1).all()


def test_hash_is_fixed():
  # Else fields of view would move from evaluation to training with a new version.
  assert shard_writing.shard_of('well-A4', 1024) == 431
  assert shard_writing.shard_of('well-A4', 8) == 7


def test_field_of_view_is_in_the_shard_of_its_name_with_all_its_tiles(tmp_path):
  found = _images(tmp_path / 'images', wells=('A1', 'A2', 'A3', 'B1'))
  cut = Cut(tile_size=20, overlap=2)
  paths = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 3, cut)
  names = [{t.name.partition(',tile-')[0] for t in _tiles(path)} for path in paths]
  assert names == [
    {field.name for field in found if shard_writing.shard_of(field.name, 3) == i} for i in range(3)
  ]
  assert sum(len(_tiles(path)) for path in paths) == 4 * (2 * 2)


def _tiles(path: pathlib.Path) -> list[FieldFiles]:
  return [record.decode().files for record in shard_reading.records(path)]


@pytest.mark.parametrize('gzip', [False, True])
def test_same_images_give_the_same_bytes(tmp_path, gzip):
  found = _images(tmp_path / 'images', wells=('A1', 'A2', 'A3'))
  cut = Cut(tile_size=20, overlap=3, gzip=gzip)
  first, second = (
    shard_writing.write_shards(order, str(tmp_path / f'{name}-%d'), 2, cut)
    for name, order in (('one', found), ('other', found[::-1]))
  )
  for a, b in zip(first, second, strict=True):
    assert a.read_bytes() == b.read_bytes()


def test_ranges_are_those_of_the_whole_field_of_view(tmp_path):
  (field,) = _images(tmp_path / 'images', bits=8)
  paths = shard_writing.write_shards(
    [field], str(tmp_path / 's-%d'), 1, Cut(tile_size=15, overlap=0)
  )
  whole: FieldOfView = field.read()
  for tile in _tiles(paths[0]):
    part = tile.read()
    # The synthetic one is made from two of them.
    for channel in (*_CHANNELS, 'NEURITE_CONFOCAL'):
      found, wanted = (data_provider.label_percentiles(s, channel) for s in (part, whole))
      np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    found, wanted = (data_provider.input_percentiles(s, 'PHASE_CONTRAST') for s in (part, whole))
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


def test_older_shards_are_replaced_wholly_or_not_at_all(tmp_path):
  found = _images(tmp_path / 'images')
  pattern = str(tmp_path / 's-%02d')
  shard_writing.write_shards(found, pattern, 5, Cut(overlap=0))
  before = {path.name: path.read_bytes() for path in tmp_path.glob('s-*')}
  with pytest.raises(ValueError, match=r'5 shards are there already, the first is .*s-00'):
    shard_writing.write_shards(found, pattern, 2, Cut(tile_size=20, overlap=121))
  assert {path.name: path.read_bytes() for path in tmp_path.glob('s-*')} == before
  (tmp_path / 's-1').write_text('of another pattern')
  shard_writing.write_shards(found, pattern, 2, Cut(tile_size=20, overlap=121), overwrite=True)
  assert files_in(tmp_path) - files_in(tmp_path / 'images') >= {'s-00', 's-01'}
  assert sorted(path.name for path in tmp_path.glob('s-*')) == ['s-00', 's-01', 's-1']


def test_what_goes_wrong_leaves_nothing(tmp_path):
  found = _images(tmp_path / 'images', wells=('A1', 'A2'))
  damaged = found[1].sources[ImageKey(1, 'PHASE_CONTRAST')].path
  damaged.write_bytes(damaged.read_bytes()[:100])
  with pytest.raises(ValueError, match='truncated'):
    shard_writing.write_shards(found, str(tmp_path / 'shards' / 's-%d'), 4, Cut(overlap=0))
  assert not files_in(tmp_path / 'shards')


def test_floats_become_16_bit_and_others_are_refused(tmp_path):
  (field,) = _images(tmp_path / 'images')
  key = ImageKey(0, 'PHASE_CONTRAST')
  floats = np.array([[0.0, 0.25, 1.0, 1 / 65535]], np.float32)
  np.testing.assert_array_equal(
    shard_writing._to_16_bit(floats, field, key), [[0, 16384, 65535, 1]]
  )
  for wrong in (1.5, -0.1, np.nan):
    with pytest.raises(ValueError, match='PHASE_CONTRAST at z 0 has values from'):
      shard_writing._to_16_bit(np.array([[0.5, wrong]], np.float32), field, key)


def test_field_of_view_that_no_example_can_hold_is_refused(tmp_path, monkeypatch):
  found = _images(tmp_path / 'images')
  monkeypatch.setattr(shard_writing, '_MOST_BYTES', 6 * 2 * 40 * 30 - 1)
  pattern = str(tmp_path / 's-%d')
  with pytest.raises(ValueError, match='give a smaller --tile_size'):
    shard_writing.write_shards(found, pattern, 1, Cut(overlap=0))
  shard_writing.write_shards(found, pattern, 1, Cut(tile_size=20, overlap=0))


def test_png_of_a_shard_can_be_read_by_others(tmp_path):
  (field,) = _images(tmp_path / 'images')
  (path,) = shard_writing.write_shards([field], str(tmp_path / 's-%d'), 1, Cut(overlap=0))
  (tile,) = _tiles(path)
  source = tile.sources[ImageKey(0, 'PHASE_CONTRAST')]
  assert isinstance(source, EncodedSource)
  decoded = cv2.imdecode(np.frombuffer(source.load(), np.uint8), cv2.IMREAD_UNCHANGED)
  wanted = png_io.read_png(field.sources[ImageKey(0, 'PHASE_CONTRAST')].path)
  np.testing.assert_array_equal(decoded, wanted)
