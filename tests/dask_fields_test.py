"""INFER_FULL on Dask's workers: real schedulers, workers and kills, on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from isl import launch
from isl.data import shard_writing
from isl.images import finding, png_folders
from tests.support.forked import ForkedProgram
from tests.support.microscope import write_ome_tiff, write_ome_zarr
from tests.support.program import (
  InferRun,
  InferSetting,
  Outcome,
  files_in,
  finish,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

# Loaded by all of Dask's workers, which are started from here.
_PRELOAD = {'DASK_DISTRIBUTED__WORKER__PRELOAD': 'tests.support.shallow'}
_LABEL = 'DAPI_CONFOCAL'
_WELLS = [f'A{number}' for number in range(1, 5)]
# What of a record is of when it was made.
_TIMES = ('seconds', 'started', 'flags')


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def plate(setting):
  folder = setting.new_folder()
  size = {'rows': setting.rows, 'columns': setting.columns}
  write_field(folder, **size, depths=3, wells=_WELLS, channels=[_LABEL])
  return folder


def _process(flags, **environment):
  """A run that labels one label: each would be scored and drawn in each field of view."""
  flags = [*flags, f'--infer_channel_whitelist={_LABEL}']
  return ForkedProgram(*flags, environment=_PRELOAD | environment)


def _contents(folder):
  """The contents of all files in a folder, by name, without times."""

  def without_times(value):
    if isinstance(value, dict):
      return {k: without_times(v) for k, v in value.items() if k not in _TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value

  result = {}
  for name in files_in(folder):
    data = (folder / name).read_bytes()
    if name == 'report.html':
      # It has the flags, and when it was made.
      continue
    result[name] = without_times(json.loads(data)) if name.endswith('.json') else data
  return result


class TestLocalProcesses:
  """Two processes of one thread beside one of one thread; one of the two is killed."""

  @pytest.fixture(scope='class')
  def here(self, setting, plate):
    base = setting.new_folder()
    flags = [*setting.flags(base, plate), '--infer_panels=TARGET']
    outcome = finish(_process(flags, TF_NUM_INTRAOP_THREADS='1'))
    assert outcome.status == 0, outcome.stderr
    return InferRun(base / 'eval_eval_infer' / '00001000', outcome)

  @pytest.fixture(scope='class')
  def spread(self, setting, plate):
    base = setting.new_folder()
    flags = [*setting.flags(base, plate), '--infer_panels=TARGET', '--dask_workers=2']
    # As many threads each as there are cores for two: one, where there are two.
    process = _process(flags)
    killed = None
    lines = []
    for line in process.stderr:
      lines.append(line)
      if killed is None and 'Field ' in line:
        # The one that has labeled none yet, or the other: both have begun some.
        killed = _workers_of(process.pid)[0]
        os.kill(killed, signal.SIGKILL)
    assert killed is not None, ''.join(lines)
    outcome = Outcome(status=process.wait(), stdout='', stderr=''.join(lines))
    assert outcome.status == 0, outcome.stderr
    return InferRun(base / 'eval_eval_infer' / '00001000', outcome)

  def test_nothing_is_missing(self, spread):
    assert [
      field['field'].count(f'well-{well},')
      for field, well in zip(spread.record['fields'], _WELLS, strict=True)
    ] == [1] * len(_WELLS)
    assert not spread.record['failures']
    assert (spread.folder / 'report.html').is_file()

  def test_is_told(self, spread):
    log = spread.outcome.stderr
    assert not spread.outcome.error_lines
    assert re.search(r'Lost tcp://\S+; what they had begun, others do', log)
    assert len(re.findall(r'Field \d of 4: \S+, by tcp://', log)) == len(_WELLS)
    assert "Pearson's r" in log and '4 of 4 fields done' in log

  @pytest.mark.skipif(
    len(os.sched_getaffinity(0)) // 2 != 1, reason='the processes have more threads here'
  )
  def test_same_files_to_the_byte(self, here, spread):
    assert _contents(spread.folder) == _contents(here.folder)


def _workers_of(pid):
  """The processes that a program has started to label fields of view."""
  children = [
    int(path.parent.name)
    for path in pathlib.Path('/proc').glob('[0-9]*/stat')
    if _parent(path) == pid and b'spawn_main' in (path.parent / 'cmdline').read_bytes()
  ]
  assert children
  return children


def _parent(stat):
  with contextlib.suppress(OSError):
    return int(stat.read_text().rpartition(')')[2].split()[1])
  return None


class _Cluster:
  """A scheduler and its workers, started by hand.

  Attributes:
    address: address of the scheduler.
    scheduler: process of the scheduler.
    workers: processes of the workers.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    file = folder / 'scheduler.json'
    self.workers: list[subprocess.Popen[bytes]] = []
    self.scheduler = self._start(
      'distributed.cli.dask_scheduler',
      '--host=127.0.0.1',
      '--port=0',
      '--no-dashboard',
      f'--scheduler-file={file}',
      '--no-show',
    )
    deadline = time.monotonic() + 60
    self.address = ''
    while not self.address and time.monotonic() < deadline:
      os.sched_yield()
      # It is there before it is written.
      with contextlib.suppress(OSError, ValueError):
        self.address = json.loads(file.read_text())['address']

  def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
      [sys.executable, '-m', module, *arguments],
      cwd=self._folder,
      stderr=subprocess.DEVNULL,
      env={**os.environ, **_PRELOAD, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )

  def start_worker(self) -> None:
    flags = ('--nthreads=1', '--no-dashboard', '--no-nanny')
    self.workers.append(self._start('distributed.cli.dask_worker', self.address, *flags))

  def kill_all(self) -> None:
    for process in (*self.workers, self.scheduler):
      process.kill()
      process.wait()


def _run_on(cluster, flags, base, reactions):
  """Runs the program in `base`, and does something once it says certain words."""
  with contextlib.chdir(base):
    process = _process([*flags, f'--dask_scheduler={cluster.address}'])
  waiting = dict(reactions)
  lines = []
  for line in process.stderr:
    lines.append(line)
    for words in [words for words in waiting if words in line]:
      waiting.pop(words)()
  assert not waiting, ''.join(lines)
  outcome = finish(process)
  return dataclasses.replace(outcome, stderr=''.join(lines))


class TestScheduler:
  """Two runs with a scheduler and a worker; at the end of the second, both are killed."""

  @pytest.fixture(scope='class')
  def cluster(self, tmp_path_factory):
    made = _Cluster(tmp_path_factory.mktemp('cluster'))
    yield made
    made.kill_all()

  @pytest.fixture(scope='class')
  def first(self, setting, cluster):
    """Microscopes' files, which each worker opens itself."""
    folder, base = setting.new_folder(), setting.new_folder()
    (field,) = png_folders.find_png_fields(setting.images)
    write_ome_tiff(folder / 'a.ome.tif', field)
    write_ome_zarr(folder / 'b.ome.zarr', field, chunk=64)
    # Relative paths are those of who asks.
    flags = [f for f in setting.flags(base, folder) if not f.startswith('--base')]
    outcome = _run_on(
      cluster,
      [*flags, '--base_directory=out'],
      base,
      {'Waiting for a worker of the Dask scheduler': cluster.start_worker},
    )
    assert outcome.status == 0, outcome.stderr
    return InferRun(base / 'out' / 'eval_eval_infer' / '00001000', outcome)

  def test_waits_for_workers_and_labels_with_them(self, first):
    assert len(first.record['fields']) == 2

  @pytest.mark.usefixtures('first')
  def test_shards_by_relative_names_until_all_are_lost(self, setting, plate, cluster):
    """First the only worker, then, while another is waited for, the scheduler."""
    base = setting.new_folder()
    shard_writing.write_shards(
      finding.find_all([plate]), str(base / 's-%d'), 1, shard_writing.Cut(overlap=0)
    )
    flags = [f for f in setting.flags(base, plate) if 'pngs' not in f and 'dataset' not in f]
    outcome = _run_on(
      cluster,
      [*flags, '--dataset_pattern=s-%d', '--dataset_num_shards=1'],
      base,
      {
        'Field 1 of 4': lambda: cluster.workers[0].kill(),
        'Lost tcp://': cluster.scheduler.kill,
      },
    )
    assert outcome.status == 1
    assert 'Waiting for a worker of the Dask scheduler' in outcome.stderr
    assert 'the connection to the Dask scheduler was lost' in outcome.error
    assert len(list((base / 'eval_eval_infer').glob('*/*/field.json'))) >= 1


def _error(setting, *flags):
  return run_in_process(launch.run, *setting.flags(setting.new_folder()), *flags).error


def test_bad_input(setting):
  message = _error(setting, '--dask_scheduler=tcp://127.0.0.1:1')
  assert "--dask_scheduler 'tcp://127.0.0.1:1' cannot be reached" in message
  message = _error(setting, '--dask_scheduler=nowhere://x')
  assert "--dask_scheduler 'nowhere://x' cannot be reached" in message
  assert 'exclude each other' in _error(setting, '--dask_scheduler=tcp://x:1', '--dask_workers=2')


def test_without_dask(setting, monkeypatch):
  monkeypatch.setitem(sys.modules, 'distributed', None)
  assert "pip install 'isl[dask]'" in _error(setting, '--dask_workers=2')


def test_ctrl_c(setting, plate):
  """Ends the processes, too, and what is done is not lost."""
  base = setting.new_folder()
  process = _process([*setting.flags(base, plate), '--dask_workers=1'])
  workers = []
  for line in process.stderr:
    if 'Field 1 of 4' in line:
      workers = _workers_of(process.pid)
      process.send_signal(signal.SIGINT)
      break
  outcome = finish(process)
  assert outcome.status == 130 and 'Traceback' not in outcome.stderr, outcome.stderr
  assert workers and not any(pathlib.Path(f'/proc/{worker}').exists() for worker in workers)
  assert list((base / 'eval_eval_infer' / '00001000').glob('*/field.json'))
