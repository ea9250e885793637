"""An endless stream of patches of TFRecord shards, which tf.data reads as they are needed.

`ShardPatches` is the stream, for training and for the evaluation of a loss. Shards are read several
at a time, in another order in each pass. One random crop of each Example that is drawn gives all
its patches, which are then shuffled among those of other Examples. A patch reads `margin` pixels
beyond its output. So that outputs at a field of view's border are trained on, too, Examples are
padded with as many zeros, for which the input's mask is 0. A tile of a field of view is padded only
where the field of view ends; elsewhere its overlap has its neighbours' pixels.

Each crop that fits into the padded Example is equally likely, so that training, which flips crops,
can draw all outputs of a field of view as long as its tiles are not smaller than the crop.

The stream is a function of the seed and of the number of its first patch: a resumed run draws other
patches than it would have drawn, had it not been stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.channels import MAXPROJECT, ImageKey, StackSpec
from isl.core.experiment import InputRange, ShardReading
from isl.data import data_provider, shard_examples, shard_reading
from isl.data.patches import Patches, PatchSpec, options
from isl.data.shard_examples import ShardTile
from isl.data.shard_reading import Record, Shards
from isl.images.fields_of_view import FieldOfView
from isl.images.sources import ImageSource

# What random numbers are drawn for: their seed is (the run's seed, one of these, numbers).
_CROP, _PATCHES, _SHARDS, _SHUFFLE = range(4)
# The dtypes of a batch's tensors.
_TYPES = (tf.float32, tf.uint8, tf.float32, tf.float32)
_INT64_MAX = np.iinfo(np.int64).max
# After so many Examples, labels that none of them had are reported.
_MANY_EXAMPLES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """How the images of an Example are prepared before patches are cut from them.

  Attributes:
    input_range: which part of the 16 bits the input uses; None: all of it.
    stretch_targets: target channels whose range in each field of view becomes [0, 1].
    leave_out_others: whether labels that the network does not predict are left out instead of
      being an error.
    wanted_targets: labels of which a log line warns if none of the first Examples has them.
  """

  input_range: InputRange | None
  stretch_targets: Sequence[str]
  leave_out_others: bool
  wanted_targets: Sequence[str] = ()


class ShardPatches:
  """An endless stream of patches of TFRecord shards.

  Attributes:
    input_shape: (rows, columns, images) of a patch's input.
    target_shape: (rows, columns, channels) of a patch's target.
    per_crop: number of patches in a crop.
    shards: the shards that are read.
    failure: the error that ended the stream, which TensorFlow words differently; None: it has not
      ended.
  """

  def __init__(
    self,
    reading: ShardReading,
    preparation: Preparation,
    spec: PatchSpec,
  ):
    """Reads the first undamaged Example, to find out early what does not fit the network.

    Args:
      reading: which shards are read, and how.
      preparation: how the Examples' images are prepared.
      spec: how patches are drawn from the Examples.

    Raises:
      ValueError: shards are missing or damaged, there is no Example, or the first does not fit.
      OSError: a shard cannot be read.
    """
    self.shards = Shards(reading)
    self.failure: ValueError | OSError | None = None
    self._preparation = preparation
    self._spec = spec
    wanted = (*preparation.wanted_targets, *preparation.stretch_targets)
    self._labels = LabelWatch(spec.targets, wanted)
    self._first, crop = self._find_first()
    self.input_shape, self.target_shape = crop.input_shape, crop.target_shape
    self.per_crop = crop.per_crop

  def _find_first(self) -> tuple[Record, Patches]:
    for record in self.shards.every_record():
      crop = self._crop(record, 0)
      if crop is not None:
        return record, crop
    raise self.shards.no_examples()

  def _draw(self, purpose: int, *numbers: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([self._spec.seed, purpose, *numbers])

  def _crop(self, record: Record, *number: int) -> Patches | None:
    """Makes the patches of a random crop of an Example.

    Args:
      record: the Example.
      *number: numbers that decide, with the seed, where the crop lies and how it is changed.

    Returns:
      The patches; None: the Example is damaged and is left out.

    Raises:
      ValueError: the Example is damaged and may not be left out, or does not fit the network.
    """
    tile = self.shards.decode(record)
    if tile is None:
      return None
    if not self._preparation.leave_out_others:
      check_labels(tile, self._spec.inputs, self._spec.targets)
    files = tile.files.select(self._spec.inputs.channels, self._spec.targets.channels)
    rng = np.random.default_rng(self._draw(_CROP, *number))
    window = draw_window(tile, self._spec.geometry.margin, self._spec.sampling.crop_size, rng)
    needed = needed_images(files.sources, self._spec.inputs, window)
    try:
      images = read_window(needed, tile, window)
    # All else was checked before: a ValueError here means that a PNG is damaged.
    except ValueError as e:
      self.shards.leave_out(record, e)
      return None
    field_of_view = FieldOfView(
      name=f'{tile.files.origin}: {files.name}',
      images=images,
      percentiles=files.percentiles,
      presence=placed(np.ones(tile.place.image_size, np.uint8), tile, window),
    )
    field_of_view = data_provider.prepared(
      field_of_view, self._preparation.input_range, self._preparation.stretch_targets
    )
    spec = dataclasses.replace(
      self._spec,
      # The order of a crop's patches does not matter before they are shuffled.
      sampling=dataclasses.replace(self._spec.sampling, capacity=1),
      seed=int(self._draw(_PATCHES, *number).generate_state(1, np.uint64)[0]),
    )
    return Patches([[field_of_view]], spec)

  def batch(self, first: int, size: int) -> tuple[np.ndarray, ...]:
    """Reads patches of the first Example alone, for checks; they are not part of the stream.

    Args:
      first: number that decides, with the seed, which crops the patches are of.
      size: number of patches.

    Returns:
      Inputs, target classes, target masks and input masks, as `dataset` gives them.
    """
    crops = [self._first_crop(first + i) for i in range(-(-size // self.per_crop))]
    parts = [crop.batch(0, self.per_crop) for crop in crops]
    return tuple(np.concatenate(arrays)[:size] for arrays in zip(*parts, strict=True))

  def crop_images(self, number: int) -> np.ndarray:
    """Reads a random crop of the first Example as pictures, see `patches.Patches.crop_images`."""
    return self._first_crop(number).crop_images(0)

  def _first_crop(self, number: int) -> Patches:
    crop = self._crop(self._first, number)
    assert crop is not None
    return crop

  def dataset(
    self, first_patch: int | tf.Tensor, batch_size: int, num_threads: int
  ) -> tf.data.Dataset:
    """Makes endless batches, whose order does not depend on the threads.

    Only an error ends the stream; `failure` is then that error.

    Args:
      first_patch: the number of the first patch of the first batch; may be an int64 scalar tensor.
      batch_size: number of patches in a batch.
      num_threads: number of threads that read patches.

    Returns:
      A data set of batches (float32 [batch, row, column, image], uint8 [batch, row, column,
      channel], float32 [batch, channel], float32 [batch, row, column]): inputs, target classes,
      target masks and input masks as a `patches.Patch` has them.
    """
    reading = self.shards.reading
    # With more open shards, those of the next passes would be read beside those of this one.
    num_open = min(reading.num_threads, len(reading.paths))
    first = tf.cast(first_patch, tf.int64)
    shuffle_seed = first + int(self._draw(_SHUFFLE).generate_state(1)[0])
    shapes = (self.input_shape, self.target_shape, self.target_shape[-1:], self.input_shape[:2])

    @tf.autograph.experimental.do_not_convert
    def open_shard(opened: tf.Tensor) -> tf.data.Dataset:
      shard, path, kind = tf.numpy_function(
        self._choose, [opened, first], [tf.int64, tf.string, tf.string]
      )
      # A shard that ends early is examined at its end (`_cut`): TensorFlow's error does not name
      # it.
      read = tf.data.TFRecordDataset(path, kind).ignore_errors(log_warning=False)
      read = read.filter(lambda data: tf.not_equal(data, shard_examples.EMPTY))
      end = tf.data.Dataset.from_tensors(('', True))
      examples = read.map(lambda data: (data, False)).concatenate(end).enumerate()
      return examples.map(lambda number, example: (shard, number, *example))

    @tf.autograph.experimental.do_not_convert
    def cut(number: tf.Tensor, example: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
      tensors = tf.numpy_function(self._cut, [first, number, *example], _TYPES)
      return tuple(
        tf.ensure_shape(t, (None, *shape)) for t, shape in zip(tensors, shapes, strict=True)
      )

    return (
      tf.data.Dataset.range(_INT64_MAX)
      .interleave(open_shard, cycle_length=num_open, num_parallel_calls=num_open)
      .shuffle(reading.capacity, seed=shuffle_seed)
      .enumerate()
      .map(cut, num_parallel_calls=reading.batch_size)
      .unbatch()
      .shuffle(self._spec.sampling.capacity, seed=shuffle_seed)
      .batch(batch_size, drop_remainder=True)
      .prefetch(1)
      .with_options(options(num_threads))
    )

  def batches(self, size: int, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the first batches of the stream, which are always the same.

    Args:
      size: number of patches in a batch.
      count: number of batches.

    Raises:
      ValueError: the shards are damaged, or an Example does not fit the network.
      OSError: a shard cannot be read.
    """
    graph = tf.Graph()
    with graph.as_default():
      data = self.dataset(0, size, self._spec.sampling.num_threads)
      iterator = tf.data.make_initializable_iterator(data)
      batch = iterator.get_next()
    with contextlib.closing(tf.Session(graph=graph)) as session:
      session.run(iterator.initializer)
      for _ in range(count):
        try:
          yield session.run(batch)
        except tf.errors.OpError as e:
          raise self.failure or ValueError(f'the shards cannot be read: {e.message}') from e

  def _choose(self, opened: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Decides which shard is opened as the `opened`th, from 0: its number, path and compression."""
    paths = self.shards.reading.paths
    in_pass, place = divmod(int(opened), len(paths))
    order = np.random.default_rng(self._draw(_SHARDS, int(first), in_pass)).permutation(len(paths))
    path = paths[int(order[place])]
    with self._keeping_failure():
      return order[place], str(path), shard_reading.compression(path)

  def _cut(
    self,
    first: np.ndarray,
    number: np.ndarray,
    shard: np.ndarray,
    in_shard: np.ndarray,
    data: bytes,
    is_end: np.ndarray,
  ) -> tuple[np.ndarray, ...]:
    """Gives all patches of a crop of an Example; none at a shard's end or if it is left out."""
    path, place = self.shards.reading.paths[int(shard)], int(in_shard)
    with self._keeping_failure():
      if is_end:
        self.shards.check_end(path, place)
      else:
        record = Record(path=path, number=place, data=data)
        crop = self._crop(record, int(number), int(first))
        if crop is not None:
          batch = crop.batch(0, self.per_crop)
          self._labels.see(batch[2][0])
          return batch
    shapes = (self.input_shape, self.target_shape, self.target_shape[-1:], self.input_shape[:2])
    return tuple(
      np.zeros((0, *shape), t.as_numpy_dtype) for shape, t in zip(shapes, _TYPES, strict=True)
    )

  @contextlib.contextmanager
  def _keeping_failure(self) -> Iterator[None]:
    """Keeps the first error of the `with` block as `failure`: TensorFlow changes its words."""
    try:
      yield
    except (ValueError, OSError) as e:
      self.failure = self.failure or e
      raise


def check_labels(tile: ShardTile, inputs: StackSpec, targets: StackSpec) -> None:
  """Raises ValueError if an Example has a label that the network does not predict."""
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
  """Draws the place of a crop in an Example that is padded by `margin` on each side.

  Args:
    tile: the Example.
    margin: pixels around the tile's own that a crop may reach into: its overlap, or, outside of the
      field of view, zeros.
    crop: side of the crop, in pixels.
    rng: generator of the random numbers.

  Returns:
    The crop's rows and columns, in pixels of the field of view; some may be outside of it.

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
  """Picks the images that patches need: labels, and the depths that the network sees.

  Args:
    sources: where each image is.
    inputs: the network's input channels, at positions in [0, 1].
    window: the crop's rows and columns.

  Returns:
    By key, where the image is; None: the network sees other depths of the channel instead.
  """
  nothing = np.broadcast_to(np.uint16(0), [w.stop - w.start for w in window])
  every = FieldOfView(name='', images=dict.fromkeys(sources, nothing))
  numbers = data_provider.images_read(every, inputs)
  read = {every.input_keys[i] for i in numbers}
  return {
    key: source if key.z == MAXPROJECT or key in read else None for key, source in sources.items()
  }


def read_window(
  sources: Mapping[ImageKey, ImageSource | None], tile: ShardTile, window: tuple[slice, slice]
) -> dict[ImageKey, np.ndarray]:
  """Reads images in a window of a field of view.

  Args:
    sources: where each image is; None: it is not needed, and its place is taken by zeros that take
      no memory.
    tile: the tile of the field of view that the images are of.
    window: rows and columns, in pixels of the field of view; some may be outside of it.

  Returns:
    The images by key, [row, column], 0 where the tile has no pixels.

  Raises:
    ValueError: an image is damaged.
  """
  nothing = np.broadcast_to(np.uint16(0), [w.stop - w.start for w in window])
  return {
    key: nothing if source is None else placed(np.asarray(source.read()), tile, window)
    for key, source in sources.items()
  }


def placed(image: np.ndarray, tile: ShardTile, window: tuple[slice, slice]) -> np.ndarray:
  """Cuts a window of the field of view out of a tile's image; 0 where that has no pixels."""
  result = np.zeros([w.stop - w.start for w in window], image.dtype)
  read, written = [], []
  for w, begin, size in zip(window, tile.place.image_offset, image.shape, strict=True):
    first, stop = max(w.start, begin), min(w.stop, begin + size)
    read.append(slice(first - begin, stop - begin))
    written.append(slice(first - w.start, stop - w.start))
  result[written[0], written[1]] = image[read[0], read[1]]
  return result


class LabelWatch:
  """Watches which labels the Examples have, to report the labels that none of many had."""

  def __init__(self, targets: StackSpec, wanted: Iterable[str]):
    """Takes the labels that the network predicts, and those to warn of one by one (`wanted`)."""
    self._channels = targets.channels
    self._wanted = set(wanted)
    self._found: set[str] = set()
    self._count = 0
    self._lock = threading.Lock()

  def see(self, masks: np.ndarray) -> None:
    """Takes note of an Example's labels; after many Examples, warns of wanted labels not seen.

    Args:
      masks: not 0 for each label that the Example has, [channel].

    Raises:
      ValueError: none of many Examples had any of the labels.
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
