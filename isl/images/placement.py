"""Where a prediction lies in the microscope's image, and the pyramid of ever smaller images.

Both are for the writers of files of predictions, OME-TIFF and OME-Zarr.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# OME's name of the unit; where a pixel's size is unknown, there is no unit, or it is the pixel.
UNIT = 'micrometer'
# In pixels: a level whose sides are no longer than this is the pyramid's last.
SMALLEST = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Where a prediction lies in the microscope's image, and how large its pixels are.

  Attributes:
    pixel_size: a pixel's (height, width) in micrometres; None: unknown.
    offset: the (row, column) of the microscope's image at which the prediction begins, in pixels.
  """

  pixel_size: tuple[float, float] | None = None
  offset: tuple[int, int] = (0, 0)

  def __post_init__(self) -> None:
    """Checks the pixel size.

    Raises:
      ValueError: `pixel_size` is not of two positive finite numbers.
    """
    if self.pixel_size is not None and not all(
      math.isfinite(size) and size > 0 for size in self.pixel_size
    ):
      raise ValueError(
        'pixel_size must be a height and a width above 0 micrometres, or None, got'
        f' {self.pixel_size}'
      )

  @property
  def unit(self) -> str | None:
    """The unit of `scale` and `translation`: 'micrometer'; None: they are in pixels."""
    return None if self.pixel_size is None else UNIT

  def scale(self, level: int = 0) -> tuple[float, float]:
    """A pixel's (height, width) in `unit`.

    Args:
      level: the level of the pyramid, in which each level halves the one before; 0: the prediction
        itself.
    """
    height, width = self.pixel_size or (1.0, 1.0)
    return height * 2**level, width * 2**level

  def translation(self, level: int = 0) -> tuple[float, float]:
    """Where the centre of the first pixel lies, as (row, column) in `unit`.

    The origin is the centre of the microscope's image's first pixel. A pixel of level k is the mean
    of 2^k x 2^k pixels, the centre of which lies (2^k - 1) / 2 pixels behind that of the first.

    Args:
      level: the level of the pyramid, as for `scale`.
    """
    row, column = (pixels + (2**level - 1) / 2 for pixels in self.offset)
    height, width = self.scale()
    return row * height, column * width


def level_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
  """The (rows, columns) of each level of an image's pyramid, in pixels, from the image's size on.

  Each level's sides are half of those of the level before, rounded up, so that no pixel is lost.
  """
  sizes = [size]
  while max(sizes[-1]) > SMALLEST:
    rows, columns = sizes[-1]
    sizes.append((-(-rows // 2), -(-columns // 2)))
  return sizes


def halved(image: np.ndarray) -> np.ndarray:
  """The next level of a pyramid: means of 2 x 2 pixels.

  Where a side is odd, its last pixels are means of the pixels that there are.

  Args:
    image: an image of any real dtype, [..., row, column]. Parts of a larger image are halved like
      the whole if they begin at even rows and columns, and end at even ones or at the image's end.

  Returns:
    The halved image [..., row, column], of the same dtype; integers are rounded half to even.
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
