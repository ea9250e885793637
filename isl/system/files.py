"""Files and folders: written whole, checked before long work, locked; JSON files.

Whatever happens, a final name never stands for half a file or folder: `whole_file` and
`whole_folder` are for all that a run writes, `write_json` and `read_json` for its JSON. `locked`
keeps two programs from writing to one folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

try:
  import fcntl
except ImportError:  # Windows has no locks of folders.
  fcntl = None  # type: ignore[assignment]

_SUFFIX = '.partial'
# In bytes; the longest file name that Linux's, macOS's and Windows's file systems all allow.
_MAX_NAME = 255


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a path to write to, and renames that file to `path` if all went well.

      with whole_file('metrics.csv') as partial:
        partial.write_text(...)

  The file lies beside its final one, as `{path}.partial`: always the same name, so that what a
  killed run left is overwritten by the next. It reaches the disk before it is renamed: some file
  systems find out only then that the disk is full, and after a power cut the rename may outlive the
  contents. That costs milliseconds for the few large files that a run writes.

  Args:
    path: the final name. Its folder is made if it is missing; an older file is replaced.

  Yields:
    The path to write to: an empty file.

  Raises:
    OSError: the file cannot be written (permission, full disk, a name that is too long..); the
      error names `path` or the folder that cannot be made. Then, as after any exception from the
      `with` block, the partial file is removed, and an older file under the final name stays as it
      was.
  """
  final = pathlib.Path(path)
  partial = _partial(final)
  with _naming(final, partial):
    try:
      _create(final, partial)
      yield partial
      with partial.open('r+b') as stream:
        os.fsync(stream.fileno())
      partial.replace(final)
    except BaseException:
      with contextlib.suppress(OSError):
        partial.unlink()
      raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a value as a JSON file, whole or not at all, see `whole_file`.

  Args:
    path: the file's final name.
    value: anything that JSON can express, with finite numbers. Text is escaped to ASCII, since the
      names of fields of view come from names of files, which on Linux may be any bytes.

  Raises:
    OSError: the file cannot be written.
    ValueError: a number is not finite.
    TypeError: the value is of a type that JSON does not have.
  """
  text = json.dumps(value, indent=2, allow_nan=False)
  with whole_file(path) as partial:
    partial.write_text(f'{text}\n', encoding='ascii')


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
  """Reads a JSON file.

  Args:
    path: the file's name.
    remedy: what a user can do about a damaged file, for the error's text: 'delete it, or restore
      it', for example.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is not JSON; the message gives `remedy`.
  """
  data = pathlib.Path(path).read_bytes()
  try:
    return json.loads(data)
  # Brackets by the thousand are JSON, too.
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{str(path)!r} is not JSON; {remedy}: {e}') from e


def check_writable(path: str | os.PathLike[str]) -> None:
  """Finds out whether `whole_file(path)` can begin, before long work whose result would be lost.

  Leaves the folder of `path` (made if it was missing) and nothing else.

  Raises:
    OSError: `path` cannot be written; the error names it, or the folder that cannot be made.
  """
  final = pathlib.Path(path)
  partial = _partial(final)
  with _naming(final, partial):
    _create(final, partial)
    partial.unlink()


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
  """Locks a folder against other processes, until the end of the `with` block or of the process.

  Where there are no locks (on Windows, and on some file systems that are mounted over a network),
  nothing is locked.

  Args:
    folder: an existing folder. Nothing is written to it.
    wait: whether to wait while another process has the folder locked, instead of raising.

  Raises:
    BlockingIOError: another process has the folder locked, and `wait` is false.
    OSError: there is no such folder, or it cannot be read.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    if fcntl is not None:
      _lock(descriptor, folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    yield
  finally:
    os.close(descriptor)


def _lock(descriptor: int, folder: str | os.PathLike[str], operation: int) -> None:
  try:
    fcntl.flock(descriptor, operation)
  except BlockingIOError as error:
    raise BlockingIOError(error.errno, 'another process works there', str(folder)) from error
  except OSError:
    pass


@contextlib.contextmanager
def _naming(final: pathlib.Path, partial: pathlib.Path) -> Iterator[None]:
  """Makes an OSError that names the partial file, or no file, name the final one instead.

  Args:
    final: the file or folder that is to be written.
    partial: the file or folder that is written in its place until it is whole.

  Raises:
    OSError: the error from the `with` block, renamed where necessary.
  """
  try:
    yield
  except OSError as error:
    named = error.filename is not None and pathlib.Path(os.fsdecode(error.filename))
    if error.errno and (not named or named.is_relative_to(partial)):
      raise OSError(error.errno, os.strerror(error.errno), str(final)) from error
    raise


def _partial(final: pathlib.Path) -> pathlib.Path:
  """The temporary name: the final name and a suffix, or a hash where that would be too long."""
  name = final.name + _SUFFIX
  if len(os.fsencode(name)) > _MAX_NAME:
    name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32] + _SUFFIX
  return final.with_name(name)


def _create(final: pathlib.Path, partial: pathlib.Path) -> None:
  """Makes the folder and the empty temporary file; fails where the renaming would in the end."""
  # lstat also finds a final name that is too long, and a parent that is a file.
  with contextlib.suppress(FileNotFoundError):
    final.lstat()
  if final.is_dir():
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
  final.parent.mkdir(parents=True, exist_ok=True)
  partial.write_bytes(b'')


@contextlib.contextmanager
def whole_folder(
  path: str | os.PathLike[str], may_replace: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
  """Gives a new folder to write to, and renames it to `path` if all went well.

  The folder lies beside its final name, as `{path}.partial`: always the same name, so that what a
  killed run left is removed by the next. Its files reach the disk before it is renamed, for the
  reasons that `whole_file` gives.

  A folder cannot be replaced in one step: an older folder of the name is moved aside for a moment.
  Should the program be killed in that moment, the next run puts the older folder back.

  Args:
    path: the folder's final name. The folder around it is made if it is missing.
    may_replace: tells whether a folder that already has this name, and is not empty, may be
      replaced by the new one.

  Yields:
    The path to write to: an empty folder.

  Raises:
    OSError: the folder cannot be written (permission, full disk, a file of that name..); the error
      names `path` or the folder that cannot be made. Then, as after any exception from the `with`
      block, nothing is left, and an older folder of the final name stays as it was.
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
  """Removes what a killed run left, and puts back the older folder that it had moved aside."""
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
  """Removes a folder and all that is in it, or a file or a link; does nothing if there is none."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
