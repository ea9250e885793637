"""Tests of random_checkpoint.py."""

import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints import channels_file
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION
from isl.models.plan import variable_shapes
from isl.programs import random_checkpoint


def _values(prefix) -> dict[str, np.ndarray]:
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _written(folder, **kwargs):
  kwargs = {'model': 'FOVEA', 'base_depth': 4, 'num_z_values': 1, **kwargs}
  return random_checkpoint.write_random_checkpoint(folder, **kwargs)


def test_a_seed_decides_the_values(tmp_path):
  one = _values(_written(tmp_path / 'one', seed=3))
  same = _values(_written(tmp_path / 'same', seed=3))
  other = _values(_written(tmp_path / 'other', seed=4))
  assert one.keys() == same.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(value, same[name], err_msg=name)
    assert name == 'global_step' or (value != other[name]).any(), name


def test_values_are_those_of_a_network(tmp_path):
  prefix = _written(tmp_path)
  description, values = Checkpoint(prefix).describe(), _values(prefix)
  shapes = dict(variable_shapes(description.plan(), description.heads))
  assert values.keys() == shapes.keys() | {'global_step'}
  for name, shape in shapes.items():
    assert values[name].shape == shape
    assert values[name].dtype == np.float32
    assert np.isfinite(values[name]).all()
    if name.endswith('moving_variance'):
      assert values[name].min() > 0, name


@pytest.mark.parametrize(
  ('model', 'base_depth', 'num_z_values'), [('CONCORDANCE', 9, 3), ('FOVEA', 17, 5)]
)
def test_describe_gives_back_what_was_asked(tmp_path, model, base_depth, num_z_values):
  channels = ('CELLMASK_CONFOCAL', 'NFH_CONFOCAL')
  prefix = _written(
    tmp_path / 'made' / 'on the way',
    model=model,
    base_depth=base_depth,
    num_z_values=num_z_values,
    target_channels=channels,
    global_step=123,
  )
  assert find_newest(prefix.parent) == prefix
  description = Checkpoint(prefix).describe()
  assert description.model == model
  assert base_depth in description.base_depths
  assert len(description.inputs.z_values) == num_z_values
  assert description.targets.channels == channels
  assert description.inputs.channels == (TRANSMISSION,)
  assert description.global_step == 123


def test_every_target_by_default(tmp_path):
  assert Checkpoint(_written(tmp_path)).describe().targets.channels == TARGET_CHANNELS
  assert channels_file.read(tmp_path) is None


def test_command_line_with_channels(tmp_path, monkeypatch, capsys):
  channels = ['--target_channels', 'RFP,GFP', '--input_channels', 'TRANSMISSION,POLARIZATION']
  network = ['--model', 'FOVEA', '--base_depth', '4', '--num_z_values', '1']
  arguments = ['random_checkpoint', '--directory', str(tmp_path), *network, *channels]
  monkeypatch.setattr(sys, 'argv', arguments)
  random_checkpoint.main()
  description = Checkpoint(capsys.readouterr().out.strip()).describe()
  assert [str(key) for key in description.heads] == [
    '0.0/POLARIZATION',
    '0.0/TRANSMISSION',
    'MAXPROJECT/RFP',
    'MAXPROJECT/GFP',
  ]


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'model': 'CONCORDANCE', 'base_depth': 4}, 'base_depth must be at least 5'),
    ({'num_z_values': 0}, 'num_z_values must be at least 1'),
  ],
)
def test_impossible_network_is_an_error(tmp_path, wrong, message):
  with pytest.raises(ValueError, match=message):
    _written(tmp_path, **wrong)
  assert not list(tmp_path.iterdir())
