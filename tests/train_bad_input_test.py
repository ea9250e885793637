"""What a user can get wrong with TRAIN alone: one line, and nothing left half done.

What is wrong with images and checkpoints whatever they are for is in bad_input_test.py.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import numpy as np
import pytest

from isl import launch
from isl.core.channels import MAXPROJECT
from isl.images import png_io
from isl.programs import random_checkpoint
from tests.support.program import (
  RUN_SHALLOW,
  TrainSetting,
  files_in,
  finish,
  image_name,
  python_process,
  run_in_process,
  write_field,
)


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  return TrainSetting(launch.run, tmp_path_factory)


@pytest.fixture
def images(setting, tmp_path):
  """A copy of the field of view, to be spoilt."""
  return pathlib.Path(shutil.copytree(setting.images, tmp_path / 'images'))


@pytest.fixture
def error(setting, tmp_path):
  """Runs the program, which must fail, and gives its one line; it has written nothing."""

  def run(*flags, images=None, network=setting.network):
    base = tmp_path / 'base'
    more = [f'--dataset_train_directory={images}'] if images else []
    command = [*setting.flags(base), *network, '--number_of_steps=1', *more, *flags]
    outcome = run_in_process(launch.run, *command)
    assert outcome.status == 1
    assert not files_in(base)
    return outcome.error

  return run


def _path(images, z, channel):
  return images / image_name('A4', z, channel)


def test_one_of_two_folders_is_missing(error, setting, tmp_path):
  folder = tmp_path / 'nowhere'
  assert f"'{folder}' does not exist" in error(images=f'{setting.images},{folder}')


def test_no_folder(error):
  line = error('--dataset_train_directory=')
  assert '--dataset_train_directory is needed with --read_pngs and --mode TRAIN' in line


def test_folder_twice(error, setting):
  assert 'names one of them twice' in error(images=f'{setting.images},{setting.images}')


def test_crop_larger_than_the_image(error):
  line = error('--loss_crop_size=161')
  assert 'is 160 rows x 160 columns, too small for --loss_crop_size 161' in line
  assert 'expected a crop of 110 to 160 pixels' in line


@pytest.mark.parametrize(('output', 'needed'), [(8, 110), (40, 142)])
def test_crop_smaller_than_a_patch(error, output, needed):
  line = error(f'--loss_output_size={output}', f'--loss_crop_size={needed - 1}')
  assert f'--loss_crop_size must be at least {needed}' in line
  assert f'got {needed - 1}' in line


def test_image_smaller_than_a_patch(error, tmp_path):
  write_field(tmp_path / 'small', rows=160, columns=109)
  line = error(images=tmp_path / 'small')
  assert 'is 160 rows x 109 columns; a patch of this network reads 110 x 110 pixels' in line


def test_no_target(error, images):
  for path in images.glob(f'*{MAXPROJECT}*'):
    path.unlink()
  line = error(images=images)
  assert f"'{images}' has no target" in line
  assert 'the network predicts DAPI_CONFOCAL, DAPI_WIDEFIELD, ' in line


def test_one_folder_of_two_without_target(error, setting, images):
  for path in images.glob(f'*{MAXPROJECT}*'):
    path.unlink()
  assert f"'{images}' has no target" in error(images=f'{setting.images},{images}')


def test_target_that_the_network_lacks(error, images):
  other = _path(images, MAXPROJECT, 'GFP_CONFOCAL')
  shutil.copy(_path(images, MAXPROJECT, 'DAPI_CONFOCAL'), other)
  line = error(images=images)
  assert f"'{images}' has images of GFP_CONFOCAL at z MAXPROJECT" in line
  assert 'the network predicts DAPI_CONFOCAL, DAPI_WIDEFIELD, ' in line


@pytest.fixture(scope='module')
def checkpoint(setting):
  """The folder of one of another width."""
  folder = setting.new_folder()
  random_checkpoint.write_random_checkpoint(folder, model='FOVEA', base_depth=50, num_z_values=3)
  return folder


@pytest.mark.parametrize(
  ('network', 'fixed_by'),
  [
    (['--model=CONCORDANCE'], '--model FOVEA'),
    (['--base_depth=6'], '--base_depth 5'),
    (['--num_z_values=26'], '--num_z_values 3'),
  ],
)
def test_checkpoint_of_another_architecture(error, checkpoint, network, fixed_by):
  line = error(f'--restore_directory={checkpoint}', network=network)
  assert '--restore_directory has another network: ' in line
  assert f"in '{checkpoint / 'model.ckpt-1000'}'" in line
  assert f'variables match; give {fixed_by}' in line


def test_width_that_no_network_has(error):
  line = error(network=['--model=CONCORDANCE', '--base_depth=4'])
  assert 'base_depth must be at least 5 for CONCORDANCE, got 4' in line


def test_checkpoint_with_a_wrong_byte(error, checkpoint, tmp_path):
  """Found before anything is written."""
  folder = pathlib.Path(shutil.copytree(checkpoint, tmp_path / 'checkpoint'))
  path = folder / 'model.ckpt-1000.data-00000-of-00001'
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  line = error(f'--restore_directory={folder}', network=())
  assert f"checkpoint '{folder / 'model.ckpt-1000'}' cannot be read, is it complete?" in line


@pytest.mark.parametrize('value', ['0', '-1', 'nan', 'inf', 'fast'])
def test_learning_rate(error, value):
  assert f'--learning_rate={value}' in error(f'--learning_rate={value}')


@pytest.mark.parametrize(
  'flag',
  [
    '--number_of_steps=0',
    '--number_of_steps=-1',
    '--random_seed=-1',
    '--preprocess_batch_size=0',
    '--preprocess_batch_capacity=0',
    '--preprocess_shuffle_batch_num_threads=0',
    '--loss_crop_size=0',
    '--loss_patch_stride=0',
    '--loss_output_size=16',
    '--learning_decay_steps=0',
    '--save_interval_secs=0',
    '--save_summaries_secs=0',
    '--augment_noise_std=-0.1',
  ],
)
def test_number_that_is_out_of_range(error, flag):
  assert flag in error(flag)


def test_base_below_a_file(error, tmp_path):
  (tmp_path / 'file').touch()
  line = error(f'--base_directory={tmp_path / "file" / "base"}')
  assert 'Not a directory' in line
  assert str(tmp_path / 'file') in line


@pytest.mark.parametrize('name', ['run[1]', 'run*', 'what?'])
def test_base_whose_name_is_a_pattern(error, tmp_path, name):
  line = error(f'--base_directory={tmp_path / name}')
  assert f"must have none of * ? [ in its path for --mode TRAIN, got '{tmp_path / name}'" in line
  assert not (tmp_path / name).exists()


def test_file_in_the_place_of_base(error, tmp_path):
  for place in (tmp_path / 'one', tmp_path / 'two' / 'train'):
    place.parent.mkdir(exist_ok=True)
    place.write_text('mine')
  for base in (tmp_path / 'one', tmp_path / 'two'):
    line = error(f'--base_directory={base}')
    assert str(base) in line
    assert 'Not a directory' in line or 'File exists' in line
  assert place.read_text() == 'mine'


def test_base_without_permission(error, tmp_path):
  if os.geteuid() == 0:
    pytest.skip('root may write anywhere')
  (tmp_path / 'locked').mkdir(mode=0o500)
  assert 'Permission denied' in error(f'--base_directory={tmp_path / "locked" / "base"}')


@pytest.mark.parametrize('metric', ['INFER_FULL', 'STITCH', 'JITTER_STITCH'])
def test_metric_that_is_not_trained_on(error, metric):
  line = error(f'--metric={metric}')
  assert f'--mode TRAIN goes with --metric LOSS, not {metric}' in line


def test_without_read_pngs(error):
  assert '--read_pngs is needed' in error('--noread_pngs')


def test_unknown_channel_to_stretch(error):
  line = error('--stretch_targets=DAPI_CONFOCAL,GFP_CONFOCAL')
  assert '--stretch_targets has GFP_CONFOCAL, which the network does not predict; it' in line
  assert 'it predicts DAPI_CONFOCAL, DAPI_WIDEFIELD, ' in line


def test_constant_channel_to_stretch(error, images):
  path = _path(images, MAXPROJECT, 'DAPI_CONFOCAL')
  png_io.write_png(path, np.full((160, 160), 700, np.uint16))
  line = error('--stretch_targets=DAPI_CONFOCAL', images=images)
  assert 'DAPI_CONFOCAL cannot be stretched' in line
  assert '--stretch_targets without this channel' in line


def test_process_says_no_more_than_that(setting, tmp_path):
  """Native code, which the other tests don't hear, included."""
  flags = [*setting.flags(tmp_path), *setting.network, '--learning_rate=1e30']
  process = python_process(RUN_SHALLOW, *flags)
  assert 'is not finite at step' in finish(process).error
