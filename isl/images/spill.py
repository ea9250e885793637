"""Decoded images that are kept on the disk, since together they would take too much memory."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from typing import Any

import numpy as np


class Spill:
  """A temporary file of images, which is gone when nobody needs any of them."""

  def __init__(self) -> None:
    """Makes the file, where the system has its temporary ones (TMPDIR).

    Raises:
      OSError: it cannot be made.
    """
    # It has no name from the beginning, or is deleted when it is closed: a kill leaves nothing.
    self._stream = tempfile.TemporaryFile(prefix='isl-')  # noqa: SIM115
    weakref.finalize(self, self._stream.close)
    self._end = 0
    self._lock = threading.Lock()

  def add(self, image: np.ndarray) -> SpilledPixels:
    """Writes an image, [row, column].

    Raises:
      OSError: it cannot be written.
    """
    data = np.ascontiguousarray(image).data
    with self._lock:
      offset, self._end = self._end, self._end + data.nbytes
      self._stream.seek(offset)
      self._stream.write(data)
      self._stream.flush()
    rows, columns = image.shape
    return SpilledPixels(self, offset, (rows, columns), image.dtype)

  def read(self, size: int, offset: int) -> bytes:
    """Bytes of the file; several threads may do so at once."""
    return os.pread(self._stream.fileno(), size, offset)


class SpilledPixels:
  """An image that is read from a Spill when it is sliced.

  Attributes:
    shape: (rows, columns).
    dtype: of its pixels.
  """

  def __init__(self, spill: Spill, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]):
    """Reads nothing yet."""
    self._spill = spill
    self._offset = offset
    self.shape = shape
    self.dtype = dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    """The pixels of a window, without steps."""
    rows, columns = window
    first, stop, step = rows.indices(self.shape[0])
    assert step == 1, rows
    count = max(stop - first, 0)
    in_row = self.shape[1] * self.dtype.itemsize
    data = self._spill.read(count * in_row, self._offset + first * in_row)
    return np.frombuffer(data, self.dtype).reshape(count, self.shape[1])[:, columns]
