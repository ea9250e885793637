"""Label, train, label again, by the original README's commands; then every mode."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex

import numpy as np
import pytest

from isl import launch
from isl.checkpoints.checkpoint import find_newest
from isl.models import networks
from isl.programs import random_checkpoint
from tests.support.program import (
  SHALLOW,
  InferRun,
  TrainRun,
  TrainSetting,
  event_picture,
  events,
  make_concordance_shallow,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_INFER = (
  '--alsologtostderr --base_directory $BASE_DIRECTORY'
  ' --mode EVAL_EVAL --metric INFER_FULL --stitch_crop_size 1500'
  ' --read_pngs --dataset_eval_directory $(pwd)/data_sample/condition_b_sample'
  ' --infer_channel_whitelist DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL'
)
_RESTORE = ' --restore_directory $(pwd)/checkpoints'
_TRAIN = (
  '--alsologtostderr --base_directory $BASE_DIRECTORY --mode TRAIN'
  ' --metric LOSS --master "" --restore_directory $(pwd)/checkpoints --read_pngs'
  ' --dataset_train_directory $(pwd)/data_sample/condition_e_sample_B2'
)
_FEW = ' --number_of_steps 2 --preprocess_batch_size 1 --learning_rate 1e-3 --loss_crop_size '
_CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
  """Where the user stands: folders as the commands name them, with a slim network.

  Attributes:
    folder: holds them.
    patch: side of the network's patch, in pixels.
  """

  folder: pathlib.Path
  patch: int


@pytest.fixture(scope='module', params=['shallow', pytest.param('whole', marks=pytest.mark.soak)])
def work(request, tmp_path_factory):
  """Makes folders for a CONCORDANCE of a few modules, or of all."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    if request.param == 'shallow':
      make_concordance_shallow(monkeypatch)
    patch = networks.NETWORKS['CONCORDANCE'].geometry.patch
    made = _Work(folder=tmp_path_factory.mktemp('work'), patch=patch)
    _write_work(made)
    yield made


def _write_work(work):
  folder, patch = work.folder, work.patch
  random_checkpoint.write_random_checkpoint(folder / 'checkpoints', base_depth=5, num_z_values=2)
  samples = folder / 'data_sample'
  write_field(samples / 'condition_b_sample', rows=patch + 8, columns=patch + 16)
  write_field(
    samples / 'condition_e_sample_B2',
    rows=patch,
    columns=patch + 10,
    transmitted_light='DIC',
    channels=('DAPI_CONFOCAL', 'CELLMASK_CONFOCAL'),
    wells=('B2',),
    seed=1,
  )


def _type(work, command):
  """Types a command as the shell reads it; the folder of the three steps' results is one."""
  command = command.replace('$(pwd)', str(work)).replace('$BASE_DIRECTORY', str(work / 'base'))
  outcome = run_in_process(launch.run, *shlex.split(command))
  assert outcome.status == 0, outcome.stderr
  assert not outcome.error_lines, outcome.stderr
  return outcome


def test_readmes_three_steps(work):
  few, work = f'{_FEW}{work.patch}', work.folder
  results = work / 'base' / 'eval_eval_infer'
  before = InferRun(results / '00001000', _type(work, _INFER + _RESTORE))
  trained = TrainRun(work / 'base' / 'train', _type(work, _TRAIN + few))
  outcome = _type(work, _INFER)
  after = InferRun(results / '00000002', outcome)

  assert trained.steps == [0, 2]
  assert trained.record['fresh'] == {}
  assert f'Checkpoint {trained.folder / "model.ckpt-2"}, step 2\n' in outcome.stderr
  assert (before.record['global_step'], after.record['global_step']) == (1000, 2)
  fields = [
    {**record, 'seconds': None} for run in (before, after) for record in run.record['fields']
  ]
  assert fields[0] == fields[1]
  assert [row['channel'] for row in after.metrics] == list(_CHANNELS)
  (field,) = (record['field'] for record in after.record['fields'])
  for channel in _CHANNELS:
    images = [run.prediction(field, channel) for run in (before, after)]
    assert images[0].shape == images[1].shape == (16, 24)
    assert (images[0] != images[1]).any(), channel
  for row, then in zip(after.metrics, before.metrics, strict=True):
    assert row['cross_entropy'] != then['cross_entropy']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A setting, and a training of a shallow FOVEA in it."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    setting = TrainSetting(launch.run, tmp_path_factory)
    yield setting, setting.run(*setting.network, '--random_seed=5', '--number_of_steps=2')


@pytest.mark.parametrize('mode', ['EVAL_EVAL', 'EVAL_TRAIN'])
@pytest.mark.parametrize('metric', ['LOSS', 'STITCH', 'JITTER_STITCH'])
def test_every_mode_and_metric(trained, mode, metric):
  """All modes find the training's newest checkpoint, which nothing names."""
  setting, training = trained
  base = training.folder.parent
  outcome = run_in_process(
    launch.run,
    *setting.flags(base),
    f'--dataset_eval_directory={setting.images}',
    f'--mode={mode}',
    f'--metric={metric}',
    '--eval_once',
    '--metric_num_examples=4',
    f'--stitch_crop_size={SHALLOW.input_size(4)}',
  )
  assert outcome.status == 0, outcome.stderr
  assert not outcome.error_lines, outcome.stderr
  name = {'LOSS': 'loss_CROSS_ENTROPY'}.get(metric, metric.lower())
  found = events(base / f'{mode.lower()}_{name}')
  assert {step for step, _ in found} == {2}
  if metric == 'LOSS':
    assert 0 < float(found[2, 'total_loss']) < 2
  else:
    for tag, num_heads in (('target_error_panel', 9), ('input_error_panel', 3)):
      assert event_picture(found[2, tag]).shape[0] == num_heads * (4 * 8 + 8)


@pytest.fixture(scope='module')
def stretched(trained):
  """The BASE of a training on stretched labels."""
  setting, _ = trained
  stretch = '--stretch_targets=NFH_CONFOCAL,DAPI_CONFOCAL'
  return setting.run(*setting.network, '--number_of_steps=1', stretch).folder.parent


@pytest.mark.parametrize('metric', ['LOSS', 'STITCH', 'INFER_FULL'])
def test_stretched_labels_are_compared_with_stretched_ones(trained, stretched, metric):
  """Else predictions and truth would be on different scales."""
  setting, base = trained[0], stretched
  flags = [
    *setting.flags(base),
    '--mode=EVAL_TRAIN',
    f'--metric={metric}',
    '--eval_once',
    '--metric_num_examples=4',
    f'--stitch_crop_size={SHALLOW.input_size(4)}',
    '--infer_channel_whitelist=DAPI_CONFOCAL',
  ]
  for wrong, shown in (('', 'empty'), ('DAPI_CONFOCAL', 'DAPI_CONFOCAL')):
    outcome = run_in_process(launch.run, *flags, f'--stretch_targets={wrong}')
    line = 'trained with --stretch_targets=NFH_CONFOCAL,DAPI_CONFOCAL and predicts on that scale'
    assert f'{line}; give that, not {shown}' in outcome.error
  # In any order.
  outcome = run_in_process(launch.run, *flags, '--stretch_targets=DAPI_CONFOCAL,NFH_CONFOCAL')
  assert outcome.status == 0, outcome.stderr


def test_best_checkpoint_of_an_evaluation_starts_a_training(trained):
  """EVAL_EVAL with LOSS keeps it."""
  setting, training = trained
  base = training.folder.parent
  evaluate = ['--mode=EVAL_EVAL', f'--dataset_eval_directory={setting.images}', '--eval_once']
  outcome = run_in_process(launch.run, *setting.flags(base), *evaluate, '--metric_num_examples=4')
  assert outcome.status == 0, outcome.stderr
  best = find_newest(base / 'best')
  again = setting.run(f'--restore_directory={best.parent}', '--number_of_steps=1')
  held, values = training.values(2), again.values(0)
  model = [name for name in values if '/' in name and '/Adam' not in name]
  assert all(np.array_equal(values[name], held[name]) for name in model)
  assert values['global_step'] == 0
