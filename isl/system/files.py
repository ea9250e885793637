"""Files are written whole: a final name never holds half a file, whatever stops the program.

And folders can be held, so that no two programs write to one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Iterator

try:
  import fcntl
except ImportError:  # Windows has no locks of folders.
  fcntl = None  # type: ignore[assignment]

_SUFFIX = '.partial'
# In bytes; what Linux's, macOS's and Windows's file systems have in common.
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
    OSError: it cannot be written (permission, full disk, a name that is too long..), naming `path`
      or the folder that cannot be made. Then, as after any exception from the `with` block, neither
      file is left, and an older file under the final name stays as it was.
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


def check_writable(path: str | os.PathLike[str]) -> None:
  """Finds out whether `whole_file(path)` can begin, before long work whose result would be lost.

  Leaves the folder of `path` (made if it was missing) and nothing else.

  Raises:
    OSError: `path` cannot be written; it is named, or the folder that cannot be made.
  """
  final = pathlib.Path(path)
  partial = _partial(final)
  with _naming(final, partial):
    _create(final, partial)
    partial.unlink()


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
  """Holds a folder against others that would, until the end of the `with` block or of the process.

  Where the file system has no locks (some that are mounted over a network), it does nothing.

  Args:
    folder: one that exists. Nothing is written to it.
    wait: until no other process holds it.

  Raises:
    BlockingIOError: another process holds it, and this should not wait.
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
  """Lets errors of the temporary file, and those that name none, name the final one."""
  try:
    yield
  except OSError as error:
    if error.errno and (error.filename is None or str(error.filename) == str(partial)):
      raise OSError(error.errno, os.strerror(error.errno), str(final)) from error
    raise


def _partial(final: pathlib.Path) -> pathlib.Path:
  """The temporary name: the final one with a suffix, unless only the suffix makes it too long."""
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
