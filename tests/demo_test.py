"""The small network that ships with the project labels the field of view beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from isl import launch
from isl.checkpoints.checkpoint import find_newest
from tests.support.program import REPOSITORY, InferRun, run_in_process

_CHECKPOINTS = REPOSITORY / 'checkpoints'
_IMAGES = REPOSITORY / 'data_sample' / 'synthetic_evaluation'
_LABELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """What `make demo` does with a quarter of the field of view, without the panel of the input."""
  base = tmp_path_factory.mktemp('demo')
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--stitch_crop_size=360',
    '--read_pngs',
    f'--base_directory={base}',
    f'--restore_directory={_CHECKPOINTS}',
    f'--dataset_eval_directory={_IMAGES}',
    f'--infer_channel_whitelist={",".join(_LABELS)}',
    '--infer_panels=TARGET',
  )
  assert outcome.status == 0, outcome.stderr
  (folder,) = (base / 'eval_eval_infer').iterdir()
  return InferRun(folder, outcome)


def test_labels_are_found(demo):
  """Trained on other fields of view of the same simulation."""
  found = {row['channel']: float(row['pearson_r']) for row in demo.metrics}
  least = dict(zip(_LABELS, (0.85, 0.75, 0.75), strict=True))
  assert {label: r for label, r in found.items() if r < least[label]} == {}
  assert found.keys() == least.keys()


def test_intensities_do_not_tell_the_labels(demo):
  done = subprocess.run(
    [
      sys.executable,
      os.fspath(REPOSITORY / 'benchmarks' / 'demo_baseline.py'),
      '--predictions',
      os.fspath(demo.folder),
    ],
    env={**os.environ, 'PYTHONPATH': os.fspath(REPOSITORY)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  difference = json.loads(done.stdout.splitlines()[-1])['difference']
  assert difference.keys() == set(_LABELS)
  assert min(difference.values()) >= 0.2, difference


def test_the_checkpoint_is_small():
  sizes = [path.stat().st_size for path in _CHECKPOINTS.glob(f'{find_newest(_CHECKPOINTS).name}.*')]
  assert 1e6 < sum(sizes) < 12e6
