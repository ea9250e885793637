"""Tests of shard_patches.py: the stream of patches is that of the images in the shards."""

import dataclasses
import pathlib
import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Corruption, InputRange
from isl.data import data_provider, shard_patches, shard_reading, shard_writing
from isl.data.patches import Patches, PatchSpec
from isl.data.shard_examples import EMPTY
from isl.data.shard_writing import Cut
from isl.images import finding
from isl.images.fields_of_view import FieldOfView
from tests.support.program import finish, python_process, write_field
from tests.support.shards import (
  CHANNELS,
  GEOMETRY,
  PER_CROP,
  SAMPLING,
  WELLS,
  drawn_wells,
  is_same,
  make_patches,
  read_batches,
  write_images,
  write_shards,
)

_MARGIN = 8


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> pathlib.Path:
  """A folder of five fields of view."""
  return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory) -> list[pathlib.Path]:
  """Three shards of the images, each field of view as a whole."""
  return write_shards(tmp_path_factory.mktemp('whole'), images, 3)


@pytest.fixture(scope='module')
def tiles(images, tmp_path_factory) -> list[pathlib.Path]:
  """One shard of the 2 x 2 tiles of the first field of view."""
  found = finding.find_all([images])[:1]
  pattern = str(tmp_path_factory.mktemp('tiles') / 't-%d')
  return shard_writing.write_shards(found, pattern, 1, Cut(tile_size=26, overlap=_MARGIN))


def _padded(field_of_view: FieldOfView) -> FieldOfView:
  """A field of view with the zeros around it that patches need."""
  images = {key: np.pad(np.asarray(image), _MARGIN) for key, image in field_of_view.images.items()}
  presence = np.pad(np.ones(field_of_view.size, np.uint8), _MARGIN)
  return dataclasses.replace(field_of_view, images=images, presence=presence)


def _from_folder(field_of_view: FieldOfView, *, seed, augment, corruption) -> Patches:
  return Patches(
    [[field_of_view]],
    PatchSpec(
      sampling=SAMPLING,
      geometry=GEOMETRY,
      inputs=input_stack(3),
      targets=target_stack(CHANNELS),
      seed=seed,
      augment=augment,
      corruption=corruption,
    ),
  )


def _windows(image: np.ndarray, size: int) -> np.ndarray:
  return np.lib.stride_tricks.sliding_window_view(image, (size, size))


@pytest.mark.parametrize('kind', ['whole', 'tiles'])
def test_every_patch_is_a_window_of_its_padded_field_of_view(kind, images, request):
  paths = request.getfixturevalue(kind)
  # What a folder gives of it.
  padded = [_padded(field.read()) for field in finding.find_all([images])]
  batches = read_batches(make_patches(paths), 8)
  num_touching = 0
  for inputs, classes, target_masks, masks in batches:
    assert (target_masks == 1).all()
    for light, truth, mask in zip(inputs, classes, masks, strict=True):
      places = [
        (field_of_view, *place)
        for field_of_view in padded
        for place in np.argwhere(
          np.isclose(_windows(_light(field_of_view, 0), 20), light[..., 0]).all(axis=(2, 3))
        )
      ]
      ((field_of_view, row, column),) = places
      window = slice(row, row + 20), slice(column, column + 20)
      for i in range(3):
        # Of five depths, at positions 0, 0.5 and 1.
        np.testing.assert_array_equal(light[..., i], _light(field_of_view, i)[window])
      np.testing.assert_array_equal(mask, field_of_view.presence[window])
      num_touching += not mask.all()
      assert not light[mask == 0].any()
      target = data_provider.target_crop(
        field_of_view,
        target_stack(CHANNELS),
        slice(row + _MARGIN, row + _MARGIN + 4),
        slice(column + _MARGIN, column + _MARGIN + 4),
      )
      np.testing.assert_array_equal(truth, data_provider.classes_of(target[:, :, 0, :, 0]))
  assert 0 < num_touching < 8 * PER_CROP


def _light(field_of_view: FieldOfView, position: int) -> np.ndarray:
  key = field_of_view.input_keys[2 * position]
  return field_of_view.input_image(key, slice(None), slice(None))


def test_crop_of_a_shard_is_the_crop_of_a_folder(whole, images):
  patches = make_patches(
    whole, augment=True, corruption=Corruption(multiplier_std=0.1, offset_std=0.2, noise_std=0.1)
  )
  record = next(patches.shards.every_record())
  crop = patches._crop(record, 5)
  assert crop is not None
  (field_of_view,) = crop._folders[0]
  batch = crop.batch(0, PER_CROP)
  masks = batch[3]
  # Flips and turns take the padding with them, and noise leaves it dark.
  assert 0 < masks.mean() < 1
  assert not batch[0][masks == 0].any()
  # Without padding, all is as of a folder.
  seed = crop._spec.seed
  bare = _from_folder(
    dataclasses.replace(field_of_view, presence=None),
    seed=seed,
    augment=True,
    corruption=crop._spec.corruption,
  ).batch(0, PER_CROP)
  np.testing.assert_array_equal(batch[0], bare[0] * masks[..., np.newaxis])
  for ours, theirs in zip(batch[1:3], bare[1:3], strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_every_output_of_the_field_of_view_is_drawn(tiles):
  """Each pixel of a tile's own is an output of its patches, all about as often."""
  record = next(shard_reading.records(tiles[0]))
  tile = record.decode()
  counts = np.zeros(tile.place.size, int)
  rng = np.random.default_rng(0)
  for _ in range(2000):
    row, column = (w.start + _MARGIN for w in shard_patches.draw_window(tile, _MARGIN, 20, rng))
    counts[row : row + 4, column : column + 4] += 1
    assert 0 <= row <= tile.place.size[0] - 4 and 0 <= column <= tile.place.size[1] - 4
  assert counts.all()


def test_ranges_are_of_the_whole_field_of_view(tiles, images):
  auto = InputRange(ends=None)
  stretch = ('DAPI_CONFOCAL',)
  field = finding.find_all([images])[0].read()
  prepared = data_provider.prepared(field, auto, stretch)
  patches = make_patches(tiles, input_range=auto, stretch=stretch)
  (field_of_view,) = patches._first_crop(0)._folders[0]
  for found, wanted in (
    (field_of_view.ranges, prepared.ranges),
    (field_of_view.input_ranges, prepared.input_ranges),
  ):
    assert found.keys() == wanted.keys() and found
    for channel, ends in wanted.items():
      np.testing.assert_array_equal(
        np.array(found[channel], np.float32), np.array(ends, np.float32)
      )


@pytest.mark.parametrize(
  ('arguments', 'what'),
  [
    ({'crop_size': 64}, r'example 0 is 47 rows x 60 columns; .* at most 63'),
    ({'crop_size': 19}, '--loss_crop_size must be at least 20'),
    (
      {'channels': CHANNELS[:1]},
      'has images of MAP2_CONFOCAL, NFH_CONFOCAL at z MAXPROJECT',
    ),
    ({'channels': ('GFP',), 'leave_out': True}, 'none of 64 examples drawn'),
  ],
)
def test_what_does_not_fit_is_said(whole, arguments, what):
  with pytest.raises(ValueError, match=what):
    list(make_patches(whole, **arguments).batches(PER_CROP, 70))


def test_tiles_with_too_little_overlap_are_refused(images, tmp_path):
  found = finding.find_all([images])[:1]
  cut = Cut(tile_size=26, overlap=_MARGIN - 1)
  paths = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 1, cut)
  with pytest.raises(ValueError, match=f'--tile_overlap {_MARGIN} or more'):
    make_patches(paths)


def test_no_example_at_all(images, tmp_path):
  paths = shard_writing.write_shards([], str(tmp_path / 's-%d'), 2, Cut(overlap=0))
  with pytest.raises(ValueError, match='none of 2 shards'):
    make_patches(paths)


def test_patches_beside_the_stream_are_of_the_first_example(whole):
  patches = make_patches(whole)
  batch = patches.batch(3, PER_CROP + 2)
  assert [len(array) for array in batch] == [PER_CROP + 2] * 4
  assert is_same([batch], [patches.batch(3, PER_CROP + 2)])
  assert not is_same([batch], [patches.batch(4, PER_CROP + 2)])
  # One input at the middle depth, then the labels.
  assert patches.crop_images(0).shape == (4, 33, 33)


_READS_MANY = """
import pathlib, sys
from tests.support import shards as shard_support

def peak_mb():
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 1024

shards = [pathlib.Path(name) for name in sys.argv[1:]]
many = {'num_threads': 2, 'batch_size': 2, 'capacity': 4, 'channels': ('GFP',)}
for paths, count in ((shards[:4], 40), (shards, len(shards))):
  patches = shard_support.make_patches(paths, **many)
  for _ in patches.batches(9, count):
    pass
  print(peak_mb())
"""


def test_memory_does_not_grow_with_the_shards(tmp_path):
  """Shards of 270 MB are read in the memory that a few of them take."""
  write_field(tmp_path / 'images', rows=450, columns=450, depths=6, channels=('GFP',), bits=8)
  found = finding.find_all([tmp_path / 'images'])
  (path,) = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 1, Cut(overlap=0))
  paths = [tmp_path / f'link-{i}' for i in range(100)]
  for link in paths:
    link.hardlink_to(path)
  total = sum(link.stat().st_size for link in paths) / 2**20
  assert total > 250
  outcome = finish(python_process(_READS_MANY, *paths))
  assert outcome.status == 0, outcome.stderr
  few, many = map(float, outcome.stdout.split())
  # What a little more fills of buffers; anything that is kept would be the total.
  assert many - few < total / 3


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
  """The next patch is any of so many; without shuffling, those of a crop follow each other."""
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
