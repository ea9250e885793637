"""The benchmarks run and say what they promise, at a tiny width."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from isl import random_field

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def _run(name, *options):
  """What a benchmark prints before its last line, and that line's JSON."""
  done = subprocess.run(
    [sys.executable, os.fspath(REPOSITORY / 'benchmarks' / name), *options],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': os.fspath(REPOSITORY)},
  )
  *table, last = done.stdout.splitlines()
  return table, json.loads(last)


def test_infer():
  table, result = _run(
    'infer.py',
    '--model=FOVEA',
    '--base_depth=6',
    '--num_z_values=2',
    '--blocks=3',
    '--batches=2,4',
    '--channels=DAPI_CONFOCAL',
  )
  assert result['ratio'] == result['patches_s_per_block'] / result['dense_s_per_block'] > 0
  assert result['max_difference']['MODE'] <= 0.001
  assert result['max_difference']['MEDIAN'] <= 0.001
  assert 0 <= result['max_difference']['ENTROPY'] < 1e-5
  assert all(megabytes > 100 for megabytes in result['peak_mb'].values())
  assert any(line.startswith('ratio:') for line in table)


def test_train():
  table, result = _run(
    'train.py',
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


def test_train_quality(tmp_path):
  """Two settings, of which one wins; the ratio is that of times on the curves printed."""
  random_field.write_image_set(tmp_path, rows=270, columns=130, depths=2)
  table, result = _run(
    'train_quality.py',
    f'--images={tmp_path}',
    '--split=140',
    '--model=FOVEA',
    '--base_depth=6',
    '--num_z_values=2',
    '--grid=8:2:1e-3,24:1:1e-3',
    '--grid_seconds=1',
    '--seconds=2',
    '--turn=1',
    '--evaluations=2',
  )
  assert result['grid'].keys() == {'8:2:0.001', '24:1:0.001'} == {result['single'], result['wide']}
  assert result['curves'].keys() == {result['defaults'], result['single'], result['wide']}
  for curve in result['curves'].values():
    (first_seconds, _), (last_seconds, last_loss) = curve
    assert 1 <= first_seconds < last_seconds
    assert 0 < last_loss < 1
  assert result['wide_over_single'] > 0
  assert any(line.startswith('windows 24:1:0.001 are ') for line in table)
