"""An endless stream of patches of fields of view, each of which can be read without the others.

Training and the evaluation of a loss read it. Everything about patch number j is a function of the
seed and j, so that a resumed run goes on exactly where it stopped, and reads no other patch for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from isl.core.channels import StackSpec
from isl.core.experiment import Corruption, Geometry, Sampling
from isl.data import augment, data_provider
from isl.images.fields_of_view import FieldOfView

# What random numbers are drawn for: their seed is (the run's seed, one of these, a number).
_CROP, _ORDER, _NOISE = range(1, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchSpec:
  """How a stream's patches are drawn, from fields of view or from shards.

  Attributes:
    sampling: sizes of crops and patches, and how many patches are shuffled.
    geometry: sizes of the network's patches and outputs. A patch's input here is as much larger as
      `sampling.output_size` is larger than the network's output.
    inputs: the images that the network reads.
    targets: the labels that the network predicts.
    seed: seed of all that is random; not negative.
    augment: whether crops are flipped, turned and corrupted; without, they are at the same places.
    corruption: standard deviations of the crops' corruption.
  """

  sampling: Sampling
  geometry: Geometry
  inputs: StackSpec
  targets: StackSpec
  seed: int
  augment: bool
  corruption: Corruption

  @property
  def side(self) -> int:
    """The side of a patch's input, in pixels."""
    return self.geometry.patch + self.sampling.output_size - self.geometry.output


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
  """A patch: what the network reads, and the classes that it should predict.

  Attributes:
    input: intensities in [0, 1], float32 [row, column, image], in the order of `StackSpec.keys`.
    target_classes: the labels' classes at the patch's centre, round(255 * intensity), uint8 [row,
      column, channel].
    target_mask: float32 [channel]: 1 for a label whose truth is known, else 0 (with classes 0).
    input_mask: float32 [row, column]: 1 where there are pixels, 0 (with intensities 0) where there
      is padding; None: nothing is padded.
  """

  input: np.ndarray
  target_classes: np.ndarray
  target_mask: np.ndarray
  input_mask: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
  """A random square of a random field of view, which patches are cut from.

  Attributes:
    field_of_view: the field of view that the crop is of.
    row: the image's row at which the crop begins, in pixels.
    column: the image's column at which the crop begins, in pixels.
    flip: whether the crop is flipped before it is turned; see `augment.flip_and_rotate`.
    quarter_turns: number of quarter turns, counterclockwise.
    distortion: corruption of the image of each of `field_of_view.input_keys`.
  """

  field_of_view: FieldOfView
  row: int
  column: int
  flip: bool
  quarter_turns: int
  distortion: augment.Distortion


class Patches:
  """An endless stream of patches, each of which can be read without the others.

  Crops come from each folder in turn, so that all folders have the same weight, however many fields
  of view they have. The patches of each crop follow each other, row by row, and each `capacity`
  successive patches are then put into random order among themselves.

  Attributes:
    per_crop: number of patches in a crop.
    input_shape: (rows, columns, images) of a patch's input.
    target_shape: (rows, columns, channels) of a patch's target.
    failure: why the stream ended, for streams that can end (see `ShardPatches`); here always None.
  """

  failure: None = None

  def __init__(self, folders: Sequence[Sequence[FieldOfView]], spec: PatchSpec):
    """Checks the sizes of crops and fields of view; reads no pixel.

    Args:
      folders: the fields of view of each folder; at least one in each.
      spec: how patches are drawn from them.

    Raises:
      ValueError: a crop is larger than a field of view, or too small for a patch.
    """
    assert folders and all(folders), 'no field of view'
    self._folders = folders
    self._spec = spec
    self._check_sizes()
    sampling, side = spec.sampling, spec.side
    self._per_side = (sampling.crop_size - side) // sampling.patch_stride + 1
    self.per_crop = self._per_side**2
    self.input_shape = (side, side, len(spec.inputs.keys))
    self.target_shape = (sampling.output_size, sampling.output_size, len(spec.targets.channels))

  def _check_sizes(self) -> None:
    side, crop = self._spec.side, self._spec.sampling.crop_size
    output = self._spec.sampling.output_size
    is_usual = output == self._spec.geometry.output
    because = '' if is_usual else f' with --loss_output_size {output}'
    if crop < side:
      raise ValueError(
        f'--loss_crop_size must be at least {side}, the pixels that a patch of this network'
        f' reads{because}; got {crop}'
      )
    for field_of_view in (field_of_view for fields in self._folders for field_of_view in fields):
      rows, columns = field_of_view.size
      shown = f'field of view {field_of_view.name!r} is {rows} rows x {columns} columns'
      if min(rows, columns) < side:
        raise ValueError(f'{shown}; a patch of this network reads {side} x {side} pixels{because}')
      if min(rows, columns) < crop:
        raise ValueError(
          f'{shown}, too small for --loss_crop_size {crop}; expected a crop of {side} to'
          f' {min(rows, columns)} pixels'
        )

  def _rng(self, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([self._spec.seed, purpose, number])

  def place(self, number: int) -> tuple[int, int]:
    """The (number of the crop, index in that crop) of the patch of a number."""
    capacity = self._spec.sampling.capacity
    block, place = divmod(number, capacity)
    shuffled = int(self._rng(_ORDER, block).permutation(capacity)[place])
    return divmod(block * capacity + shuffled, self.per_crop)

  def crop(self, number: int) -> Crop:
    """Decides where the crop of a number lies, and how it is changed."""
    rng = self._rng(_CROP, number)
    fields = self._folders[number % len(self._folders)]
    field_of_view = fields[int(rng.integers(len(fields)))]
    row, column = (
      int(rng.integers(n - self._spec.sampling.crop_size + 1)) for n in field_of_view.size
    )
    corruption = self._spec.corruption
    flip, quarter_turns = augment.draw_orientation(rng)
    if not self._spec.augment:
      flip, quarter_turns = False, 0
      corruption = Corruption(multiplier_std=0, offset_std=0, noise_std=0)
    return Crop(
      field_of_view=field_of_view,
      row=row,
      column=column,
      flip=flip,
      quarter_turns=quarter_turns,
      distortion=augment.draw_distortion(corruption, len(field_of_view.input_keys), rng),
    )

  def _view(self, crop: Crop) -> FieldOfView:
    """The field of view of a crop's pixels alone, flipped and turned, but not corrupted."""
    size = self._spec.sampling.crop_size
    return augment.view(
      crop.field_of_view,
      slice(crop.row, crop.row + size),
      slice(crop.column, crop.column + size),
      flip=crop.flip,
      quarter_turns=crop.quarter_turns,
    )

  def crop_images(self, number: int) -> np.ndarray:
    """Reads the whole crop that a patch is cut from, as pictures for people.

    Args:
      number: the patch's number, from 0.

    Returns:
      [image, row, column], intensities in [0, 1]: each input channel at the middle depth, corrupted
      like the patch (with other noise), then the labels that the field of view has.
    """
    crop = self.crop(self.place(number)[0])
    field_of_view, whole = self._view(crop), slice(0, self._spec.sampling.crop_size)
    images = data_provider.images_read(field_of_view, self._spec.inputs)
    first = len(self._spec.inputs.z_values) // 2 * len(self._spec.inputs.channels)
    middle = images[first : first + len(self._spec.inputs.channels)]
    light = data_provider.light_crop(field_of_view, middle, whole, whole)
    light = augment.corrupt(light, crop.distortion.of(middle), self._rng(_NOISE, number))
    light = _where_present(light, _mask(field_of_view, whole, whole))
    target = data_provider.target_crop(field_of_view, self._spec.targets, whole, whole)[:, :, 0]
    labels = target[..., target[0, 0, :, 1] > 0, 0]
    return np.moveaxis(np.concatenate([light, labels], axis=-1), -1, 0)

  def patch(self, number: int) -> Patch:
    """Reads a patch; only its own pixels are touched.

    Args:
      number: the patch's number, from 0.
    """
    crop_number, index = self.place(number)
    crop = self.crop(crop_number)
    field_of_view = self._view(crop)
    row, column = (i * self._spec.sampling.patch_stride for i in divmod(index, self._per_side))
    side, output = self.input_shape[0], self._spec.sampling.output_size
    images = data_provider.images_read(field_of_view, self._spec.inputs)
    # An image that the network sees at two positions has one noise: it is put at both after its
    # corruption. If it is not corrupted, it is quicker to read it twice.
    read = images if crop.distortion.changes_nothing else sorted(set(images))
    window = slice(row, row + side), slice(column, column + side)
    light = data_provider.light_crop(field_of_view, read, *window)
    light = augment.corrupt(light, crop.distortion.of(read), self._rng(_NOISE, number))
    mask = _mask(field_of_view, *window)
    light = _where_present(light, mask)
    if read != images:
      light = np.take(light, [read.index(image) for image in images], axis=-1)
    row, column = row + self._spec.geometry.margin, column + self._spec.geometry.margin
    target = data_provider.target_crop(
      field_of_view, self._spec.targets, slice(row, row + output), slice(column, column + output)
    )
    return Patch(
      input=light,
      target_classes=data_provider.classes_of(target[:, :, 0, :, 0]),
      target_mask=target[0, 0, 0, :, 1],
      input_mask=mask,
    )

  def batch(self, first: int, size: int) -> tuple[np.ndarray, ...]:
    """Reads a batch of successive patches.

    Args:
      first: number of the batch's first patch, from 0.
      size: number of patches in the batch.

    Returns:
      Inputs, target classes and target masks, as `dataset` gives them, and, if there is padding,
      the masks of the inputs, float32 [batch, row, column].
    """
    patches = [self.patch(number) for number in range(first, first + size)]
    masks = [patch.input_mask for patch in patches if patch.input_mask is not None]
    return (
      np.stack([patch.input for patch in patches]),
      np.stack([patch.target_classes for patch in patches]),
      np.stack([patch.target_mask for patch in patches]),
      *([np.stack(masks)] if masks else []),
    )

  def dataset(
    self, first_patch: int | tf.Tensor, batch_size: int, num_threads: int
  ) -> tf.data.Dataset:
    """Makes endless batches of this stream, see the function `dataset`."""
    return dataset(self, first_patch, batch_size, num_threads)


def _mask(field_of_view: FieldOfView, rows: slice, columns: slice) -> np.ndarray | None:
  """A window's mask, float32 [row, column]: 0 where there is padding; None: nothing is padded."""
  if field_of_view.presence is None:
    return None
  return field_of_view.presence[rows, columns].astype(np.float32)


def _where_present(light: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """Makes intensities, [row, column, image], 0 where there is padding.

  Ranges and noise may have changed them there.
  """
  return light if mask is None else light * mask[..., np.newaxis]


def options(num_threads: int) -> tf.data.Options:
  """The options of tf.data for reading patches by this number of threads, in a fixed order."""
  result = tf.data.Options()
  result.deterministic = True
  # There is nothing to tune, and autotune's thread delayed a session's end by up to half a minute.
  result.autotune.enabled = False
  # Without its own threads it would use the session's: the next step would wait for patches.
  result.threading.private_threadpool_size = num_threads
  return result


def dataset(
  patches: Patches, first_patch: int | tf.Tensor, batch_size: int, num_threads: int
) -> tf.data.Dataset:
  """Makes endless batches of a stream, whose order does not depend on the threads.

  The graph only refers to `patches`, whose images are not copied into it.

  Args:
    patches: the stream.
    first_patch: the number of the first patch of the first batch; may be an int64 scalar tensor.
    batch_size: number of patches in a batch.
    num_threads: number of threads that read patches.

  Returns:
    A data set of batches (float32 [batch, row, column, image], uint8 [batch, row, column, channel],
    float32 [batch, channel]): inputs, target classes and target masks as a `Patch` has them.
  """
  shapes = (patches.input_shape, patches.target_shape, patches.target_shape[-1:])

  def read(number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    patch = patches.patch(int(number))
    return patch.input, patch.target_classes, patch.target_mask

  def read_tensors(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
    tensors = tf.numpy_function(read, [number], [tf.float32, tf.uint8, tf.float32])
    return tuple(tf.ensure_shape(t, shape) for t, shape in zip(tensors, shapes, strict=True))

  return (
    tf.data.Dataset.range(first_patch, np.iinfo(np.int64).max)
    .map(read_tensors, num_parallel_calls=num_threads)
    .batch(batch_size, drop_remainder=True)
    .prefetch(1)
    .with_options(options(num_threads))
  )
