"""Pyramids: an image, and ever smaller ones of it, so that a viewer need not read the whole."""

from __future__ import annotations

import numpy as np

# In pixels: a level whose sides are no longer is the last.
SMALLEST = 256


def level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
  """The (rows, columns) of each level, from the whole image's on.

  Each level's sides are half of those of the level before, rounded up, so that no pixel is lost.
  """
  sizes = [size]
  while max(sizes[-1]) > SMALLEST:
    rows, columns = sizes[-1]
    sizes.append((-(-rows // 2), -(-columns // 2)))
  return sizes


def halved(image: np.ndarray) -> np.ndarray:
  """The next level: means of 2 x 2 pixels; where a side is odd, the last are of what there is.

  Args:
    image: of any real dtype, [..., row, column]. Parts of a larger image are halved like the whole
      if they begin at even rows and columns, and end at even ones or at the image's end.

  Returns:
    Of the same dtype, integers being rounded half to even.
  """
  rows, columns = image.shape[-2:]
  even = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, rows % 2), (0, columns % 2)], mode='edge')
  # Sums of four would overflow uint16 and lose bits of float16.
  wide = np.result_type(image.dtype, np.float32)
  left, right = even[..., ::2], even[..., 1::2]
  pairs = np.add(left, right, dtype=wide)
  means = (pairs[..., ::2, :] + pairs[..., 1::2, :]) / 4
  if np.issubdtype(image.dtype, np.integer):
    np.rint(means, out=means)
  return means.astype(image.dtype)
