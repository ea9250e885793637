"""Extremes and percentiles of images that may be larger than the memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isl.images.fields_of_view import Pixels, bands

# Of floats, percentiles are taken of at most about this many evenly spaced pixels.
_MOST_FLOATS = 1 << 24


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
