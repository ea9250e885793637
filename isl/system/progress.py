"""Shows how far a long run is: a bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import time

import tqdm
from absl import logging

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
  """Counts and shows how many of a known number of things are done, as a context manager."""

  def __init__(self, title: str | None, total: int, unit: str):
    """Shows that nothing is done yet, and starts the clock for the remaining time.

    Args:
      title: text that says what is being done; None: nothing is shown.
      total: number of things to do.
      unit: name of one of these things, in the singular: 'block', for example.
    """
    self._title = title
    self._total = total
    self._unit = unit
    self._done = 0
    self._start = self._said = time.monotonic()
    # None: shown on a terminal only.
    self._bar = tqdm.tqdm(
      desc=title, total=total, unit=unit, disable=None if title else True, dynamic_ncols=True
    )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception: object) -> None:
    self._bar.close()

  @property
  def done(self) -> int:
    """The number of things that are done."""
    return self._done

  def add(self, done: int) -> None:
    """Counts `done` more things as done, and shows or logs it when that is due."""
    self._done += done
    self._bar.update(done)
    now = time.monotonic()
    if (
      self._title
      and self._bar.disable
      and (now - self._said >= _SECONDS_BETWEEN_LINES or self._done == self._total)
    ):
      self._said = now
      elapsed = now - self._start
      left = tqdm.tqdm.format_interval(elapsed / self._done * (self._total - self._done))
      logging.info(
        '%s: %d of %d %ss done, %s left', self._title, self._done, self._total, self._unit, left
      )
