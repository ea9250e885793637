"""Small pictures of images that are never in memory as a whole."""

from __future__ import annotations

import cv2
import numpy as np

from isl.core.channels import ImageKey
from isl.core.parts import Part
from isl.core.statistic import Statistic

# Colours at full resolution, or else the edges in error pictures bleed.
_JPEG_OPTIONS = (
  *(cv2.IMWRITE_JPEG_QUALITY, 90),
  *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


class Thumbnail:
  """A small picture of a large image, filled part by part.

  Each of its pixels is the mean over a cell of `factor` x `factor` pixels of the image; the cells
  of the last row and column have fewer where the factor does not divide the image's size. Only the
  cells' sums are kept.

  Attributes:
    factor: number of the image's pixels that one of the thumbnail stands for, in each direction.
    size: (rows, columns) of the thumbnail, in pixels.
  """

  def __init__(self, size: tuple[int, int], longest: int) -> None:
    """Begins a thumbnail without parts.

    Args:
      size: (rows, columns) of the image, in pixels.
      longest: the most pixels that the thumbnail's longer side may have.

    Raises:
      ValueError: a size is not positive.
    """
    if min(size) < 1 or longest < 1:
      raise ValueError(
        f'an image and its thumbnail must have at least one pixel, got {size} and {longest}'
      )
    self.factor = -(-max(size) // longest)
    self.size = (-(-size[0] // self.factor), -(-size[1] // self.factor))
    self._image_size = size
    self._missing = size[0] * size[1]
    # In double precision, so that the order of the parts does not show.
    self._sums = np.zeros(self.size)

  def add(self, rows: slice, columns: slice, values: np.ndarray) -> None:
    """Adds a part of the image. The parts, in any order, cover each pixel once.

    Args:
      rows: rows of the part in the image, in pixels.
      columns: columns of the part in the image, in pixels.
      values: intensities of the part in [0, 1], float32 [row, column].
    """
    extent = (rows.stop - rows.start, columns.stop - columns.start)
    assert values.shape == extent, (values.shape, rows, columns)
    assert 0 <= rows.start < rows.stop <= self._image_size[0], (rows, self._image_size)
    assert 0 <= columns.start < columns.stop <= self._image_size[1], (columns, self._image_size)
    row_cells, row_starts = self._cells(rows)
    column_cells, column_starts = self._cells(columns)
    sums = np.add.reduceat(values, row_starts, axis=0, dtype=np.float64)
    self._sums[row_cells, column_cells] += np.add.reduceat(sums, column_starts, axis=1)
    self._missing -= extent[0] * extent[1]

  def picture(self) -> np.ndarray:
    """Draws the thumbnail, when all parts have been added.

    Returns:
      uint8 [row, column]: a cell's mean times 255, rounded.
    """
    assert self._missing == 0, f'{self._missing} pixels of the image are missing'
    rows, columns = (
      np.minimum(self.factor, length - self.factor * np.arange(cells))
      for length, cells in zip(self._image_size, self.size, strict=True)
    )
    means = self._sums / np.outer(rows, columns)
    return np.rint(np.clip(means, 0, 1) * 255).astype(np.uint8)

  def _cells(self, pixels: slice) -> tuple[slice, np.ndarray]:
    """The cells that a range of rows or columns touches, and where in the range each begins."""
    cells = slice(pixels.start // self.factor, (pixels.stop - 1) // self.factor + 1)
    starts = np.arange(cells.start, cells.stop) * self.factor - pixels.start
    return cells, np.maximum(starts, 0)


class Thumbnails:
  """A sink that makes small pictures of one label, as predicted and as it is.

  Attributes:
    keys: the label's key, alone.
    statistics: the statistic that the prediction's picture shows.
    prediction: the thumbnail of the predicted medians.
    truth: the thumbnail of the intensities that were recorded; None: they are unknown.
  """

  statistics = (Statistic.MEDIAN,)

  def __init__(self, key: ImageKey, size: tuple[int, int], longest: int) -> None:
    """Begins with empty pictures.

    Args:
      key: the label's key.
      size: (rows, columns) of the predicted image, in pixels.
      longest: the most pixels that a picture's longer side may have.
    """
    self.keys = (key,)
    self.prediction = Thumbnail(size, longest)
    self.truth: Thumbnail | None = None
    self._size, self._longest = size, longest

  def add(self, part: Part) -> None:
    """Adds a part to both pictures."""
    self.prediction.add(part.rows, part.columns, part.predicted[Statistic.MEDIAN])
    if part.truth is not None:
      self.truth = self.truth or Thumbnail(self._size, self._longest)
      self.truth.add(part.rows, part.columns, part.truth)


def encode(picture: np.ndarray) -> bytes:
  """Encodes a picture as the contents of a JPEG.

  Args:
    picture: uint8, grey [row, column] or RGB [row, column, color].
  """
  assert picture.dtype == np.uint8 and picture.size, (picture.dtype, picture.shape)
  # OpenCV's order is BGR.
  pixels = picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])
  _, encoded = cv2.imencode('.jpg', pixels, _JPEG_OPTIONS)
  return encoded.tobytes()
