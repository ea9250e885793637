"""From fields of view to what the network reads and predicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable, Sequence

import numpy as np

from isl import experiment, image_io
from isl.experiment import ImageKey, StackSpec
from isl.image_io import ImageSet

# What `with_stretched` leaves out at either end: dust, dead pixels.
_STRETCHED_PERCENTILES = (0.1, 99.9)


def depth_at(z_value: float, num_depths: int) -> int:
  """Which of a field of view's depths the network sees at a position in [0, 1].

  round((num_depths - 1) * z_value), in Python's rounding (to even); so 13 depths fill 26 positions.
  """
  return round((num_depths - 1) * z_value)


def depths_read(stack: StackSpec, num_depths: int) -> list[int]:
  """The depth that the network sees at each position of its input, some perhaps repeatedly."""
  return [depth_at(float(z), num_depths) for z in stack.z_values]


def parts_of(channel: str) -> tuple[str, ...]:
  """The recorded channels that a target channel is made from: for most, itself."""
  return experiment.SYNTHETIC_CHANNELS.get(channel, (channel,))


def is_recorded(channel: str, keys: Container[ImageKey]) -> bool:
  """Whether a target channel is among images, or for a synthetic one, all that it is made from."""
  return all(ImageKey(experiment.MAXPROJECT, part) in keys for part in parts_of(channel))


def has_truth(image_set: ImageSet, channel: str) -> bool:
  """Whether a target channel was recorded, or for a synthetic one, all that it is made from."""
  return is_recorded(channel, image_set.images)


def with_stretched(image_set: ImageSet, channels: Iterable[str]) -> ImageSet:
  """Stretches the range of target channels: from the 0.1 to the 99.9 percentile of the whole image.

  For cameras that were not exposed to their full range. A channel that the field of view lacks is
  passed over; a synthetic one is the mean of its parts unstretched, then stretched itself.

  Args:
    image_set: the field of view.
    channels: to stretch; the others stay as they are.

  Returns:
    The same images, with `ranges` that `target_crop` goes by.

  Raises:
    ValueError: a channel has no range, being all of one intensity.
  """
  ranges = dict(image_set.ranges)
  for channel in channels:
    if has_truth(image_set, channel):
      image = _unstretched(image_set, channel)
      # In the images' precision: a difference that this loses would be divided by.
      low, high = (np.float32(end) for end in np.percentile(image, _STRETCHED_PERCENTILES))
      if not low < high:
        raise ValueError(
          f'field of view {image_set.name!r}: {channel} cannot be stretched, its percentiles'
          f' {" and ".join(map(str, _STRETCHED_PERCENTILES))} are both {low:.6g}; expected an image'
          ' of more than one intensity, or --stretch_targets without this channel'
        )
      ranges[channel] = (float(low), float(high))
  return dataclasses.replace(image_set, ranges=ranges)


def light_crop(
  image_set: ImageSet,
  depths: Sequence[int],
  rows: slice,
  columns: slice,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Transmitted light in a window of the field of view.

  Args:
    image_set: the field of view.
    depths: of its images, the ones to read.
    rows: the window's rows, within the image.
    columns: its columns.
    out: where to write the result; None: a new array.

  Returns:
    float32 [row, column, depth]: intensities in [0, 1].

  Raises:
    ValueError: the window is not within the image.
  """
  _check_window(image_set, rows, columns)
  images = [image_set.images[ImageKey(depth, image_set.transmitted_light)] for depth in depths]
  # Interleaved before they are converted: the strided pass over the large result is what costs.
  crop = np.stack([image[rows, columns] for image in images], axis=-1)
  maxima = np.array([np.iinfo(image.dtype).max for image in images], np.float32)
  return np.divide(crop, maxima, out=out)


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
  result = np.empty((*_check_window(image_set, rows, columns), len(stack.keys), 1, 2), np.float32)
  depths = depths_read(stack, image_set.num_depths)
  light_crop(image_set, depths, rows, columns, out=result[..., 0, 0])
  result[..., 1] = 1
  return result


def target_crop(image_set: ImageSet, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
  """The fluorescent labels in a window of the field of view.

  A synthetic channel is the mean of its parts, and its mask the geometric mean of theirs. Where
  `has_truth` is false, the image is black and the mask 0. Channels in the field of view's `ranges`
  are stretched, and clipped to [0, 1].

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
    keys = [ImageKey(experiment.MAXPROJECT, part) for part in parts_of(channel)]
    masks = [float(key in image_set.images) for key in keys]
    result[:, :, 0, i, 1] = math.prod(masks) ** (1 / len(masks))
    if all(masks):
      crop = _unstretched(image_set, channel, rows, columns)
      if channel in image_set.ranges:
        low, high = (np.float32(end) for end in image_set.ranges[channel])
        crop = np.clip((crop - low) / (high - low), 0, 1)
      result[:, :, 0, i, 0] = crop
  return result


def classes_of(intensities: np.ndarray) -> np.ndarray:
  """The class of each pixel, round(255 * intensity), as uint8."""
  return np.rint(intensities * np.float32(experiment.NUM_CLASSES - 1)).astype(np.uint8)


def _unstretched(
  image_set: ImageSet, channel: str, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
  """A target channel that was recorded, float32 [row, column] as on disk."""
  keys = [ImageKey(experiment.MAXPROJECT, part) for part in parts_of(channel)]
  return np.mean([image_io.intensity(image_set.images[key][rows, columns]) for key in keys], axis=0)


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
