"""Tests of experiment.py."""

import dataclasses
import pathlib

import numpy as np
import pytest

from isl.core import experiment
from isl.core.channels import ImageKey, StackSpec, input_stack, target_stack
from isl.core.experiment import Experiment, Geometry, InferMethod, Loss, Metric, Mode

_PATCH_250 = Geometry(patch=250, output=8)


@pytest.mark.parametrize('num_z_values', [1, 2, 13, 26, 40])
def test_input_positions_are_evenly_spaced_in_the_unit_interval(num_z_values):
  z_values = input_stack(num_z_values).z_values
  assert z_values == tuple(round(v, 4) for v in np.linspace(0, 1, num_z_values).tolist())


def test_keys_are_printed_as_the_variables_are_named():
  keys = input_stack(26).keys
  assert [str(key) for key in keys[:3]] == [
    '0.0/TRANSMISSION',
    '0.04/TRANSMISSION',
    '0.08/TRANSMISSION',
  ]
  assert str(keys[-1]) == '1.0/TRANSMISSION'
  assert str(ImageKey('MAXPROJECT', 'DAPI_CONFOCAL')) == 'MAXPROJECT/DAPI_CONFOCAL'


def test_targets_are_in_the_canonical_order():
  assert [key.channel for key in target_stack().keys] == [
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
  assert {key.z for key in target_stack().keys} == {'MAXPROJECT'}


def test_z_varies_slowest():
  stack = StackSpec(z_values=(0.0, 1.0), channels=('A', 'B'))
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


def _experiment(mode, metric, loss=Loss.CROSS_ENTROPY, restore_directory=None):
  return Experiment(
    mode=mode,
    metric=metric,
    base_directory=pathlib.Path('base'),
    restore_directory=restore_directory,
    image_directories=(),
    model=None,
    base_depth=None,
    num_z_values=None,
    loss=loss,
    sampling=experiment.Sampling(
      crop_size=520, patch_stride=256, output_size=8, batch_size=16, num_threads=16, capacity=64
    ),
    corruption=experiment.Corruption(multiplier_std=0, offset_std=0, noise_std=0),
    stretch_targets=(),
    random_seed=None,
    training=experiment.Training(
      optimizer=experiment.Optimizer.ADAM,
      learning_rate=1e-4,
      learning_decay_steps=4096,
      number_of_steps=None,
      restore_logits=True,
      restore_inputs=True,
      save_summaries_secs=180,
      save_interval_secs=180,
    ),
    evaluation=experiment.Evaluation(interval_secs=0, delay_secs=0, once=True, num_examples=1024),
    inference=experiment.Inference(
      crop_size=0,
      tile_size=16,
      method=InferMethod.DENSE,
      panels=(),
      simplify_panels=True,
      statistics=(),
      channels=None,
      padding=experiment.Padding.NONE,
      prediction_format=experiment.PredictionFormat.PNG,
      calibrate=False,
      calibrated=False,
      overwrite=False,
    ),
    input_channels=None,
    target_channels=None,
    input_range=None,
    shards=None,
    export=None,
    cluster=None,
    sync_replicas=False,
    dask=None,
    dry_run=False,
    flags=(),
  )


@pytest.mark.parametrize(
  ('mode', 'metric', 'folder'),
  [
    (Mode.EVAL_EVAL, Metric.INFER_FULL, 'eval_eval_infer'),
    (Mode.EVAL_TRAIN, Metric.INFER_FULL, 'eval_train_infer'),
    (Mode.EVAL_EVAL, Metric.LOSS, 'eval_eval_loss_RANKED_PROBABILITY_SCORE'),
    (Mode.EVAL_EVAL, Metric.STITCH, 'eval_eval_stitch'),
    (Mode.EVAL_TRAIN, Metric.JITTER_STITCH, 'eval_train_jitter_stitch'),
  ],
)
def test_every_evaluation_has_its_folder(mode, metric, folder):
  run = _experiment(mode, metric, Loss.RANKED_PROBABILITY_SCORE)
  assert run.evaluation_directory == pathlib.Path('base', folder)


def test_checkpoints_come_from_training_unless_told_otherwise():
  run = _experiment(Mode.EVAL_EVAL, Metric.LOSS)
  assert run.checkpoint_directory == run.train_directory == pathlib.Path('base', 'train')
  other = _experiment(Mode.EVAL_EVAL, Metric.LOSS, restore_directory=pathlib.Path('x'))
  assert other.checkpoint_directory == pathlib.Path('x')


def test_experiment_is_read_only():
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(_experiment(Mode.TRAIN, Metric.LOSS), 'mode', Mode.PS)  # noqa: B010 - for mypy.
