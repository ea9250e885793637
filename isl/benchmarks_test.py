"""The benchmarks run and say what they promise, at a tiny width."""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def test_infer():
  command = [
    sys.executable,
    os.fspath(REPOSITORY / 'benchmarks' / 'infer.py'),
    '--model=FOVEA',
    '--base_depth=6',
    '--num_z_values=2',
    '--blocks=3',
    '--batches=2,4',
    '--channels=DAPI_CONFOCAL',
  ]
  done = subprocess.run(
    command,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': os.fspath(REPOSITORY)},
  )
  *table, last = done.stdout.splitlines()
  result = json.loads(last)
  assert result['ratio'] == result['patches_s_per_block'] / result['dense_s_per_block'] > 0
  assert result['max_difference']['MODE'] <= 0.001
  assert result['max_difference']['MEDIAN'] <= 0.001
  assert 0 <= result['max_difference']['ENTROPY'] < 1e-5
  assert all(megabytes > 100 for megabytes in result['peak_mb'].values())
  assert any(line.startswith('ratio:') for line in table)
