"""Memory grows with a field of view by no more than the arrays that become files."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from isl import png_io, random_checkpoint, testing

# The peak of a process's own resident memory: Linux's ru_maxrss begins with its parent's.
_PEAK = """if True:
  import pathlib, re
  from isl import launch
  try:
    launch.run()
  except SystemExit as e:
    assert not e.code
  status = pathlib.Path('/proc/self/status').read_text()
  print(re.search(r'VmHWM:\\\\s*(\\\\d+) kB', status)[1])
""".replace('\\\\\\\\', '\\\\')


def _peak_mb(
  base: pathlib.Path, checkpoint: pathlib.Path, images: pathlib.Path, *flags: str, timeout: float
) -> float:
  """Of labelling a whole field of view, all heads and both panels, in MB (10^6 bytes)."""
  if not pathlib.Path('/proc/self/status').exists():
    pytest.skip('this system does not tell peaks')
  process = testing.python_process(
    _PEAK,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    '--stitch_crop_size=0',
    f'--restore_directory={checkpoint}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
    *flags,
  )
  outcome = testing.finish(process, timeout)
  assert outcome.status == 0, outcome.stderr
  return int(outcome.stdout) * 1024 / 1e6
