"""Tests of field_reading.py."""

import numpy as np
import pytest
from absl import logging

from isl.core.channels import (
  MAXPROJECT,
  TARGET_CHANNELS,
  TRANSMISSION,
  ImageKey,
  input_stack,
  target_stack,
)
from isl.core.experiment import Corruption, Geometry, InputRange, Sampling
from isl.data import field_reading
from isl.data.patches import Patches, PatchSpec
from isl.images import png_folders, png_io
from isl.images.pixels import intensity
from tests.support.microscope import write_ome_tiff
from tests.support.program import image_name, shared_path, write_field


def _read(*folders, inputs=(TRANSMISSION,), channels=TARGET_CHANNELS, stretch_targets=(), **kwargs):
  return field_reading.read_for_training(
    folders,
    inputs=input_stack(3, inputs),
    targets=target_stack(channels),
    stretch_targets=stretch_targets,
    **{'input_range': None, 'leave_out_others': False, **kwargs},
  )


def _error(*folders, **kwargs) -> str:
  """The message of the error that reading them ends with: one line."""
  with pytest.raises(ValueError) as raised:
    _read(*folders, **kwargs)
  message = str(raised.value)
  assert '\n' not in message
  return message


def test_fields_are_read_folder_by_folder_and_named_with_it(tmp_path):
  names = write_field(tmp_path / 'a', wells=('A4', 'B2'))
  write_field(tmp_path / 'b', wells=('A4',), seed=1)
  folders = _read(tmp_path / 'b', str(tmp_path / 'a'))
  assert [[field.name for field in fields] for fields in folders] == [
    [str(tmp_path / 'b' / names[0])],
    [str(tmp_path / 'a' / name) for name in names],
  ]
  assert folders[0][0].size == (20, 30)


def test_given_channels_are_stretched_in_every_field(tmp_path):
  write_field(tmp_path, wells=('A4', 'B2'))
  (plain,), (fields,) = (
    _read(tmp_path)[:1],
    _read(tmp_path, stretch_targets=('DAPI_CONFOCAL', 'NEURITE_CONFOCAL')),
  )
  for before, field in zip(plain, fields, strict=True):
    assert before.ranges == {}
    assert set(field.ranges) == {'DAPI_CONFOCAL', 'NEURITE_CONFOCAL'}
    image = intensity(field.images[ImageKey(MAXPROJECT, 'DAPI_CONFOCAL')])
    np.testing.assert_allclose(
      field.ranges['DAPI_CONFOCAL'], np.percentile(image, [0.1, 99.9]), atol=1e-6
    )
  assert fields[0].ranges != fields[1].ranges


def test_channel_that_cannot_be_stretched_is_named_with_its_folder(tmp_path):
  (name,) = write_field(tmp_path, bits=8)
  black = np.zeros((20, 30), np.uint8)
  png_io.write_png(tmp_path / image_name('A4', MAXPROJECT, 'DAPI_CONFOCAL'), black)
  message = _error(tmp_path, stretch_targets=('DAPI_CONFOCAL',))
  assert message.startswith(f"field of view '{tmp_path / name}': DAPI_CONFOCAL cannot be stretched")


@pytest.mark.parametrize(
  ('recorded', 'channels'),
  [((), TARGET_CHANNELS), (('NFH_CONFOCAL',), ('NEURITE_CONFOCAL',))],
)
def test_folder_without_a_target_is_an_error(tmp_path, recorded, channels):
  write_field(tmp_path / 'good', channels=('NFH_CONFOCAL', 'MAP2_CONFOCAL'))
  write_field(tmp_path / 'bad', channels=recorded, wells=('A4', 'B2'))
  message = _error(tmp_path / 'good', tmp_path / 'bad', channels=channels)
  assert message.startswith(f"'{tmp_path / 'bad'}' has no target: none of its fields of view has")
  assert message.endswith(f'the network predicts {", ".join(channels)}')


def test_field_without_a_target_among_others_is_said(tmp_path, monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda line, *values: lines.append(line % values))
  write_field(tmp_path, wells=('A4',))
  (name,) = write_field(tmp_path, wells=('B2',), channels=())
  ((first, second),) = _read(tmp_path)
  assert lines == [f"'{tmp_path}': field of view '{name}' has no target."]
  assert first.name != second.name


@pytest.mark.parametrize('channel', ['GFP', 'CELLMASK_CONFOCAL'])
def test_label_that_the_network_lacks_is_an_error(tmp_path, channel):
  write_field(tmp_path)
  # No image is read before this is found out.
  (tmp_path / image_name('A4', MAXPROJECT, channel)).write_text('')
  channels = ('DEAD_CONFOCAL', 'DAPI_CONFOCAL', 'NEURITE_CONFOCAL')
  assert _error(tmp_path, channels=channels) == (
    f"'{tmp_path}' has images of {channel} at z MAXPROJECT, of which the network knows nothing; the"
    ' network predicts DEAD_CONFOCAL, DAPI_CONFOCAL, NEURITE_CONFOCAL; give --target_channels'
    f' DAPI_CONFOCAL,NEURITE_CONFOCAL,{channel} for a network of all labels that there are, or'
    ' those that it predicts to leave out the others'
  )


def test_labels_of_all_folders_are_the_ones_to_give(tmp_path):
  write_field(tmp_path / 'a', channels=('GFP', 'DAPI_CONFOCAL'))
  write_field(tmp_path / 'b', channels=('CFP',))
  write_field(tmp_path / 'c', channels=('TUJ1_WIDEFIELD',))
  message = _error(*(tmp_path / name for name in 'cba'))
  assert message.startswith(f"'{tmp_path / 'b'}' has images of CFP at z MAXPROJECT")
  assert ' give --target_channels DAPI_CONFOCAL,TUJ1_WIDEFIELD,CFP,GFP for a network' in message


def test_others_are_left_out(tmp_path, monkeypatch):
  lines = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(logging, level, lambda line, *values: lines.append(line % values))
  write_field(tmp_path, channels=('RFP', 'GFP', 'DAPI_CONFOCAL', 'DIC'))
  ((field,),) = _read(tmp_path, channels=('GFP', 'CFP'), leave_out_others=True)
  assert {key.channel for key in field.images} == {'PHASE_CONTRAST', 'GFP'}
  assert lines[0] == f"'{tmp_path}': left out DAPI_CONFOCAL, RFP; the network predicts GFP, CFP"
  # A projection of transmitted light is no label.
  assert lines[1:] == [
    f"'{tmp_path}': ignoring what is neither input nor target: DIC at z MAXPROJECT."
  ]


def test_input_channels_are_read_whatever_else_there_is(tmp_path):
  write_field(tmp_path, further_inputs=('POLARIZATION', 'DARKFIELD'), channels=('GFP',))
  channels = {'channels': ('GFP',)}
  ((field,),) = _read(tmp_path, inputs=('POLARIZATION', TRANSMISSION), **channels)
  assert [str(key) for key in field.input_keys] == [
    f'{z}/{channel}' for channel in ('PHASE_CONTRAST', 'POLARIZATION') for z in range(3)
  ]
  ((field,),) = _read(tmp_path, inputs=('DARKFIELD',), **channels)
  assert {key.channel for key in field.input_keys} == {'DARKFIELD'}


def test_input_channel_that_is_missing(tmp_path):
  write_field(tmp_path, further_inputs=('POLARIZATION',))
  message = _error(tmp_path, inputs=(TRANSMISSION, 'DARKFIELD'))
  assert 'has no image of DARKFIELD; expected a z-stack (z_depth-0, z_depth-1, ..)' in message


def test_z_stack_of_a_label_is_no_target(tmp_path):
  write_field(tmp_path, further_inputs=('GFP',), channels=())
  assert 'has no target' in _error(tmp_path, channels=('GFP',))


def test_channel_to_stretch_that_is_nowhere(tmp_path):
  write_field(tmp_path / 'a', channels=('NFH_CONFOCAL',))
  write_field(tmp_path / 'b', channels=('DAPI_CONFOCAL', 'MAP2_CONFOCAL'))
  folders = (tmp_path / 'a', tmp_path / 'b')
  # A synthetic one is where all of its parts are.
  assert _error(*folders, stretch_targets=('DAPI_CONFOCAL', 'NEURITE_CONFOCAL')) == (
    '--stretch_targets has NEURITE_CONFOCAL, of which no field of view has an image; they have'
    ' DAPI_CONFOCAL, NFH_CONFOCAL, MAP2_CONFOCAL'
  )
  (first,), (second,) = _read(*folders, stretch_targets=('DAPI_CONFOCAL',))
  assert (set(first.ranges), set(second.ranges)) == (set(), {'DAPI_CONFOCAL'})


def test_microscope_files_are_in_memory_and_as_pngs_are(tmp_path):
  """Patches are of random places, so their images are not read part by part."""
  pytest.importorskip('bioio_ome_tiff')
  inputs, labels = (TRANSMISSION, 'POLARIZATION'), ('RFP', 'GFP')
  write_field(tmp_path / 'pngs', further_inputs=('POLARIZATION',), channels=labels)
  (files,) = png_folders.find_png_fields(tmp_path / 'pngs')
  (tmp_path / 'tiffs').mkdir()
  write_ome_tiff(tmp_path / 'tiffs' / 'field.ome.tif', files)
  (expected,), (field,) = _read(
    tmp_path / 'pngs', tmp_path / 'tiffs', inputs=inputs, channels=labels
  )
  assert field.images.keys() == expected.images.keys()
  for key, image in field.images.items():
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, expected.images[key], err_msg=str(key))


def test_input_range(tmp_path):
  write_field(tmp_path, bits=16)
  ((field,),) = _read(tmp_path, input_range=InputRange(ends=(0, 4095)))
  assert field.input_ranges == {'PHASE_CONTRAST': (0, 4095 / 65535)}


def test_parts_of_a_predicted_channel_are_known(tmp_path):
  write_field(tmp_path, channels=('NFH_CONFOCAL', 'MAP2_CONFOCAL'))
  ((field,),) = _read(tmp_path, channels=('NEURITE_CONFOCAL',))
  assert {key.channel for key in field.images if key.z == MAXPROJECT} == {
    'NFH_CONFOCAL',
    'MAP2_CONFOCAL',
  }


def test_real_sample():
  ((field,),) = folders = _read(shared_path('data', 'condition_b_sample'))
  patches = Patches(
    folders,
    PatchSpec(
      sampling=Sampling(
        crop_size=520, patch_stride=256, output_size=8, batch_size=16, num_threads=16, capacity=64
      ),
      geometry=Geometry(patch=250, output=8),
      inputs=input_stack(26),
      targets=target_stack(),
      seed=0,
      augment=True,
      corruption=Corruption(multiplier_std=0, offset_std=0, noise_std=0),
    ),
  )
  assert (field.size, patches.per_crop) == ((1024, 704), 4)
  patch = patches.patch(0)
  assert patch.input.shape == (250, 250, 26)
  assert patch.target_classes.shape == (8, 8, 9)
  present = np.array(TARGET_CHANNELS)[patch.target_mask == 1].tolist()
  assert present == ['DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL', 'NEURITE_CONFOCAL']
