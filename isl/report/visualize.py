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
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from isl.core.experiment import Panel
from isl.core.statistic import NUM_CLASSES, Statistic

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


def panel_tag(panel: Panel) -> str:
  """The name of an error panel in TensorBoard: target_error_panel, for example."""
  return f'{panel.value.lower()}_error_panel'


def panel_file(panel: Panel) -> str:
  """The name of the file that has an error panel."""
  return f'{panel_tag(panel)}.png'


class Target(enum.Enum):
  """What is drawn beside the predictions of an image."""

  TRUTH = 'truth'
  MASK = 'mask'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PredictedImage:
  """One image as predicted and as it is: floats in [0, 1], each [row, column], all of one size.

  Attributes:
    statistics: statistics of each pixel's predicted distribution, as `shown` returns them.
    truth: the true intensities; 0 where they are unknown.
    mask: 1 where the truth is known, 0 where it is not.
  """

  statistics: Mapping[Statistic, np.ndarray]
  truth: np.ndarray
  mask: np.ndarray

  def __post_init__(self) -> None:
    """Checks the arrays.

    Raises:
      ValueError: an array is not of floats, or they are not of one size.
    """
    images = {_name(statistic): image for statistic, image in self.statistics.items()}
    images |= {'truth': self.truth, 'mask': self.mask}
    first, shape = next((name, image.shape) for name, image in images.items())
    if len(shape) != 2:
      raise ValueError(f'{first} must be [row, column], got the shape {shape}')
    for name, image in images.items():
      if image.dtype.kind != 'f':
        raise ValueError(f'{name} must be floats in [0, 1], got {image.dtype}')
      if image.shape != shape:
        raise ValueError(f"{name} must have the {first}'s shape {shape}, got {image.shape}")

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of the image, in pixels."""
    rows, columns = self.truth.shape
    return rows, columns

  def image(self, what: Statistic | Target) -> np.ndarray:
    """The array that a column of a panel draws, [row, column].

    Raises:
      KeyError: the column draws a statistic that is missing.
    """
    if isinstance(what, Statistic):
      return self.statistics[what]
    return self.truth if what is Target.TRUTH else self.mask


def _name(statistic: Statistic) -> str:
  return statistic.value.lower()


def shown(statistic: Statistic, values: np.ndarray) -> np.ndarray:
  """Makes of a statistic what panels show: CROSS_ENTROPY is clipped, all others stay as they are.

  Args:
    statistic: the statistic.
    values: values of the statistic, float32 of any shape.

  Returns:
    float32 of the same shape.
  """
  return clipped_cross_entropy(values) if statistic is Statistic.CROSS_ENTROPY else values


def clipped_cross_entropy(cross_entropy: np.ndarray) -> np.ndarray:
  """Computes -ln(p + 1e-6) / ln K, clipped to [0, 1], from -ln p / ln K, which has no bound."""
  scale = np.float32(math.log(NUM_CLASSES))
  return np.clip(-np.log(np.exp(-cross_entropy * scale) + np.float32(1e-6)) / scale, 0, 1)


def as_is(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws an image in grey.

  Args:
    image: floats in [0, 1], [row, column].
    truth: not used; it is an argument so that any of these functions can draw a column.

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
    truth: the target, floats in [0, 1], [row, column].

  Returns:
    RGB in [0, 1], [row, column, 3].
  """
  return _blend(orange=image, blue=truth)


def subtractive_error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws |image - truth| in (1, 0.5, 0) where positive, in (0, 0.5, 1) where negative.

  Black is correct; orange is a false positive, blue a false negative.

  Args:
    image: a predicted statistic, floats in [0, 1], [row, column].
    truth: the target, floats in [0, 1], [row, column].

  Returns:
    RGB in [0, 1], [row, column, 3].
  """
  difference = image - truth
  return _blend(orange=np.maximum(difference, 0), blue=np.maximum(-difference, 0))


@dataclasses.dataclass(frozen=True)
class Column:
  """What one box of each strip shows.

  Attributes:
    image: what the box shows.
    border: colour of the box's border.
    draw: function that draws (image, truth), both [row, column], as a picture, [row, column, 1 or
      3].
  """

  image: Statistic | Target
  border: Colour
  draw: Callable[[np.ndarray, np.ndarray], np.ndarray] = as_is


_COMPARED = (Statistic.MODE, Statistic.MEDIAN, Statistic.MEAN)
_DISTRIBUTION = (*_COMPARED, Statistic.STANDARD_DEVIATION)


def _statistics(*statistics: Statistic) -> tuple[Column, ...]:
  return tuple(Column(statistic, PURPLE) for statistic in statistics)


def _additive_errors(*statistics: Statistic) -> tuple[Column, ...]:
  return tuple(Column(statistic, WHITE, additive_error) for statistic in statistics)


def _subtractive_errors(*statistics: Statistic) -> tuple[Column, ...]:
  return tuple(Column(statistic, BLACK, subtractive_error) for statistic in statistics)


_TRUTH = Column(Target.TRUTH, TURQUOISE)
_MASK = Column(Target.MASK, MANGO)


class Layout(enum.Enum):
  """The columns of a panel, from left to right.

  SIMPLIFIED and FULL are the layouts of inference. STITCH, which has the entropies as well, is that
  of the pictures in TensorBoard, of training and of the metrics STITCH and JITTER_STITCH.
  """

  SIMPLIFIED = (*_statistics(Statistic.MEDIAN), _TRUTH, *_subtractive_errors(Statistic.MEDIAN))
  FULL = (
    *_statistics(*_DISTRIBUTION),
    _TRUTH,
    *_additive_errors(*_COMPARED),
    *_subtractive_errors(*_COMPARED),
    _MASK,
  )
  STITCH = (
    *_statistics(*_DISTRIBUTION, Statistic.ENTROPY),
    _TRUTH,
    Column(Statistic.CROSS_ENTROPY, RED),
    *_additive_errors(*_COMPARED),
    *_subtractive_errors(*_COMPARED),
    _MASK,
  )

  @property
  def columns(self) -> tuple[Column, ...]:
    """The columns of the panel, from left to right: one for each box of a strip."""
    return self.value

  @property
  def statistics(self) -> tuple[Statistic, ...]:
    """The statistics that the columns draw, each once."""
    images = (column.image for column in self.columns)
    return tuple(dict.fromkeys(image for image in images if isinstance(image, Statistic)))


def panel_size(num_images: int, rows: int, columns: int, layout: Layout) -> tuple[int, int]:
  """The size of a panel.

  Args:
    num_images: number of images, each of which has a strip.
    rows: rows of each image, in pixels.
    columns: columns of each image, in pixels.
    layout: the panel's columns.

  Returns:
    (height, width) in pixels.
  """
  return num_images * (rows + 2 * BORDER), len(layout.columns) * (columns + 2 * BORDER)


def bands(predicted: PredictedImage, layout: Layout) -> Iterator[np.ndarray]:
  """Draws one image's strip from top to bottom, band by band; the whole is never in memory.

  A value v in [0, 1] becomes v * 65535, truncated.

  Args:
    predicted: the image, as predicted and as it is.
    layout: the panel's columns.

  Yields:
    Bands of whole rows, uint16 RGB, [band's rows, boxes * (columns + 8), 3]; stacked, the strip.

  Raises:
    ValueError: `predicted` lacks an image that the layout draws.
  """
  for statistic in layout.statistics:
    if statistic not in predicted.statistics:
      raise ValueError(f'{_name(statistic)} is needed by the layout {layout.name}, but is missing')
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
    predicted: the image, as predicted and as it is.
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
  """Draws a whole panel, of images that are small enough for the memory.

  Args:
    images: the images, as predicted and as they are; at least one, all of one size.
    layout: the panel's columns.

  Returns:
    uint16 RGB, [images * (rows + 8), boxes * (columns + 8), 3].

  Raises:
    ValueError: an image lacks what the layout draws.
  """
  return np.concatenate([strip(image, layout) for image in images])


def _band(predicted: PredictedImage, layout: Layout, rows: slice) -> np.ndarray:
  """Draws the part of a strip that shows these rows of the image."""
  num_columns = predicted.size[1]
  result = _borders(rows.stop - rows.start, num_columns, layout)
  truth = _float32(predicted.truth[rows])
  for i, column in enumerate(layout.columns):
    left = i * (num_columns + 2 * BORDER) + BORDER
    picture = column.draw(_float32(predicted.image(column.image)[rows]), truth)
    result[:, left : left + num_columns] = to_uint16(picture)
  return result


def _borders(rows: int, columns: int, layout: Layout) -> np.ndarray:
  """Draws rows of a strip in which each box has its border's colour throughout."""
  colours = to_uint16(np.array([column.border for column in layout.columns], np.float32))
  line = np.repeat(colours, columns + 2 * BORDER, axis=0)
  return np.tile(line, (rows, 1, 1))


def _blend(*, orange: np.ndarray, blue: np.ndarray) -> np.ndarray:
  """Draws two images, each [row, column], in a colour each, and adds them: [row, column, 3]."""
  result = np.empty((*orange.shape, 3), np.float32)
  for i, (of_orange, of_blue) in enumerate(zip(PREDICTION_ORANGE, TRUTH_BLUE, strict=True)):
    result[..., i] = orange * of_orange + blue * of_blue
  return result


def _float32(image: np.ndarray) -> np.ndarray:
  # In TensorFlow's precision: a product just below a whole number would truncate differently.
  return image.astype(np.float32, copy=False)


def to_uint16(picture: np.ndarray) -> np.ndarray:
  """Converts floats v in [0, 1] to v * 65535, truncated."""
  # Clipped, because a value that rounding left above 1 would wrap around to black.
  clipped: np.ndarray = np.clip(picture, 0, 1)
  return (clipped * np.float32(65535)).astype(np.uint16)


def patch_panel(
  statistics: Mapping[Statistic, np.ndarray], truth: np.ndarray, mask: np.ndarray
) -> np.ndarray:
  """Draws an error panel, laid out as STITCH, whose boxes show a batch's patches (see `mosaic`).

  Args:
    statistics: statistics of each pixel's distribution: floats, [head, patch, row, column], of at
      least one head.
    truth: the true intensities in [0, 1], [head, patch, row, column]; a dimension may be 1 instead.
    mask: 1 where the truth is known, [head, patch, row, column]; a dimension may be 1 instead.

  Returns:
    uint16 RGB, [heads * (mosaic's rows + 8), boxes * (mosaic's columns + 8), 3].

  Raises:
    ValueError: a statistic that the layout draws is missing.
  """
  drawn = {statistic: shown(statistic, values) for statistic, values in statistics.items()}
  shape = np.broadcast_shapes(*(values.shape for values in drawn.values()))

  def of_head(values: np.ndarray, head: int) -> np.ndarray:
    return mosaic(np.broadcast_to(values, shape)[head])

  return panel(
    (
      PredictedImage(
        statistics={statistic: of_head(values, head) for statistic, values in drawn.items()},
        truth=of_head(truth, head),
        mask=of_head(mask, head),
      )
      for head in range(shape[0])
    ),
    Layout.STITCH,
  )


def mosaic(images: np.ndarray) -> np.ndarray:
  """Lays images beside each other, row by row, in a square of ceil(sqrt(images)) in each direction.

  Rows without an image are left out; what is left of the last row is black.

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
    border: colour of the borders.

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
