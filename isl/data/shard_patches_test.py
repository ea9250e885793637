"""Tests of shard_patches.py: the stream of patches is that of the images in the shards."""

import dataclasses
import pathlib

import numpy as np
import pytest

from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Corruption, InputRange
from isl.data import data_provider, field_reading, shard_crops, shard_reading, shard_writing
from isl.data.patches import Patches
from isl.data.shard_writing import Cut
from isl.images.fields_of_view import ImageSet
from tests.support.program import finish, python_process, write_image_set
from tests.support.shards import (
  CHANNELS,
  GEOMETRY,
  PER_CROP,
  SAMPLING,
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
  """Three shards of these."""
  return write_shards(tmp_path_factory.mktemp('whole'), images, 3)


@pytest.fixture(scope='module')
def tiles(images, tmp_path_factory) -> list[pathlib.Path]:
  """One shard of the first one's tiles, 2 x 2."""
  found = field_reading.find_in([images])[:1]
  pattern = str(tmp_path_factory.mktemp('tiles') / 't-%d')
  return shard_writing.write_shards(found, pattern, 1, Cut(tile_size=26, overlap=_MARGIN))


def _padded(image_set: ImageSet) -> ImageSet:
  """A field of view with the zeros around it that patches need."""
  images = {key: np.pad(np.asarray(image), _MARGIN) for key, image in image_set.images.items()}
  presence = np.pad(np.ones(image_set.size, np.uint8), _MARGIN)
  return dataclasses.replace(image_set, images=images, presence=presence)


def _from_folder(image_set: ImageSet, *, seed, augment, corruption) -> Patches:
  return Patches(
    [[image_set]],
    sampling=SAMPLING,
    geometry=GEOMETRY,
    inputs=input_stack(3),
    targets=target_stack(CHANNELS),
    seed=seed,
    augment=augment,
    corruption=corruption,
  )


def _windows(image: np.ndarray, size: int) -> np.ndarray:
  return np.lib.stride_tricks.sliding_window_view(image, (size, size))


@pytest.mark.parametrize('kind', ['whole', 'tiles'])
def test_every_patch_is_a_window_of_its_padded_field_of_view(kind, images, request):
  paths = request.getfixturevalue(kind)
  # What a folder gives of it.
  padded = [_padded(field.read()) for field in field_reading.find_in([images])]
  batches = read_batches(make_patches(paths), 8)
  num_touching = 0
  for inputs, classes, target_masks, masks in batches:
    assert (target_masks == 1).all()
    for light, truth, mask in zip(inputs, classes, masks, strict=True):
      places = [
        (image_set, *place)
        for image_set in padded
        for place in np.argwhere(
          np.isclose(_windows(_light(image_set, 0), 20), light[..., 0]).all(axis=(2, 3))
        )
      ]
      ((image_set, row, column),) = places
      window = slice(row, row + 20), slice(column, column + 20)
      for i in range(3):
        # Of five depths, at positions 0, 0.5 and 1.
        np.testing.assert_array_equal(light[..., i], _light(image_set, i)[window])
      np.testing.assert_array_equal(mask, image_set.presence[window])
      num_touching += not mask.all()
      assert not light[mask == 0].any()
      target = data_provider.target_crop(
        image_set,
        target_stack(CHANNELS),
        slice(row + _MARGIN, row + _MARGIN + 4),
        slice(column + _MARGIN, column + _MARGIN + 4),
      )
      np.testing.assert_array_equal(truth, data_provider.classes_of(target[:, :, 0, :, 0]))
  assert 0 < num_touching < 8 * PER_CROP


def _light(image_set: ImageSet, position: int) -> np.ndarray:
  key = image_set.input_keys[2 * position]
  return image_set.input_image(key, slice(None), slice(None))


def test_crop_of_a_shard_is_the_crop_of_a_folder(whole, images):
  patches = make_patches(
    whole, augment=True, corruption=Corruption(multiplier_std=0.1, offset_std=0.2, noise_std=0.1)
  )
  record = next(patches.shards.every_record())
  crop = patches._crop(record, 5)
  assert crop is not None
  (image_set,) = crop._folders[0]
  batch = crop.batch(0, PER_CROP)
  masks = batch[3]
  # Flips and turns take the padding with them, and noise leaves it dark.
  assert 0 < masks.mean() < 1
  assert not batch[0][masks == 0].any()
  # Without padding, all is as of a folder.
  seed = crop._seed
  bare = _from_folder(
    dataclasses.replace(image_set, presence=None),
    seed=seed,
    augment=True,
    corruption=crop._corruption,
  ).batch(0, PER_CROP)
  np.testing.assert_array_equal(batch[0], bare[0] * masks[..., np.newaxis])
  for ours, theirs in zip(batch[1:3], bare[1:3], strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_every_output_of_the_field_of_view_is_drawn(tiles):
  """Each pixel of a tile's own is an output of one of its patches, as often as another."""
  record = next(shard_reading.records(tiles[0]))
  tile = record.decode()
  counts = np.zeros(tile.place.size, int)
  rng = np.random.default_rng(0)
  for _ in range(2000):
    row, column = (w.start + _MARGIN for w in shard_crops.draw_window(tile, _MARGIN, 20, rng))
    counts[row : row + 4, column : column + 4] += 1
    assert 0 <= row <= tile.place.size[0] - 4 and 0 <= column <= tile.place.size[1] - 4
  assert counts.all()


def test_ranges_are_of_the_whole_field_of_view(tiles, images):
  auto = InputRange(ends=None)
  stretch = ('DAPI_CONFOCAL',)
  field = field_reading.find_in([images])[0].read()
  prepared = data_provider.prepared(field, auto, stretch)
  patches = make_patches(tiles, input_range=auto, stretch=stretch)
  (image_set,) = patches._first_crop(0)._folders[0]
  for found, wanted in (
    (image_set.ranges, prepared.ranges),
    (image_set.input_ranges, prepared.input_ranges),
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
  found = field_reading.find_in([images])[:1]
  cut = Cut(tile_size=26, overlap=_MARGIN - 1)
  paths = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 1, cut)
  with pytest.raises(ValueError, match=f'--tile_overlap {_MARGIN} or more'):
    make_patches(paths)


def test_no_example_at_all(images, tmp_path):
  paths = shard_writing.write_shards([], str(tmp_path / 's-%d'), 2, Cut())
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
for paths, count in ((shards[:4], 40), (shards, 2 * len(shards))):
  patches = shard_support.make_patches(paths, **many)
  for _ in patches.batches(9, count):
    pass
  print(peak_mb())
"""


def test_memory_does_not_grow_with_the_shards(tmp_path):
  """Those of 700 MB are read, twice, in the memory that a few of them take."""
  write_image_set(tmp_path / 'images', rows=900, columns=900, depths=6, channels=('GFP',), bits=8)
  found = field_reading.find_in([tmp_path / 'images'])
  (path,) = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 1, Cut())
  paths = [tmp_path / f'link-{i}' for i in range(62)]
  for link in paths:
    link.hardlink_to(path)
  total = sum(link.stat().st_size for link in paths) / 2**20
  assert total > 650
  outcome = finish(python_process(_READS_MANY, *paths))
  assert outcome.status == 0, outcome.stderr
  few, many = map(float, outcome.stdout.split())
  # What a little more fills of buffers; anything that is kept would be twice the total.
  assert many - few < total / 3
