"""Folders are written whole, like files: a final name never holds half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def whole_folder(
  path: str | os.PathLike[str], may_replace: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
  """Gives a folder to write to, and renames it to `path` if all went well.

  It lies beside its final name, as `{path}.partial`: always the same name, so that what a killed
  run left is removed by the next. Its files reach the disk before it is renamed, for the reasons
  that `files.whole_file` gives.

  A folder cannot be replaced in one step: the older one is moved aside for a moment. Should the
  program be killed in that moment, the next run puts it back.

  Args:
    path: the final name. The folder around it is made if it is missing.
    may_replace: says of a folder that has this name already, and is not empty, whether it may be
      replaced by the new one.

  Yields:
    The path to write to: an empty folder.

  Raises:
    OSError: it cannot be written (permission, full disk, a file of that name..), naming `path` or
      the folder that cannot be made. Then, as after any exception from the `with` block, nothing is
      left, and an older folder of the final name stays as it was.
    ValueError: the older folder may not be replaced.
  """
  final = pathlib.Path(path)
  partial = final.with_name(f'{final.name}.partial')
  aside = final.with_name(f'{final.name}.older.partial')
  with _naming(final, partial):
    _check(final, may_replace)
    final.parent.mkdir(parents=True, exist_ok=True)
    _tidy(final, partial, aside)
    try:
      partial.mkdir()
      yield partial
      _flush(partial)
      _replace(final, partial, aside)
    except BaseException:
      with contextlib.suppress(OSError):
        _remove(partial)
      raise


@contextlib.contextmanager
def _naming(final: pathlib.Path, partial: pathlib.Path) -> Iterator[None]:
  """Lets errors from the temporary folder, and those that name no file, name the final one."""
  try:
    yield
  except OSError as error:
    named = error.filename is not None and pathlib.Path(os.fsdecode(error.filename))
    if error.errno and (not named or named.is_relative_to(partial)):
      raise OSError(error.errno, os.strerror(error.errno), str(final)) from error
    raise


def _check(final: pathlib.Path, may_replace: Callable[[pathlib.Path], bool]) -> None:
  # lstat also finds a name that is too long, and a parent that is a file.
  with contextlib.suppress(FileNotFoundError):
    final.lstat()
  if not final.exists():
    return
  if not final.is_dir():
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
  if any(final.iterdir()) and not may_replace(final):
    raise ValueError(
      f'{str(final)!r} is a folder of something else, which will not be replaced; expected a new'
      ' name, an empty folder, or one that was written here before'
    )


def _tidy(final: pathlib.Path, partial: pathlib.Path, aside: pathlib.Path) -> None:
  """Removes what a killed run left, and puts back what it had moved aside."""
  _remove(partial)
  if aside.exists() and not final.exists():
    aside.rename(final)
  _remove(aside)


def _replace(final: pathlib.Path, partial: pathlib.Path, aside: pathlib.Path) -> None:
  if not os.path.lexists(final):
    partial.rename(final)
    return
  final.rename(aside)
  try:
    partial.rename(final)
  except BaseException:
    aside.rename(final)
    raise
  # The new one is in its place: what is left of the older is the next run's to remove.
  with contextlib.suppress(OSError):
    _remove(aside)


def _flush(folder: pathlib.Path) -> None:
  """Waits until all files of a folder are on the disk."""
  for parent, _, names in os.walk(folder):
    for name in names:
      with pathlib.Path(parent, name).open('r+b') as stream:
        os.fsync(stream.fileno())


def _remove(path: pathlib.Path) -> None:
  """Removes a folder and all that is in it, a file or a link, if there is any."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
