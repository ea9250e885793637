"""Tests of data_provider.py."""

import dataclasses

import numpy as np
import pytest

from isl.core.channels import (
  MAXPROJECT,
  TARGET_CHANNELS,
  TRANSMITTED_LIGHT_CHANNELS,
  ImageKey,
  input_stack,
  target_stack,
)
from isl.core.experiment import InputRange, Padding
from isl.data import data_provider
from isl.images.fields_of_view import FieldOfView
from isl.images.pixels import intensity
from tests.support.program import original_fields, shared_path, write_field

_ALL = slice(None)
_STACK = input_stack(2)


def _field_of_view(folder, **kwargs) -> FieldOfView:
  write_field(folder, **kwargs)
  (field,) = original_fields(folder)
  return field.read()


def _made(**targets) -> FieldOfView:
  """A field of view of one depth, with these targets; 1 row x 2 columns if there are none."""
  rows, columns = next(iter(targets.values()), np.zeros((1, 2))).shape
  images = {ImageKey(0, 'DIC'): np.zeros((rows, columns), np.uint8)}
  images |= {ImageKey(MAXPROJECT, channel): image for channel, image in targets.items()}
  return FieldOfView(name='made', images=images)


def _depths_read(num_depths: int) -> list[int]:
  """The depths that a network of 26 z depths reads of a field of view that has `num_depths`."""
  z_values = input_stack(26).z_values
  return [data_provider.depth_at(float(z), num_depths) for z in z_values]


@pytest.mark.parametrize('depths', [1, 2, 13, 26, 27])
def test_depths_are_spread_evenly(depths):
  read = _depths_read(depths)
  assert read == sorted(read)
  assert (read[0], read[-1]) == (0, depths - 1)
  assert set(read) == set(range(depths)) or depths > 26


def test_26_depths_are_themselves():
  assert _depths_read(26) == list(range(26))


def test_half_rounds_to_even():
  assert [data_provider.depth_at(0.5, depths) for depths in (2, 4, 6)] == [0, 2, 2]


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('depths', [1, 5, 13])
@pytest.mark.parametrize('num_z_values', [1, 5, 26])
def test_input_is_the_stack_at_its_positions(tmp_path, bits, depths, num_z_values):
  field_of_view = _field_of_view(tmp_path, depths=depths, bits=bits, rows=6, columns=9, channels=())
  stack = input_stack(num_z_values)
  crop = data_provider.input_crop(field_of_view, stack, slice(1, 5), slice(2, 9))
  assert crop.dtype == np.float32
  assert crop.shape == (4, 7, num_z_values, 1, 2)
  for i, z in enumerate(stack.z_values):
    image = field_of_view.images[ImageKey(round((depths - 1) * z), 'PHASE_CONTRAST')]
    expected = (image[1:5, 2:9] / (2.0**bits - 1)).astype(np.float32)
    np.testing.assert_array_equal(crop[:, :, i, 0, 0], expected)
  np.testing.assert_array_equal(crop[..., 1], 1)


@pytest.mark.parametrize('transmitted_light', TRANSMITTED_LIGHT_CHANNELS)
def test_any_transmitted_light_is_the_input(tmp_path, transmitted_light):
  field_of_view = _field_of_view(tmp_path, transmitted_light=transmitted_light)
  crop = data_provider.input_crop(field_of_view, input_stack(3), _ALL, _ALL)
  image = np.asarray(field_of_view.images[ImageKey(2, transmitted_light)])
  np.testing.assert_array_equal(crop[:, :, 2, 0, 0], (image / 65535).astype(np.float32))


def test_each_depth_is_divided_by_its_own_maximum():
  field_of_view = FieldOfView(
    name='both types',
    images={
      ImageKey(0, 'DIC'): np.array([[0, 255]], np.uint8),
      ImageKey(1, 'DIC'): np.array([[255, 65535]], np.uint16),
    },
  )
  crop = data_provider.input_crop(field_of_view, input_stack(2), _ALL, _ALL)
  expected = np.array([[[0, 255 / 65535], [1, 1]]], np.float32)
  np.testing.assert_array_equal(crop[:, :, :, 0, 0], expected)


def test_targets_are_in_the_stacks_order(tmp_path):
  field_of_view = _field_of_view(tmp_path, channels=('DAPI_CONFOCAL', 'CELLMASK_CONFOCAL'))
  stack = target_stack(('CELLMASK_CONFOCAL', 'DAPI_WIDEFIELD', 'DAPI_CONFOCAL'))
  crop = data_provider.target_crop(field_of_view, stack, slice(3, 10), slice(0, 4))
  assert crop.dtype == np.float32
  assert crop.shape == (7, 4, 1, 3, 2)
  for i, channel in enumerate(stack.channels):
    if channel == 'DAPI_WIDEFIELD':
      np.testing.assert_array_equal(crop[:, :, 0, i], 0)
    else:
      image = field_of_view.images[ImageKey(MAXPROJECT, channel)]
      expected = (image[3:10, 0:4] / 65535).astype(np.float32)
      np.testing.assert_array_equal(crop[:, :, 0, i, 0], expected)
      np.testing.assert_array_equal(crop[:, :, 0, i, 1], 1)


def test_synthetic_channel_is_the_mean_of_its_parts():
  field_of_view = _made(
    NFH_CONFOCAL=np.array([[0, 255]], np.uint8), MAP2_CONFOCAL=np.array([[13107, 0]], np.uint16)
  )
  crop = data_provider.target_crop(field_of_view, target_stack(['NEURITE_CONFOCAL']), _ALL, _ALL)
  expected = np.array([[[(0 + 0.2) / 2, 1], [(1 + 0) / 2, 1]]], np.float32)
  np.testing.assert_array_equal(crop[:, :, 0, 0], expected)


@pytest.mark.parametrize('parts', [[], ['NFH_CONFOCAL'], ['MAP2_CONFOCAL']])
def test_synthetic_channel_without_a_part_is_absent(parts):
  field_of_view = _made(**{part: np.full((1, 2), 255, np.uint8) for part in parts})
  crop = data_provider.target_crop(field_of_view, target_stack(['NEURITE_CONFOCAL']), _ALL, _ALL)
  np.testing.assert_array_equal(crop, 0)


def test_truth_is_where_the_mask_is():
  for channels in [(), ('NFH_CONFOCAL',), ('NFH_CONFOCAL', 'MAP2_CONFOCAL'), ('DAPI_CONFOCAL',)]:
    field_of_view = _made(**{channel: np.zeros((1, 2), np.uint8) for channel in channels})
    stack = target_stack()
    crop = data_provider.target_crop(field_of_view, stack, _ALL, _ALL)
    truth = [data_provider.has_truth(field_of_view, channel) for channel in stack.channels]
    assert crop[0, 0, 0, :, 1].tolist() == truth


@pytest.mark.parametrize(
  ('rows', 'columns', 'problem'),
  [
    (slice(0, 21), slice(0, 30), 'has 20 rows; expected a window within them, got 0 to 21'),
    (slice(0, 20), slice(-1, 30), 'has 30 columns; expected a window within them, got -1 to 30'),
    (slice(5, 5), slice(0, 30), 'got 5 to 5'),
    (slice(0, 20, 2), slice(0, 30), 'has 20 rows'),
  ],
)
def test_window_beyond_the_image_is_an_error(tmp_path, rows, columns, problem):
  field_of_view = _field_of_view(tmp_path, rows=20, columns=30)
  with pytest.raises(ValueError, match=problem):
    data_provider.input_crop(field_of_view, input_stack(3), rows, columns)
  with pytest.raises(ValueError, match=problem):
    data_provider.target_crop(field_of_view, target_stack(), rows, columns)


def _stretched(channels, **targets) -> FieldOfView:
  """A field of view of these targets, of which some channels are stretched."""
  return data_provider.with_stretched(_made(**targets), channels)


def _intensities(field_of_view: FieldOfView, channel: str, **window: slice) -> np.ndarray:
  """The intensities that a network that predicts this channel alone should predict."""
  rows, columns = (window.get(name, _ALL) for name in ('rows', 'columns'))
  stack = target_stack([channel])
  return data_provider.target_crop(field_of_view, stack, rows, columns)[:, :, 0, 0, 0]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_stretched_range_becomes_0_to_1(dtype):
  levels = np.random.default_rng(0).permutation(np.arange(100, 200)).astype(dtype)
  image = np.tile(levels, (50, 1))
  image[0, :2] = 0, np.iinfo(dtype).max  # 0.02% each, which is dust
  stretched = _stretched(['DAPI_CONFOCAL'], DAPI_CONFOCAL=image, CELLMASK_CONFOCAL=image)
  low, high = np.percentile(image, [0.1, 99.9])
  assert (low, high) == (100, 199)
  expected = np.clip((image - low) / (high - low), 0, 1)
  np.testing.assert_allclose(_intensities(stretched, 'DAPI_CONFOCAL'), expected, atol=1e-5)
  # The whole image's range, whatever is read of it; and no other channel's.
  window = {'rows': slice(3, 9), 'columns': slice(2, 5)}
  part = _intensities(stretched, 'DAPI_CONFOCAL', **window)
  np.testing.assert_array_equal(part, _intensities(stretched, 'DAPI_CONFOCAL')[3:9, 2:5])
  other = _intensities(stretched, 'CELLMASK_CONFOCAL')
  np.testing.assert_array_equal(other, image / np.float32(np.iinfo(dtype).max))


def test_stretched_mean_is_of_unstretched_parts():
  rng = np.random.default_rng(0)
  nfh, map2 = (rng.integers(0, high, (40, 50), np.uint8) for high in (50, 200))
  mean = (nfh.astype(float) + map2) / 2 / 255
  parts = {'NFH_CONFOCAL': nfh, 'MAP2_CONFOCAL': map2}
  stretched = _stretched(['NFH_CONFOCAL'], **parts)
  np.testing.assert_allclose(_intensities(stretched, 'NEURITE_CONFOCAL'), mean, atol=1e-6)
  stretched = _stretched(['NEURITE_CONFOCAL'], **parts)
  low, high = np.percentile(mean, [0.1, 99.9])
  expected = np.clip((mean - low) / (high - low), 0, 1)
  np.testing.assert_allclose(_intensities(stretched, 'NEURITE_CONFOCAL'), expected, atol=1e-5)
  np.testing.assert_array_equal(_intensities(stretched, 'NFH_CONFOCAL'), nfh / np.float32(255))


def test_absent_channels_are_not_stretched():
  field_of_view = _stretched(
    ['DAPI_CONFOCAL', 'NEURITE_CONFOCAL'], NFH_CONFOCAL=np.eye(5, dtype=np.uint8)
  )
  assert field_of_view.ranges == {}
  np.testing.assert_array_equal(_intensities(field_of_view, 'DAPI_CONFOCAL'), 0)


@pytest.mark.parametrize('level', [0, 51, 255])
def test_constant_image_cannot_be_stretched(level):
  # A speck beyond the percentiles is no range.
  image = np.full((100, 100), level, np.uint8)
  image[0, 0] = 7
  with pytest.raises(ValueError, match="field of view 'made': DAPI_CONFOCAL cannot") as raised:
    _stretched(['DAPI_CONFOCAL'], DAPI_CONFOCAL=image)
  assert f'percentiles 0.1 and 99.9 are both {level / 255:.6g};' in str(raised.value)


def test_classes_are_the_nearest():
  intensities = np.array([0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1], np.float32)
  classes = data_provider.classes_of(intensities)
  assert classes.dtype == np.uint8
  assert classes.tolist() == [0, 0, 1, 255, 255]


def test_light_is_read_at_the_depths_asked_for(tmp_path):
  field_of_view = _field_of_view(tmp_path, depths=4, channels=())
  light = data_provider.light_crop(field_of_view, [3, 1, 1], slice(2, 9), slice(4, 5))
  assert light.dtype == np.float32 and light.shape == (7, 1, 3)
  for i, depth in enumerate([3, 1, 1]):
    image = np.asarray(field_of_view.images[ImageKey(depth, 'PHASE_CONTRAST')])
    np.testing.assert_array_equal(light[:, :, i], intensity(image)[2:9, 4:5])


def test_real_sample():
  folder = shared_path('data', 'condition_b_sample')
  (field,) = original_fields(folder)
  field_of_view = field.read()
  window = slice(64, 434), slice(40, 410)
  stack = data_provider.input_crop(field_of_view, input_stack(26), *window)
  target = data_provider.target_crop(field_of_view, target_stack(), *window)
  assert stack.shape == (370, 370, 26, 1, 2)
  assert target.shape == (370, 370, 1, 9, 2)
  assert stack.min() >= 0 and stack.max() <= 1
  present = np.array(TARGET_CHANNELS)[target[0, 0, 0, :, 1] == 1].tolist()
  assert present == ['DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL', 'NEURITE_CONFOCAL']


@pytest.fixture
def field_of_view(tmp_path):
  write_field(tmp_path, rows=30, columns=23, depths=2)
  (field,) = original_fields(tmp_path)
  return field.read()


@pytest.mark.parametrize(
  ('rows', 'columns'), [((-9, 20), (5, 40)), ((3, 9), (2, 8)), ((-70, 90),) * 2]
)
@pytest.mark.parametrize('size', [(30, 23), (17, 12), (1, 2)])
def test_reflected_is_numpys_pad(field_of_view, size, rows, columns):
  crop = data_provider.padded_input_crop(
    field_of_view, _STACK, slice(*rows), slice(*columns), size=size, padding=Padding.REFLECT
  )
  inside = data_provider.input_crop(field_of_view, _STACK, slice(0, size[0]), slice(0, size[1]))
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


def test_zero_is_no_light_and_no_presence(field_of_view):
  crop = data_provider.padded_input_crop(
    field_of_view, _STACK, slice(-4, 33), slice(-2, 30), size=(30, 20), padding=Padding.ZERO
  )
  inside = data_provider.input_crop(field_of_view, _STACK, slice(0, 30), slice(0, 20))
  expected = np.pad(inside, [(4, 3), (2, 10), (0, 0), (0, 0), (0, 0)])
  np.testing.assert_array_equal(crop, expected)


def test_zero_far_from_the_image(field_of_view):
  crop = data_provider.padded_input_crop(
    field_of_view, _STACK, slice(-9, -1), slice(0, 4), size=(30, 20), padding=Padding.ZERO
  )
  assert crop.shape == (8, 4, 2, 1, 2)
  assert not crop.any()


def _float_set(values):
  keys = [ImageKey(0, 'DIC'), ImageKey(1, 'DIC'), ImageKey(MAXPROJECT, 'GFP')]
  images = {key: np.asarray(image, np.float32) for key, image in zip(keys, values, strict=True)}
  return FieldOfView(name='f', images=images)


def _prepared(field_of_view, ends=None, *, auto=False, stretch=()):
  input_range = InputRange(ends=ends) if ends or auto else None
  return data_provider.prepared(field_of_view, input_range, stretch)


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
  prepared = _prepared(FieldOfView(name='f', images=images), (50, 150))
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  expected = [np.clip((image.astype(float) - 50) / 100, 0, 1) for image in images.values()]
  np.testing.assert_allclose(light, np.stack(expected, axis=-1), atol=2e-3)


def test_auto_is_the_percentiles_of_each_field():
  rng = np.random.default_rng(0)
  images = {
    ImageKey(z, 'DIC'): rng.integers(300, 900, (50, 60)).astype(np.uint16) for z in range(2)
  }
  prepared = _prepared(FieldOfView(name='f', images=images), auto=True)
  stack = np.stack(list(images.values()), axis=-1)
  low, high = np.percentile(stack, (0.1, 99.9))
  light = data_provider.input_crop(prepared, _STACK, _ALL, _ALL)[..., 0, 0]
  np.testing.assert_allclose(light, np.clip((stack - low) / (high - low), 0, 1), atol=1e-4)


def test_auto_of_one_intensity_is_refused():
  images = {ImageKey(0, 'DIC'): np.full((5, 5), 7, np.uint16)}
  with pytest.raises(ValueError, match='--input_range auto'):
    _prepared(FieldOfView(name='f', images=images), auto=True)


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
  crop = data_provider.input_crop(FieldOfView(name='f', images=images), stack, _ALL, _ALL)
  assert crop.shape == (4, 5, 3, 2, 2)
  for z in range(3):
    for i, key in enumerate((ImageKey(0, 'POLARIZATION'), ImageKey(z, 'DIC'))):
      np.testing.assert_allclose(crop[:, :, z, i, 0], images[key] / 255, atol=1e-6)


def test_ranges_stay_with_an_image_set(field_of_view):
  prepared = _prepared(field_of_view, (1000, 2000))
  assert dataclasses.replace(prepared, name='other').input_ranges == prepared.input_ranges
