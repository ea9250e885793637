"""Predicted images that are gathered part by part, in as few bits as they need."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES, AnyStatistic, Statistic, is_class
from isl.report import visualize

# In float32, as the network's own: a quotient would differ in the last bit.
_PER_CLASS = np.float32(1 / (NUM_CLASSES - 1))
_UINT16_MAX = 65535


class PredictionStore:
  """Statistics of a field of view's pixels: classes in 8 bit, others in 16 or as floats.

  Attributes:
    size: (rows, columns) of each image.
  """

  def __init__(self, size: tuple[int, int]):
    """An empty one."""
    self.size = size
    self._images: dict[tuple[ImageKey, AnyStatistic], np.ndarray] = {}

  def make_room(self, key: ImageKey, statistic: AnyStatistic, *, exact: bool = False) -> None:
    """Has a statistic of an image gathered from now on.

    Args:
      key: the image.
      statistic: of its pixels.
      exact: whether 16 bit are too few.
    """
    dtype = np.uint8 if is_class(statistic) else np.float32 if exact else np.uint16
    if (key, statistic) not in self._images or exact:
      self._images[key, statistic] = np.zeros(self.size, dtype)

  def add(
    self,
    key: ImageKey,
    rows: slice,
    columns: slice,
    predicted: Mapping[AnyStatistic, np.ndarray],
  ) -> None:
    """Takes in a part of an image: of each statistic, wanted or not, float32 [row, column]."""
    for statistic, values in predicted.items():
      image = self._images.get((key, statistic))
      if image is None:
        continue
      if statistic is Statistic.CROSS_ENTROPY:
        values = visualize.clipped_cross_entropy(values)
      if image.dtype == np.float32:
        image[rows, columns] = np.clip(values, 0, 1)
      else:
        levels = NUM_CLASSES - 1 if image.dtype == np.uint8 else _UINT16_MAX
        image[rows, columns] = np.rint(np.clip(values, 0, 1) * np.float32(levels))

  def values(self, key: ImageKey, statistic: AnyStatistic) -> np.ndarray:
    """An image as float32 in [0, 1], [row, column]."""
    image = self._images[key, statistic]
    if image.dtype == np.float32:
      return image
    return image * (_PER_CLASS if image.dtype == np.uint8 else np.float32(1 / _UINT16_MAX))

  def in_16_bit(self, key: ImageKey, statistic: AnyStatistic) -> np.ndarray:
    """An image as uint16, 65535 being 1, [row, column]."""
    image = self._images[key, statistic]
    if image.dtype == np.float32:
      return np.rint(image * np.float32(_UINT16_MAX)).astype(np.uint16)
    if image.dtype == np.uint8:
      return image * np.uint16(_UINT16_MAX // (NUM_CLASSES - 1))
    return image
