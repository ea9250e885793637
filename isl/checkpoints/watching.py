"""Waits for the checkpoints that a training writes."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

from absl import logging

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.experiment import Evaluation


def new_checkpoints(
  directory: pathlib.Path, evaluation: Evaluation, *, is_base: bool = True
) -> Iterator[Checkpoint]:
  """Opens the newest checkpoint of a folder, and again whenever there is a newer one.

  Unless `evaluation.once`, there may be none at first. A training deletes its older checkpoints, so
  one may be gone before it is read: then the next is taken. One that was yielded can be read all
  the same, since its files are open.

  Args:
    directory: where the training writes.
    evaluation: says when to look.
    is_base: the folder is BASE/train, which a training may still have to make; another one must be
      there.

  Yields:
    Each new checkpoint.

  Raises:
    ValueError: a checkpoint is damaged, or no network's; with `once`, there is none; or the folder
      must be there and isn't.
  """
  time.sleep(evaluation.delay_secs)
  if evaluation.once or not (is_base or directory.is_dir()):
    yield Checkpoint(find_newest(directory))
    return
  done = said = None
  while True:
    newest, reason = _find(directory)
    if newest is not None and newest != done:
      checkpoint = _open(newest)
      if checkpoint is not None:
        done, said = newest, None
        yield checkpoint
    waiting = f'Waiting for a new checkpoint in {directory}{reason}'
    if waiting != said:
      logging.info('%s', waiting)
      said = waiting
    time.sleep(evaluation.interval_secs)


def _find(directory: pathlib.Path) -> tuple[pathlib.Path | None, str]:
  """The newest checkpoint, or why there is none yet: it may just be written, or deleted."""
  try:
    return find_newest(directory), ''
  except (ValueError, FileNotFoundError) as e:
    return None, f': {e}'


def _open(prefix: pathlib.Path) -> Checkpoint | None:
  """Opens all of a checkpoint's files; None if one of them was deleted before."""
  try:
    checkpoint = Checkpoint(prefix)
    # The data files are opened when a value is read.
    checkpoint.verify()
  except ValueError:
    if _is_whole(prefix):
      raise
    logging.info('Checkpoint %s was deleted before it was read', prefix)
    return None
  return checkpoint


def _is_whole(prefix: pathlib.Path) -> bool:
  """Whether the checkpoint has its index and data in its folder."""
  try:
    names = [path.name for path in prefix.parent.iterdir()]
  except FileNotFoundError:
    return False
  return all(
    any(name.startswith(f'{prefix.name}.{part}') for name in names) for part in ('index', 'data-')
  )
