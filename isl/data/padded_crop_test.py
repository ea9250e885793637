"""Tests of data_provider.padded_input_crop and of the ranges of intensities, by NumPy's own."""

import dataclasses

import numpy as np
import pytest

from isl.core.channels import MAXPROJECT, ImageKey, input_stack, target_stack
from isl.core.experiment import InputRange, Padding
from isl.data import data_provider
from isl.images import png_folders
from isl.images.fields_of_view import ImageSet
from tests.support.program import write_image_set

_STACK = input_stack(2)
_ALL = slice(0, None)


@pytest.fixture
def image_set(tmp_path):
  write_image_set(tmp_path, rows=30, columns=23, depths=2)
  (field,) = png_folders.find_image_sets(tmp_path)
  return field.read()


@pytest.mark.parametrize(
  ('rows', 'columns'), [((-9, 20), (5, 40)), ((3, 9), (2, 8)), ((-70, 90),) * 2]
)
@pytest.mark.parametrize('size', [(30, 23), (17, 12), (1, 2)])
def test_reflected_is_numpys_pad(image_set, size, rows, columns):
  crop = data_provider.padded_input_crop(
    image_set, _STACK, slice(*rows), slice(*columns), size=size, padding=Padding.REFLECT
  )
  inside = data_provider.input_crop(image_set, _STACK, slice(0, size[0]), slice(0, size[1]))
  widths = [
    (max(-start, 0), max(stop - n, 0))
    for (start, stop), n in zip((rows, columns), size, strict=True)
  ]
  # NumPy mirrors again and again like this, but where an axis has one pixel.
  whole = np.pad(inside, [*widths, (0, 0), (0, 0), (0, 0)], mode='reflect')
  first = [start + width[0] for (start, _), width in zip((rows, columns), widths, strict=True)]
  expected = whole[
    first[0] : first[0] + rows[1] - rows[0], first[1] : first[1] + columns[1] - columns[0]
  ]
  np.testing.assert_array_equal(crop, expected)
  assert (crop[..., 1] == 1).all()


def test_zero_is_no_light_and_no_presence(image_set):
  crop = data_provider.padded_input_crop(
    image_set, _STACK, slice(-4, 33), slice(-2, 30), size=(30, 20), padding=Padding.ZERO
  )
  inside = data_provider.input_crop(image_set, _STACK, slice(0, 30), slice(0, 20))
  expected = np.pad(inside, [(4, 3), (2, 10), (0, 0), (0, 0), (0, 0)])
  np.testing.assert_array_equal(crop, expected)


def test_zero_far_from_the_image(image_set):
  crop = data_provider.padded_input_crop(
    image_set, _STACK, slice(-9, -1), slice(0, 4), size=(30, 20), padding=Padding.ZERO
  )
  assert crop.shape == (8, 4, 2, 1, 2)
  assert not crop.any()


def _float_set(values):
  keys = [ImageKey(0, 'DIC'), ImageKey(1, 'DIC'), ImageKey(MAXPROJECT, 'GFP')]
  images = {key: np.asarray(image, np.float32) for key, image in zip(keys, values, strict=True)}
  return ImageSet(name='f', images=images)


def _prepared(image_set, ends=None, *, auto=False, stretch=()):
  input_range = InputRange(ends=ends) if ends or auto else None
  return data_provider.prepared(image_set, input_range, stretch)


def test_floats_in_0_to_1_are_intensities():
  images = np.random.default_rng(0).random((3, 4, 5), np.float32)
  prepared = _prepared(_float_set(images))
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  np.testing.assert_array_equal(light, np.moveaxis(images[:2], 0, -1))
  target = data_provider.target_crop(prepared, target_stack(['GFP']), _ALL, _ALL)
  np.testing.assert_array_equal(target[:, :, 0, 0, 0], images[2])


@pytest.mark.parametrize(('image', 'flag'), [(0, '--input_range'), (2, '--stretch_targets')])
@pytest.mark.parametrize('value', [-0.1, 1.5, np.nan, np.inf])
def test_other_floats_are_refused_with_a_hint(image, flag, value):
  images = np.random.default_rng(0).random((3, 4, 5), np.float32)
  images[image, 2, 2] = value
  with pytest.raises(ValueError, match=flag):
    _prepared(_float_set(images))


def test_a_range_makes_any_finite_floats_intensities():
  images = np.random.default_rng(0).normal(100, 50, (3, 40, 50)).astype(np.float32)
  prepared = _prepared(_float_set(images), (20, 180), stretch=['GFP'])
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  np.testing.assert_allclose(
    light, np.moveaxis(np.clip((images[:2] - 20) / 160, 0, 1), 0, -1), atol=1e-5
  )
  images[1, 3, 3] = np.nan
  with pytest.raises(ValueError, match='nan'):
    _prepared(_float_set(images), (20, 180), stretch=['GFP'])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_range_is_in_the_units_of_the_file(dtype):
  rng = np.random.default_rng(0)
  images = {ImageKey(z, 'DIC'): rng.integers(0, 200, (6, 7)).astype(dtype) for z in range(2)}
  prepared = _prepared(ImageSet(name='f', images=images), (50, 150))
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  expected = [np.clip((image.astype(float) - 50) / 100, 0, 1) for image in images.values()]
  np.testing.assert_allclose(light, np.stack(expected, axis=-1), atol=2e-3)


def test_auto_is_the_percentiles_of_each_field():
  rng = np.random.default_rng(0)
  images = {
    ImageKey(z, 'DIC'): rng.integers(300, 900, (50, 60)).astype(np.uint16) for z in range(2)
  }
  prepared = _prepared(ImageSet(name='f', images=images), auto=True)
  stack = np.stack(list(images.values()), axis=-1)
  low, high = np.percentile(stack, (0.1, 99.9))
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  np.testing.assert_allclose(light, np.clip((stack - low) / (high - low), 0, 1), atol=1e-4)


def test_auto_of_one_intensity_is_refused():
  images = {ImageKey(0, 'DIC'): np.full((5, 5), 7, np.uint16)}
  with pytest.raises(ValueError, match='--input_range auto'):
    _prepared(ImageSet(name='f', images=images), auto=True)


def test_two_input_channels_are_interleaved():
  """z slowest; channels by name; each with its own depths."""
  rng = np.random.default_rng(0)
  images = {
    ImageKey(z, channel): rng.integers(0, 256, (4, 5)).astype(np.uint8)
    for channel, depths in (('POLARIZATION', 1), ('DIC', 3))
    for z in range(depths)
  }
  stack = input_stack(3, ['TRANSMISSION', 'POLARIZATION'])
  assert stack.channels == ('POLARIZATION', 'TRANSMISSION')
  crop = data_provider.input_crop(ImageSet(name='f', images=images), stack, _ALL, _ALL)
  assert crop.shape == (4, 5, 3, 2, 2)
  for z in range(3):
    for i, key in enumerate((ImageKey(0, 'POLARIZATION'), ImageKey(z, 'DIC'))):
      np.testing.assert_allclose(crop[:, :, z, i, 0], images[key] / 255, atol=1e-6)


def test_ranges_stay_with_an_image_set(image_set):
  prepared = _prepared(image_set, (1000, 2000))
  assert dataclasses.replace(prepared, name='other').input_ranges == prepared.input_ranges
