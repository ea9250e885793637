"""Tests of fields_of_view.py."""

import numpy as np
import pytest
from absl import logging

from isl.core.channels import MAXPROJECT, TARGET_CHANNELS, TRANSMITTED_LIGHT_CHANNELS, ImageKey
from isl.images import png_folders, png_io
from isl.images.pixels import intensity
from tests.support.program import (
  PUBLISHED,
  SAMPLE,
  image_name,
  original_fields,
  shared_path,
  write_field,
)

_SAMPLE = (
  'lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0,well-A4,'
  'tile_computation-STITCHED'
)
_PUBLISHED = 'lab-Finkbeiner,condition-kevan_0_8,acquisition_date,year-2015,well-A4'


@pytest.fixture
def logged(monkeypatch) -> list[str]:
  """The lines that isl logs."""
  lines: list[str] = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(logging, level, lambda line, *values: lines.append(line % values))
  return lines


def _error(function, *arguments) -> str:
  """The message of the error that a call ends with: one line."""
  with pytest.raises((OSError, ValueError)) as raised:
    function(*arguments)
  message = str(raised.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize(
  ('name', 'field', 'key'),
  [
    (
      f'{_SAMPLE},z_depth-3,channel-PHASE_CONTRAST,is_mask-false.png',
      _SAMPLE,
      ImageKey(3, 'PHASE_CONTRAST'),
    ),
    (
      f'{_SAMPLE},depth_computation-MAXPROJECT,channel-DAPI_CONFOCAL,is_mask-false.png',
      _SAMPLE,
      ImageKey(MAXPROJECT, 'DAPI_CONFOCAL'),
    ),
    (
      f'{_PUBLISHED},depth_computation,value-MAXPROJECT,channel,value-DAPI_CONFOCAL,is_mask-false,'
      'kind,value-ORIGINAL.png',
      _PUBLISHED,
      ImageKey(MAXPROJECT, 'DAPI_CONFOCAL'),
    ),
    (
      f'{_PUBLISHED},z_depth,value-12,channel,value-DIC,kind,value-ORIGINAL.png',
      _PUBLISHED,
      ImageKey(12, 'DIC'),
    ),
    # The identifying fields collapse too, wherever they stand, and only `name,value-X` does.
    ('well,value-A4,z_depth-0,channel-DIC,site-1.PNG', 'well-A4,site-1', ImageKey(0, 'DIC')),
    ('date,year-1,value-2,z_depth-0,channel-DIC.png', 'date,year-1,value-2', ImageKey(0, 'DIC')),
    ('well-A-4,z_depth-07,channel-DIC.png', 'well-A-4', ImageKey(7, 'DIC')),
    ('/some,folder/z_depth-0,channel-DIC.png', '', ImageKey(0, 'DIC')),
  ],
)
def test_name_is_parsed(name, field, key):
  assert png_folders.parse_name(name) == png_folders.ImageName(
    field=field, key=key, is_mask=False, is_prediction=False
  )


@pytest.mark.parametrize('field', [_SAMPLE, _PUBLISHED, 'well-A4', ''])
def test_prediction_name_gives_the_field_back(field):
  name = png_folders.prediction_name(field, 'DAPI_CONFOCAL', 'MEDIAN')
  assert png_folders.parse_name(name) == png_folders.ImageName(
    field=field, key=ImageKey(MAXPROJECT, 'DAPI_CONFOCAL'), is_mask=False, is_prediction=True
  )


def test_prediction_name_is_in_the_published_dialect():
  assert png_folders.prediction_name('well-A4', 'DAPI_CONFOCAL', 'MEDIAN') == (
    'well-A4,depth_computation,value-MAXPROJECT,channel,value-DAPI_CONFOCAL,'
    'statistic,value-MEDIAN,kind,value-PREDICTED.png'
  )


@pytest.mark.parametrize(
  ('end', 'is_mask', 'is_prediction'),
  [
    ('', False, False),
    (',is_mask-true', True, False),
    (',is_mask,value-TRUE', True, False),
    (',kind-PREDICTED', False, True),
    (',statistic-MEAN', False, True),
  ],
)
def test_masks_and_predictions_are_recognized(end, is_mask, is_prediction):
  name = png_folders.parse_name(f'z_depth-0,channel-DIC{end}.png')
  assert (name.is_mask, name.is_prediction) == (is_mask, is_prediction)


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('IMG_0001.png', 'has no z_depth or depth_computation and no channel'),
    ('a\nb.png', 'has no z_depth or depth_computation and no channel'),
    ('.png', 'has no z_depth or depth_computation and no channel'),
    ('well-A4,channel-DIC.png', 'has no z_depth or depth_computation'),
    ('well-A4,z_depth-0.png', 'has no channel'),
    ('well-A4,z_depth-0,channel.png', 'has no channel'),
    ('well-A4,z_depth--1,channel-DIC.png', 'has z_depth--1, not a whole number'),
    ('well-A4,z_depth-²,channel-DIC.png', 'has z_depth-², not a whole number'),
    ('well-A4,z_depth,channel-DIC.png', 'has z_depth-, not a whole number'),
    ('depth_computation-MEAN,channel-DIC.png', 'has depth_computation-MEAN, not MAXPROJECT'),
    (
      'z_depth-0,depth_computation-MAXPROJECT,channel-DIC.png',
      'has both z_depth and depth_computation',
    ),
    ('z_depth-0,z_depth-1,channel-DIC.png', 'says z_depth twice'),
    ('z_depth-0,channel-DIC,is_mask-maybe.png', 'has is_mask-maybe'),
  ],
)
def test_name_of_neither_dialect_is_an_error(name, problem):
  message = _error(png_folders.parse_name, name)
  assert message.startswith(f'{name!r} {problem}')
  assert 'expected' in message


@pytest.mark.parametrize('dialect', [SAMPLE, PUBLISHED])
@pytest.mark.parametrize('bits', [8, 16])
def test_fields_of_view_are_found_and_read(tmp_path, dialect, bits):
  channels = ('CELLMASK_CONFOCAL', 'DAPI_CONFOCAL')
  names = write_field(
    tmp_path,
    rows=5,
    columns=7,
    depths=12,
    transmitted_light='DIC',
    channels=channels,
    wells=('B3', 'A4'),
    dialect=dialect,
    bits=bits,
  )
  found = original_fields(tmp_path)
  assert [field.name for field in found] == sorted(names)
  for field in found:
    field_of_view = field.read()
    assert field_of_view.name == field.name
    assert (field_of_view.size, field_of_view.num_depths()) == ((5, 7), 12)
    assert field_of_view.transmitted_light == 'DIC'
    assert set(field_of_view.images) == {ImageKey(z, 'DIC') for z in range(12)} | {
      ImageKey(MAXPROJECT, channel) for channel in channels
    }
    for key, image in field_of_view.images.items():
      assert image.dtype == {8: np.uint8, 16: np.uint16}[bits]
      np.testing.assert_array_equal(image, png_io.read_png(field.paths[key]))


def test_both_dialects_in_one_folder(tmp_path):
  names = [write_field(tmp_path, dialect=dialect)[0] for dialect in (SAMPLE, PUBLISHED)]
  assert [field.name for field in original_fields(tmp_path)] == sorted(names)


def test_field_of_view_may_have_no_target(tmp_path):
  write_field(tmp_path, channels=(), depths=1)
  (field,) = original_fields(str(tmp_path))
  assert list(field.read().images) == [ImageKey(0, 'PHASE_CONTRAST')]


def test_what_is_no_image_is_left_alone(tmp_path, logged):
  write_field(tmp_path)
  (expected,) = original_fields(tmp_path)
  for name in ('.DS_Store', '._z_depth-0,channel-DIC.png', 'README.md', 'image.png.partial'):
    (tmp_path / name).write_text('')
  (tmp_path / 'predictions.png').mkdir()
  assert original_fields(tmp_path) == [expected]
  assert not logged


def test_extension_in_capitals(tmp_path):
  write_field(tmp_path)
  for path in list(tmp_path.iterdir()):
    path.rename(path.with_suffix('.PNG'))
  (field,) = original_fields(tmp_path)
  assert field.read().num_depths() == 3


def test_masks_and_predictions_are_skipped_with_a_line(tmp_path, logged):
  (name,) = write_field(tmp_path)
  (expected,) = original_fields(tmp_path)
  for z in (0, 1):
    (tmp_path / image_name('A4', z, 'PHASE_CONTRAST', is_mask=True)).write_text('')
  (tmp_path / png_folders.prediction_name(name, 'DAPI_CONFOCAL', 'MEDIAN')).write_text('')
  assert original_fields(tmp_path) == [expected]
  assert logged == [f"'{tmp_path}': skipping masks (2), predictions (1)."]


def test_unknown_channels_are_ignored_with_a_line(tmp_path, logged):
  write_field(tmp_path)
  (expected,) = original_fields(tmp_path)
  for channel in ('GFP', 'NEURITE_CONFOCAL', 'PHASE_CONTRAST'):
    (tmp_path / image_name('A4', MAXPROJECT, channel)).write_text('')
  for z in (0, 1):
    (tmp_path / image_name('A4', z, 'DAPI_CONFOCAL')).write_text('')
  (found,) = original_fields(tmp_path)
  assert (found.name, found.paths) == (expected.name, expected.paths)
  assert logged == [
    f"'{tmp_path}': ignoring what is neither input nor target: DAPI_CONFOCAL at single z, GFP at z"
    ' MAXPROJECT, NEURITE_CONFOCAL at z MAXPROJECT, PHASE_CONTRAST at z MAXPROJECT.'
  ]


def test_other_targets_are_their_fields_own(tmp_path):
  write_field(tmp_path, wells=('A4', 'B2'))
  for channel in ('RFP', 'GFP'):
    (tmp_path / image_name('B2', MAXPROJECT, channel)).write_text('')
  channels = ('TRANSMISSION',), TARGET_CHANNELS
  found = [field.other_targets(*channels) for field in png_folders.find_png_fields(tmp_path)]
  assert found == [(), ('GFP', 'RFP')]


def test_network_s_own_channels_are_selected(tmp_path):
  write_field(tmp_path, transmitted_light='DIC', channels=('GFP', 'RFP'), depths=2)
  (field,) = png_folders.find_png_fields(tmp_path)
  selected = field.select(('DIC',), ('RFP', 'YFP'))
  assert list(selected.sources) == [
    ImageKey(0, 'DIC'),
    ImageKey(1, 'DIC'),
    ImageKey(MAXPROJECT, 'RFP'),
  ]
  assert field.other_targets(('DIC',), ('RFP',)) == ('GFP',)
  message = _error(field.select, ('POLARIZATION',), ())
  assert 'has no image of POLARIZATION' in message
  assert message.endswith('; it has DIC, GFP, RFP')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_intensity_is_a_share_of_the_types_maximum(dtype):
  maximum = np.iinfo(dtype).max
  intensities = intensity(np.array([0, 51, maximum], dtype))
  assert intensities.dtype == np.float32
  np.testing.assert_array_equal(intensities, np.array([0, 51 / maximum, 1], np.float32))


def test_no_such_folder(tmp_path):
  folder = tmp_path / 'missing'
  message = _error(original_fields, folder)
  assert message == f"'{folder}' does not exist; expected a folder of PNGs"


def test_not_a_folder(tmp_path):
  path = tmp_path / 'image.png'
  path.write_text('')
  message = _error(original_fields, path)
  assert message == f"'{path}' is not a folder; expected a folder of PNGs"


def test_folder_without_png(tmp_path):
  (tmp_path / 'image.tif').write_text('')
  assert _error(original_fields, tmp_path).startswith(f"'{tmp_path}' has no PNG in it;")


def test_folder_of_masks_and_predictions_only(tmp_path):
  (tmp_path / png_folders.prediction_name('well-A4', 'DAPI_CONFOCAL', 'MEDIAN')).write_text('')
  (tmp_path / image_name('A4', 0, 'DIC', is_mask=True)).write_text('')
  assert _error(original_fields, tmp_path).startswith(
    f"'{tmp_path}' has no images in it, only masks (1) and predictions (1); expected"
  )


def test_name_of_neither_dialect_is_named_with_its_folder(tmp_path):
  write_field(tmp_path)
  (tmp_path / 'IMG_0001.png').write_text('')
  message = _error(original_fields, tmp_path)
  assert message.startswith(f"'{tmp_path / 'IMG_0001.png'}' has no z_depth")


@pytest.mark.parametrize('missing', [0, 1, 3])
def test_gap_in_z(tmp_path, missing):
  (name,) = write_field(tmp_path, depths=5)
  (tmp_path / image_name('A4', missing, 'PHASE_CONTRAST')).unlink()
  assert _error(original_fields, tmp_path) == (
    f"'{tmp_path}': field of view '{name}' has 4 depths of PHASE_CONTRAST but not"
    f' z_depth-{missing}; expected depths from 0 on without gaps'
  )


def test_no_transmitted_light(tmp_path):
  (name,) = write_field(tmp_path, depths=0)
  message = _error(original_fields, tmp_path)
  assert message.startswith(
    f"'{tmp_path}': field of view '{name}' has no transmitted-light image; expected"
  )
  assert all(channel in message for channel in TRANSMITTED_LIGHT_CHANNELS)


def test_two_kinds_of_transmitted_light(tmp_path):
  (name,) = write_field(tmp_path)
  write_field(tmp_path, transmitted_light='DIC')
  assert _error(original_fields, tmp_path) == (
    f"'{tmp_path}': field of view '{name}' has both DIC and PHASE_CONTRAST; expected one of them"
  )


@pytest.mark.parametrize('twin', ['z_depth-00', 'z_depth,value-0'])
def test_same_image_twice(tmp_path, twin):
  write_field(tmp_path)
  first = image_name('A4', 0, 'PHASE_CONTRAST')
  second = first.replace('z_depth-0', twin)
  (tmp_path / second).write_text('')
  message = _error(original_fields, tmp_path)
  assert first in message and second in message
  assert 'both PHASE_CONTRAST at z 0 of the same field of view' in message


def test_images_of_different_sizes(tmp_path):
  write_field(tmp_path, rows=5, columns=7)
  write_field(tmp_path, rows=5, columns=8, depths=0, channels=('DAPI_CONFOCAL',))
  (field,) = original_fields(tmp_path)
  message = _error(field.read)
  assert message.endswith('expected one size in a field of view')
  assert message.count("png' has 5 rows x ") == 2
  assert '7 columns, ' in message or '8 columns, ' in message
  assert image_name('A4', MAXPROJECT, 'DAPI_CONFOCAL') in message


def test_damaged_image_is_named(tmp_path):
  write_field(tmp_path)
  path = tmp_path / image_name('A4', 1, 'PHASE_CONTRAST')
  path.write_bytes(path.read_bytes()[:-20])
  (field,) = original_fields(tmp_path)
  assert _error(field.read).startswith(f"'{path}' is truncated at")


def test_images_are_read_only(tmp_path):
  write_field(tmp_path)
  (field,) = original_fields(tmp_path)
  image = field.read().images[ImageKey(0, 'PHASE_CONTRAST')]
  assert isinstance(image, np.ndarray)
  with pytest.raises(ValueError, match='read-only'):
    image[0, 0] = 0


def test_real_sample():
  folder = shared_path('data', 'condition_b_sample')
  (field,) = original_fields(folder)
  field_of_view = field.read()
  assert field_of_view.name == _SAMPLE
  assert (field_of_view.size, field_of_view.num_depths()) == ((1024, 704), 13)
  assert field_of_view.transmitted_light == 'PHASE_CONTRAST'
  targets = {key.channel for key in field_of_view.images if key.z == MAXPROJECT}
  assert targets == {'DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL'}
  assert all(image.dtype == np.uint16 for image in field_of_view.images.values())
