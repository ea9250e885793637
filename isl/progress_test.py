"""Tests of progress.py: a real terminal, and none."""

import logging
import os
import pty
import sys
import termios
import types

import pytest

from isl import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test sets."""
  clock = types.SimpleNamespace(now=0.0)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(progress, 'time', clock)
  return clock


@pytest.fixture
def log(caplog):
  caplog.set_level(logging.INFO, logger='absl')
  return caplog


def test_log_line_every_few_seconds(clock, log):
  with progress.Progress('field 1 of 3', 40, 'block') as bar:
    for second in range(1, 21):
      clock.now = float(second)
      bar.add(2)
  assert log.messages == [
    'field 1 of 3: 10 of 40 blocks done, 00:15 left',
    'field 1 of 3: 20 of 40 blocks done, 00:10 left',
    'field 1 of 3: 30 of 40 blocks done, 00:05 left',
    'field 1 of 3: 40 of 40 blocks done, 00:00 left',
  ]


def test_quick_work_is_worth_one_line(clock, log):
  with progress.Progress('field 3 of 3', 5, 'block') as bar:
    for _ in range(5):
      bar.add(1)
  assert log.messages == ['field 3 of 3: 5 of 5 blocks done, 00:00 left']


@pytest.fixture
def terminal(monkeypatch):
  """A terminal of 100 columns where stderr goes; calling it gives what is on it."""
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(ours, (24, 100))
  with os.fdopen(theirs, 'w') as stream:
    monkeypatch.setattr(sys, 'stderr', stream)

    def shown():
      stream.flush()
      return os.read(ours, 1 << 16).decode()

    yield shown
    monkeypatch.undo()
  os.close(ours)


def test_bar_on_a_terminal(terminal, log):
  with progress.Progress('field 2 of 3', 4, 'block') as bar:
    bar.add(1)
    bar.add(3)
  shown = terminal()
  last = shown.strip().split('\r')[-1]
  assert last.startswith('field 2 of 3: 100%')
  assert '4/4 [00:0' in last
  assert 'block/s' in last or 's/block' in last
  # What follows begins on a line of its own.
  assert shown.endswith('\n')
  assert not log.messages


def test_bar_is_closed_by_an_error(terminal):
  with pytest.raises(ValueError, match='x'), progress.Progress('field', 4, 'block') as bar:
    bar.add(1)
    raise ValueError('x')
  shown = terminal()
  assert '1/4' in shown
  assert shown.endswith('\n')
