"""From fields of view to what the network reads and predicts."""

from __future__ import annotations

import math

import numpy as np

from isl import experiment
from isl.experiment import ImageKey, StackSpec
from isl.image_io import ImageSet


def depth_at(z_value: float, num_depths: int) -> int:
  """Which of a field of view's depths the network sees at a position in [0, 1].

  round((num_depths - 1) * z_value), in Python's rounding (to even); so 13 depths fill 26 positions.
  """
  return round((num_depths - 1) * z_value)


def has_truth(image_set: ImageSet, channel: str) -> bool:
  """Whether a target channel was recorded, or for a synthetic one, all that it is made from."""
  parts = experiment.SYNTHETIC_CHANNELS.get(channel, (channel,))
  return all(ImageKey(experiment.MAXPROJECT, part) in image_set.images for part in parts)


def input_crop(image_set: ImageSet, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
  """The transmitted-light stack in a window of the field of view.

  The sum of the kinds of transmitted light is the one kind that a field of view has.

  Args:
    image_set: the field of view.
    stack: positions in [0, 1] of the one channel TRANSMISSION.
    rows: the window's rows, within the image.
    columns: its columns.

  Returns:
    float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask, which is 1.

  Raises:
    ValueError: the window is not within the image.
  """
  assert stack.channels == (experiment.TRANSMISSION,), stack.channels
  _check_window(image_set, rows, columns)
  depths = [depth_at(float(z), image_set.num_depths) for z in stack.z_values]
  images = [image_set.images[ImageKey(depth, image_set.transmitted_light)] for depth in depths]
  # Interleaved before they are converted: the strided pass over the large result is what costs.
  crop = np.stack([image[rows, columns] for image in images], axis=-1)
  result = np.empty((*crop.shape, 1, 2), np.float32)
  maxima = np.array([np.iinfo(image.dtype).max for image in images], np.float32)
  np.divide(crop, maxima, out=result[..., 0, 0])
  result[..., 1] = 1
  return result


def target_crop(image_set: ImageSet, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
  """The fluorescent labels in a window of the field of view.

  A synthetic channel is the mean of its parts, and its mask the geometric mean of theirs. Where
  `has_truth` is false, the image is black and the mask 0.

  Args:
    image_set: the field of view.
    stack: target channels, at z MAXPROJECT.
    rows: the window's rows, within the image.
    columns: its columns.

  Returns:
    float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask.

  Raises:
    ValueError: the window is not within the image.
  """
  assert stack.z_values == (experiment.MAXPROJECT,), stack.z_values
  num_rows, num_columns = _check_window(image_set, rows, columns)
  result = np.zeros((num_rows, num_columns, 1, len(stack.channels), 2), np.float32)
  for i, channel in enumerate(stack.channels):
    parts = experiment.SYNTHETIC_CHANNELS.get(channel, (channel,))
    keys = [ImageKey(experiment.MAXPROJECT, part) for part in parts]
    masks = [float(key in image_set.images) for key in keys]
    result[:, :, 0, i, 1] = math.prod(masks) ** (1 / len(masks))
    if all(masks):
      crops = [_intensity(image_set.images[key][rows, columns]) for key in keys]
      result[:, :, 0, i, 0] = np.mean(crops, axis=0)
  return result


def _intensity(image: np.ndarray) -> np.ndarray:
  """As float32 in [0, 1]: divided by the type's maximum."""
  return image / np.float32(np.iinfo(image.dtype).max)


def _check_window(image_set: ImageSet, rows: slice, columns: slice) -> tuple[int, int]:
  """The window's size in pixels; NumPy would clip a window silently."""
  lengths = []
  for window, size, what in zip((rows, columns), image_set.size, ('rows', 'columns'), strict=True):
    start, stop = window.start or 0, size if window.stop is None else window.stop
    if not 0 <= start < stop <= size or window.step not in (None, 1):
      raise ValueError(
        f'field of view {image_set.name!r} has {size} {what}; expected a window within them, got'
        f' {start} to {stop}'
      )
    lengths.append(stop - start)
  return lengths[0], lengths[1]
