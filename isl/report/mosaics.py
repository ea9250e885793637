"""Pictures of batches of training patches, which are too small to be looked at one by one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from isl.report import visualize
from isl.report.visualize import Layout


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PredictedPatches:
  """A batch of patches as predicted and as they are: floats in [0, 1], [head, patch, row, column].

  Attributes:
    mode: see PredictedImage, like the others.
    median: decides the shape; the others may have 1 in place of a dimension.
    mean: likewise.
    standard_deviation: likewise.
    entropy: likewise.
    cross_entropy: likewise; see clipped_cross_entropy.
    truth: likewise.
    mask: likewise.
  """

  mode: np.ndarray
  median: np.ndarray
  mean: np.ndarray
  standard_deviation: np.ndarray
  entropy: np.ndarray
  cross_entropy: np.ndarray
  truth: np.ndarray
  mask: np.ndarray


def patch_panel(patches: PredictedPatches, layout: Layout = Layout.STITCH) -> np.ndarray:
  """Draws an error panel in which each box shows all patches of the batch, see `mosaic`.

  Args:
    patches: of at least one head.
    layout: the panel's columns.

  Returns:
    uint16 RGB, [heads * (mosaic's rows + 8), boxes * (mosaic's columns + 8), 3].
  """
  shape = patches.median.shape
  mosaics = {
    field.name: [mosaic(stack) for stack in np.broadcast_to(getattr(patches, field.name), shape)]
    for field in dataclasses.fields(patches)
  }
  heads = range(shape[0])
  return visualize.panel(
    (
      visualize.PredictedImage(**{name: images[head] for name, images in mosaics.items()})
      for head in heads
    ),
    layout,
  )


def mosaic(images: np.ndarray) -> np.ndarray:
  """Lays images beside each other, row by row, in a square of ceil(sqrt(images)) in each direction.

  Rows without an image are left out; what is left of the last is black.

  Args:
    images: [image, row, column], at least one.

  Returns:
    [image rows * row, image columns * column].
  """
  count, rows, columns = images.shape
  across = math.isqrt(count - 1) + 1
  down = math.ceil(count / across)
  filled = np.zeros((down * across, rows, columns), images.dtype)
  filled[:count] = images
  grid = filled.reshape(down, across, rows, columns).swapaxes(1, 2)
  return grid.reshape(down * rows, across * columns)


def grey_boxes(images: np.ndarray, border: visualize.Colour = visualize.TURQUOISE) -> np.ndarray:
  """Draws images in grey side by side, each in a border.

  Args:
    images: floats in [0, 1], [image, row, column]; at least one.
    border: its colour.

  Returns:
    uint16 RGB, [row + 8, images * (column + 8), 3].
  """
  count, rows, columns = images.shape
  size = (rows + 2 * visualize.BORDER, count, columns + 2 * visualize.BORDER, 3)
  result = np.broadcast_to(visualize.to_uint16(np.array(border, np.float32)), size).copy()
  inside = slice(visualize.BORDER, -visualize.BORDER)
  result[inside, :, inside] = visualize.to_uint16(images.astype(np.float32, copy=False)).swapaxes(
    0, 1
  )[..., np.newaxis]
  return result.reshape(size[0], -1, 3)
