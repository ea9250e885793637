"""Waits for the checkpoints that a training writes, for evaluation beside it."""

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

  Unless `evaluation.once`, there may be no checkpoint at first. A training deletes its older
  checkpoints, so one may be gone before it is opened: then the next is taken. A checkpoint that was
  yielded can still be read after it was deleted, since its files are open.

  Args:
    directory: the folder that the training writes checkpoints to.
    evaluation: when to look for checkpoints.
    is_base: whether the folder is BASE/train, which a training may still have to make; another
      folder must be there.

  Yields:
    Each new checkpoint.

  Raises:
    ValueError: a checkpoint is damaged, or isl does not know its network; there is no checkpoint
      with `once`; or the folder must be there and is not.
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
  """Finds the newest checkpoint's prefix, or gives None and the reason, for a log line.

  A training may just be writing or deleting it.
  """
  try:
    return find_newest(directory), ''
  except (ValueError, FileNotFoundError) as e:
    return None, f': {e}'


def _open(prefix: pathlib.Path) -> Checkpoint | None:
  """Opens all files of a checkpoint; None if one of them was deleted before that.

  Raises:
    ValueError: the checkpoint is damaged, or isl does not know its network.
  """
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
  """Whether a checkpoint's index and data files are in its folder."""
  try:
    names = [path.name for path in prefix.parent.iterdir()]
  except FileNotFoundError:
    return False
  return all(
    any(name.startswith(f'{prefix.name}.{part}') for name in names) for part in ('index', 'data-')
  )
