"""Tests of watching.py: which checkpoints are taken while a training writes and deletes them."""

from __future__ import annotations

import pytest

from isl.checkpoints import watching
from isl.checkpoints.checkpoint import find_newest
from isl.core.experiment import Evaluation
from isl.programs import random_checkpoint
from tests.support.program import make_fovea_shallow


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  """Checkpoints of few variables."""
  make_fovea_shallow(monkeypatch)


class _Training:
  """Stands in for the clock: lets a training do something while the watcher waits."""

  def __init__(self, monkeypatch, folder, *events):
    monkeypatch.setattr(watching, 'time', self)
    self._folder = folder
    self._events = list(events)
    self.seconds = []

  def sleep(self, seconds):
    self.seconds.append(seconds)
    if not self._events:
      raise KeyboardInterrupt
    self._events.pop(0)(self)

  def nothing(self):
    pass

  def write(self, step):
    random_checkpoint.write_random_checkpoint(
      self._folder, model='FOVEA', base_depth=2, num_z_values=2, global_step=step, seed=step
    )

  def delete(self, step, ending=''):
    for path in self._folder.glob(f'model.ckpt-{step}.{ending}*'):
      path.unlink()

  def watch(self, *, once=False):
    """The steps of the checkpoints that the watcher gives out, until the events are over."""
    evaluation = Evaluation(interval_secs=2, delay_secs=5, once=once, num_examples=1)
    steps = []
    try:
      for checkpoint in watching.new_checkpoints(self._folder, evaluation):
        steps.append(checkpoint.describe().global_step)
    except KeyboardInterrupt:
      pass
    return steps


def _write(step):
  return lambda training: training.write(step)


_nothing = _Training.nothing


def test_each_new_one_is_taken_once(monkeypatch, tmp_path):
  events = (_nothing, _nothing, _write(3), _nothing, _write(8), _nothing)
  training = _Training(monkeypatch, tmp_path / 'train', *events)
  assert training.watch() == [3, 8]
  assert training.seconds == [5, *[2] * 6]


def test_those_overtaken_are_left_out(monkeypatch, tmp_path):
  def both(training):
    training.write(3)
    training.write(8)

  assert _Training(monkeypatch, tmp_path, both).watch() == [8]


def test_once_takes_the_newest_and_ends(monkeypatch, tmp_path):
  training = _Training(monkeypatch, tmp_path, _write(3))
  assert training.watch(once=True) == [3]
  assert training.seconds == [5]


def test_once_without_any_is_an_error(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint'):
    _Training(monkeypatch, tmp_path, _nothing).watch(once=True)


@pytest.mark.parametrize('ending', ['', 'index', 'data'])
def test_one_deleted_between_finding_and_opening(monkeypatch, tmp_path, ending):
  """All of it, or the first of its files so far."""
  training = _Training(monkeypatch, tmp_path, _write(3), _nothing, _write(8))

  def find_and_delete(folder):
    prefix = find_newest(folder)
    if prefix.name == 'model.ckpt-3':
      training.delete(3, ending)
    return prefix

  monkeypatch.setattr(watching, 'find_newest', find_and_delete)
  assert training.watch() == [8]


def test_one_that_is_about_to_be_written(monkeypatch, tmp_path):
  """A checkpoint whose data are there, but not yet its index, is waited for."""
  training = _Training(monkeypatch, tmp_path)
  training.write(3)
  index = tmp_path / 'model.ckpt-3.index'
  contents = index.read_bytes()
  index.unlink()
  training._events = [_nothing, _nothing, lambda _: index.write_bytes(contents)]
  assert training.watch() == [3]


def test_one_that_is_being_evaluated_may_be_deleted(monkeypatch, tmp_path):
  training = _Training(monkeypatch, tmp_path, _write(3))
  evaluation = Evaluation(interval_secs=2, delay_secs=5, once=False, num_examples=1)
  checkpoint = next(watching.new_checkpoints(tmp_path, evaluation))
  training.delete(3)
  assert not list(tmp_path.glob('model*'))
  checkpoint.verify()


def test_one_that_is_damaged_is_an_error(monkeypatch, tmp_path):
  def write_damaged(training):
    training.write(3)
    (path,) = tmp_path.glob('*.data*')
    path.write_bytes(path.read_bytes()[:-100])

  with pytest.raises(ValueError, match='cannot be read'):
    _Training(monkeypatch, tmp_path, write_damaged).watch()
