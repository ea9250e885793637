"""Tests of train.py through the command line: what it writes and says, and how it goes on."""

from __future__ import annotations

import pathlib
import platform
import re
import shutil

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver

import isl
from isl import command_line, launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import MAXPROJECT, TARGET_CHANNELS
from isl.data.patches import Patches
from isl.images import png_io
from isl.training import hooks, train
from isl.training.start import find_start
from tests.support.program import (
  TrainSetting,
  assert_same_values,
  events,
  files_in,
  image_name,
  make_fovea_shallow,
  make_seconds_pass,
  write_field,
)

_SEED = '--random_seed=5'
_OF_FOLDERS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL')
_MODEL_HEAD = 'head/MAXPROJECT/{}/residual_v2_conv/'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    made = TrainSetting(launch.run, tmp_path_factory)
    # So that there is something to stretch.
    dapi = made.images / image_name('A4', MAXPROJECT, 'DAPI_CONFOCAL')
    png_io.write_png(dapi, png_io.read_png(dapi) // 2)
    yield made


def _run(setting, *flags, steps=3, base=None):
  return setting.run(*setting.network, _SEED, f'--number_of_steps={steps}', *flags, base=base)


@pytest.fixture(scope='module')
def straight(setting):
  """Six steps in one go, with a log line for each."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(hooks, '_SECONDS_BETWEEN_LINES', 0)
    return _run(setting, steps=6)


def _save_always(setting, *flags):
  """Six steps, with a checkpoint and summaries after each."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_seconds_pass(monkeypatch)
    return _run(setting, '--save_interval_secs=1', '--save_summaries_secs=1', *flags, steps=6)


@pytest.fixture(scope='module')
def often(setting):
  """A run of the same six steps."""
  return _save_always(setting)


@pytest.fixture(scope='module')
def of_two_folders(setting, tmp_path_factory):
  """A training without a seed, on two folders, each of which has one label."""
  folders = [tmp_path_factory.mktemp(channel) for channel in _OF_FOLDERS]
  for channel, folder in zip(_OF_FOLDERS, folders, strict=True):
    write_field(folder, rows=140, columns=140, channels=[channel])
  # A batch of two has a patch of each folder.
  flags = (
    f'--dataset_train_directory={",".join(map(str, folders))}',
    '--preprocess_batch_capacity=2',
    '--number_of_steps=3',
  )
  return setting.run(*setting.network, *flags)


def _copy(run, tmp_path):
  """Copies a run's BASE, for trainings that go on from it."""
  return shutil.copytree(run.folder.parent, tmp_path / 'base')


def _cut_back(run, tmp_path, step):
  """Copies a run's BASE as a kill after a step would have left it."""
  base = _copy(run, tmp_path)
  for path in (base / 'train').glob('model.ckpt-*'):
    if int(path.stem.rpartition('-')[2]) > step:
      path.unlink()
  (base / 'train' / 'checkpoint').unlink()
  return base


def _differ(a, b):
  assert a.keys() == b.keys()
  return any(not np.array_equal(a[name], b[name]) for name in a)


def _of_model(values):
  return {name: v for name, v in values.items() if '/Adam' not in name and '/' in name}


def test_files_that_a_training_leaves(straight):
  files = files_in(straight.folder)
  (events,) = (name for name in files if name.startswith('events.out.tfevents.'))
  parts = ('index', 'data-00000-of-00001')
  saved = {f'model.ckpt-{step}.{part}' for step in (0, 6) for part in parts}
  assert files == {'checkpoint', 'channels.json', 'run.json', events, *saved}
  assert find_newest(straight.folder).name == 'model.ckpt-6'
  assert files_in(straight.folder.parent) == {f'train/{name}' for name in files}


def test_checkpoints_are_whole_networks(straight):
  for step in (0, 6):
    checkpoint = Checkpoint(straight.folder / f'model.ckpt-{step}')
    checkpoint.verify()
    description = checkpoint.describe()
    assert (description.model, description.global_step) == ('FOVEA', step)
    assert 6 in description.base_depths
    assert description.inputs.z_values == (0.0, 0.5, 1.0)
    assert description.targets.channels == TARGET_CHANNELS
    # Two slots for each weight; averages have none.
    averages = sum('/moving_' in name for name in _of_model(straight.values(step)))
    weights = description.num_model_variables - averages
    assert description.num_other_variables == 2 * weights + len(
      ['global_step', 'beta1_power', 'beta2_power']
    )


def test_training_changes_all_weights_that_have_truth(straight):
  before, after = straight.values(0), straight.values(6)
  absent = set(TARGET_CHANNELS) - {'DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL'}
  absent -= {'NEURITE_CONFOCAL'}
  prefixes = tuple(_MODEL_HEAD.format(channel) for channel in absent)
  for name in _of_model(before):
    # Batch norm follows what a head reads, whether it has truth or not.
    stays = name.startswith(prefixes) and '/moving_' not in name
    assert np.array_equal(before[name], after[name]) == stays, name


def test_run_is_on_record(setting, straight):
  record = straight.record
  assert record['restored_from'] is None
  assert record['fresh'].keys() == _of_model(straight.values(0)).keys()
  assert set(record['fresh'].values()) == {'no checkpoint'}
  flags = record['flags']
  assert flags['random_seed'] == 5
  assert flags['dataset_train_directory'] == [str(setting.images)]
  assert (flags['model'], flags['base_depth'], flags['num_z_values']) == ('FOVEA', 6, 3)
  assert (flags['optimizer'], flags['learning_rate']) == ('ADAM', 1e-4)
  (start,) = record['starts']
  assert (start['global_step'], start['random_seed']) == (0, 5)
  assert start['versions'] == {
    'python': platform.python_version(),
    'isl': isl.__version__,
    'tensorflow': tf.__version__,
    'numpy': np.__version__,
    'opencv': cv2.__version__,
  }


def test_log_has_what_a_user_wants_to_know(straight):
  log = straight.outcome.stderr
  assert 'Training starts from random weights' in log
  assert re.search(r'step 1: loss \d\.\d{4}\n', log)
  line = r'step {}: loss \d\.\d{{4}}, \d+\.\d\d steps/s, \d+\.\d% of the time waiting for data\n'
  for step in range(2, 7):
    assert re.search(line.format(step), log)
  for step in (0, 6):
    assert f'Saved {straight.folder / "model.ckpt"}-{step}\n' in log


def test_loss_is_the_same_in_log_and_summaries(straight):
  losses = {step: v for (step, tag), v in events(straight.folder).items() if tag == 'total_loss'}
  assert losses.keys() == {2}
  assert f'step 2: loss {float(losses[2]):.4f},' in straight.outcome.stderr


@pytest.mark.parametrize('steps', [6, 4])
def test_nothing_to_do_when_the_step_is_reached(setting, straight, tmp_path, steps):
  base = _copy(straight, tmp_path)
  again = _run(setting, steps=steps, base=base)
  assert f'Nothing to do: step 6 is reached, --number_of_steps is {steps}' in again.outcome.stderr
  assert files_in(again.folder) == files_in(straight.folder)
  assert again.record == straight.record


_OPTIMIZERS = {
  'ADAM': ['Adam', 'Adam_1'],
  'ADAGRAD': ['Adagrad'],
  'MOMENTUM': ['Momentum'],
}


@pytest.mark.parametrize(
  ('optimizer', 'loss'),
  [
    ('ADAM', 'CROSS_ENTROPY'),
    ('ADAGRAD', 'RANKED_PROBABILITY_SCORE'),
    ('MOMENTUM', 'CROSS_ENTROPY'),
  ],
)
def test_resumed_training_is_as_if_never_stopped(request, setting, tmp_path, optimizer, loss):
  more = [f'--optimizer={optimizer}', f'--loss={loss}', '--learning_decay_steps=2']
  if optimizer == 'ADAM':
    straight, stopped = (request.getfixturevalue(name) for name in ('straight', 'often'))
  else:
    straight = stopped = _save_always(setting, *more)
  base = _cut_back(stopped, tmp_path, 3)
  resumed = _run(setting, *more, steps=6, base=base)
  assert f'Resuming from {tmp_path / "base" / "train" / "model.ckpt-3"}' in resumed.outcome.stderr
  assert resumed.steps == [2, 3, 6]
  values = resumed.values(6)
  assert_same_values(values, straight.values(6))
  assert values['global_step'] == 6
  slots = {name.rpartition('/')[2] for name in values if name.rpartition('/')[2][0].isupper()}
  assert slots == set(_OPTIMIZERS[optimizer])
  assert [start['global_step'] for start in resumed.record['starts']] == [0, 3]


def test_folders_are_drawn_from_in_turn_and_what_they_lack_is_masked(of_two_folders):
  run = of_two_folders
  losses = {tag: float(v) for (step, tag), v in events(run.folder).items() if step == 2
            and tag.startswith('loss/MAXPROJECT')}  # fmt: skip
  seen = {tag.rpartition('/')[2] for tag, loss in losses.items() if loss > 0}
  assert seen == set(_OF_FOLDERS)
  before, after = run.values(0), run.values(3)
  for channel in TARGET_CHANNELS:
    weights = _MODEL_HEAD.format(channel) + 'Conv/weights'
    assert np.array_equal(before[weights], after[weights]) == (channel not in seen)


def test_without_a_seed_each_start_draws_anew(setting, of_two_folders):
  run = setting.run(*setting.network, '--number_of_steps=1')
  seeds = [r.record['starts'][0]['random_seed'] for r in (run, of_two_folders)]
  assert seeds[0] != seeds[1]
  assert _differ(run.values(0), of_two_folders.values(0))
  again = setting.run(*setting.network, '--number_of_steps=1', f'--random_seed={seeds[0]}')
  assert_same_values(again.values(1), run.values(1))


# What makes patches others.
_OF_PATCHES = (
  '--augment_offset_std=0.2',
  '--augment_multiplier_std=0.2',
  '--augment_noise_std=0.2',
  '--loss_crop_size=100',
  '--loss_patch_stride=20',
  '--loss_output_size=24',
  '--preprocess_batch_capacity=3',
  '--stretch_targets=DAPI_CONFOCAL',
)


def _patches(setting, *more):
  """The first patches that a training reads."""
  given = [*setting.flags(pathlib.Path('/nowhere')), *setting.network, *more]
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *given])
    experiment = command_line.make_experiment()
  patches = train.training_patches(experiment, find_start(experiment), seed=5)
  assert isinstance(patches, Patches)
  return [patches.patch(i) for i in range(6)]


def _are_same(a, b):
  return all(
    np.array_equal(x.input, y.input) and np.array_equal(x.target_classes, y.target_classes)
    for x, y in zip(a, b, strict=True)
  )


@pytest.mark.parametrize('flag', _OF_PATCHES)
def test_flag_changes_the_patches(setting, flag):
  assert _are_same(_patches(setting), _patches(setting))
  assert not _are_same(_patches(setting), _patches(setting, flag))


def test_other_patches_are_another_training(setting, straight, often):
  """It begins with the same weights."""
  run = _run(setting, *_OF_PATCHES, '--preprocess_batch_size=3')
  assert_same_values(run.values(0), straight.values(0))
  assert _differ(_of_model(run.values(3)), _of_model(often.values(3)))


def test_flags_that_change_no_number(setting, often):
  run = _run(setting, '--preprocess_shuffle_batch_num_threads=1', '--tensorcheck_enable_checks')
  assert_same_values(run.values(3), often.values(3))


def test_intervals_of_checkpoints_and_summaries(straight, often):
  def saved(run):
    return [int(step) for step in re.findall(r'Saved \S+-(\d+)\n', run.outcome.stderr)]

  def summarized(run):
    return [step for step, tag in events(run.folder) if tag == 'total_loss']

  assert saved(often) == list(range(7))
  # All but the last five are deleted.
  assert often.steps == [2, 3, 4, 5, 6]
  assert summarized(often) == list(range(2, 7))
  # By default, minutes apart.
  assert saved(straight) == straight.steps == [0, 6]
  assert summarized(straight) == [2]
  assert_same_values(often.values(6), straight.values(6))
