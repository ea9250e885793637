"""Tests of experiment.py."""

import dataclasses
import pathlib

import numpy as np
import pytest

from isl import experiment
from isl.experiment import Experiment, Geometry, ImageKey, InferMethod, Metric, Mode

_PATCH_250 = Geometry(patch=250, output=8)


@pytest.mark.parametrize('num_z_values', [1, 2, 13, 26, 40])
def test_input_positions_are_evenly_spaced_in_the_unit_interval(num_z_values):
  z_values = experiment.input_stack(num_z_values).z_values
  assert z_values == tuple(round(v, 4) for v in np.linspace(0, 1, num_z_values).tolist())


def test_keys_are_printed_as_the_variables_are_named():
  keys = experiment.input_stack(26).keys
  assert [str(key) for key in keys[:3]] == [
    '0.0/TRANSMISSION',
    '0.04/TRANSMISSION',
    '0.08/TRANSMISSION',
  ]
  assert str(keys[-1]) == '1.0/TRANSMISSION'
  assert str(ImageKey('MAXPROJECT', 'DAPI_CONFOCAL')) == 'MAXPROJECT/DAPI_CONFOCAL'


def test_targets_are_in_the_canonical_order():
  assert [key.channel for key in experiment.target_stack().keys] == [
    'DAPI_CONFOCAL',
    'DAPI_WIDEFIELD',
    'CELLMASK_CONFOCAL',
    'TUJ1_WIDEFIELD',
    'NFH_CONFOCAL',
    'MAP2_CONFOCAL',
    'ISLET_WIDEFIELD',
    'DEAD_CONFOCAL',
    'NEURITE_CONFOCAL',
  ]
  assert {key.z for key in experiment.target_stack().keys} == {'MAXPROJECT'}


def test_z_varies_slowest():
  stack = experiment.StackSpec(z_values=(0.0, 1.0), channels=('A', 'B'))
  assert [str(key) for key in stack.keys] == ['0.0/A', '0.0/B', '1.0/A', '1.0/B']


def test_margin_is_121_pixels():
  assert _PATCH_250.margin == 121
  assert Geometry(patch=110, output=8).margin == 51


@pytest.mark.parametrize('size', [1, 249, 250, 257, 258, 306, 704, 1024])
def test_blocks_are_all_that_fit(size):
  blocks = _PATCH_250.num_blocks(size)
  assert blocks == sum(first + 250 <= size for first in range(0, size, 8))
  if blocks:
    assert _PATCH_250.input_size(blocks) <= size < _PATCH_250.input_size(blocks + 1)


@pytest.mark.parametrize(
  ('mode', 'folder'),
  [(Mode.EVAL_EVAL, 'eval_eval_infer'), (Mode.EVAL_TRAIN, 'eval_train_infer')],
)
def test_experiment_is_read_only_and_knows_its_folder(mode, folder):
  run = Experiment(
    mode=mode,
    metric=Metric.INFER_FULL,
    base_directory=pathlib.Path('base'),
    checkpoint_directory=pathlib.Path('base', 'train'),
    image_directory=None,
    model=None,
    base_depth=None,
    num_z_values=None,
    eval_interval_secs=0,
    eval_delay_secs=0,
    inference=experiment.Inference(
      crop_size=0,
      tile_size=16,
      method=InferMethod.DENSE,
      panels=(),
      simplify_panels=True,
      statistics=(),
      channels=None,
      continuously=False,
    ),
  )
  assert run.evaluation_directory == pathlib.Path('base', folder)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(run, 'mode', Mode.TRAIN)  # noqa: B010 - mypy knows that it cannot be assigned.
