"""The README's example of Python, run as it stands there."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_LABELS = ('DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL')


def test_example_of_python():
  readme = _REPOSITORY / 'README.md'
  if not readme.exists():
    pytest.skip('the README is not here')
  (example,) = re.findall(r'^```python\n(.*?)^```$', readme.read_text(), re.M | re.S)
  done = subprocess.run(
    [sys.executable, '-c', example],
    cwd=_REPOSITORY,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  lines = [line.rsplit(' ', 1) for line in done.stdout.splitlines()]
  assert [line[0] for line in lines] == [f'{label} (300, 320)' for label in _LABELS]
  # Of noise, a network trained on cells is not sure.
  assert all(0 < float(width) < 1 for _, width in lines)
