"""Random changes of training images: flips, quarter turns, and corruption of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from isl.core.experiment import Corruption
from isl.images.fields_of_view import FieldOfView

# The probability with which each kind of corruption happens to a crop.
_PROBABILITY = 0.5
_UINT16_MAX = np.iinfo(np.uint16).max


def flip_and_rotate(array: np.ndarray, flip: bool, quarter_turns: int) -> np.ndarray:
  """Flips an image left to right if asked to, then turns it counterclockwise.

  Args:
    array: [row, column, ...].
    flip: whether the image is flipped first.
    quarter_turns: number of quarter turns, counterclockwise.

  Returns:
    A view of `array`; an odd number of quarter turns swaps the lengths of its first two axes.
  """
  return np.rot90(array[:, ::-1] if flip else array, quarter_turns)


def draw_orientation(rng: np.random.Generator) -> tuple[bool, int]:
  """Draws (flip, quarter_turns) for `flip_and_rotate`, each of the eight equally likely."""
  return bool(rng.integers(2)), int(rng.integers(4))


def view(
  field_of_view: FieldOfView,
  rows: slice,
  columns: slice,
  *,
  flip: bool = False,
  quarter_turns: int = 0,
) -> FieldOfView:
  """Cuts a window out of a field of view, all its images flipped and turned alike.

  Arrays are not copied. The ranges that labels are stretched from stay those of the whole images.

  Args:
    field_of_view: what is cut.
    rows: the window's rows, in pixels, within the image.
    columns: the window's columns, in pixels, within the image.
    flip: whether images are flipped left to right, before they are turned.
    quarter_turns: number of quarter turns, counterclockwise.
  """
  images = {
    key: flip_and_rotate(image[rows, columns], flip, quarter_turns)
    for key, image in field_of_view.images.items()
  }
  presence = field_of_view.presence
  if presence is not None:
    presence = flip_and_rotate(presence[rows, columns], flip, quarter_turns)
  return dataclasses.replace(field_of_view, images=images, presence=presence)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Distortion:
  """A corruption as drawn for the images of a crop: `x * factor + offset + noise`.

  Attributes:
    factors: the factor of each image, float32 [image].
    offsets: the offset of each image, in intensity, float32 [image].
    noise_std: standard deviation of each pixel's noise, in intensity; 0: none.
  """

  factors: np.ndarray
  offsets: np.ndarray
  noise_std: float

  @property
  def changes_nothing(self) -> bool:
    """Whether images stay as they are."""
    return not self.noise_std and bool(np.all(self.factors == 1) and not np.any(self.offsets))

  def of(self, images: Sequence[int]) -> Distortion:
    """The distortion of the images that have these numbers, from 0."""
    chosen = list(images)
    return dataclasses.replace(self, factors=self.factors[chosen], offsets=self.offsets[chosen])


def draw_distortion(
  corruption: Corruption, num_images: int, rng: np.random.Generator
) -> Distortion:
  """Draws a crop's corruption.

  Each kind (multiplier, offset, noise) happens with probability 1/2, to all images of the crop.
  Factors are then of N(1, multiplier_std) and offsets of N(0, offset_std), independent in each.

  Args:
    corruption: the standard deviations.
    num_images: the number of images in the crop.
    rng: generator of the random numbers.
  """
  multiplier_std, offset_std, noise_std = (
    std if rng.random() < _PROBABILITY else 0.0
    for std in (corruption.multiplier_std, corruption.offset_std, corruption.noise_std)
  )
  return Distortion(
    factors=rng.normal(1, multiplier_std, num_images).astype(np.float32),
    offsets=rng.normal(0, offset_std, num_images).astype(np.float32),
    noise_std=noise_std,
  )


def corrupt(images: np.ndarray, distortion: Distortion, rng: np.random.Generator) -> np.ndarray:
  """Computes clip(x * factor + offset + N(0, noise_std), 0, 1), noise independent in each pixel.

  Args:
    images: float32 [row, column, image], intensities in [0, 1].
    distortion: factor and offset of each image, and the noise.
    rng: generator of the noise.

  Returns:
    float32 of the shape of `images`: a new array, or `images` itself if the distortion changes
    nothing.
  """
  if distortion.changes_nothing:
    return images
  result = images * distortion.factors
  result += distortion.offsets
  if distortion.noise_std:
    noise = rng.standard_normal(images.shape, np.float32)
    noise *= np.float32(distortion.noise_std)
    result += noise
  return np.clip(result, 0, 1, out=result)


def jitter(
  field_of_view: FieldOfView, crop_size: int, corruption: Corruption, rng: np.random.Generator
) -> FieldOfView:
  """Flips, turns and corrupts the crop at a field of view's top left, as training might.

  Args:
    field_of_view: what is cropped.
    crop_size: side of the crop in pixels, clipped to the image; 0: the whole image.
    corruption: standard deviations of the input channels' corruption. It is applied after their
      ranges have become [0, 1], and the result is rounded to 16 bit.
    rng: generator of the random numbers.

  Returns:
    The crop, all its images flipped and turned at random alike; only input channels are corrupted.
  """
  crop = slice(0, crop_size or None)
  flip, quarter_turns = draw_orientation(rng)
  turned = view(field_of_view, crop, crop, flip=flip, quarter_turns=quarter_turns)
  distortion = draw_distortion(corruption, len(turned.input_keys), rng)
  if distortion.changes_nothing:
    return turned
  images = dict(turned.images)
  # One by one: all depths of a large field of view would take much memory as floats.
  for i, key in enumerate(turned.input_keys):
    light = turned.input_image(key, slice(None), slice(None))[..., np.newaxis]
    corrupted = corrupt(light, distortion.of([i]), rng)[..., 0]
    images[key] = np.rint(corrupted * _UINT16_MAX).astype(np.uint16)
  return dataclasses.replace(turned, images=images, input_ranges={})
