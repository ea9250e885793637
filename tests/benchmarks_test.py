"""The benchmarks run and say what they promise, at a tiny width."""

import contextlib
import importlib
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from isl import launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.programs import random_checkpoint, random_field
from tests.support.program import (
  REPOSITORY,
  InferRun,
  make_fovea_shallow,
  original_fields,
  run_in_process,
)


def _run(name, *options):
  """Runs a benchmark; gives the lines before the last that it prints, and the last line's JSON."""
  done = subprocess.run(
    [sys.executable, os.fspath(REPOSITORY / 'benchmarks' / name), *options],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': os.fspath(REPOSITORY)},
  )
  *table, last = done.stdout.splitlines()
  return table, json.loads(last)


def _run_here(name, *options):
  """Runs a benchmark in this process, which has TensorFlow already; results as from `_run`."""
  path = os.fspath(REPOSITORY / 'benchmarks' / name)
  out = io.StringIO()
  with (
    pytest.MonkeyPatch.context() as monkeypatch,
    flagsaver.flagsaver(),
    contextlib.redirect_stdout(out),
  ):
    monkeypatch.setattr(sys, 'argv', [path, *options])
    runpy.run_path(path, run_name='__main__')
  *table, last = out.getvalue().splitlines()
  return table, json.loads(last)


@pytest.fixture(autouse=True)
def _benchmarks_are_found(monkeypatch):
  """They are in no package."""
  monkeypatch.syspath_prepend(REPOSITORY / 'benchmarks')


@pytest.fixture
def shallow(tmp_path, monkeypatch):
  """FOVEA is shallow here, and in all processes that are started from here."""
  make_fovea_shallow(monkeypatch)
  # Python loads it at its start.
  (tmp_path / 'sitecustomize.py').write_text('import tests.support.shallow\n')
  path = [tmp_path, REPOSITORY, REPOSITORY / 'benchmarks']
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(map(os.fspath, path)))


@pytest.fixture
def curves():
  """The module benchmarks/curves.py."""
  return importlib.import_module('curves')


@pytest.mark.parametrize(
  ('losses', 'seconds'),
  [
    ((0.9, 0.7, 0.5, 0.4), 25),  # Half-way from the second point to the third.
    ((0.9, 0.6, 0.5, 0.4), 20),
    ((0.6, 0.5, 0.4, 0.3), 10),
    ((0.9, 0.5, 0.7, 0.5), 35),  # The first time does not last.
    ((0.9, 0.5, 0.4, 0.7), None),
    ((math.inf, 0.5, 0.4, 0.3), 20),
    ((0.9, 0.5, math.nan, 0.5), 40),
  ],
)
def test_seconds_to(curves, losses, seconds):
  curve = list(zip((10, 20, 30, 40), losses, strict=True))
  assert curves.seconds_to(curve, 0.6) == (None if seconds is None else pytest.approx(seconds))


def test_times_as_fast(curves):
  slow = [(10, 0.9), (20, 0.8), (40, 0.6)]
  fast = [(10, 0.6), (20, 0.5), (40, 0.4)]
  assert curves.times_as_fast(fast, slow) == 4
  assert curves.times_as_fast(slow, fast) == pytest.approx(1 / 4)
  assert curves.times_as_fast(slow, slow) == 1
  # It was lower for a while, but ends higher.
  dipping = [(10, 0.3), (20, 0.3), (40, 0.7)]
  assert curves.times_as_fast(dipping, slow) < 1
  diverged = [(10, 0.5), (20, math.inf), (40, math.inf)]
  assert curves.times_as_fast(slow, diverged) == math.inf
  assert curves.times_as_fast(diverged, slow) == 0


def test_lowest_so_far(curves):
  curve = [(10, 0.5), (20, 0.7), (30, 0.4), (40, math.inf)]
  assert curves.lowest_so_far(curve) == [(10, 0.5), (20, 0.5), (30, 0.4), (40, 0.4)]


@pytest.mark.usefixtures('shallow')
def test_infer():
  table, result = _run_here(
    'infer.py',
    '--model=FOVEA',
    '--base_depth=6',
    '--num_z_values=2',
    '--blocks=3',
    '--batches=2,4',
    '--repeats=1',
    '--matrix=512',
    '--channels=DAPI_CONFOCAL',
  )
  assert result['ratio'] == result['patches_s_per_block'] / result['dense_s_per_block'] > 0
  assert result['max_difference']['MODE'] <= 0.001
  assert result['max_difference']['MEDIAN'] <= 0.001
  assert 0 <= result['max_difference']['ENTROPY'] < 1e-5
  assert all(megabytes > 100 for megabytes in result['peak_mb'].values())
  assert any(line.startswith('ratio:') for line in table)


@pytest.mark.usefixtures('shallow')
def test_train():
  table, result = _run_here(
    'train.py',
    '--matrix=512',
    '--model=FOVEA',
    '--base_depth=6',
    '--num_z_values=2',
    '--batch=2',
    '--rounds=2',
    '--steps=1',
  )
  assert result['seconds_per_step'] == pytest.approx(1 / result['steps_per_s'])
  flop = result['gflop_per_s'] * result['seconds_per_step']
  assert flop == pytest.approx(result['gflop_per_step'])
  assert 0 < result['share_of_matmul'] < 1
  assert 0 <= result['share_waiting'] < 1
  assert result['peak_mb'] > 100
  assert result['until_first_step_s'] > result['seconds_per_step']
  assert any(line.startswith('peak memory') for line in table)


_QUALITY = (
  '--split=66',
  '--model=FOVEA',
  '--base_depth=6',
  '--num_z_values=2',
  '--grid=8:2:1e-3,24:1:1e-3',
  '--grid_seconds=0.1',
  '--seconds=0.4',
  '--turn=0.2',
  '--evaluations=2',
)


@pytest.fixture
def images(tmp_path, monkeypatch):
  """A folder of a field of view, for a shallow FOVEA."""
  make_fovea_shallow(monkeypatch)
  folder = tmp_path / 'images'
  random_field.write_field(folder, rows=130, columns=60, depths=2)
  return folder


def test_train_quality(images):
  table, result = _run_here('train_quality.py', f'--images={images}', *_QUALITY)
  assert result['grid'].keys() == {'8:2:0.001', '24:1:0.001'} == {result['single'], result['wide']}
  for curves in (result['curves'], result['label_curves']):
    assert curves.keys() == {result['defaults'], result['single'], result['wide']}
    for curve in curves.values():
      (first_seconds, _), (last_seconds, last_loss) = curve
      # A step may take as long as both turns.
      assert 0.2 <= first_seconds <= last_seconds
      assert last_seconds >= 0.4
      assert 0 < last_loss < 2
  assert result['wide_over_single'] > 0
  assert result['wide_over_single_lowest'] > 0
  assert any(re.match(r'by the lowest loss, windows are .* after \d+ s', line) for line in table)


@pytest.mark.soak
def test_train_quality_from_a_checkpoint_that_diverges(images, tmp_path):
  """A training that diverges from its start gets nowhere, and the rest is printed all the same."""
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', model='FOVEA', base_depth=6, num_z_values=2
  )
  options = [option for option in _QUALITY if not option.startswith(('--model', '--base', '--num'))]
  _, result = _run_here(
    'train_quality.py',
    f'--images={images}',
    f'--restore_directory={tmp_path / "checkpoint"}',
    *options,
    # The best single patches are the defaults, which are trained once.
    '--grid=8:16:1e-4,24:1:1e30',
    '--evaluations=1',
  )
  assert result['grid']['24:1:1e+30'] is None
  assert result['best'] == '8:16:0.0001'
  assert result['wide_over_single'] == 0


@pytest.mark.parametrize('option', ['--split=20', '--split=120', '--images=/no/such/folder'])
def test_train_quality_of_what_cannot_be(images, option):
  with pytest.raises(SystemExit) as caught:
    _run_here('train_quality.py', f'--images={images}', *_QUALITY, option)
  # What Python prints as the last line, with status 1.
  assert str(caught.value.code).startswith('train_quality: ')
  assert '\n' not in str(caught.value.code)


def test_held_out_losses_are_those_of_inference(tmp_path, monkeypatch):
  """The losses are the cross entropies in metrics.csv, of the same pixels."""
  make_fovea_shallow(monkeypatch)
  images, base = tmp_path / 'images', tmp_path / 'base'
  random_field.write_field(images, rows=57, columns=66, depths=2)
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', model='FOVEA', base_depth=6, num_z_values=2
  )
  checkpoint = Checkpoint(find_newest(tmp_path / 'checkpoint'))
  description = checkpoint.describe()
  (field,) = original_fields(images)
  held_out = importlib.import_module('training').HeldOut(
    field.read(), description.inputs, description.targets
  )
  losses = {key.channel: loss for key, loss in held_out.losses(checkpoint, tile_size=2).items()}
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--base_directory={base}',
    f'--restore_directory={tmp_path / "checkpoint"}',
    f'--dataset_eval_directory={images}',
    '--infer_panels=',
    '--infer_statistics=',
  )
  assert outcome.status == 0, outcome.stderr
  metrics = InferRun(base / 'eval_eval_infer' / '00001000', outcome).metrics
  assert len(metrics) >= 3
  for row in metrics:
    assert losses[row['channel']] == pytest.approx(float(row['cross_entropy']), rel=1e-4)


@pytest.mark.soak
def test_distributed():
  network = ('--model=FOVEA', '--base_depth=6', '--num_z_values=2', '--batch=2')
  table, result = _run('distributed.py', *network, '--seconds=6', '--rounds=1')
  assert len(result['one']) == 2
  assert len(result['two']) == len(result['ratios']) == 1
  # Bound to a core each.
  for name in ('worker 0', 'worker 1'):
    assert 0 < result['two'][0][name] < 1.1
  assert result['one'][0]['parameter server'] > 0
  assert [line.split()[0] for line in table[1:]] == ['steps', 'CPU,', 'CPU,', 'CPU,', 'ratio']


@pytest.mark.soak
def test_dask_inference():
  network = ('--model=FOVEA', '--base_depth=6', '--size=160')
  table, result = _run('dask_inference.py', *network, '--fields=6', '--rounds=1')
  (one,), (two,) = result['found']['1'], result['found']['2']
  assert (one['workers'], two['workers']) == (1, 2)
  assert result['ratio'] == pytest.approx(two['fields_per_minute'] / one['fields_per_minute'])
  assert table[-1].split() == ['ratio', f'{result["ratio"]:.2f}']


@pytest.mark.soak
def test_shards():
  network = ('--model=FOVEA', '--base_depth=6', '--batches=2')
  _, result = _run('shards.py', *network, '--rounds=1', '--patches=4', '--steps=1')
  (batch,) = result['batches']
  for kind in ('whole', 'tiles'):
    ratio = batch['read_per_s'][kind] / batch['consumed_per_s']
    assert batch['ratio'][kind] == pytest.approx(ratio)
    assert result['peak_mb'][kind].keys() == {'8', '64'}
