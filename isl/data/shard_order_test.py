"""Tests of shard_patches.py: the order of the stream, and what damaged shards do to it."""

import pathlib
import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.data import shard_reading
from isl.data.shard_examples import EMPTY
from tests.support.shards import (
  PER_CROP,
  WELLS,
  drawn_wells,
  is_same,
  make_patches,
  read_batches,
  write_images,
  write_shards,
)


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> pathlib.Path:
  """A folder of five fields of view."""
  return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory) -> list[pathlib.Path]:
  """Three shards of these."""
  return write_shards(tmp_path_factory.mktemp('whole'), images, 3)


def test_stream_is_a_function_of_seed_and_first_patch(whole):
  first, again, elsewhere, other = (
    read_batches(
      make_patches(whole, seed=seed, num_threads=3, batch_size=4, capacity=4), 4, first=start
    )
    for seed, start in ((1, 0), (1, 0), (1, 8), (2, 0))
  )
  assert is_same(first, again)
  assert not is_same(first, elsewhere)
  assert not is_same(first, other)


def test_batches_for_evaluation_are_always_the_same(whole):
  patches = make_patches(whole)
  first, again = (list(patches.batches(4, 3)) for _ in range(2))
  assert is_same(first, again)
  assert is_same(first, list(make_patches(whole).batches(4, 3)))


def test_each_pass_has_every_example_once_in_another_order(whole, monkeypatch):
  wells = drawn_wells(make_patches(whole), 20, monkeypatch)
  passes = [wells[5 * i : 5 * i + 5] for i in range(4)]
  assert all(sorted(one) == sorted(WELLS) for one in passes)
  assert len({tuple(one) for one in passes}) > 1


def test_examples_do_not_repeat_where_threads_are_more_than_shards(images, tmp_path, monkeypatch):
  (path,) = write_shards(tmp_path, images, 1)
  assert drawn_wells(make_patches([path], num_threads=4), 20, monkeypatch)[:20] == [*WELLS] * 4


def test_shards_are_mixed_that_are_read_at_the_same_time(images, tmp_path, monkeypatch):
  """Two wells a shard: one after the other, or those of several shards in turns."""
  paths = write_shards(tmp_path, images, 2)
  in_shard = [
    [r.decode().files.name.partition('well-')[2][:2] for r in shard_reading.records(path)]
    for path in paths
  ]
  orders = {}
  for num_threads in (1, 2):
    with monkeypatch.context() as patch:
      orders[num_threads] = drawn_wells(make_patches(paths, num_threads=num_threads), 5, patch)[:5]
  assert orders[1] in (in_shard[0] + in_shard[1], in_shard[1] + in_shard[0])
  assert orders[2] not in (in_shard[0] + in_shard[1], in_shard[1] + in_shard[0])
  for wells in in_shard:
    # Within a shard, the order stays.
    assert [well for well in orders[2] if well in wells] == wells


def test_capacity_is_how_far_examples_are_shuffled(images, tmp_path, monkeypatch):
  (path,) = write_shards(tmp_path, images, 1)
  orders = {}
  for capacity in (1, 2, 5):
    with monkeypatch.context() as patch:
      orders[capacity] = drawn_wells(make_patches([path], capacity=capacity), 20, patch)[:20]
  assert orders[1] == [*WELLS] * 4
  for capacity in (2, 5):
    assert orders[capacity] != orders[1]
    # What is drawn is among so many that come next, the ends of shards being among them.
    for i, well in enumerate(orders[capacity]):
      before = orders[capacity][:i].count(well)
      assert before * len(WELLS) + WELLS.index(well) < i + capacity + i // len(WELLS) + 1


@pytest.mark.parametrize('batch_size', [1, 3])
def test_so_many_examples_are_decoded_at_once(whole, batch_size, monkeypatch):
  patches = make_patches(whole, batch_size=batch_size)
  crop, cutting, most = patches._crop, [], []
  together = threading.Barrier(batch_size)

  def noting(record, *number):
    cutting.append(number)
    most.append(len(cutting))
    if number[0] < batch_size:
      together.wait(timeout=60)  # Breaks, which is an error, unless as many come here.
    cutting.remove(number)
    return crop(record, *number)

  monkeypatch.setattr(patches, '_crop', noting)
  with tf.Graph().as_default(), tf.Session() as session:
    iterator = tf.data.make_initializable_iterator(patches.dataset(0, 1, 8))
    session.run(iterator.initializer)
    session.run(iterator.get_next())
  assert max(most) == batch_size


def test_patches_of_several_crops_are_shuffled(whole):
  """Of so many patches, the next is any; without, those of a crop follow each other."""
  capacity = 3 * PER_CROP
  in_order = np.concatenate([batch[0] for batch in read_batches(make_patches(whole), 6)])
  drawn = read_batches(make_patches(whole, shuffled=capacity), 3)
  numbers = [
    int(np.flatnonzero((in_order == patch).all(axis=(1, 2, 3)))[0])
    for batch in drawn
    for patch in batch[0]
  ]
  assert numbers != sorted(numbers)
  assert len(set(numbers)) == len(numbers)
  assert all(number < i + capacity for i, number in enumerate(numbers))


def _damaged(tmp_path: pathlib.Path, paths, number: int) -> list[pathlib.Path]:
  """Copies, of which the one that has most is cut off in its last Example."""
  copies = []
  for i, path in enumerate(paths):
    data = path.read_bytes()
    copies.append(tmp_path / path.name)
    copies[-1].write_bytes(data[: len(data) - 50] if i == number else data)
  return copies


def _fullest(paths) -> int:
  return max(range(len(paths)), key=lambda i: paths[i].stat().st_size)


def test_damaged_shard_is_named(whole, tmp_path):
  number = _fullest(whole)
  paths = _damaged(tmp_path, whole, number)
  patches = make_patches(paths, num_threads=2, batch_size=2, capacity=2)
  with pytest.raises(tf.errors.OpError):
    read_batches(patches, 30)
  assert isinstance(patches.failure, ValueError)
  assert f'shard {str(paths[number])!r} is damaged or cut off' in str(patches.failure)
  with pytest.raises(ValueError, match='is damaged or cut off'):
    list(make_patches(paths).batches(2, 30))


def test_rest_of_a_damaged_shard_is_left_out(whole, tmp_path, monkeypatch):
  number = _fullest(whole)
  paths = _damaged(tmp_path, whole, number)
  lost = [r.decode().files.name for r in shard_reading.records(whole[number])][-1]
  patches = make_patches(paths, skip_corrupt=True)
  wells = drawn_wells(patches, 16, monkeypatch)
  assert set(wells) == set(WELLS) - {lost.partition('well-')[2][:2]}
  (reason,) = patches.shards.left_out.values()
  assert str(paths[number]) in reason


def test_example_whose_png_is_damaged_is_named_or_left_out(whole, tmp_path):
  paths = [tmp_path / path.name for path in whole]
  first = next(record for path in whole for record in shard_reading.records(path))
  for path, source in zip(paths, whole, strict=True):
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in shard_reading.records(source):
        data = record.data
        if data == first.data:
          example = tf.train.Example.FromString(data)
          pngs = example.features.feature['image/png'].bytes_list.value
          for i, png in enumerate(pngs):
            pngs[i] = png[:200] + bytes([png[200] ^ 1]) + png[201:]
          data = example.SerializeToString()
        writer.write(data)
      if path.stat().st_size == 0:
        writer.write(EMPTY)
  with pytest.raises(ValueError, match=r'shard .*example 0, .* is damaged'):
    list(make_patches(paths).batches(2, 30))
  patches = make_patches(paths, skip_corrupt=True)
  assert len(list(patches.batches(PER_CROP, 12))) == 12
  assert list(patches.shards.left_out) == [f'example 0 of {str(tmp_path / first.path.name)!r}']
