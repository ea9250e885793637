"""Tests of start.py through the command line: what a new training starts from."""

from __future__ import annotations

import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch
from isl.checkpoints import saving
from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import target_stack
from isl.models import fovea, networks, plan
from isl.programs import random_checkpoint
from isl.training.start import find_start
from tests.support.program import (
  TrainSetting,
  make_concordance_shallow,
  make_fovea_shallow,
  write_field,
)

_SEED = '--random_seed=5'
_ONE_STEP = '--number_of_steps=1'
_SLOTS = ('Adam', 'Adam_1')


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield TrainSetting(launch.run, tmp_path_factory)


def _model_values(prefix):
  """The values of a checkpoint's model variables, by name."""
  checkpoint = Checkpoint(prefix)
  description = checkpoint.describe()
  shapes = plan.variable_shapes(description.plan(), description.heads)
  return {name: checkpoint.value(name) for name, _ in shapes}


@pytest.fixture(scope='module')
def checkpoint(setting):
  """A checkpoint as a training of 1000 steps leaves it, with an optimizer's slots."""
  folder = setting.new_folder()
  prefix = random_checkpoint.write_random_checkpoint(
    folder, model='FOVEA', base_depth=6, num_z_values=3
  )
  values = _model_values(prefix)
  values |= {f'{name}/{slot}': v * 0 + 0.5 for name, v in values.items() for slot in _SLOTS}
  values |= {'beta1_power': np.float32(0.1), 'beta2_power': np.float32(0.2)}
  saving.write_values(prefix, values | {'global_step': np.int64(1000)})
  return prefix


def _restored(setting, prefix, *more):
  return setting.run(_SEED, _ONE_STEP, f'--restore_directory={prefix.parent}', *more)


def _assert_fresh(name, value):
  kind = name.rpartition('/')[2]
  if kind == 'weights':
    # Of uniform ones the mean is within 5 of its own standard deviations.
    assert value.any() and np.abs(value.mean()) <= 5 * value.std() / np.sqrt(value.size), name
  else:
    assert (value == (kind in ('gamma', 'moving_variance'))).all(), name


def _assert_restored_but(values, description, fresh):
  """All but `fresh` have the checkpoint's values."""
  for name, value in description.items():
    if name not in fresh:
      assert np.array_equal(values[name], value), name
  for name in fresh:
    _assert_fresh(name, values[name])
    assert name not in description or not np.array_equal(values[name], description[name]), name


@pytest.fixture(scope='module')
def restored(setting, checkpoint):
  """A training from the checkpoint, of a step; the network is not named."""
  return _restored(setting, checkpoint)


def test_model_variables_are_restored_and_nothing_else(checkpoint, restored):
  values = restored.values(0)
  description = _model_values(checkpoint)
  _assert_restored_but(values, description, [])
  assert values['global_step'] == 0
  assert np.isclose(values['beta1_power'], 0.9)
  slots = {name for name in values if name.endswith(('/Adam', '/Adam_1'))}
  assert slots
  assert not any(values[name].any() for name in slots)
  assert values.keys() == description.keys() | slots | {'beta1_power', 'beta2_power', 'global_step'}
  assert restored.steps == [0, 1]


def test_log_and_record_say_what_was_restored(checkpoint, restored):
  n = len(_model_values(checkpoint))
  assert f'Restored {n} of {n} model variables from {checkpoint}, step 1000\n' in (
    restored.outcome.stderr
  )
  (line,) = re.findall(r'Restored layers: (.*)\n', restored.outcome.stderr)
  layers = line.split(', ')
  assert {'head/*/TRANSMISSION (3)', 'head/MAXPROJECT/DAPI_CONFOCAL'} < set(layers)
  assert 'upper_recursion_* (4)' in layers
  assert not any(layer.startswith('head/0') for layer in layers)
  assert 'Starting fresh' not in restored.outcome.stderr
  assert restored.record['restored_from'] == str(checkpoint)
  assert restored.record['fresh'] == {}


def test_without_logits_heads_start_fresh(setting, checkpoint):
  run = _restored(setting, checkpoint, '--norestore_logits')
  description = _model_values(checkpoint)
  heads = {name for name in description if name.startswith('head/')}
  _assert_restored_but(run.values(0), description, heads)
  n = len(description)
  assert f'Restored {n - len(heads)} of {n} model variables from' in run.outcome.stderr
  shown = 'Starting fresh (--norestore_logits): head/0.0/TRANSMISSION, head/0.5/TRANSMISSION, '
  assert shown in run.outcome.stderr
  assert run.record['fresh'] == dict.fromkeys(heads, '--norestore_logits')


def test_heads_that_the_checkpoint_lacks_start_fresh(setting):
  held_channels = ('DAPI_CONFOCAL', 'NEURITE_CONFOCAL')
  prefix = random_checkpoint.write_random_checkpoint(
    setting.new_folder(),
    model='FOVEA',
    base_depth=6,
    num_z_values=3,
    target_channels=held_channels,
  )
  run = _restored(setting, prefix)
  values, description = run.values(0), _model_values(prefix)
  lacking = {
    name
    for name in values
    if name.startswith('head/MAXPROJECT/')
    and name.split('/')[2] not in held_channels
    and not name.endswith(_SLOTS)
  }
  assert len({name.split('/')[2] for name in lacking}) == 7
  _assert_restored_but(values, description, lacking)
  assert run.record['fresh'] == dict.fromkeys(lacking, 'not in the checkpoint')
  assert 'Starting fresh (not in the checkpoint): head/MAXPROJECT/DAPI_WIDEFIELD, head/' in (
    run.outcome.stderr
  )


def test_other_depths_of_concordance(setting, tmp_path, monkeypatch):
  """Only the projection depends on them, and heads are of positions: 0 and 1 are in both."""
  make_concordance_shallow(monkeypatch)
  prefix = random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', base_depth=5, num_z_values=2
  )
  write_field(tmp_path / 'images', rows=30, columns=30)
  run = _restored(
    setting,
    prefix,
    '--norestore_inputs',
    '--num_z_values=3',
    f'--dataset_train_directory={tmp_path / "images"}',
    '--loss_crop_size=30',
    '--preprocess_batch_size=1',
  )
  middle = 'head/0.5/TRANSMISSION/residual_v2_conv'
  values = run.values(0)
  head = {n for n in values if n.startswith(middle) and not n.endswith(_SLOTS)}
  first = {'Conv/weights', 'Conv/biases'}
  _assert_restored_but(values, _model_values(prefix), head | first)
  assert run.record['fresh'] == dict.fromkeys(first, '--norestore_inputs') | dict.fromkeys(
    head, 'not in the checkpoint'
  )
  assert 'Starting fresh (--norestore_inputs): Conv\n' in run.outcome.stderr
  assert 'Starting fresh (not in the checkpoint): head/0.5/TRANSMISSION\n' in run.outcome.stderr
  assert values['Conv/weights'].shape == (1, 1, 6, 16)


def _find_start(setting, base, *more):
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *setting.flags(base), *more])
    return find_start(command_line.make_experiment())


def test_first_layers_of_fovea(setting, tmp_path, monkeypatch):
  monkeypatch.setitem(networks.NETWORKS, 'FOVEA', fovea.FOVEA)
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', model='FOVEA', base_depth=6, num_z_values=3
  )
  restore = f'--restore_directory={tmp_path / "checkpoint"}'
  fresh = _find_start(setting, tmp_path, restore, '--norestore_inputs').fresh
  modules = {'lower_scale_0_recursion_0', *(f'downscale_{scale}_0' for scale in range(1, 5))}
  assert {'/'.join(name.split('/')[:2]) for name in fresh} == {
    f'{module}/{part}_rv2' for module in modules for part in ('expand', 'reduce')
  }
  assert set(fresh.values()) == {'--norestore_inputs'}


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    (['--base_depth=50'], 'give --base_depth 8'),
    (['--num_z_values=5'], 'give --num_z_values 3'),
    (['--model=CONCORDANCE'], 'give --model FOVEA'),
    (['--num_z_values=5', '--norestore_inputs', '--norestore_logits'], 'give --num_z_values 3'),
  ],
)
def test_network_that_does_not_fit(setting, checkpoint, tmp_path, more, words):
  restore = f'--restore_directory={checkpoint.parent}'
  with pytest.raises(ValueError, match='--restore_directory has another network') as caught:
    _find_start(setting, tmp_path, restore, *more)
  message = str(caught.value)
  assert re.search(r'\S+/\S+ is (missing|\[[\d, ]+\]), not \[[\d, ]+\]', message)
  assert re.search(r'; [\d,]+ of [\d,]+ variables match;', message)
  assert words in message
  assert f'{str(checkpoint)!r}' in message


def test_projection_that_does_not_fit_names_the_flag_for_it(setting, tmp_path):
  prefix = random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', base_depth=5, num_z_values=2
  )
  with pytest.raises(ValueError, match='or --norestore_inputs to start the first layer fresh'):
    _find_start(setting, tmp_path, f'--restore_directory={prefix.parent}', '--num_z_values=3')


def test_network_flags_that_are_not_given_are_the_checkpoints(setting, checkpoint, tmp_path):
  start = _find_start(setting, tmp_path, f'--restore_directory={checkpoint.parent}')
  assert start.plan.spec.name == 'FOVEA'
  assert [key.z for key in start.inputs.keys] == [0.0, 0.5, 1.0]
  assert start.targets == target_stack()
  assert not start.resumes
