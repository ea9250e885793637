"""Error panels: what was predicted, what is true, and where the two differ, side by side.

A panel is a stack of strips, one for each predicted image; a strip is a row of boxes, one for each
column of its layout; a box is a picture of the whole field in a border whose colour says what is
drawn. Panels of large fields outgrow the memory, so they are drawn strip by strip, and strips band
by band.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from isl.core.statistic import NUM_CLASSES

# A border's width in pixels. Boxes abut, so between two pictures there are two borders.
BORDER = 4

# Drawing needs a few float32 arrays of this many pixels, whatever the field's size.
_PIXELS_PER_BAND = 1 << 18

Colour = tuple[float, float, float]

# RGB in [0, 1].
PURPLE: Colour = (102 / 255, 0.0, 1.0)
TURQUOISE: Colour = (64 / 255, 224 / 255, 208 / 255)
MANGO: Colour = (1.0, 130 / 255, 67 / 255)
RED: Colour = (1.0, 0.0, 0.0)
WHITE: Colour = (1.0, 1.0, 1.0)
BLACK: Colour = (0.0, 0.0, 0.0)

# These add up to white, so that equal amounts of both are grey.
PREDICTION_ORANGE: Colour = (1.0, 0.5, 0.0)
TRUTH_BLUE: Colour = (0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PredictedImage:
  """One image as predicted and as it is: floats in [0, 1], each [row, column], all of one size.

  Attributes:
    median: median of each pixel's predicted distribution.
    mode: its mode.
    mean: its mean.
    standard_deviation: its standard deviation.
    entropy: its entropy, 1 for a uniform distribution.
    cross_entropy: -ln(p[true class] + 1e-6) / ln K, clipped to [0, 1].
    truth: the target; black if there is none.
    mask: the target's presence: 1 where there is one, otherwise 0.
  """

  median: np.ndarray
  truth: np.ndarray
  mask: np.ndarray
  mode: np.ndarray | None = None
  mean: np.ndarray | None = None
  standard_deviation: np.ndarray | None = None
  entropy: np.ndarray | None = None
  cross_entropy: np.ndarray | None = None

  def __post_init__(self) -> None:
    """Checks the arrays.

    Raises:
      ValueError: one is not of floats, or not of the median's size.
    """
    if self.median.ndim != 2:
      raise ValueError(f'median must be [row, column], got the shape {self.median.shape}')
    for field in dataclasses.fields(self):
      image = getattr(self, field.name)
      if image is None:
        continue
      if image.dtype.kind != 'f':
        raise ValueError(f'{field.name} must be floats in [0, 1], got {image.dtype}')
      if image.shape != self.median.shape:
        raise ValueError(
          f"{field.name} must have the median's shape {self.median.shape}, got {image.shape}"
        )

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns)."""
    rows, columns = self.median.shape
    return rows, columns


def clipped_cross_entropy(cross_entropy: np.ndarray) -> np.ndarray:
  """-ln(p + 1e-6) / ln K clipped to [0, 1], from -ln p / ln K, which has no bound."""
  scale = np.float32(math.log(NUM_CLASSES))
  return np.clip(-np.log(np.exp(-cross_entropy * scale) + np.float32(1e-6)) / scale, 0, 1)


def as_is(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws an image in grey.

  Args:
    image: floats in [0, 1], [row, column].
    truth: not used; here, as in the errors, so that a column can be drawn by any of them.

  Returns:
    The image with an axis for its one colour, [row, column, 1].
  """
  del truth
  return image[..., np.newaxis]


def additive_error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws truth * (0, 0.5, 1) + image * (1, 0.5, 0).

  Grey is correct, from black to white; orange is a false positive, blue a false negative.

  Args:
    image: a predicted statistic, floats in [0, 1], [row, column].
    truth: the target likewise.

  Returns:
    RGB in [0, 1], [row, column, 3].
  """
  return _blend(orange=image, blue=truth)


def subtractive_error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws |image - truth| in (1, 0.5, 0) where positive, in (0, 0.5, 1) where negative.

  Black is correct; orange is a false positive, blue a false negative.

  Args:
    image: a predicted statistic, floats in [0, 1], [row, column].
    truth: the target likewise.

  Returns:
    RGB in [0, 1], [row, column, 3].
  """
  difference = image - truth
  return _blend(orange=np.maximum(difference, 0), blue=np.maximum(-difference, 0))


@dataclasses.dataclass(frozen=True)
class Column:
  """What one box of each strip shows.

  Attributes:
    image: the attribute of PredictedImage that is drawn.
    border: its border's colour.
    draw: (image, truth), both [row, column], to a picture, [row, column, 1 or 3].
  """

  image: str
  border: Colour
  draw: Callable[[np.ndarray, np.ndarray], np.ndarray] = as_is


def _statistics(*names: str) -> tuple[Column, ...]:
  return tuple(Column(name, PURPLE) for name in names)


def _additive_errors(*names: str) -> tuple[Column, ...]:
  return tuple(Column(name, WHITE, additive_error) for name in names)


def _subtractive_errors(*names: str) -> tuple[Column, ...]:
  return tuple(Column(name, BLACK, subtractive_error) for name in names)


_TRUTH = Column('truth', TURQUOISE)
_CROSS_ENTROPY = Column('cross_entropy', RED)
_MASK = Column('mask', MANGO)


class Layout(enum.Enum):
  """The columns of a panel, from left to right.

  SIMPLIFIED and FULL are drawn by inference; STITCH, which has the entropies as well, when a run in
  training is evaluated.
  """

  SIMPLIFIED = (*_statistics('median'), _TRUTH, *_subtractive_errors('median'))
  FULL = (
    *_statistics('mode', 'median', 'mean', 'standard_deviation'),
    _TRUTH,
    *_additive_errors('mode', 'median', 'mean'),
    *_subtractive_errors('mode', 'median', 'mean'),
    _MASK,
  )
  STITCH = (
    *_statistics('mode', 'median', 'mean', 'standard_deviation', 'entropy'),
    _TRUTH,
    _CROSS_ENTROPY,
    *_additive_errors('mode', 'median', 'mean'),
    *_subtractive_errors('mode', 'median', 'mean'),
    _MASK,
  )

  @property
  def columns(self) -> tuple[Column, ...]:
    """What the boxes of a strip show, from left to right."""
    return self.value


def panel_size(num_images: int, rows: int, columns: int, layout: Layout) -> tuple[int, int]:
  """The size of a panel.

  Args:
    num_images: how many strips are stacked.
    rows: rows of each image, in pixels.
    columns: its columns, in pixels.
    layout: the panel's columns.

  Returns:
    (height, width) in pixels.
  """
  return num_images * (rows + 2 * BORDER), len(layout.columns) * (columns + 2 * BORDER)


def bands(predicted: PredictedImage, layout: Layout) -> Iterator[np.ndarray]:
  """Draws one image's strip from top to bottom, without ever holding all of it.

  A value v in [0, 1] becomes v * 65535, truncated.

  Args:
    predicted: the image.
    layout: the panel's columns.

  Yields:
    Bands of whole rows, uint16 RGB, [band's rows, boxes * (columns + 8), 3]; stacked, the strip.

  Raises:
    ValueError: `predicted` lacks an image that the layout draws.
  """
  for column in layout.columns:
    if getattr(predicted, column.image) is None:
      raise ValueError(f'{column.image} is needed by the layout {layout.name}, but is missing')
  rows, columns = predicted.size
  border = _borders(BORDER, columns, layout)
  yield border
  step = max(_PIXELS_PER_BAND // max(columns, 1), 1)
  for first in range(0, rows, step):
    yield _band(predicted, layout, slice(first, min(first + step, rows)))
  yield border


def strip(predicted: PredictedImage, layout: Layout) -> np.ndarray:
  """Draws one image's strip, see `bands`.

  Args:
    predicted: the image.
    layout: the panel's columns.

  Returns:
    uint16 RGB, [rows + 8, boxes * (columns + 8), 3].

  Raises:
    ValueError: `predicted` lacks an image that the layout draws.
  """
  result = np.empty((*panel_size(1, *predicted.size, layout), 3), np.uint16)
  row = 0
  for band in bands(predicted, layout):
    result[row : row + len(band)] = band
    row += len(band)
  return result


def panel(images: Iterable[PredictedImage], layout: Layout) -> np.ndarray:
  """Draws a whole panel, for those that are small enough.

  Args:
    images: at least one, all of one size.
    layout: the panel's columns.

  Returns:
    uint16 RGB, [images * (rows + 8), boxes * (columns + 8), 3].

  Raises:
    ValueError: an image lacks what the layout draws.
  """
  return np.concatenate([strip(image, layout) for image in images])


def _band(predicted: PredictedImage, layout: Layout, rows: slice) -> np.ndarray:
  """Draws the strip's part that shows these rows of the images."""
  num_columns = predicted.size[1]
  result = _borders(rows.stop - rows.start, num_columns, layout)
  truth = _float32(predicted.truth[rows])
  for i, column in enumerate(layout.columns):
    left = i * (num_columns + 2 * BORDER) + BORDER
    picture = column.draw(_float32(getattr(predicted, column.image)[rows]), truth)
    result[:, left : left + num_columns] = to_uint16(picture)
  return result


def _borders(rows: int, columns: int, layout: Layout) -> np.ndarray:
  """Rows of a strip, with each box's in its border's colour."""
  colours = to_uint16(np.array([column.border for column in layout.columns], np.float32))
  line = np.repeat(colours, columns + 2 * BORDER, axis=0)
  return np.tile(line, (rows, 1, 1))


def _blend(*, orange: np.ndarray, blue: np.ndarray) -> np.ndarray:
  """Both images, each [row, column], in their colour: their sum, [row, column, 3]."""
  result = np.empty((*orange.shape, 3), np.float32)
  for i, (of_orange, of_blue) in enumerate(zip(PREDICTION_ORANGE, TRUTH_BLUE, strict=True)):
    result[..., i] = orange * of_orange + blue * of_blue
  return result


def _float32(image: np.ndarray) -> np.ndarray:
  # In TensorFlow's precision: a product just below a whole number would truncate differently.
  return image.astype(np.float32, copy=False)


def to_uint16(picture: np.ndarray) -> np.ndarray:
  """Floats in [0, 1] to v * 65535, truncated."""
  # Clipped, because a value that rounding left above 1 would wrap around to black.
  clipped: np.ndarray = np.clip(picture, 0, 1)
  return (clipped * np.float32(65535)).astype(np.uint16)


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
  return panel(
    (PredictedImage(**{name: images[head] for name, images in mosaics.items()}) for head in heads),
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


def grey_boxes(images: np.ndarray, border: Colour = TURQUOISE) -> np.ndarray:
  """Draws images in grey side by side, each in a border.

  Args:
    images: floats in [0, 1], [image, row, column]; at least one.
    border: its colour.

  Returns:
    uint16 RGB, [row + 8, images * (column + 8), 3].
  """
  count, rows, columns = images.shape
  size = (rows + 2 * BORDER, count, columns + 2 * BORDER, 3)
  result = np.broadcast_to(to_uint16(np.array(border, np.float32)), size).copy()
  inside = slice(BORDER, -BORDER)
  result[inside, :, inside] = to_uint16(images.astype(np.float32, copy=False)).swapaxes(0, 1)[
    ..., np.newaxis
  ]
  return result.reshape(size[0], -1, 3)
