"""Trainings that are stopped, killed, diverge or run out of disk, for real."""

from __future__ import annotations

import contextlib
import mmap
import random
import re
import shutil
import signal
import subprocess

import pytest

from isl import launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.training import train
from isl.training.hooks import CheckpointSaver, ProgressLog
from tests.support.forked import ForkedProgram
from tests.support.program import (
  TrainRun,
  TrainSetting,
  assert_same_values,
  files_in,
  finish,
  make_fovea_shallow,
  make_seconds_pass,
  run_in_process,
  small_disk,
)

_SEED = '--random_seed=5'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield TrainSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def two_steps(setting):
  return setting.run(*setting.network, _SEED, '--number_of_steps=2')


def _start(setting, base, *more):
  return ForkedProgram(*setting.flags(base), *setting.network, _SEED, *more)


def _read_until(process, words):
  """The log up to the line with `words`."""
  lines = []
  for line in process.stderr:
    lines.append(line)
    if words in line:
      return lines
  pytest.fail(f'{words!r} is not in the log: {"".join(lines)}')


def _verified(folder):
  """Reads all of the newest checkpoint, and gives its step."""
  checkpoint = Checkpoint(find_newest(folder))
  checkpoint.verify()
  return checkpoint.describe().global_step


def _partial_files(base):
  return [name for name in files_in(base) if re.search(r'temp|\.tmp|\.partial', name)]


def _saved_steps(log):
  return [int(step) for step in re.findall(r'Saved \S+-(\d+)\n', log)]


def _stop_between_steps(process, base, number):
  """Sends a signal to a training in BASE, which must end well."""
  process.send_signal(number)
  outcome = finish(process)
  assert outcome.status == 0
  assert not outcome.error_lines
  step = _verified(base / 'train')
  assert step >= 1
  assert f'Saved {base / "train" / "model.ckpt"}-{step}\n' in outcome.stderr
  assert f'Stopped by {number.name}\n' in outcome.stderr
  assert not _partial_files(base)
  return outcome


def test_interrupt_between_steps(setting, tmp_path):
  process = _start(setting, tmp_path)
  _read_until(process, 'step 1: ')
  _stop_between_steps(process, tmp_path, signal.SIGINT)


def test_two_trainings_in_one_base_of_which_the_first_is_stopped(setting, tmp_path):
  first = _start(setting, tmp_path)
  _read_until(first, 'step 1: ')
  outcome = run_in_process(launch.run, *setting.flags(tmp_path), *setting.network)
  folder = tmp_path / 'train'
  assert outcome.error == (
    f'isl-launch: another TRAIN is at work in {folder}: stop it first, or give another'
    ' --base_directory'
  )
  outcome = _stop_between_steps(first, tmp_path, signal.SIGTERM)
  assert len(TrainRun(folder, outcome).record['starts']) == 1


def _signalled(setting, base, monkeypatch, place, number, *more, times=1):
  """A training in this process, that signals come to before a function: (owner, its name)."""
  owner, name = place
  wrapped = getattr(owner, name)

  def with_signals(*arguments):
    for _ in range(times):
      signal.raise_signal(number)
    return wrapped(*arguments)

  monkeypatch.setattr(owner, name, with_signals)
  # A shell's background jobs ignore Ctrl-C.
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    outcome = run_in_process(launch.run, *setting.flags(base), *setting.network, _SEED, *more)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, previous)
  return outcome


def _assert_ended_well(outcome):
  assert outcome.status == 0
  assert not outcome.error_lines


_BUILT, _SAVED_FIRST = (train, 'TrainingGraph'), (CheckpointSaver, 'after_create_session')


def test_signal_while_the_graph_is_built(setting, tmp_path, monkeypatch):
  outcome = _signalled(setting, tmp_path, monkeypatch, _BUILT, signal.SIGTERM)
  _assert_ended_well(outcome)
  assert 'Stopped by SIGTERM\n' in outcome.stderr
  assert 'step 1: ' not in outcome.stderr
  # A training that has not begun binds no other to its flags.
  assert not files_in(tmp_path)


def test_signal_before_the_first_step(setting, tmp_path, monkeypatch):
  """What it starts from is saved by then, and can be gone on with."""
  outcome = _signalled(setting, tmp_path, monkeypatch, _SAVED_FIRST, signal.SIGTERM)
  _assert_ended_well(outcome)
  assert 'step 1: ' not in outcome.stderr
  assert _verified(tmp_path / 'train') == 0


def test_signal_while_a_resumed_graph_is_built(setting, two_steps, tmp_path, monkeypatch):
  base = shutil.copytree(two_steps.folder.parent, tmp_path / 'base')
  before = {name: (base / name).read_bytes() for name in files_in(base)}
  _assert_ended_well(_signalled(setting, base, monkeypatch, _BUILT, signal.SIGINT))
  assert {name: (base / name).read_bytes() for name in files_in(base)} == before


@pytest.mark.parametrize('place', [_BUILT, (CheckpointSaver, 'end')], ids=lambda place: place[1])
def test_second_interrupt_stops_at_once(setting, tmp_path, monkeypatch, place):
  flags = '--number_of_steps=2'
  outcome = _signalled(setting, tmp_path, monkeypatch, place, signal.SIGINT, flags, times=2)
  assert (outcome.status, outcome.error_lines) == (130, ['isl-launch: stopped'])


def test_killed_training_goes_on_as_if_nothing_had_been(setting, tmp_path):
  base = tmp_path / 'base'
  process = _start(setting, base, '--save_interval_secs=1')
  _read_until(process, 'model.ckpt-0\n')
  saved = _saved_steps(''.join(_read_until(process, 'Saved ')))
  process.kill()
  finish(process)
  newest = _verified(base / 'train')
  assert newest >= saved[-1] >= 1
  last = f'--number_of_steps={newest + 2}'
  resumed = setting.run(*setting.network, _SEED, last, base=base)
  assert f'Resuming from {base / "train" / "model.ckpt"}-{newest}, ' in resumed.outcome.stderr
  straight = setting.run(*setting.network, _SEED, last)
  assert_same_values(resumed.values(newest + 2), straight.values(newest + 2))


def _whole_steps(folder):
  """The steps of all checkpoints that can be read."""
  for index in folder.glob('model.ckpt-*.index'):
    with contextlib.suppress(ValueError):
      checkpoint = Checkpoint(index.with_suffix(''))
      checkpoint.verify()
      yield checkpoint.describe().global_step


def _kill_while_it_saves(process, folder):
  while process.poll() is None:
    if any(folder.glob('*tempstate*')):
      process.kill()


def _kill_after(process, seconds):
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(seconds)
  process.kill()


@pytest.mark.soak
def test_kills_at_twenty_moments(setting, tmp_path):
  """No step is lost but those since the last checkpoint, and what is there can be read."""
  rng = random.Random(0)
  folder = tmp_path / 'train'
  newest = 0
  for moment in range(20):
    process = _start(setting, tmp_path, '--save_interval_secs=1')
    lines = _read_until(process, 'step ' if moment else 'Saved ')
    assert moment == 0 or f'Resuming from {folder / "model.ckpt"}-{newest}, step ' in ''.join(lines)
    if moment % 2:
      _kill_while_it_saves(process, folder)
    else:
      _kill_after(process, rng.uniform(0, 5))
    saved = _saved_steps(''.join(lines) + finish(process).stderr)
    # Whether or not the state file could be written before the kill.
    before, newest = newest, max(_whole_steps(folder))
    # One may have been saved before the log could say so.
    assert newest >= max([before, *saved])
  # On a machine that is busy with other things, too.
  assert newest > 5


def test_training_that_diverges(setting, tmp_path):
  flags = [*setting.flags(tmp_path), *setting.network, _SEED, '--learning_rate=1e30']
  outcome = run_in_process(launch.run, *flags, '--number_of_steps=9')
  assert outcome.status == 1
  assert re.search(
    r'the loss of 0.0/TRANSMISSION, .* is not finite at step 2; the newest .* is from before; a',
    outcome.error,
  )
  assert _verified(tmp_path / 'train') == 0


@pytest.mark.filterwarnings('ignore:overflow')
def test_training_whose_last_step_overflows(setting, tmp_path):
  """The loss is of the weights before, and finite."""
  flags = [*setting.flags(tmp_path), *setting.network, _SEED, '--learning_rate=1e39']
  outcome = run_in_process(launch.run, *flags, '--number_of_steps=1')
  assert 'a weight is not finite after step 1; the newest checkpoint is from befo' in outcome.error
  assert _verified(tmp_path / 'train') == 0


@pytest.mark.parametrize('more', [(), ('--tensorcheck_enable_checks',)])
def test_training_whose_last_step_ruins_the_weights(setting, tmp_path, more):
  """They are finite, too, but nothing that they predict is."""
  flags = [*setting.flags(tmp_path), *setting.network, _SEED, '--learning_rate=1e30', *more]
  outcome = run_in_process(launch.run, *flags, '--number_of_steps=1')
  found = 'a check failed: logits' if more else ' others is not finite at step 2; '
  assert found in outcome.error
  assert _verified(tmp_path / 'train') == 0


def test_training_that_diverges_with_checks(setting, tmp_path):
  flags = [*setting.flags(tmp_path), *setting.network, _SEED, '--learning_rate=1e30']
  outcome = run_in_process(launch.run, *flags, '--number_of_steps=9', '--tensorcheck_enable_checks')
  assert 'logits' in outcome.error
  assert _verified(tmp_path / 'train') == 0


def _size_of_checkpoint(run):
  return (run.folder / 'model.ckpt-2.data-00000-of-00001').stat().st_size


@pytest.fixture
def seconds_pass(monkeypatch):
  make_seconds_pass(monkeypatch)


def _complaints(outcome):
  return [line for line in outcome.error_lines if re.match(r'E\d{4} .* could not be saved', line)]


@pytest.mark.usefixtures('seconds_pass')
def test_training_goes_on_when_the_disk_is_full(setting, two_steps, tmp_path):
  base = shutil.copytree(two_steps.folder.parent, tmp_path / 'base')
  before = files_in(base)
  flags = [*setting.flags(base), *setting.network, _SEED, '--save_interval_secs=1']
  with small_disk(_size_of_checkpoint(two_steps) - 1):
    outcome = run_in_process(launch.run, *flags, '--number_of_steps=52')
  assert outcome.status == 1
  *complaints, error = outcome.error_lines
  # Each step takes at least two seconds, and not many more.
  assert 2 <= len(complaints) < 6
  assert complaints == _complaints(outcome)
  assert 'training goes on without' in complaints[0]
  assert 'the last checkpoint, of step 52, could not be saved: ' in error
  assert 'step 50: loss' in outcome.stderr or 'step 51: loss' in outcome.stderr
  assert _verified(base / 'train') == 2
  events = {name for name in files_in(base) - before if 'tfevents' in name}
  assert files_in(base) == before | events
  assert_same_values(two_steps.values(2), TrainRun(base / 'train', outcome).values(2))


@pytest.mark.usefixtures('seconds_pass')
def test_saving_is_tried_again_until_there_is_room(setting, two_steps, tmp_path, monkeypatch):
  with small_disk(_size_of_checkpoint(two_steps) - 1) as make_room:
    after_run = ProgressLog.after_run

    def making_room(hook, context, values):
      after_run(hook, context, values)
      if values.results[0] == 6:
        make_room()

    monkeypatch.setattr(ProgressLog, 'after_run', making_room)
    flags = [*setting.flags(tmp_path), *setting.network, _SEED, '--save_interval_secs=1']
    outcome = run_in_process(launch.run, *flags, '--number_of_steps=9')
  assert outcome.status == 0
  assert outcome.error_lines == _complaints(outcome)
  assert len(outcome.error_lines) == 1
  assert _saved_steps(outcome.stderr) == [6, 7, 8, 9]
  assert TrainRun(tmp_path / 'train', outcome).steps == [6, 7, 8, 9]
  assert not _partial_files(tmp_path)


@pytest.mark.soak
@pytest.mark.usefixtures('seconds_pass')
@pytest.mark.parametrize('pages', range(6))
def test_disk_that_is_full(setting, two_steps, tmp_path, pages):
  """A file system with room for three checkpoints and some pages more, where others are kept."""
  size = sum(path.stat().st_size for path in two_steps.folder.glob('model.ckpt-2.*'))
  room = 3 * size + sum(path.stat().st_size for path in two_steps.folder.glob('events*'))
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={room + pages * mmap.PAGESIZE}', 'none', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('no right to mount a file system')
  try:
    flags = [*setting.flags(disk), *setting.network, _SEED, '--save_interval_secs=1']
    outcome = run_in_process(launch.run, *flags, '--number_of_steps=12')
    assert outcome.status == 1
    assert 'No space left on device' in outcome.error_lines[-1]
    assert 'the last checkpoint, of step 12, could not be saved' in outcome.error_lines[-1]
    assert _verified(disk / 'train') >= 1
    assert not _partial_files(disk)
    for step in (run := TrainRun(disk / 'train', outcome)).steps:
      run.values(step)
  finally:
    subprocess.run(['umount', str(disk)], check=True)
