"""Tests of patches.py: the stream of patches, a patch, and batches."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import MAXPROJECT, TRANSMISSION, ImageKey, input_stack, target_stack
from isl.core.experiment import Corruption, Geometry, Sampling
from isl.data import augment, data_provider
from isl.data.patches import Patch, Patches, PatchSpec, dataset
from isl.images.fields_of_view import FieldOfView
from isl.images.pixels import intensity

_GEOMETRY = Geometry(patch=20, output=4)


_NONE = Corruption(multiplier_std=0, offset_std=0, noise_std=0)


_SAMPLING = Sampling(
  crop_size=33, patch_stride=6, output_size=4, batch_size=5, num_threads=2, capacity=7
)


# (33 - 20) // 6 + 1 in each direction.
_PER_CROP = 3 * 3


_CHANNELS = ('CELLMASK_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL', 'NEURITE_CONFOCAL')


def _field(
  name='made', rows=47, columns=60, depths=3, dtype=np.uint16, channels=_CHANNELS[:3], seed=0
) -> FieldOfView:
  """Random; its labels are its depths, from the first on, so that places can be compared."""
  rng = np.random.default_rng(seed)
  light = rng.integers(0, np.iinfo(dtype).max, (depths, rows, columns), dtype, endpoint=True)
  images = {ImageKey(z, 'DIC'): image for z, image in enumerate(light)}
  targets = zip(channels, light, strict=False)
  images |= {ImageKey(MAXPROJECT, channel): image for channel, image in targets}
  return FieldOfView(name=name, images=images)


def _patches(
  *folders: Sequence[FieldOfView],
  z=3,
  inputs=None,
  channels=_CHANNELS,
  seed=1,
  augmented=True,
  corruption=_NONE,
  **sampling,
) -> Patches:
  """Makes a stream of patches, of one field of view if no folders are given.

  `sampling` replaces values of _SAMPLING.
  """
  return Patches(
    folders or [[_field()]],
    PatchSpec(
      sampling=dataclasses.replace(_SAMPLING, **sampling),
      geometry=_GEOMETRY,
      inputs=inputs or input_stack(z),
      targets=target_stack(channels),
      seed=seed,
      augment=augmented,
      corruption=corruption,
    ),
  )


def _assert_equal(first: Patch, second: Patch) -> None:
  for field in dataclasses.fields(Patch):
    np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def _same(first: Patch, second: Patch) -> bool:
  return np.array_equal(first.input, second.input)


def _error(function, *arguments, **kwargs) -> str:
  """The message of the ValueError that a call ends with: one line."""
  with pytest.raises(ValueError) as raised:
    function(*arguments, **kwargs)
  message = str(raised.value)
  assert '\n' not in message
  return message


def test_every_crop_is_within_its_image_and_all_places_occur():
  field = _field(rows=36, columns=35)
  patches = _patches([field])
  crops = [patches.crop(number) for number in range(400)]
  places = {(crop.row, crop.column) for crop in crops}
  assert places == set(itertools.product(range(36 - 33 + 1), range(35 - 33 + 1)))
  orientations = {(crop.flip, crop.quarter_turns) for crop in crops}
  assert orientations == set(itertools.product((False, True), range(4)))


def test_crop_may_be_the_whole_image():
  patches = _patches([_field(rows=33, columns=33)])
  assert {(patches.crop(n).row, patches.crop(n).column) for n in range(20)} == {(0, 0)}
  for number in range(2 * _PER_CROP):
    assert patches.patch(number).input.shape == (20, 20, 3)


def test_each_folder_is_drawn_equally_often_and_all_of_its_fields():
  folders = [[_field(f'{i}{k}') for k in range(count)] for i, count in enumerate((1, 4, 2))]
  patches = _patches(*folders)
  names = [patches.crop(number).field_of_view.name for number in range(600)]
  assert [name[0] for name in names] == ['0', '1', '2'] * 200
  counts = collections.Counter(names)
  assert set(counts) == {field.name for fields in folders for field in fields}
  # Within 5 standard deviations of a binomial distribution.
  assert all(abs(counts[f'1{k}'] - 50) < 5 * np.sqrt(200 * 1 / 4 * 3 / 4) for k in range(4))


@pytest.mark.parametrize('capacity', [1, 7, 9, 18, 50])
def test_each_block_is_a_permutation_of_its_part_of_the_stream(capacity):
  patches = _patches(capacity=capacity)
  assert patches.per_crop == _PER_CROP
  for block in range(4):
    numbers = range(block * capacity, (block + 1) * capacity)
    places = [patches.place(number) for number in numbers]
    assert sorted(places) == [divmod(number, _PER_CROP) for number in numbers]


def test_capacity_is_how_far_patches_are_shuffled():
  unshuffled = [divmod(number, _PER_CROP) for number in range(100)]
  assert [_patches(capacity=1).place(number) for number in range(100)] == unshuffled
  places = [_patches(capacity=100).place(number) for number in range(100)]
  assert places != unshuffled
  # Another order in each block.
  patches = _patches(capacity=18)
  orders = {tuple(patches.place(18 * b + i)[1] for i in range(18)) for b in range(5)}
  assert len(orders) == 5


@pytest.mark.parametrize(
  ('crop_size', 'stride', 'per_crop'), [(20, 6, 1), (25, 6, 1), (26, 6, 4), (33, 1, 14**2)]
)
def test_patches_of_a_crop(crop_size, stride, per_crop):
  assert _patches(crop_size=crop_size, patch_stride=stride).per_crop == per_crop


def test_patches_lie_at_the_stride_in_their_crop():
  field = _field()
  patches = _patches([field], augmented=False, z=1)
  light = intensity(field.images[ImageKey(0, 'DIC')][:, :])
  for number in range(3 * _PER_CROP):
    crop_number, index = patches.place(number)
    crop = patches.crop(crop_number)
    row, column = crop.row + 6 * (index // 3), crop.column + 6 * (index % 3)
    expected = light[row : row + 20, column : column + 20]
    np.testing.assert_array_equal(patches.patch(number).input[..., 0], expected)


def test_patch_is_the_same_whatever_was_read_before():
  corruption = Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0.1)
  folders = [[_field(seed=0), _field(seed=1)], [_field(seed=2)]]
  in_order = [_patches(*folders, corruption=corruption).patch(number) for number in range(30)]
  patches = _patches(*folders, corruption=corruption)
  for number in np.random.default_rng(0).permutation(30):
    _assert_equal(patches.patch(int(number)), in_order[number])


def test_seed_decides():
  first, again, other = (
    [_patches(seed=seed).patch(number) for number in range(10)] for seed in (1, 1, 2)
  )
  assert all(map(_same, first, again))
  assert not any(map(_same, first, other))


@pytest.mark.parametrize('output_size', [4, 12])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_target_is_the_centre_of_the_input(dtype, output_size):
  # Labels are the depths, so this holds only if both are flipped and turned alike.
  patches = _patches([_field(dtype=dtype)], output_size=output_size)
  side = 20 + output_size - 4
  assert patches.input_shape == (side, side, 3)
  assert patches.target_shape == (output_size, output_size, 4)
  seen = set()
  for number in range(60):
    patch = patches.patch(number)
    assert [a.dtype for a in (patch.input, patch.target_classes)] == [np.float32, np.uint8]
    assert (patch.input.shape, patch.target_classes.shape) == (
      (side, side, 3),
      patches.target_shape,
    )
    centre = patch.input[8:-8, 8:-8]
    nearest = np.rint(255 * centre)
    np.testing.assert_array_equal(patch.target_classes[..., :3], nearest)
    neurite = np.rint(255 * centre[..., 1:].mean(axis=-1))
    np.testing.assert_array_equal(patch.target_classes[..., 3], neurite)
    np.testing.assert_array_equal(patch.target_mask, 1)
    crop = patches.crop(patches.place(number)[0])
    seen.add((crop.flip, crop.quarter_turns))
  assert len(seen) > 4


def test_pixels_are_divided_by_their_types_maximum():
  for dtype in (np.uint8, np.uint16):
    white = np.full((40, 40), np.iinfo(dtype).max, dtype)
    images = {ImageKey(0, 'DIC'): white, ImageKey(MAXPROJECT, 'NFH_CONFOCAL'): white}
    patch = _patches([FieldOfView(name='white', images=images)]).patch(0)
    np.testing.assert_array_equal(patch.input, 1)
    np.testing.assert_array_equal(patch.target_classes[..., 1], 255)


@pytest.mark.parametrize(
  ('present', 'mask'),
  [
    ([], [0, 0, 0, 0]),
    (['CELLMASK_CONFOCAL'], [1, 0, 0, 0]),
    (['NFH_CONFOCAL'], [0, 1, 0, 0]),
    (['MAP2_CONFOCAL', 'NFH_CONFOCAL'], [0, 1, 1, 1]),
    (['CELLMASK_CONFOCAL', 'DAPI_CONFOCAL'], [1, 0, 0, 0]),
  ],
)
def test_mask_is_where_there_is_truth(present, mask):
  patch = _patches([_field(channels=present)]).patch(0)
  assert patch.target_mask.dtype == np.float32
  assert patch.target_mask.tolist() == mask
  assert [bool(patch.target_classes[..., i].any()) for i in range(4)] == [m == 1 for m in mask]


@pytest.mark.parametrize('depths', [1, 2, 3, 5, 13])
@pytest.mark.parametrize('z', [1, 3, 26])
def test_input_is_what_inference_reads(depths, z):
  field = _field(depths=depths)
  patches = _patches([field], z=z)
  for number in range(5):
    crop_number, index = patches.place(number)
    crop = patches.crop(crop_number)
    turned = augment.view(
      field,
      slice(crop.row, crop.row + 33),
      slice(crop.column, crop.column + 33),
      flip=crop.flip,
      quarter_turns=crop.quarter_turns,
    )
    row, column = (6 * i for i in divmod(index, 3))
    window = slice(row, row + 20), slice(column, column + 20)
    expected = data_provider.input_crop(turned, input_stack(z), *window)[..., 0, 0]
    np.testing.assert_array_equal(patches.patch(number).input, expected)


def test_without_augmentation_places_are_the_same_but_nothing_is_changed():
  corruption = Corruption(multiplier_std=0.5, offset_std=0.5, noise_std=0.5)
  augmented, plain = (_patches(augmented=a, corruption=corruption) for a in (True, False))
  for number in range(30):
    assert augmented.place(number) == plain.place(number)
    changed, crop = augmented.crop(number), plain.crop(number)
    assert (changed.row, changed.column) == (crop.row, crop.column)
    assert (crop.flip, crop.quarter_turns, crop.distortion.changes_nothing) == (False, 0, True)
    patch = plain.patch(number)
    np.testing.assert_array_equal(
      patch.target_classes[..., :3], np.rint(255 * patch.input[8:-8, 8:-8])
    )


def test_corruption_is_the_crops_but_noise_is_the_patchs():
  field = _field(depths=2)
  patches = _patches(
    [field],
    corruption=Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0.02),
    z=4,  # Depths 0, 0, 1, 1.
    capacity=1,
    patch_stride=1,
  )
  plain = _patches([field], z=4, capacity=1, patch_stride=1)
  kinds = set()
  for crop_number in range(30):
    distortion = patches.crop(crop_number).distortion
    assert distortion.factors.shape == (2,)
    kinds.add((distortion.factors[0] != 1, distortion.offsets[0] != 0, distortion.noise_std != 0))
    noises, insides = [], []
    for index in (0, patches.per_crop - 1):
      number = crop_number * patches.per_crop + index
      corrupted, clean = patches.patch(number), plain.patch(number)
      np.testing.assert_array_equal(corrupted.target_classes, clean.target_classes)
      np.testing.assert_array_equal(corrupted.target_mask, clean.target_mask)
      # A depth seen twice is one image.
      np.testing.assert_array_equal(corrupted.input[..., [0, 2]], corrupted.input[..., [1, 3]])
      expected = clean.input[..., [0, 2]] * distortion.factors + distortion.offsets
      noise = corrupted.input[..., [0, 2]] - expected
      inside = (expected > 0.1) & (expected < 0.9)
      assert corrupted.input.min() >= 0 and corrupted.input.max() <= 1
      assert (
        abs(noise[inside].std() - distortion.noise_std)
        <= 5 * 0.02 / np.sqrt(2 * inside.sum()) * (distortion.noise_std > 0) + 1e-6
      )
      noises.append(noise)
      insides.append(inside)
    # Where nothing was clipped.
    first, last = (noise[insides[0] & insides[1]] for noise in noises)
    if distortion.noise_std:
      assert abs(np.corrcoef(first, last)[0, 1]) < 5 / np.sqrt(first.size)
  assert len(kinds) == 8


def test_input_channels_are_beside_each_other_at_each_depth():
  """Each input channel has its own number of depths, and its own corruption."""
  rng = np.random.default_rng(3)
  field = _field(depths=3)
  other = {
    ImageKey(z, 'POLARIZATION'): rng.integers(0, 255, (47, 60), np.uint8, endpoint=True)
    for z in range(2)
  }
  field = dataclasses.replace(field, images={**other, **field.images})
  inputs = input_stack(3, (TRANSMISSION, 'POLARIZATION'))
  plain = _patches([field], inputs=inputs)
  corruption = Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0)
  corrupted = _patches([field], inputs=inputs, corruption=corruption)
  assert plain.input_shape == (20, 20, 6)
  for number in range(20):
    crop_number, index = plain.place(number)
    crop = plain.crop(crop_number)
    row, column = (6 * i for i in divmod(index, 3))
    expected = []
    # Of two depths, the middle of three positions is the first: 0.5 is rounded to even.
    for key in map(ImageKey, (0, 0, 0, 1, 1, 2), ('POLARIZATION', 'DIC') * 3):
      image = field.images[key]
      window = image[crop.row : crop.row + 33, crop.column : crop.column + 33]
      turned = augment.flip_and_rotate(window, crop.flip, crop.quarter_turns)
      expected.append(intensity(turned[row : row + 20, column : column + 20]))
    patch = plain.patch(number)
    np.testing.assert_array_equal(patch.input, np.stack(expected, axis=-1))
    distortion = corrupted.crop(crop_number).distortion
    # In the order of the field's input keys: three of DIC, then two.
    factors, offsets = (a[[3, 0, 3, 1, 4, 2]] for a in (distortion.factors, distortion.offsets))
    np.testing.assert_allclose(
      corrupted.patch(number).input, np.clip(patch.input * factors + offsets, 0, 1), atol=1e-6
    )


def test_middle_of_each_input_channel_and_the_labels_are_shown():
  field = _field(depths=3, channels=['NFH_CONFOCAL'])
  other = {
    ImageKey(z, 'POLARIZATION'): field.images[ImageKey(z, 'DIC')][:, :] // 2 for z in range(3)
  }
  field = dataclasses.replace(field, images={**field.images, **other})
  patches = _patches([field], inputs=input_stack(5, (TRANSMISSION, 'POLARIZATION')))
  polarization, light, nfh = patches.crop_images(0)
  assert light.shape == (33, 33)
  np.testing.assert_allclose(polarization, light / 2, atol=1e-5)
  crop = patches.crop(0)
  window = slice(crop.row, crop.row + 33), slice(crop.column, crop.column + 33)
  for shown, z in ((light, 1), (nfh, 0)):
    image = intensity(field.images[ImageKey(z, 'DIC')][window])
    turned = augment.flip_and_rotate(image, crop.flip, crop.quarter_turns)
    np.testing.assert_array_equal(shown, turned)


def test_stretched_targets_are_stretched():
  field = _field(channels=['CELLMASK_CONFOCAL'])
  stretched = dataclasses.replace(field, ranges={'CELLMASK_CONFOCAL': (0.25, 0.75)})
  patches = _patches([stretched])
  for number in range(5):
    patch = patches.patch(number)
    light = patch.input[8:-8, 8:-8, 0]
    expected = 255 * np.clip((light - 0.25) / 0.5, 0, 1)
    assert np.abs(patch.target_classes[..., 0] - expected).max() <= 0.5 + 1e-3


def test_crop_larger_than_a_field_is_an_error():
  folders = [[_field('fits')], [_field('fits'), _field('narrow', columns=30)]]
  assert _error(_patches, *folders) == (
    "field of view 'narrow' is 47 rows x 30 columns, too small for --loss_crop_size 33; expected a"
    ' crop of 20 to 30 pixels'
  )


def test_field_smaller_than_a_patch_is_an_error():
  assert _error(_patches, [_field('tiny', rows=19)]) == (
    "field of view 'tiny' is 19 rows x 60 columns; a patch of this network reads 20 x 20 pixels"
  )


def test_crop_smaller_than_a_patch_is_an_error():
  message = '--loss_crop_size must be at least 20, the pixels that a patch of this network reads'
  assert _error(_patches, crop_size=19) == f'{message}; got 19'
  assert _error(_patches, output_size=20) == (
    f'{message.replace("20", "36")} with --loss_output_size 20; got 33'
  )


def _one_field(size=40) -> Patches:
  """Makes patches of a random field of view of `size` x `size` pixels, with one of two labels."""
  rng = np.random.default_rng(0)
  keys = [*(ImageKey(z, 'DIC') for z in range(3)), ImageKey(MAXPROJECT, 'DAPI_CONFOCAL')]
  images = {key: rng.integers(0, 65535, (size, size), np.uint16) for key in keys}
  return Patches(
    [[FieldOfView(name='made', images=images)]],
    PatchSpec(
      sampling=Sampling(
        crop_size=26, patch_stride=6, output_size=4, batch_size=5, num_threads=2, capacity=7
      ),
      geometry=Geometry(patch=20, output=4),
      inputs=input_stack(3),
      targets=target_stack(['DEAD_CONFOCAL', 'DAPI_CONFOCAL']),
      seed=0,
      augment=True,
      corruption=Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0.1),
    ),
  )


def _batches(patches, count: int, *arguments, one_shot=False) -> list[list[np.ndarray]]:
  with tf.Graph().as_default():
    batches = dataset(patches, *arguments)
    if one_shot:
      iterator = tf.data.make_one_shot_iterator(batches)
    else:
      iterator = tf.data.make_initializable_iterator(batches)
    batch = iterator.get_next()
    size = arguments[1]
    assert [t.shape.as_list() for t in batch] == [
      [size, *patches.input_shape],
      [size, *patches.target_shape],
      [size, patches.target_shape[-1]],
    ]
    with tf.Session() as session:
      if not one_shot:
        session.run(iterator.initializer)
      return [session.run(batch) for _ in range(count)]


@pytest.mark.parametrize('one_shot', [False, True])
@pytest.mark.parametrize(('batch_size', 'num_threads'), [(1, 1), (5, 2), (3, 16)])
@pytest.mark.parametrize('first', [0, 11])
def test_batches_are_the_patches_in_order(first, batch_size, num_threads, one_shot):
  patches = _one_field()
  batches = _batches(patches, 4, first, batch_size, num_threads, one_shot=one_shot)
  assert [[a.dtype for a in batch] for batch in batches] == [[np.float32, np.uint8, np.float32]] * 4
  flat = [np.concatenate(part) for part in zip(*batches, strict=True)]
  for i in range(4 * batch_size):
    patch = patches.patch(first + i)
    assert patch.input_mask is None
    values = patch.input, patch.target_classes, patch.target_mask
    for part, value in zip(flat, values, strict=True):
      np.testing.assert_array_equal(part[i], value)


def test_first_patch_may_be_known_to_the_graph_alone():
  patches = _one_field()
  with tf.Graph().as_default():
    step = tf.get_variable('step', initializer=np.int64(7))
    iterator = tf.data.make_initializable_iterator(dataset(patches, 3 * step.read_value(), 2, 1))
    inputs, _, _ = iterator.get_next()
    with tf.Session() as session:
      session.run(step.initializer)
      session.run(iterator.initializer)
      np.testing.assert_array_equal(session.run(inputs)[0], patches.patch(21).input)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_so_many_threads_read(num_threads, monkeypatch):
  patches = _one_field()
  read, reading, most = patches.patch, [], []
  together = threading.Barrier(num_threads)

  def patch(number):
    reading.append(number)
    most.append(len(reading))
    if number < num_threads:
      together.wait(timeout=60)  # Breaks, which is an error, unless as many threads come here.
    reading.remove(number)
    return read(number)

  monkeypatch.setattr(patches, 'patch', patch)
  _batches(patches, 3, 0, 2, num_threads)
  assert max(most) == num_threads


def test_what_goes_wrong_in_a_patch_is_said(monkeypatch):
  patches = _one_field()
  problem = "field of view 'made' has vanished"

  def patch(number):
    raise ValueError(problem)

  monkeypatch.setattr(patches, 'patch', patch)
  with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
    _batches(patches, 1, 0, 2, 1)


def test_images_are_not_in_the_graph():
  patches = _one_field(size=1000)
  with tf.Graph().as_default() as graph:
    tf.data.make_initializable_iterator(dataset(patches, 0, 2, 2)).get_next()
    assert graph.as_graph_def().ByteSize() < 20_000
