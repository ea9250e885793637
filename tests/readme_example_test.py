"""The pages' examples of Python, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from isl import launch
from tests.support.program import REPOSITORY, run_in_process

_LABELS = ('DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL')


def _example(name: str) -> str:
  """The only example of Python on a page."""
  page = REPOSITORY / name
  if not page.exists():
    pytest.skip(f'{name} is not here')
  (found,) = re.findall(r'^```python\n(.*?)^```$', page.read_text(encoding='utf-8'), re.M | re.S)
  return found


def _run(example, folder):
  done = subprocess.run(
    [sys.executable, '-c', example],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_predictor():
  lines = [line.rsplit(' ', 1) for line in _run(_example('README.md'), REPOSITORY)]
  assert [line[0] for line in lines] == [f'{label} (300, 320)' for label in _LABELS]
  # Of noise, a network trained on cells is not sure.
  assert all(0 < float(width) < 1 for _, width in lines)


def test_exported_network(tmp_path):
  outcome = run_in_process(
    launch.run,
    '--mode=EXPORT',
    '--metric=STITCH',
    f'--restore_directory={REPOSITORY / "checkpoints"}',
    f'--export_directory={tmp_path / "exported"}',
    '--infer_statistics=MEDIAN,ENTROPY',
  )
  assert outcome.status == 0, outcome.stderr
  example = _example('docs/export.md')
  lines = _run(f"{example}\nprint(predicted['DAPI_CONFOCAL_MEDIAN'].shape)", tmp_path)
  assert lines == ['(1, 192, 216)']
