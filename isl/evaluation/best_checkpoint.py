"""Keeps a copy of the checkpoint with the lowest loss so far, which the training would delete.

The copy's folder has one checkpoint like any other (`checkpoint.find_newest` finds it),
channels.json if there is one beside the original, and `{prefix}.json`, the record of its loss. The
state file `checkpoint` is replaced last: until then the older copy counts, from then on the newer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from absl import logging

from isl.checkpoints import channels_file, saving
from isl.checkpoints.checkpoint import CHECKPOINT_NAME, find_newest
from isl.system import files

# The files of checkpoints that this module writes, and what a killed run left of them.
_OURS = re.compile(r'(?P<name>model(-again)?\.ckpt-\d+)\.(index|json|data-[-\w]+)(\.partial)?')


@contextlib.contextmanager
def opened(prefix: pathlib.Path) -> Iterator[dict[str, BinaryIO] | None]:
  """Opens a checkpoint's files, so that they can be copied even if they are deleted meanwhile.

  Args:
    prefix: the checkpoint's prefix.

  Yields:
    The files by their ending, .index last; None if one of them is deleted already.
  """
  with contextlib.ExitStack() as stack:
    opened_files: dict[str, BinaryIO] | None = None
    with contextlib.suppress(FileNotFoundError):
      names = sorted(path.name for path in prefix.parent.iterdir())
      endings = [n.removeprefix(prefix.name) for n in names if n.startswith(f'{prefix.name}.data-')]
      opened_files = {
        ending: stack.enter_context(prefix.with_name(prefix.name + ending).open('rb'))
        for ending in (*endings, '.index')
      }
    yield opened_files if opened_files and len(opened_files) > 1 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """The record of the best checkpoint, beside its copy.

  Attributes:
    global_step: the checkpoint's number of training steps.
    total_loss: the checkpoint's total loss.
    source: the prefix of the original.
    settings: what the loss was computed of, by flags' names; losses with other settings cannot be
      compared with it.
    flags: flags of the evaluation's command line, by name.
  """

  global_step: int
  total_loss: float
  source: str
  settings: Mapping[str, Any]
  flags: Mapping[str, Any]


def _as_flag(value: Any) -> str:
  return ','.join(value) if isinstance(value, list) else str(value)


class BestCheckpoint:
  """The folder of the best checkpoint."""

  def __init__(self, directory: pathlib.Path, flags: Mapping[str, Any]):
    """Takes the folder's path; reads and writes nothing yet.

    Args:
      directory: the folder; made when there is something to keep.
      flags: flags of the command line, by name, in values that JSON has; for the record.
    """
    self._directory = directory
    self._flags = flags

  def _read(self) -> Record | None:
    try:
      prefix = find_newest(self._directory)
      return Record(**files.read_json(prefix.with_name(f'{prefix.name}.json'), 'delete it'))
    except (ValueError, TypeError, OSError):
      return None

  def offer(
    self,
    source: pathlib.Path,
    contents: Mapping[str, BinaryIO],
    step: int,
    loss: float,
    settings: Mapping[str, Any],
  ) -> bool:
    """Copies a checkpoint if its loss is lower than that of the best so far.

    Args:
      source: the checkpoint's prefix, for the record.
      contents: the checkpoint's files, see `opened`.
      step: the checkpoint's global step.
      loss: the checkpoint's total loss; a loss that is not finite is never the lowest.
      settings: what the loss was computed of, by flags' names, in values that JSON has. If the best
        checkpoint has others, it stays, with a warning: the losses cannot be compared.

    Returns:
      Whether the checkpoint was copied.

    Raises:
      OSError: the copy cannot be written. The best checkpoint before it is still there.
      ValueError: channels.json beside the checkpoint is damaged.
    """
    if not math.isfinite(loss):
      return False
    record = Record(
      global_step=step,
      total_loss=loss,
      source=str(source.absolute()),
      settings=settings,
      flags=self._flags,
    )
    self._directory.mkdir(parents=True, exist_ok=True)
    # Another evaluation may be at work in this BASE.
    with files.locked(self._directory, wait=True):
      best = self._read()
      if best is not None and best.settings != settings:
        self._warn(best.settings, settings)
        return False
      if best is not None and loss >= best.total_loss:
        return False
      self._take(contents, record)
    return True

  def _warn(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    names = dict.fromkeys((*settings, *found))
    differing = [name for name in names if found.get(name) != settings.get(name)]
    was, now = (
      ' '.join(f'--{name}={_as_flag(given.get(name))}' for name in differing)
      for given in (found, settings)
    )
    logging.warning(
      '%s keeps the best checkpoint by %s, and stays: losses by %s cannot be compared with its.'
      ' Where those are wanted, move it away, or use another --base_directory',
      self._directory,
      was,
      now,
    )

  def _take(self, contents: Mapping[str, BinaryIO], record: Record) -> None:
    name = f'{CHECKPOINT_NAME}-{record.global_step}'
    # The older copy must not be overwritten before the newer one is whole.
    if self._directory / f'{name}.index' == self._index_in_use():
      name = f'model-again.ckpt-{record.global_step}'
    for ending, stream in contents.items():
      if ending == '.index':
        # What is said of the checkpoint is written before the checkpoint is whole. The older copy
        # has the same channels, since they are among the settings.
        channels_file.carry(pathlib.Path(record.source).parent, self._directory)
        files.write_json(self._directory / f'{name}.json', dataclasses.asdict(record))
      with files.whole_file(self._directory / f'{name}{ending}') as partial:
        stream.seek(0)
        with partial.open('wb') as copy:
          shutil.copyfileobj(stream, copy, 1 << 20)
    saving.write_state(self._directory, name)
    self._delete_all_but(name)

  def _index_in_use(self) -> pathlib.Path | None:
    try:
      prefix = find_newest(self._directory)
    except ValueError:
      return None
    return prefix.with_name(f'{prefix.name}.index')

  def _delete_all_but(self, name: str) -> None:
    for path in self._directory.iterdir():
      ours = _OURS.fullmatch(path.name)
      if ours and ours['name'] != name:
        path.unlink()
