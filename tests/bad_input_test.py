"""Input that a user can get wrong gives an error of one line, and leaves nothing half done."""

from __future__ import annotations

import os
import pathlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl import launch
from isl.core.channels import MAXPROJECT
from isl.images import png_io
from isl.programs import random_checkpoint
from tests.support.program import (
  RUN_SHALLOW,
  InferRun,
  InferSetting,
  files_in,
  finish,
  image_name,
  make_fovea_shallow,
  python_process,
  run_in_process,
  write_field,
)


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def concordance(tmp_path_factory):
  """The folder of a CONCORDANCE of 26 depths."""
  folder = tmp_path_factory.mktemp('concordance')
  random_checkpoint.write_random_checkpoint(folder, base_depth=5, num_z_values=26)
  return folder


@pytest.fixture
def images(setting, tmp_path):
  """A copy of the field of view, to be spoilt."""
  return pathlib.Path(shutil.copytree(setting.images, tmp_path / 'images'))


@pytest.fixture
def error(setting, tmp_path):
  """Runs the program, which must fail, and gives its one line; it has written nothing."""

  def run(*flags, images=None):
    base = tmp_path / 'base'
    outcome = run_in_process(launch.run, *setting.flags(base, images), *flags)
    assert outcome.status == 1
    assert not files_in(base)
    return outcome.error

  return run


_TRAIN = ('--mode=TRAIN', '--metric=LOSS', '--number_of_steps=1', '--loss_crop_size=18')


@pytest.fixture(params=['INFER_FULL', 'TRAIN'])
def error_of_images(request, error):
  """Gives the error of labeling a folder of images, and of training on it, see `error`."""
  flags: tuple[str, ...] = ()
  if request.param == 'TRAIN':
    network = ('--restore_directory=', '--model=FOVEA', '--base_depth=8', '--num_z_values=3')
    flags = (*_TRAIN, *network)

  def run(images):
    return error(f'--dataset_train_directory={images}', *flags, images=images)

  return run


@pytest.fixture(params=['INFER_FULL', 'TRAIN'])
def error_of_checkpoint(request, error, setting):
  """Gives the error of labeling, and of training, with a folder of a checkpoint, see `error`."""
  trains = (*_TRAIN, f'--dataset_train_directory={setting.images}')
  flags = trains if request.param == 'TRAIN' else ()
  return lambda folder: error(*flags, f'--restore_directory={folder}')


def _path(images, z, channel, well='A4'):
  return images / image_name(well, z, channel)


def test_no_such_folder(error_of_images, tmp_path):
  folder = tmp_path / 'nowhere'
  assert f"'{folder}' does not exist" in error_of_images(folder)


def test_folder_is_a_file(error_of_images, tmp_path):
  (tmp_path / 'file').touch()
  assert f"'{tmp_path / 'file'}' is not a folder" in error_of_images(tmp_path / 'file')


def test_no_png_in_the_folder(error_of_images, tmp_path):
  folder = tmp_path / 'empty'
  folder.mkdir()
  (folder / 'notes.txt').write_text('to be done')
  line = error_of_images(folder)
  assert f"'{folder}' has no PNG in it" in line
  assert 'z_depth-3,channel-PHASE_CONTRAST' in line


def _truncated(path):
  path.write_bytes(path.read_bytes()[:-100])


def _empty(path):
  path.write_bytes(b'')


def _text(path):
  path.write_text('this is no picture')


def _rgb(path):
  cv2.imwrite(str(path), np.zeros((47, 63, 3), np.uint8))


def _damaged(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _another_size(path):
  png_io.write_png(path, np.zeros((47, 58), np.uint16))


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (_truncated, 'is truncated'),
    (_empty, 'is empty'),
    (_text, 'is not a PNG'),
    (_rgb, 'is RGB'),
    (_damaged, 'is damaged'),
    (_another_size, 'has 47 rows x 58 columns; expected one size'),
  ],
)
@pytest.mark.parametrize(('z', 'channel'), [(3, 'PHASE_CONTRAST'), (MAXPROJECT, 'NFH_CONFOCAL')])
def test_file_that_is_no_image_of_the_field(error_of_images, images, spoil, words, z, channel):
  path = _path(images, z, channel)
  spoil(path)
  line = error_of_images(images)
  assert f"'{path}' {words}" in line


def test_gap_in_z(error_of_images, images):
  _path(images, 2, 'PHASE_CONTRAST').unlink()
  assert 'has 4 depths of PHASE_CONTRAST but not z_depth-2' in error_of_images(images)


def test_no_transmitted_light(error_of_images, images):
  for path in images.glob('*PHASE_CONTRAST*'):
    path.unlink()
  line = error_of_images(images)
  assert 'has no transmitted-light image' in line
  assert 'BRIGHTFIELD, PHASE_CONTRAST, DIC' in line


def test_two_kinds_of_transmitted_light(error_of_images, images):
  shutil.copy(_path(images, 0, 'PHASE_CONTRAST'), _path(images, 0, 'DIC'))
  assert 'has both DIC and PHASE_CONTRAST' in error_of_images(images)


def test_image_twice(error_of_images, images):
  path = _path(images, 1, 'PHASE_CONTRAST')
  other = path.with_name(path.name.replace('channel-', 'channel,value-'))
  shutil.copy(path, other)
  line = error_of_images(images)
  assert 'are both PHASE_CONTRAST at z 1' in line
  assert path.name in line
  assert other.name in line


def test_name_of_neither_dialect(error_of_images, images):
  shutil.copy(_path(images, 1, 'PHASE_CONTRAST'), images / 'IMG_0042.png')
  line = error_of_images(images)
  assert f"'{images / 'IMG_0042.png'}' has no z_depth or depth_computation and no channel" in line
  assert 'expected a name like' in line


def test_nothing_but_masks_and_predictions(error_of_images, images):
  for path in images.iterdir():
    if 'DAPI' in path.name:
      path.rename(path.with_name(path.name.replace('is_mask-false', 'is_mask-true')))
    elif 'NFH' in path.name:
      path.rename(path.with_name(path.name.replace('.png', ',kind,value-PREDICTED.png')))
    else:
      path.unlink()
  line = error_of_images(images)
  assert f"'{images}'" in line


def test_unknown_channel_in_the_whitelist(error):
  line = error('--infer_channel_whitelist=DAPI_CONFOCAL,GFP_CONFOCAL')
  assert '--infer_channel_whitelist has GFP_CONFOCAL' in line
  assert 'it predicts DAPI_CONFOCAL, DAPI_WIDEFIELD, ' in line


def test_crop_smaller_than_a_patch(error, concordance):
  line = error('--stitch_crop_size=17')
  assert '--stitch_crop_size must be at least 18 pixels for FOVEA, or 0' in line
  assert 'got 17' in line
  line = error('--stitch_crop_size=249', f'--restore_directory={concordance}')
  assert '--stitch_crop_size must be at least 250 pixels for CONCORDANCE' in line


@pytest.mark.parametrize('size', [(17, 60), (60, 17)])
def test_image_smaller_than_a_patch(error, tmp_path, size):
  rows, columns = size
  write_field(tmp_path / 'small', rows=rows, columns=columns)
  line = error(images=tmp_path / 'small')
  assert f'is {rows} rows x {columns} columns; FOVEA needs at least 18 x 18 pixels' in line


def test_image_smaller_than_a_patch_of_concordance(error, tmp_path, concordance):
  write_field(tmp_path / 'small', rows=260, columns=249)
  line = error(f'--restore_directory={concordance}', images=tmp_path / 'small')
  assert 'is 260 rows x 249 columns; CONCORDANCE needs at least 250 x 250 pixels' in line


def test_infer_size_0(error):
  assert '--infer_size=0: 0 is not a positive integer' in error('--infer_size=0')


def test_no_checkpoint(error_of_checkpoint, tmp_path):
  nowhere, empty = tmp_path / 'nowhere', tmp_path / 'empty'
  empty.mkdir()
  assert f"'{nowhere}' is not a folder" in error_of_checkpoint(nowhere)
  assert f"'{empty}' holds no checkpoint" in error_of_checkpoint(empty)


def test_no_checkpoint_in_base_either(error, tmp_path):
  assert f"'{tmp_path / 'base' / 'train'}' is not a folder" in error('--restore_directory=')


@pytest.fixture
def checkpoint(setting, tmp_path):
  """A copy of the checkpoint, to be spoilt."""
  return pathlib.Path(shutil.copytree(setting.checkpoint, tmp_path / 'checkpoint'))


@pytest.mark.parametrize('ending', ['index', 'data-00000-of-00001'])
@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_half_a_checkpoint(error_of_checkpoint, checkpoint, ending, share):
  path = checkpoint / f'model.ckpt-1000.{ending}'
  os.truncate(path, int(share * path.stat().st_size))
  line = error_of_checkpoint(checkpoint)
  assert f"checkpoint '{checkpoint / 'model.ckpt-1000'}' cannot be read, is it complete?" in line


def test_process_says_no_more_than_that(setting, checkpoint, tmp_path):
  """Native code, which the other tests don't hear, included."""
  path = checkpoint / 'model.ckpt-1000.data-00000-of-00001'
  os.truncate(path, path.stat().st_size // 2)
  flags = [*setting.flags(tmp_path / 'base'), f'--restore_directory={checkpoint}']
  process = python_process(RUN_SHALLOW, *flags)
  assert 'cannot be read, is it complete?' in finish(process).error


def test_checkpoint_without_its_data(error_of_checkpoint, checkpoint):
  (checkpoint / 'model.ckpt-1000.data-00000-of-00001').unlink()
  line = error_of_checkpoint(checkpoint)
  assert f"checkpoint '{checkpoint / 'model.ckpt-1000'}' is incomplete" in line


@pytest.mark.parametrize(
  ('flag', 'fixed_by'),
  [
    ('--base_depth=400', '--base_depth '),
    ('--num_z_values=13', '--num_z_values 3'),
    ('--model=CONCORDANCE', '--model FOVEA'),
  ],
)
def test_checkpoint_of_another_network(error, setting, flag, fixed_by):
  line = error(flag)
  assert f"checkpoint '{setting.checkpoint / 'model.ckpt-1000'}' does not fit the flags" in line
  assert f'it needs {fixed_by}' in line
  assert '], not [' in line or ' is missing, not [' in line


def test_checkpoint_of_another_program(error_of_checkpoint, tmp_path):
  with tf.Graph().as_default(), tf.Session() as session:
    tf.get_variable('Conv/weights', [3])
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(tmp_path / 'other' / 'model.ckpt'))
  assert 'is of another program' in error_of_checkpoint(tmp_path / 'other')


def _spoil(checkpoint, name, value):
  """Writes the checkpoint again, with other values of one variable."""
  reader = tf.train.load_checkpoint(str(checkpoint / 'model.ckpt-1000'))
  with tf.Graph().as_default(), tf.Session() as session:
    for variable in reader.get_variable_to_shape_map():
      values = np.array(reader.get_tensor(variable))
      if variable == name:
        values[...] = value
      tf.get_variable(variable, initializer=values)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(checkpoint / 'model.ckpt'), global_step=1000)


_GAMMA = 'lower_scale_0_recursion_0/expand_rv2/BatchNorm/gamma'


def test_checkpoint_of_a_training_that_diverged(error_of_checkpoint, checkpoint):
  _spoil(checkpoint, _GAMMA, np.nan)
  line = error_of_checkpoint(checkpoint)
  assert f"checkpoint '{checkpoint / 'model.ckpt-1000'}' is useless: {_GAMMA} is not finite" in line


def test_values_that_overflow_are_found_by_the_checks(error, checkpoint):
  # Near the largest float, and sums of these are beyond it.
  _spoil(checkpoint, 'upper_recursion_3/reduce_rv2/Conv/weights', np.float32(3e38))
  line = error(f'--restore_directory={checkpoint}', '--tensorcheck_enable_checks')
  assert 'a check failed: ' in line
  assert 'features must be finite' in line


def test_without_fault_the_checks_change_nothing(setting):
  whitelist = '--infer_channel_whitelist=DAPI_CONFOCAL'
  runs = [setting.run(whitelist, f'--tensorcheck_enable_checks={on}') for on in ('true', 'false')]
  medians = [run.prediction(setting.field, 'DAPI_CONFOCAL') for run in runs]
  np.testing.assert_array_equal(*medians)


def test_base_directory_below_a_file(error, tmp_path):
  (tmp_path / 'file').touch()
  line = error(f'--base_directory={tmp_path / "file" / "base"}')
  assert 'Not a directory' in line
  assert str(tmp_path / 'file' / 'base') in line


def test_base_directory_without_permission(error, tmp_path):
  if os.geteuid() == 0:
    pytest.skip('root may write anywhere')
  (tmp_path / 'locked').mkdir(mode=0o500)
  assert 'Permission denied' in error(f'--base_directory={tmp_path / "locked" / "base"}')


def test_folder_in_the_place_of_a_file(setting, tmp_path):
  """Found before anything is computed."""
  panel = tmp_path / 'base' / 'eval_eval_infer' / '00001000' / 'target_error_panel.png'
  panel.mkdir(parents=True)
  outcome = run_in_process(launch.run, *setting.flags(tmp_path / 'base'))
  assert f"Is a directory: '{panel}'" in outcome.error
  assert 'blocks done' not in outcome.stderr
  assert not files_in(tmp_path / 'base')


def test_others_are_done_beside_a_faulty_field_of_view(setting, images, tmp_path):
  """The second has a truncated image."""
  write_field(images, rows=18, columns=18, wells=('B5',))
  _truncated(_path(images, 0, 'PHASE_CONTRAST', well='B5'))
  flags = setting.flags(tmp_path / 'base', images)
  outcome = run_in_process(launch.run, *flags, '--infer_channel_whitelist=DAPI_CONFOCAL')
  assert outcome.status == 3
  (error,) = (line for line in outcome.error_lines if line.startswith('isl-launch: '))
  assert 'is truncated' in error
  run = InferRun(tmp_path / 'base' / 'eval_eval_infer' / '00001000', outcome)
  (record,) = run.record['fields']
  assert record['field'] == setting.field
  assert files_in(run.folder) == {*record['files'], *run.record['tables']}
  assert run.prediction(setting.field, 'DAPI_CONFOCAL').shape == setting.size
