"""Images' pixels: their intensities and percentiles, and images larger than the memory.

`Pixels` is an image for whoever reads it, whole or in windows: a NumPy array, the projection of
several images (`MaximumPixels`), or an image in a temporary file (`DiskImages`).
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# Rows that are read together of an image that may be larger than the memory.
_BAND = 256
# Percentiles of floats are taken of at most about this many evenly spaced pixels.
_MOST_FLOATS = 1 << 24


class Pixels(Protocol):
  """An image that can be read in parts: a NumPy array, or one that is read when it is sliced."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(rows, columns), in pixels."""

  @property
  def dtype(self) -> np.dtype[Any]:
    """The dtype of the pixels: uint8, uint16 or float32."""

  def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray:
    """Reads a window, [row, column]."""


def bands(image: Pixels) -> Iterator[np.ndarray]:
  """Yields an image's rows from the top down, some at a time: [row, column]."""
  for first in range(0, image.shape[0], _BAND):
    yield image[first : first + _BAND, :]


def maximum(dtype: np.dtype[Any]) -> float:
  """The pixel value that stands for intensity 1: an integer type's largest value, 1 for floats."""
  return float(np.iinfo(dtype).max) if dtype.kind == 'u' else 1.0


def intensity(image: np.ndarray) -> np.ndarray:
  """Converts pixel values to intensities, float32: integers / their type's maximum, in [0, 1].

  Floats are intensities already and keep their values.
  """
  return image / np.float32(maximum(image.dtype))


def extremes(image: Pixels) -> tuple[float, float]:
  """The lowest and the highest pixel value of an image; nan if a pixel is nan."""
  found = [(float(band.min()), float(band.max())) for band in bands(image)]
  lows, highs = np.array(found).T
  return float(np.min(lows)), float(np.max(highs))


def percentiles(images: Sequence[Pixels], percents: Sequence[float]) -> tuple[float, ...]:
  """Percentiles of the pixels of all images together, as `numpy.percentile` defines them.

  Args:
    images: images of one dtype. If they are floats and have more than 2^24 pixels, evenly spaced
      ones are taken.
    percents: the percentages, from 0 to 100.

  Returns:
    The pixel value at each percentage.
  """
  if images[0].dtype.kind == 'u':
    return _of_counts(_counts(images), percents)
  total = sum(image.shape[0] * image.shape[1] for image in images)
  step = -(-total // _MOST_FLOATS)
  pixels = np.concatenate([band.ravel()[::step] for image in images for band in bands(image)])
  return tuple(float(value) for value in np.percentile(pixels, percents))


def _counts(images: Sequence[Pixels]) -> np.ndarray:
  """Counts how often each value of an integer type occurs, int64 [value]."""
  num_values = np.iinfo(images[0].dtype).max + 1
  counts = np.zeros(num_values, np.int64)
  for image in images:
    for band in bands(image):
      counts += np.bincount(band.ravel(), minlength=num_values)
  return counts


def _of_counts(counts: np.ndarray, percents: Sequence[float]) -> tuple[float, ...]:
  """Percentiles of pixels from the counts of their values, int64 [value].

  Interpolates linearly between the two sorted pixels on either side of the percentile's place.
  """
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
  """The maximum projection of images that are read in parts, itself read in parts."""

  def __init__(self, images: Sequence[Pixels]):
    """Takes the images, at least one, all of one size and dtype; reads nothing yet."""
    self._images = images

  @property
  def shape(self) -> tuple[int, ...]:
    """(rows, columns), in pixels."""
    return self._images[0].shape

  @property
  def dtype(self) -> np.dtype[Any]:
    """The dtype of the pixels: uint8, uint16 or float32."""
    return self._images[0].dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    """Reads a window, [row, column]; no more than two images' windows are in memory at once."""
    return functools.reduce(np.maximum, (image[window] for image in self._images))


class DiskImages:
  """A temporary file of images, which is deleted when nothing refers to any of them."""

  def __init__(self) -> None:
    """Makes the file in the system's folder for temporary files (TMPDIR).

    Raises:
      OSError: the file cannot be made.
    """
    # The file has no name from the beginning, or is deleted when it is closed: a kill leaves none.
    self._stream = tempfile.TemporaryFile(prefix='isl-')  # noqa: SIM115
    weakref.finalize(self, self._stream.close)
    self._end = 0
    self._lock = threading.Lock()

  def add(self, image: np.ndarray) -> DiskPixels:
    """Writes an image, [row, column], and returns it as Pixels that are read from the file.

    Raises:
      OSError: the image cannot be written.
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
    """Reads `size` bytes of the file from byte `offset` on; several threads may do so at once."""
    return os.pread(self._stream.fileno(), size, offset)


class DiskPixels:
  """An image that is read from a DiskImages when it is sliced.

  Attributes:
    shape: (rows, columns) of the image, in pixels.
    dtype: dtype of the pixels.
  """

  def __init__(self, images: DiskImages, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]):
    """Takes where the image lies in the file of `images`; reads nothing yet."""
    self._images = images
    self._offset = offset
    self.shape = shape
    self.dtype = dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    """Reads a window, [row, column]; its rows must have no step."""
    rows, columns = window
    first, stop, step = rows.indices(self.shape[0])
    assert step == 1, rows
    count = max(stop - first, 0)
    in_row = self.shape[1] * self.dtype.itemsize
    data = self._images.read(count * in_row, self._offset + first * in_row)
    return np.frombuffer(data, self.dtype).reshape(count, self.shape[1])[:, columns]
