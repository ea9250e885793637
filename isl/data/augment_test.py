"""Tests of augment.py."""

import dataclasses
import itertools

import numpy as np
import pytest

from isl.core.channels import MAXPROJECT, ImageKey
from isl.core.experiment import Corruption
from isl.data import augment
from isl.images.fields_of_view import FieldOfView
from isl.images.pixels import intensity

_NONE = Corruption(multiplier_std=0, offset_std=0, noise_std=0)
_WHOLE = (slice(None), slice(None))


def _field_of_view(rows=6, columns=9, depths=3, dtype=np.uint16) -> FieldOfView:
  """Random; each label is one of the depths, so that it can be told what happened to each."""
  rng = np.random.default_rng(0)
  maximum = np.iinfo(dtype).max
  light = [rng.integers(0, maximum, (rows, columns), dtype) for _ in range(depths)]
  images = {ImageKey(z, 'DIC'): image for z, image in enumerate(light)}
  images |= {
    ImageKey(MAXPROJECT, channel): image
    for channel, image in zip(('DAPI_CONFOCAL', 'NFH_CONFOCAL'), light, strict=False)
  }
  return FieldOfView(name='made', images=images, ranges={'DAPI_CONFOCAL': (0.25, 0.5)})


def test_flip_then_quarter_turns():
  image = np.array([[1, 2, 3], [4, 5, 6]])
  turned = augment.flip_and_rotate
  assert turned(image, True, 0).tolist() == [[3, 2, 1], [6, 5, 4]]
  assert turned(image, False, 1).tolist() == [[3, 6], [2, 5], [1, 4]]
  assert turned(image, True, 1).tolist() == [[1, 4], [2, 5], [3, 6]]


def test_eight_orientations_are_views_and_all_different():
  image = np.random.default_rng(0).random((5, 5, 2))
  seen = set()
  for flip, quarter_turns in itertools.product((False, True), range(4)):
    turned = augment.flip_and_rotate(image, flip, quarter_turns)
    assert np.shares_memory(turned, image)
    # What is behind the first two axes stays together.
    assert sorted(map(tuple, turned.reshape(-1, 2))) == sorted(map(tuple, image.reshape(-1, 2)))
    seen.add(turned.tobytes())
  assert len(seen) == 8


def test_orientations_are_equally_likely():
  rng = np.random.default_rng(0)
  draws = [augment.draw_orientation(rng) for _ in range(8000)]
  counts = [draws.count(o) for o in itertools.product((False, True), range(4))]
  # Within 5 standard deviations of a binomial distribution.
  assert np.abs(np.array(counts) - 1000).max() < 5 * np.sqrt(8000 * (1 / 8) * (7 / 8))


@pytest.mark.parametrize('quarter_turns', range(4))
@pytest.mark.parametrize('flip', [False, True])
def test_view_turns_all_images_alike(flip, quarter_turns):
  field_of_view = _field_of_view()
  rows, columns = slice(1, 5), slice(2, 9)
  seen = augment.view(field_of_view, rows, columns, flip=flip, quarter_turns=quarter_turns)
  assert (seen.name, seen.ranges) == (field_of_view.name, field_of_view.ranges)
  assert seen.size == ((4, 7) if quarter_turns % 2 == 0 else (7, 4))
  for key, image in field_of_view.images.items():
    assert np.shares_memory(seen.images[key], image)
    window = image[1:5, 2:9]
    expected = np.rot90(np.fliplr(window) if flip else window, quarter_turns)
    np.testing.assert_array_equal(seen.images[key], expected)


def test_no_deviation_is_no_distortion():
  rng = np.random.default_rng(0)
  images = rng.random((5, 4, 3), np.float32)
  for _ in range(10):
    distortion = augment.draw_distortion(_NONE, 3, rng)
    assert distortion.changes_nothing
    np.testing.assert_array_equal(augment.corrupt(images, distortion, rng), images)


@pytest.mark.parametrize('kind', ['multiplier_std', 'offset_std', 'noise_std'])
def test_each_kind_happens_to_half_of_the_crops_and_has_its_deviation(kind):
  rng = np.random.default_rng(0)
  corruption = Corruption(**{**vars(_NONE), kind: 0.25})
  drawn = [augment.draw_distortion(corruption, 10, rng) for _ in range(2000)]
  happened = [d for d in drawn if not d.changes_nothing]
  assert abs(len(happened) - 1000) < 5 * np.sqrt(2000 / 4)
  values: dict[str, list[np.ndarray]] = {
    'multiplier_std': [d.factors - 1 for d in happened],
    'offset_std': [d.offsets for d in happened],
    'noise_std': [np.array([d.noise_std]) for d in happened],
  }
  for name, of_crops in values.items():
    drawn_values = np.concatenate(of_crops)
    if name == 'noise_std':
      np.testing.assert_array_equal(drawn_values, 0.25 if kind == name else 0)
    elif name == kind:
      # Of n values, the mean has the deviation std / sqrt(n), their deviation std / sqrt(2 n).
      n = len(drawn_values)
      assert abs(drawn_values.mean()) < 5 * 0.25 / np.sqrt(n)
      assert abs(drawn_values.std() - 0.25) < 5 * 0.25 / np.sqrt(2 * n)
      assert len(set(of_crops[0].tolist())) == 10, 'each image has its own'
    else:
      np.testing.assert_array_equal(drawn_values, 0)


def test_kinds_are_independent():
  rng = np.random.default_rng(0)
  corruption = Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0.1)
  drawn = [augment.draw_distortion(corruption, 2, rng) for _ in range(8000)]
  kinds = [(d.factors[0] != 1, d.offsets[0] != 0, d.noise_std != 0) for d in drawn]
  counts = [sum(kind == k for kind in kinds) for k in itertools.product((False, True), repeat=3)]
  assert np.abs(np.array(counts) - 1000).max() < 5 * np.sqrt(8000 * (1 / 8) * (7 / 8))


def _distortion(factors, offsets, noise_std=0.0) -> augment.Distortion:
  return augment.Distortion(
    factors=np.array(factors, np.float32),
    offsets=np.array(offsets, np.float32),
    noise_std=noise_std,
  )


def test_factor_and_offset_are_an_images_own_and_the_result_is_clipped():
  images = np.random.default_rng(0).random((6, 5, 3), np.float32)
  before = images.copy()
  corrupted = augment.corrupt(
    images, _distortion([0.5, 2, 1], [0.25, -0.5, 0.75]), np.random.default_rng(0)
  )
  assert corrupted.dtype == np.float32
  expected = np.clip(before * [0.5, 2, 1] + [0.25, -0.5, 0.75], 0, 1)
  np.testing.assert_allclose(corrupted, expected, atol=1e-6)
  assert corrupted.min() == 0 and corrupted.max() == 1
  np.testing.assert_array_equal(images, before)


def test_noise_is_each_pixels_own():
  images = np.full((100, 100, 3), 0.5, np.float32)
  distortion = _distortion([1, 1, 1], [0, 0, 0], noise_std=0.05)
  noise = augment.corrupt(images, distortion, np.random.default_rng(0)) - 0.5
  for image in np.moveaxis(noise, -1, 0):
    assert abs(image.mean()) < 5 * 0.05 / 100
    assert abs(image.std() - 0.05) < 5 * 0.05 / np.sqrt(2 * 100**2)
  # Neighbours, in rows, columns or depths, do not resemble each other.
  for axis in range(3):
    first, second = noise.take([0, 1], axis).swapaxes(0, axis).reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size)


def test_part_of_a_distortion():
  part = _distortion([1, 2, 3], [4, 5, 6], noise_std=0.5).of([0, 2])
  assert (part.factors.tolist(), part.offsets.tolist(), part.noise_std) == ([1, 3], [4, 6], 0.5)


@pytest.mark.parametrize(
  ('crop_size', 'size'), [(0, (6, 9)), (4, (4, 4)), (7, (6, 7)), (1500, (6, 9))]
)
def test_jitter_turns_the_crop_at_the_top_left(crop_size, size):
  field_of_view = _field_of_view()
  crop = augment.view(field_of_view, slice(0, size[0]), slice(0, size[1]))
  seen = set()
  for seed in range(40):
    turned = augment.jitter(field_of_view, crop_size, _NONE, np.random.default_rng(seed))
    assert turned.ranges == field_of_view.ranges
    fitting = [
      o
      for o in itertools.product((False, True), range(4))
      if all(
        np.array_equal(augment.flip_and_rotate(image[_WHOLE], *o), turned.images[key][_WHOLE])
        for key, image in crop.images.items()
      )
    ]
    seen.update(fitting)
    assert len(fitting) == 1
  assert len(seen) == 8


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_jitter_corrupts_transmitted_light_alone(dtype):
  field_of_view = _field_of_view(20, 30, dtype=dtype)
  corruption = Corruption(multiplier_std=0.2, offset_std=0.1, noise_std=0.1)
  corrupted = 0
  for seed in range(60):
    with_corruption, without = (
      augment.jitter(field_of_view, 0, c, np.random.default_rng(seed)) for c in (corruption, _NONE)
    )
    differs = False
    for key, image in without.images.items():
      if key.z == MAXPROJECT:
        np.testing.assert_array_equal(with_corruption.images[key], image)
      else:
        light = with_corruption.images[key]
        assert light.shape == image.shape
        was, now = (intensity(i[_WHOLE]) for i in (image, light))
        differs |= not np.array_equal(was, now)
        assert light.dtype == (np.uint16 if differs else dtype)
    corrupted += differs
  # All but 1 of 8 on average.
  assert 40 < corrupted < 60


def test_jitter_corrupts_every_input_channel_in_its_range(monkeypatch):
  field_of_view = _field_of_view(20, 30)
  other = {ImageKey(z, 'POLARIZATION'): field_of_view.images[ImageKey(z, 'DIC')] for z in range(2)}
  field_of_view = dataclasses.replace(
    field_of_view,
    images={**field_of_view.images, **other},
    input_ranges={'POLARIZATION': (0.2, 0.6)},
  )
  drawn = _distortion([0.9, 0.8, 0.7, 0.6, 0.5], [0, 0.1, 0.2, 0.3, 0.4])
  monkeypatch.setattr(augment, 'draw_distortion', lambda *_: drawn)
  monkeypatch.setattr(augment, 'draw_orientation', lambda _: (False, 0))
  jittered = augment.jitter(field_of_view, 0, _NONE, np.random.default_rng(0))
  keys = [ImageKey(z, 'DIC') for z in range(3)] + [ImageKey(z, 'POLARIZATION') for z in range(2)]
  for key, factor, offset in zip(keys, drawn.factors, drawn.offsets, strict=True):
    seen = intensity(field_of_view.images[key][_WHOLE])
    if key.channel == 'POLARIZATION':
      seen = np.clip((seen - 0.2) / 0.4, 0, 1)
    expected = np.clip(seen * factor + offset, 0, 1)
    # Nothing is left to be done to what is read of it.
    found = jittered.input_image(key, *_WHOLE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_jitter_rounds_to_16_bit(monkeypatch):
  field_of_view = _field_of_view(20, 30)
  halved = _distortion([0.5] * 3, [0.25] * 3)
  monkeypatch.setattr(augment, 'draw_distortion', lambda *_: halved)
  monkeypatch.setattr(augment, 'draw_orientation', lambda _: (False, 0))
  jittered = augment.jitter(field_of_view, 0, _NONE, np.random.default_rng(0))
  for z in range(3):
    light, before = (s.images[ImageKey(z, 'DIC')][_WHOLE] for s in (jittered, field_of_view))
    expected = (before / 65535 * 0.5 + 0.25) * 65535
    assert np.abs(light - expected).max() <= 0.5 + 0.01
