"""Pixels of images that may be larger than the memory: read in parts, kept on the disk, counted."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# Rows of an image that are looked at together where it may be larger than the memory.
_BAND = 256
# Of floats, percentiles are taken of at most about this many evenly spaced pixels.
_MOST_FLOATS = 1 << 24


class Pixels(Protocol):
  """An image that can be read in parts: a NumPy array, or one that is read when it is sliced."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(rows, columns)."""

  @property
  def dtype(self) -> np.dtype[Any]:
    """uint8, uint16 or float32."""

  def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray:
    """The pixels of a window."""


def bands(image: Pixels) -> Iterator[np.ndarray]:
  """An image's rows from the top down, some at a time."""
  for first in range(0, image.shape[0], _BAND):
    yield image[first : first + _BAND, :]


def maximum(dtype: np.dtype[Any]) -> float:
  """What stands for the intensity 1: the largest whole number of the type; 1 of floats."""
  return float(np.iinfo(dtype).max) if dtype.kind == 'u' else 1.0


def intensity(image: np.ndarray) -> np.ndarray:
  """As float32 in [0, 1]: divided by the type's maximum; floats as they are."""
  return image / np.float32(maximum(image.dtype))


def extremes(image: Pixels) -> tuple[float, float]:
  """The lowest and the highest value; nan if there is a nan."""
  found = [(float(band.min()), float(band.max())) for band in bands(image)]
  lows, highs = np.array(found).T
  return float(np.min(lows)), float(np.max(highs))


def percentiles(images: Sequence[Pixels], percents: Sequence[float]) -> tuple[float, ...]:
  """Percentiles of the pixels of all images, as `numpy.percentile` has them.

  Args:
    images: of one type. Of floats, more than 2^24 pixels are thinned out.
    percents: which.
  """
  if images[0].dtype.kind == 'u':
    return _of_counts(_counts(images), percents)
  total = sum(image.shape[0] * image.shape[1] for image in images)
  step = -(-total // _MOST_FLOATS)
  pixels = np.concatenate([band.ravel()[::step] for image in images for band in bands(image)])
  return tuple(float(value) for value in np.percentile(pixels, percents))


def _counts(images: Sequence[Pixels]) -> np.ndarray:
  """How often each whole number occurs."""
  num_values = np.iinfo(images[0].dtype).max + 1
  counts = np.zeros(num_values, np.int64)
  for image in images:
    for band in bands(image):
      counts += np.bincount(band.ravel(), minlength=num_values)
  return counts


def _of_counts(counts: np.ndarray, percents: Sequence[float]) -> tuple[float, ...]:
  """Interpolates linearly between the two pixels that are next to a percentile in order."""
  up_to = np.cumsum(counts)
  result = []
  for percent in percents:
    place = percent / 100 * (up_to[-1] - 1)
    below = int(place)
    low, high = (
      int(np.searchsorted(up_to, k, side='right')) for k in (below, min(below + 1, up_to[-1] - 1))
    )
    result.append(low + (high - low) * (place - below))
  return tuple(result)


class MaximumPixels:
  """The projection of images that are read in parts; reads a window of one after the other."""

  def __init__(self, images: Sequence[Pixels]):
    """All of one size and type, at least one."""
    self._images = images

  @property
  def shape(self) -> tuple[int, ...]:
    """(rows, columns)."""
    return self._images[0].shape

  @property
  def dtype(self) -> np.dtype[Any]:
    """uint8, uint16 or float32."""
    return self._images[0].dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    """Never in memory at once: more than two windows."""
    return functools.reduce(np.maximum, (image[window] for image in self._images))


class DiskImages:
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

  def add(self, image: np.ndarray) -> DiskPixels:
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
    return DiskPixels(self, offset, (rows, columns), image.dtype)

  def read(self, size: int, offset: int) -> bytes:
    """Bytes of the file; several threads may do so at once."""
    return os.pread(self._stream.fileno(), size, offset)


class DiskPixels:
  """An image that is read from a DiskImages when it is sliced.

  Attributes:
    shape: (rows, columns).
    dtype: of its pixels.
  """

  def __init__(self, spill: DiskImages, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]):
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
