"""The pages' examples of Python, run as they stand there, with a shallow network."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from isl import launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.programs import random_checkpoint
from tests.support.program import REPOSITORY, SHALLOW, make_fovea_shallow, run_in_process

_LABELS = ('DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL')


@pytest.fixture(scope='module')
def description():
  """The description of the network in checkpoints/."""
  return Checkpoint(find_newest(REPOSITORY / 'checkpoints')).describe()


@pytest.fixture
def folder(description, tmp_path, monkeypatch):
  """The current folder, with another network of these channels in checkpoints/: a shallow one."""
  make_fovea_shallow(monkeypatch)
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoints',
    model=description.model,
    base_depth=6,
    num_z_values=len(description.inputs.z_values),
    target_channels=description.targets.channels,
    global_step=description.global_step,
  )
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _example(name: str) -> str:
  """The only example of Python on a page."""
  page = REPOSITORY / name
  if not page.exists():
    pytest.skip(f'{name} is not here')
  (found,) = re.findall(r'^```python\n(.*?)^```$', page.read_text(encoding='utf-8'), re.M | re.S)
  return found


def _run(example):
  """Runs an example; gives the lines that it prints."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(example, 'example', 'exec'), {'__name__': '__main__'})
  return out.getvalue().splitlines()


def test_labels_are_those_of_the_network_that_is_here(description):
  assert description.targets.channels == _LABELS


@pytest.mark.usefixtures('folder')
def test_predictor():
  lines = [line.rsplit(' ', 1) for line in _run(_example('README.md'))]
  assert [line[0] for line in lines] == [f'{label} (300, 320)' for label in _LABELS]
  # Of noise, a network is not sure.
  assert all(0 < float(width) < 1 for _, width in lines)


def test_exported_network(folder):
  outcome = run_in_process(
    launch.run,
    '--mode=EXPORT',
    '--metric=STITCH',
    f'--restore_directory={folder / "checkpoints"}',
    f'--export_directory={folder / "exported"}',
    '--infer_statistics=MEDIAN,ENTROPY',
  )
  assert outcome.status == 0, outcome.stderr
  lines = _run(f"{_example('docs/export.md')}\nprint(predicted['DAPI_CONFOCAL_MEDIAN'].shape)")
  size = tuple(SHALLOW.output * SHALLOW.num_blocks(n) for n in (300, 320))
  assert lines == [str((1, *size))]
