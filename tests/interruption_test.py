"""Full disks and kills, for real: no final name ever stands for half a file."""

from __future__ import annotations

import functools
import itertools
import mmap
import pathlib
import signal
import subprocess
import sys

import pytest

from isl import launch
from isl.report import visualize
from tests.support.forked import ForkedProgram
from tests.support.program import (
  InferSetting,
  files_in,
  finish,
  make_fovea_shallow,
  run_in_process,
  small_disk,
)

# A label alone keeps the runs short.
_DAPI = '--infer_channel_whitelist=DAPI_CONFOCAL'
# What a run writes: the predictions, then the panels, then the tables.
_PREDICTION, _PANEL = 'predictions', 'error_panel'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def finished(setting):
  """A run that nothing stopped."""
  return setting.run(_DAPI)


def _sizes(run):
  return {name: (run.folder / name).stat().st_size for name in files_in(run.folder)}


@pytest.mark.parametrize('first_missing', [_PREDICTION, _PANEL])
def test_file_that_grows_too_large(setting, finished, tmp_path, first_missing):
  """The system refuses to write on in the middle of a file, as on a full disk."""
  limit = min(size for name, size in _sizes(finished).items() if first_missing in name) - 1
  base = tmp_path / 'base'
  with small_disk(limit):
    line = run_in_process(launch.run, *setting.flags(base), _DAPI).error
  assert 'File too large' in line
  assert first_missing in line
  assert str(base) in line
  written = files_in(base)
  expected = {_PREDICTION: 0, _PANEL: 1}[first_missing]
  assert len(written) == sum(_PREDICTION in name for name in written) == expected


@pytest.mark.soak
def test_disk_that_is_full(setting, finished, tmp_path):
  """The disk, of two pages, has room for the prediction, but not for the panels."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  sizes = _sizes(finished)
  assert max(size for name, size in sizes.items() if _PREDICTION in name) < mmap.PAGESIZE
  assert min(size for name, size in sizes.items() if _PANEL in name) > mmap.PAGESIZE
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={2 * mmap.PAGESIZE}', 'none', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('no right to mount a file system')
  try:
    outcome = run_in_process(launch.run, *setting.flags(disk / 'base'), _DAPI)
    assert 'No space left on device' in outcome.error
    (written,) = files_in(disk)
    assert _PREDICTION in written
  finally:
    subprocess.run(['umount', str(disk)], check=True)


def _stop_in_the_panel():
  bands = visualize.bands

  def stopping_bands(*arguments):
    for band in bands(*arguments):
      yield band
      print('drawing', file=sys.stderr, flush=True)
      signal.pause()

  pytest.MonkeyPatch().setattr(visualize, 'bands', stopping_bands)


def test_kill_while_the_panel_is_written(setting, finished, tmp_path):
  base = tmp_path / 'base'
  process = ForkedProgram(*setting.flags(base), _DAPI, before=_stop_in_the_panel)
  assert 'drawing\n' in process.stderr
  process.kill()
  finish(process, timeout=60)
  folder = base / 'eval_eval_infer' / '00001000'
  partial = {name for name in files_in(folder) if name.endswith('.partial')}
  assert partial == {'target_error_panel.png.partial'}
  whole = files_in(folder) - partial
  assert whole == {name for name in files_in(finished.folder) if _PREDICTION in name}
  for name in whole:
    assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
  again = setting.run(_DAPI, base=base)
  assert _sizes(again).keys() == _sizes(finished).keys()
  for name in whole | {'target_error_panel.png', 'input_error_panel.png'}:
    assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()


def _kill_before_renaming(number):
  """Before the file of this number, from 1, gets its final name."""
  replace, renamed = pathlib.Path.replace, itertools.count(1)

  def killing_replace(path, target):
    if next(renamed) == number:
      signal.raise_signal(signal.SIGKILL)
    return replace(path, target)

  pytest.MonkeyPatch().setattr(pathlib.Path, 'replace', killing_replace)


@pytest.mark.soak
@pytest.mark.parametrize('files', range(1, 6))
def test_kill_before_each_renaming(setting, finished, tmp_path, files):
  """The files that have their final names by then are whole."""
  base = tmp_path / 'base'
  kill = functools.partial(_kill_before_renaming, files)
  assert finish(ForkedProgram(*setting.flags(base), _DAPI, before=kill)).status == -9
  folder = base / 'eval_eval_infer' / '00001000'
  whole = {name for name in files_in(folder) if not name.endswith('.partial')}
  assert len(whole) == files - 1
  for name in whole:
    if name != 'run.json':
      assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
  again = setting.run(_DAPI, base=base)
  assert files_in(again.folder) == files_in(finished.folder)
