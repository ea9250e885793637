"""From an Example of a shard to the crop of it that patches are cut from."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from isl.core.channels import MAXPROJECT, ImageKey, StackSpec
from isl.data import data_provider
from isl.data.shard_examples import ShardTile
from isl.images.fields_of_view import ImageSet, ImageSource

# After so many Examples, what none of them had is missed.
_MANY_EXAMPLES = 64


def check_labels(tile: ShardTile, inputs: StackSpec, targets: StackSpec) -> None:
  """Raises ValueError if an Example has a label that the network does not know."""
  files = tile.files
  others = files.other_targets(inputs.channels, targets.channels)
  if others:
    raise ValueError(
      f'{files.origin} has images of {", ".join(others)} at z {MAXPROJECT}, of which the network'
      f' knows nothing; it predicts {", ".join(targets.channels)}; give --target_channels'
      ' with all labels that there are, or with those that it predicts to leave out the others'
    )


def draw_window(
  tile: ShardTile, margin: int, crop: int, rng: np.random.Generator
) -> tuple[slice, slice]:
  """A crop's rows and columns, in pixels of the field of view; some may be outside of it.

  Args:
    tile: what it is of.
    margin: zeros around the field of view, in pixels.
    crop: side of the crop.
    rng: random numbers.

  Raises:
    ValueError: the padded Example is smaller than a crop, or was written with too little overlap.
  """
  place = tile.place
  windows = []
  for i in range(2):
    first, stop = place.offset[i] - margin, place.offset[i] + place.size[i] + margin
    begin, end = place.image_offset[i], place.image_offset[i] + place.image_size[i]
    if first < begin != 0 or stop > end != place.field_size[i]:
      raise ValueError(
        f'{tile.files.origin} has too little overlap with its neighbours: this network needs'
        f' {margin} pixels; make the shards with --tile_overlap {margin} or more'
      )
    if stop - first < crop:
      raise ValueError(
        f'{tile.files.origin} is {place.size[0]} rows x {place.size[1]} columns; with'
        f' {margin} pixels around it, that is too small for --loss_crop_size {crop}; expected at'
        f' most {min(place.size) + 2 * margin}'
      )
    start = first + int(rng.integers(stop - first - crop + 1))
    windows.append(slice(start, start + crop))
  return windows[0], windows[1]


def needed_images(
  sources: Mapping[ImageKey, ImageSource], inputs: StackSpec, window: tuple[slice, slice]
) -> dict[ImageKey, ImageSource | None]:
  """The images; None: the network reads another depth instead."""
  nothing = np.broadcast_to(np.uint16(0), [w.stop - w.start for w in window])
  every = ImageSet(name='', images=dict.fromkeys(sources, nothing))
  numbers = data_provider.images_read(every, inputs)
  read = {every.input_keys[i] for i in numbers}
  return {
    key: source if key.z == MAXPROJECT or key in read else None for key, source in sources.items()
  }


def read_window(
  sources: Mapping[ImageKey, ImageSource | None], tile: ShardTile, window: tuple[slice, slice]
) -> dict[ImageKey, np.ndarray]:
  """The images in a window of the field of view; of None: without a pixel in memory.

  Raises:
    ValueError: one is damaged.
  """
  nothing = np.broadcast_to(np.uint16(0), [w.stop - w.start for w in window])
  return {
    key: nothing if source is None else placed(np.asarray(source.read()), tile, window)
    for key, source in sources.items()
  }


def placed(image: np.ndarray, tile: ShardTile, window: tuple[slice, slice]) -> np.ndarray:
  """A window of the field of view, out of a tile's image; zeros are where that has no pixels."""
  result = np.zeros([w.stop - w.start for w in window], image.dtype)
  read, written = [], []
  for w, begin, size in zip(window, tile.place.image_offset, image.shape, strict=True):
    first, stop = max(w.start, begin), min(w.stop, begin + size)
    read.append(slice(first - begin, stop - begin))
    written.append(slice(first - w.start, stop - w.start))
  result[written[0], written[1]] = image[read[0], read[1]]
  return result


class LabelWatch:
  """Which labels Examples have."""

  def __init__(self, targets: StackSpec, wanted: Iterable[str]):
    """Nothing has been seen yet; `wanted` are missed one by one."""
    self._channels = targets.channels
    self._wanted = set(wanted)
    self._found: set[str] = set()
    self._count = 0
    self._lock = threading.Lock()

  def see(self, masks: np.ndarray) -> None:
    """Takes note of an Example's labels, [channel].

    Raises:
      ValueError: none of many had any.
    """
    with self._lock:
      self._count += 1
      self._found |= {c for c, mask in zip(self._channels, masks, strict=True) if mask}
      if self._count != _MANY_EXAMPLES:
        return
    if not self._found:
      raise ValueError(
        f'none of {_MANY_EXAMPLES} examples drawn from the shards has an image of a label at z'
        f' {MAXPROJECT}; the network predicts {", ".join(self._channels)}'
      )
    for channel in sorted(self._wanted - self._found):
      logging.warning(
        'None of %d examples drawn from the shards has an image of %s', _MANY_EXAMPLES, channel
      )
