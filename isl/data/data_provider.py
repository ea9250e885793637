"""Makes of a field of view's images what the network reads, and the truth of what it predicts.

`prepared` checks a field of view and sets the ranges of its intensities. `input_crop`,
`padded_input_crop` and `light_crop` give the input in a window, `target_crop` the labels; a
`TruthReader` gives both where the outputs of inference are. `images_read` tells which depths the
network sees, `label_percentiles` and `input_percentiles` what ranges are made of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from isl.core.channels import MAXPROJECT, ImageKey, StackSpec
from isl.core.experiment import InputRange, Padding
from isl.core.statistic import NUM_CLASSES
from isl.images.fields_of_view import FieldOfView, parts_of
from isl.images.pixels import Pixels, extremes, intensity, maximum, percentiles

# The percentiles that stretching makes 0 and 1: beyond them are dust and dead pixels.
_STRETCHED_PERCENTILES = (0.1, 99.9)


def depth_at(z_value: float, num_depths: int) -> int:
  """The number of the depth that the network sees at a position in [0, 1].

  It is round((num_depths - 1) * z_value), with Python's rounding (half to even), so that 13 depths
  fill 26 positions.
  """
  return round((num_depths - 1) * z_value)


def images_read(field_of_view: FieldOfView, stack: StackSpec) -> list[int]:
  """Finds the images of a field of view that the network sees at each position and channel.

  Args:
    field_of_view: the images there are.
    stack: the network's input channels, at positions in [0, 1].

  Returns:
    Indices into `field_of_view.input_keys`, in the order of `stack.keys`; an image that is seen at
    several positions is there several times.
  """
  numbers = {key: i for i, key in enumerate(field_of_view.input_keys)}
  depths = {channel: field_of_view.num_depths(channel) for channel in stack.channels}
  return [
    numbers[
      ImageKey(depth_at(float(key.z), depths[key.channel]), field_of_view.recorded_as(key.channel))
    ]
    for key in stack.keys
  ]


def is_recorded(channel: str, keys: Container[ImageKey]) -> bool:
  """Whether all channels that a target channel is made from have a key among `keys`."""
  return all(ImageKey(MAXPROJECT, part) in keys for part in parts_of(channel))


def has_truth(field_of_view: FieldOfView, channel: str) -> bool:
  """Whether a field of view has all images that a target channel is made from."""
  return is_recorded(channel, field_of_view.images)


def with_stretched(field_of_view: FieldOfView, channels: Iterable[str]) -> FieldOfView:
  """Sets the ranges of target channels to the 0.1 and 99.9 percentiles of the whole image.

  This is for cameras that were not exposed to their full range. A channel that the field of view
  lacks is passed over; a synthetic channel is the mean of its unstretched parts, and then stretched
  itself.

  Args:
    field_of_view: what is given ranges.
    channels: the target channels to stretch; the others keep their ranges.

  Returns:
    The field of view with the same images, and with `ranges` by which `target_crop` stretches.

  Raises:
    ValueError: a channel has no range, because both percentiles are the same, or the percentiles of
      the whole that a part of a field of view belongs to are unknown.
  """
  ranges = dict(field_of_view.ranges)
  for channel in channels:
    if has_truth(field_of_view, channel):
      # In the images' precision: `target_crop` divides by the difference in float32.
      low, high = (np.float32(end) for end in label_percentiles(field_of_view, channel))
      if not low < high:
        raise ValueError(
          f'field of view {field_of_view.name!r}: {channel} cannot be stretched, its percentiles'
          f' {" and ".join(map(str, _STRETCHED_PERCENTILES))} are both {low:.6g}; expected an image'
          ' of more than one intensity, or --stretch_targets without this channel'
        )
      ranges[channel] = (float(low), float(high))
  return dataclasses.replace(field_of_view, ranges=ranges)


def label_percentiles(field_of_view: FieldOfView, channel: str) -> tuple[float, float]:
  """The 0.1 and 99.9 percentiles of a recorded target channel in the whole field of view.

  Returns:
    (low, high), intensities.

  Raises:
    ValueError: `field_of_view` is a part of one, whose percentiles of the channel are unknown.
  """
  if field_of_view.percentiles is not None:
    return _known(field_of_view, field_of_view.percentiles.targets, channel)
  low, high = np.percentile(_unstretched(field_of_view, channel), _STRETCHED_PERCENTILES)
  return float(low), float(high)


def _known(
  field_of_view: FieldOfView, percentiles: Mapping[str, tuple[float, float]], channel: str
) -> tuple[float, float]:
  if channel not in percentiles:
    raise ValueError(
      f'field of view {field_of_view.name!r} is a part of one, without percentiles of {channel} in'
      f' the whole; there are those of {", ".join(sorted(percentiles)) or "no channel"}'
    )
  return percentiles[channel]


def input_percentiles(field_of_view: FieldOfView, channel: str) -> tuple[float, float]:
  """The 0.1 and 99.9 percentiles of all depths of a recorded input channel, in the whole.

  Returns:
    (low, high), intensities.

  Raises:
    ValueError: `field_of_view` is a part of one, whose percentiles of the channel are unknown.
  """
  if field_of_view.percentiles is not None:
    return _known(field_of_view, field_of_view.percentiles.inputs, channel)
  images = [field_of_view.images[key] for key in field_of_view.input_keys if key.channel == channel]
  low, high = percentiles(images, _STRETCHED_PERCENTILES)
  unit = maximum(images[0].dtype)
  return low / unit, high / unit


def prepared(
  field_of_view: FieldOfView, input_range: InputRange | None, stretch_targets: Iterable[str]
) -> FieldOfView:
  """Sets the ranges of a field of view's intensities, and checks its images of floats.

  Args:
    field_of_view: a field of view as it was read.
    input_range: the range of the input channels that becomes [0, 1]; None: the files' full range.
    stretch_targets: the target channels to stretch, see `with_stretched`.

  Returns:
    The field of view with the same images, and with ranges.

  Raises:
    ValueError: a channel has no range, because its percentiles are the same or unknown; or an image
      of floats is not in [0, 1] and either has no range or is not finite.
  """
  if input_range is not None:
    field_of_view = _with_input_range(field_of_view, input_range)
  field_of_view = with_stretched(field_of_view, stretch_targets)
  stretched = {part for channel in field_of_view.ranges for part in parts_of(channel)}
  for key, image in field_of_view.images.items():
    if image.dtype.kind == 'f':
      is_label = key.z == MAXPROJECT
      check_floats(
        f'field of view {field_of_view.name!r}: {key.channel} at z {key.z}',
        image,
        key.channel in (stretched if is_label else field_of_view.input_ranges),
        '--stretch_targets' if is_label else '--input_range LOW,HIGH (or auto)',
      )
  return field_of_view


def _with_input_range(field_of_view: FieldOfView, input_range: InputRange) -> FieldOfView:
  ranges = {}
  for channel in dict.fromkeys(key.channel for key in field_of_view.input_keys):
    key = next(key for key in field_of_view.input_keys if key.channel == channel)
    unit = maximum(field_of_view.images[key].dtype)
    if input_range.ends is not None:
      low, high = (end / unit for end in input_range.ends)
    else:
      low, high = input_percentiles(field_of_view, channel)
      if not low < high:
        raise ValueError(
          f'field of view {field_of_view.name!r}: {channel} has no range for --input_range auto,'
          f' its percentiles {" and ".join(map(str, _STRETCHED_PERCENTILES))} are both'
          f' {low * unit:.6g}; expected images of more than one intensity, or --input_range'
          ' LOW,HIGH'
        )
    ranges[channel] = (low, high)
  return dataclasses.replace(field_of_view, input_ranges=ranges)


def check_floats(what: str, image: Pixels, is_ranged: bool, remedy: str) -> None:
  """Checks that floats are intensities, or finite where a range makes them intensities.

  Args:
    what: name of the image in the error.
    image: an image of floats.
    is_ranged: whether a range is known that becomes [0, 1].
    remedy: the flag or argument that would give a range, for the error.

  Raises:
    ValueError: a pixel is not in [0, 1] and either has no range or is not finite.
  """
  low, high = extremes(image)
  if is_ranged and math.isfinite(low) and math.isfinite(high):
    return
  if not (low >= 0 and high <= 1):
    raise ValueError(
      f'{what} has values from {low:.6g} to {high:.6g}; expected 8- or 16-bit images, or floats in'
      f' [0, 1], or, with finite ones, {remedy}'
    )


def light_crop(
  field_of_view: FieldOfView,
  images: Sequence[int],
  rows: slice,
  columns: slice,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Reads images of input channels in a window of a field of view.

  Args:
    field_of_view: what is read.
    images: the images, as indices into `field_of_view.input_keys`.
    rows: the window's rows, in pixels, within the image.
    columns: the window's columns, in pixels, within the image.
    out: array to write the result to; None: a new one.

  Returns:
    float32 [row, column, image]: intensities in [0, 1].

  Raises:
    ValueError: the window is not within the image.
  """
  _check_window(field_of_view, rows, columns)
  keys = [field_of_view.input_keys[i] for i in images]
  # An image that is read from a file when it is sliced should be read once.
  windows = {key: field_of_view.images[key][rows, columns] for key in set(keys)}
  # Interleaved before they are converted: the strided pass over the large result is what costs.
  crop = np.stack([windows[key] for key in keys], axis=-1)
  maxima = np.array([maximum(windows[key].dtype) for key in keys], np.float32)
  result = np.divide(crop, maxima, out=out, dtype=np.float32)
  if field_of_view.input_ranges:
    for i, key in enumerate(keys):
      result[..., i] = field_of_view.in_range(key, result[..., i])
  return result


def input_crop(
  field_of_view: FieldOfView, stack: StackSpec, rows: slice, columns: slice
) -> np.ndarray:
  """Reads the z-stack in a window of a field of view.

  For TRANSMISSION, the one kind of transmitted light that the field of view has is read.

  Args:
    field_of_view: what is read.
    stack: the network's input channels, at positions in [0, 1].
    rows: the window's rows, in pixels, within the image.
    columns: the window's columns, in pixels, within the image.

  Returns:
    float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask, which is 1.

  Raises:
    ValueError: the window is not within the image.
  """
  size = _check_window(field_of_view, rows, columns)
  result = np.empty((*size, len(stack.keys), 2), np.float32)
  light_crop(field_of_view, images_read(field_of_view, stack), rows, columns, out=result[..., 0])
  result[..., 1] = 1
  return result.reshape(*size, len(stack.z_values), len(stack.channels), 2)


def padded_input_crop(
  field_of_view: FieldOfView,
  stack: StackSpec,
  rows: slice,
  columns: slice,
  *,
  size: tuple[int, int],
  padding: Padding,
) -> np.ndarray:
  """Reads the z-stack in a window that may reach beyond the crop at the image's top left.

  Args:
    field_of_view: what is read.
    stack: the network's input channels, at positions in [0, 1].
    rows: the window's rows, in pixels; the crop's first is 0.
    columns: the window's columns, in pixels; the crop's first is 0.
    size: (rows, columns) of the crop, in pixels.
    padding: what is around the crop. REFLECT: the crop mirrored at its border pixels, which are not
      repeated, as often as need be; ZERO: the intensity 0, and the mask 0.

  Returns:
    float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask.

  Raises:
    ValueError: there is no padding, and the window is not within the image.
  """
  if padding is Padding.NONE:
    return input_crop(field_of_view, stack, rows, columns)
  windows = (rows, columns)
  if padding is Padding.REFLECT:
    indices = [
      _reflected(np.arange(w.start, w.stop), n) for w, n in zip(windows, size, strict=True)
    ]
    read = [slice(int(i.min()), int(i.max()) + 1) for i in indices]
    crop = input_crop(field_of_view, stack, read[0], read[1])
    places = [i - r.start for i, r in zip(indices, read, strict=True)]
    return crop[places[0][:, np.newaxis], places[1]]
  result = np.zeros(
    (*(w.stop - w.start for w in windows), len(stack.z_values), len(stack.channels), 2), np.float32
  )
  read = [slice(max(w.start, 0), min(w.stop, n)) for w, n in zip(windows, size, strict=True)]
  if all(r.start < r.stop for r in read):
    row, column = (
      slice(r.start - w.start, r.stop - w.start) for r, w in zip(read, windows, strict=True)
    )
    result[row, column] = input_crop(field_of_view, stack, read[0], read[1])
  return result


def _reflected(places: np.ndarray, size: int) -> np.ndarray:
  """The pixels, 0 to size - 1, that places before or behind them mirror at the border pixels."""
  if size == 1:
    return np.zeros_like(places)
  period = 2 * (size - 1)
  folded = np.mod(places, period)
  return np.minimum(folded, period - folded)


def target_crop(
  field_of_view: FieldOfView, stack: StackSpec, rows: slice, columns: slice
) -> np.ndarray:
  """Reads the fluorescent labels in a window of a field of view.

  A synthetic channel is the mean of its parts, and its mask the geometric mean of theirs. Where
  `has_truth` is false, the image is black and the mask 0. Channels in the field of view's `ranges`
  are stretched, and clipped to [0, 1].

  Args:
    field_of_view: what is read.
    stack: the target channels, at z MAXPROJECT.
    rows: the window's rows, in pixels, within the image.
    columns: the window's columns, in pixels, within the image.

  Returns:
    float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask.

  Raises:
    ValueError: the window is not within the image.
  """
  assert stack.z_values == (MAXPROJECT,), stack.z_values
  num_rows, num_columns = _check_window(field_of_view, rows, columns)
  result = np.zeros((num_rows, num_columns, 1, len(stack.channels), 2), np.float32)
  for i, channel in enumerate(stack.channels):
    keys = [ImageKey(MAXPROJECT, part) for part in parts_of(channel)]
    masks = [float(key in field_of_view.images) for key in keys]
    result[:, :, 0, i, 1] = math.prod(masks) ** (1 / len(masks))
    if all(masks):
      crop = _unstretched(field_of_view, channel, rows, columns)
      if channel in field_of_view.ranges:
        low, high = (np.float32(end) for end in field_of_view.ranges[channel])
        crop = np.clip((crop - low) / (high - low), 0, 1)
      result[:, :, 0, i, 0] = crop
  return result


def classes_of(intensities: np.ndarray) -> np.ndarray:
  """Gives the class of each intensity in [0, 1]: round(255 * intensity), uint8 of that shape."""
  return np.rint(intensities * np.float32(NUM_CLASSES - 1)).astype(np.uint8)


def _unstretched(
  field_of_view: FieldOfView, channel: str, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
  """Reads a recorded target channel before stretching: intensities, float32 [row, column]."""
  keys = [ImageKey(MAXPROJECT, part) for part in parts_of(channel)]
  return np.mean([intensity(field_of_view.images[key][rows, columns]) for key in keys], axis=0)


def _check_window(field_of_view: FieldOfView, rows: slice, columns: slice) -> tuple[int, int]:
  """The (rows, columns) of a window, in pixels; raises ValueError unless it is within the image.

  NumPy would clip a window silently.
  """
  lengths = []
  for window, size, what in zip(
    (rows, columns), field_of_view.size, ('rows', 'columns'), strict=True
  ):
    start, stop = window.start or 0, size if window.stop is None else window.stop
    if not 0 <= start < stop <= size or window.step not in (None, 1):
      raise ValueError(
        f'field of view {field_of_view.name!r} has {size} {what}; expected a window within them,'
        f' got {start} to {stop}'
      )
    lengths.append(stop - start)
  return lengths[0], lengths[1]


class TruthReader:
  """Reads the true labels and the input of a field of view where inference gives outputs.

  Attributes:
    field_of_view: what is read.
    offset: row, and also column, of the image at which the outputs begin, in pixels.
    size: (rows, columns) of the outputs, in pixels.
  """

  def __init__(self, field_of_view: FieldOfView, offset: int, size: tuple[int, int]):
    """Takes the field of view and the place of the outputs in it; reads nothing yet."""
    self.field_of_view = field_of_view
    self.offset = offset
    self.size = size

  def stack(self, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
    """Reads a z-stack or labels in a window of the outputs.

    Args:
      stack: the input channels at positions in [0, 1], or target channels at z MAXPROJECT.
      rows: the window's rows, in pixels of the outputs.
      columns: the window's columns, in pixels of the outputs.

    Returns:
      float32 [row, column, z, channel, mask]: intensities in [0, 1], and the mask.
    """
    window = [slice(s.start + self.offset, s.stop + self.offset) for s in (rows, columns)]
    is_target = stack.z_values == (MAXPROJECT,)
    crop = target_crop if is_target else input_crop
    return crop(self.field_of_view, stack, window[0], window[1])

  def image(self, key: ImageKey, rows: slice, columns: slice) -> np.ndarray:
    """Reads one image in a window of the outputs: intensities, float32 [row, column]."""
    stack = StackSpec(z_values=(key.z,), channels=(key.channel,))
    return self.stack(stack, rows, columns)[:, :, 0, 0, 0]

  def images(self, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
    """Reads all images of a stack in a window of the outputs: float32 [image, row, column].

    Images that are unknown are 0. The result is an array of its own, so that the masks' memory is
    freed.
    """
    images = self.stack(stack, rows, columns)[..., 0]
    return np.moveaxis(images.reshape(*images.shape[:2], -1), -1, 0).copy()

  def is_known(self, key: ImageKey) -> bool:
    """Whether the field of view has an image of the labels; it has all of the input."""
    return key.z != MAXPROJECT or has_truth(self.field_of_view, key.channel)
