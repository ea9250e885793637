"""Tests of start.py and training_record.py: which trainings go on in their BASE."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil

import pytest
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch
from isl.checkpoints import training_record
from isl.programs import random_checkpoint
from isl.training.start import find_start
from tests.support.program import (
  TrainSetting,
  files_in,
  make_fovea_shallow,
  make_seconds_pass,
  run_in_process,
)

_SEED = '--random_seed=5'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield TrainSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def checkpoint(setting):
  return random_checkpoint.write_random_checkpoint(
    setting.new_folder(), model='FOVEA', base_depth=6, num_z_values=3
  )


@pytest.fixture(scope='module')
def restored(setting, checkpoint):
  """A training of a step, whose network the checkpoint has named."""
  restore = f'--restore_directory={checkpoint.parent}'
  return setting.run(_SEED, '--number_of_steps=1', restore)


@pytest.fixture(scope='module')
def two_steps(setting):
  """A training from random weights."""
  return setting.run(*setting.network, _SEED, '--number_of_steps=2')


def _find_start(setting, base, *more):
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *setting.flags(base), *more])
    return find_start(command_line.make_experiment())


@pytest.fixture
def base(restored, tmp_path):
  """A copy of the restored training's BASE."""
  return pathlib.Path(shutil.copytree(restored.folder.parent, tmp_path / 'base'))


def _refused(setting, base, *more):
  """The one line; BASE stays as it was."""
  before = {name: (base / name).read_bytes() for name in files_in(base)}
  outcome = run_in_process(launch.run, *setting.flags(base), '--number_of_steps=2', *more)
  assert outcome.status == 1
  assert {name: (base / name).read_bytes() for name in files_in(base)} == before
  return outcome.error


@pytest.mark.parametrize(
  ('name', 'was', 'now'),
  [
    ('model', 'FOVEA', 'CONCORDANCE'),
    # Widths up to 8 give the same network.
    ('base_depth', '8', '50'),
    ('num_z_values', '3', '13'),
    ('optimizer', 'ADAM', 'MOMENTUM'),
    ('loss', 'CROSS_ENTROPY', 'RANKED_PROBABILITY_SCORE'),
    ('stretch_targets', 'empty', 'DAPI_CONFOCAL'),
    ('restore_logits', 'True', 'False'),
    ('restore_inputs', 'True', 'False'),
  ],
)
def test_base_that_was_trained_with_other_flags(setting, base, name, was, now):
  line = _refused(setting, base, f'--{name}={now}')
  assert f'was trained with --{name} {was}, not {now}; give that, or another --base_dir' in line
  assert str(base) in line


def test_flags_that_base_was_trained_with(setting, base):
  """The flags may be left out or given again."""
  for more in ((), setting.network):
    start = _find_start(setting, base, *more)
    assert start.resumes
    assert start.plan.spec.name == 'FOVEA'


def test_other_learning_rate_is_logged(setting, base, restored):
  resumed = setting.run(_SEED, '--number_of_steps=2', '--learning_rate=1e-3', base=base)
  log = resumed.outcome.stderr
  assert '--learning_rate is now 0.001; the training began with 0.0001\n' in log
  assert '--loss_crop_size is now' not in log
  assert resumed.steps == [0, 1, 2]
  assert resumed.record['flags'] == restored.record['flags']
  assert resumed.record['restored_from'] == restored.record['restored_from']
  changed = [start.get('changed_flags') for start in resumed.record['starts']]
  assert changed[0] is None
  assert changed[1]['learning_rate'] == 1e-3
  assert 'loss_crop_size' not in changed[1]


def test_restore_directory_that_base_began_with(setting, base, checkpoint):
  """The folder of the first checkpoint is not read again."""
  folder = checkpoint.parent
  hidden = folder.rename(folder.with_name('hidden'))
  try:
    start = _find_start(setting, base, f'--restore_directory={folder}')
  finally:
    hidden.rename(folder)
  assert start.resumes
  # Whatever way leads there.
  for other in (folder.parent / 'x' / '..' / folder.name, base / 'link'):
    if other.name == 'link':
      other.symlink_to(folder)
    assert _find_start(setting, base, f'--restore_directory={other}').resumes
  assert start.checkpoint.prefix == base / 'train' / 'model.ckpt-1'


def test_another_restore_directory(setting, base, checkpoint):
  line = _refused(setting, base, '--restore_directory=/another/folder')
  assert f"began with '{checkpoint}', not with --restore_directory '/another/folder'; lea" in line


def test_restore_directory_of_a_base_that_began_without(setting, two_steps, checkpoint):
  line = _refused(setting, two_steps.folder.parent, f'--restore_directory={checkpoint.parent}')
  assert 'began with random weights, not with --restore_directory' in line


def test_moved_base(setting, base, tmp_path):
  moved = pathlib.Path(shutil.move(base, tmp_path / 'moved'))
  resumed = setting.run(_SEED, '--number_of_steps=2', base=moved)
  assert f'Resuming from {moved / "train" / "model.ckpt-1"}, step 1\n' in resumed.outcome.stderr
  assert resumed.steps == [0, 1, 2]
  # These too go on being counted and deleted.
  state = (moved / 'train' / 'checkpoint').read_text()
  assert re.findall(r'^all_model_checkpoint_paths: "(.*)"', state, re.M) == [
    f'model.ckpt-{step}' for step in range(3)
  ]


def test_copy_of_a_base_that_names_itself(setting, base, tmp_path, monkeypatch):
  """State files of other programs have absolute paths; the original's checkpoints stay."""
  state = base / 'train' / 'checkpoint'
  state.write_text(re.sub(r'"(?=model)', f'"{base}/train/', state.read_text()))
  before = files_in(base)
  copy = pathlib.Path(shutil.copytree(base, tmp_path / 'copy'))
  make_seconds_pass(monkeypatch)
  flags = ('--save_interval_secs=1', '--number_of_steps=7')
  resumed = setting.run(_SEED, *flags, base=copy)
  assert resumed.steps == [3, 4, 5, 6, 7]
  assert files_in(base) == before


def test_base_of_another_program(setting, base):
  """Without run.json, the checkpoint alone says how it was trained."""
  (base / 'train' / 'run.json').unlink()
  assert _find_start(setting, base).resumes
  line = _refused(setting, base, '--base_depth=50')
  assert 'was trained with --base_depth 8, not 50' in line
  line = _refused(setting, base, '--optimizer=ADAGRAD')
  assert 'was not trained with --optimizer ADAGRAD' in line
  resumed = setting.run(_SEED, '--number_of_steps=2', base=base)
  assert resumed.steps == [0, 1, 2]
  assert [start['global_step'] for start in resumed.record['starts']] == [1]


def test_base_without_an_optimizers_state(setting, tmp_path):
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'base' / 'train', model='FOVEA', base_depth=6, num_z_values=3
  )
  assert 'was not trained with --optimizer ADAM' in _refused(setting, tmp_path / 'base')


def test_newest_checkpoint_that_the_state_file_does_not_name_yet(setting, base):
  """A kill came between the two."""
  state = base / 'train' / 'checkpoint'
  was = state.read_bytes()
  setting.run(_SEED, '--number_of_steps=2', base=base)
  state.write_bytes(was)
  os.utime(state, (0, 0))
  resumed = setting.run(_SEED, '--number_of_steps=3', base=base)
  assert f'Resuming from {base / "train" / "model.ckpt-2"}, step 2\n' in resumed.outcome.stderr
  # It goes on being counted, and deleted, as the others.
  named = re.findall(r'^all_model_checkpoint_paths: "(.*)"', state.read_text(), re.M)
  assert named == [f'model.ckpt-{step}' for step in range(4)]


@pytest.mark.parametrize('part', ['index', 'data-00000-of-00001'])
def test_newest_checkpoint_that_is_incomplete(setting, base, part):
  path = base / 'train' / f'model.ckpt-1.{part}'
  path.unlink()
  line = _refused(setting, base)
  assert f"checkpoint '{base / 'train' / 'model.ckpt-1'}' is incomplete" in line


@pytest.mark.parametrize('share', [0.1, 0.4, 0.7, 0.999])
def test_newest_checkpoint_with_a_wrong_byte(setting, base, share):
  """A wrong byte is found anywhere in the checkpoint, also in the optimizer's state."""
  path = base / 'train' / 'model.ckpt-1.data-00000-of-00001'
  data = bytearray(path.read_bytes())
  data[int(share * len(data))] ^= 1
  path.write_bytes(data)
  assert 'cannot be read, is it complete?' in _refused(setting, base)


def test_training_that_lost_every_index_is_not_begun_anew(setting, base):
  for path in (base / 'train').glob('*.index'):
    path.unlink()
  assert 'is incomplete' in _refused(setting, base)


def test_what_a_killed_run_left_is_removed(setting, base):
  folder = base / 'train'
  left = {'model.ckpt-7.data-00000-of-00001', 'model.ckpt-8.index.tempstate12', 'checkpoint.tmp3'}
  for name in left:
    (folder / name).write_bytes(b'half')
  resumed = setting.run(_SEED, '--number_of_steps=2', base=base)
  assert resumed.steps == [0, 1, 2]
  assert not left & files_in(folder)


@pytest.mark.parametrize(
  'text', ['{"flags": {', '', '[]', '"x"', '{"flags": 3}', '{"fresh": []}', '{"starts": 1}']
)
def test_damaged_record(setting, base, text):
  path = base / 'train' / 'run.json'
  path.write_text(text)
  line = _refused(setting, base)
  assert f"'{path}' " in line
  assert 'delete it, or restore it' in line


def test_record_of_any_bytes(setting, base):
  (base / 'train' / 'run.json').write_bytes(b'\xff\xfe\x00')
  assert 'run.json' in _refused(setting, base)


def test_record_has_what_was_recorded(base):
  record = json.loads((base / 'train' / 'run.json').read_text())
  assert training_record.read_record(base / 'train') == record
  assert training_record.read_record(base) == {}
