"""Tests of progress.py: a real terminal, and none."""

import contextlib
import logging
import os
import pty
import sys
import termios
import types
from unittest import mock

import pytest

from isl.system import progress


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


class _Terminal:
  """A terminal of 100 columns, where stderr goes within the `with` block."""

  def __init__(self):
    self._ours, theirs = pty.openpty()
    termios.tcsetwinsize(self._ours, (24, 100))
    self._stream = os.fdopen(theirs, 'w')
    self.shown = ''

  def __enter__(self):
    self._patch = mock.patch.object(sys, 'stderr', self._stream)
    self._patch.start()
    return self

  def __exit__(self, *_):
    self._patch.stop()
    self._stream.close()
    shown = b''
    # What was written arrives in pieces; after the last, Linux has an error and others nothing.
    with contextlib.suppress(OSError):
      while piece := os.read(self._ours, 1 << 16):
        shown += piece
    self.shown = shown.decode()
    os.close(self._ours)


def test_bar_on_a_terminal(log):
  with _Terminal() as terminal, progress.Progress('field 2 of 3', 4, 'block') as bar:
    bar.add(1)
    bar.add(3)
  last = terminal.shown.strip().split('\r')[-1]
  assert last.startswith('field 2 of 3: 100%')
  assert '4/4 [00:0' in last
  assert 'block/s' in last or 's/block' in last
  # What follows begins on a line of its own.
  assert terminal.shown.endswith('\n')
  assert not log.messages


def test_bar_is_closed_by_an_error():
  terminal = _Terminal()
  with (
    pytest.raises(ValueError, match='x'),
    terminal,
    progress.Progress('field', 4, 'block') as bar,
  ):
    bar.add(1)
    raise ValueError('x')
  assert '1/4' in terminal.shown
  assert terminal.shown.endswith('\n')
