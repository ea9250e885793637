"""Thumbnails against the means of their cells, however the image is cut into parts."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from isl.core.channels import ImageKey
from isl.core.parts import Part
from isl.core.statistic import Statistic
from isl.report import thumbnails
from isl.report.thumbnails import Thumbnail, Thumbnails


def _parts(length: int, step: int, first: int) -> list[slice]:
  """Cuts a row or column: the first part has `first` pixels, those after it `step`."""
  edges = sorted({0, *range(first, length, step), length})
  return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _filled(image: np.ndarray, longest: int, step: int, first: int) -> Thumbnail:
  """Filled by parts in random order."""
  rows, columns = image.shape
  thumbnail = Thumbnail((rows, columns), longest)
  places = [(r, c) for r in _parts(rows, step, first) for c in _parts(columns, step, first)]
  for i in np.random.default_rng(step).permutation(len(places)):
    part_rows, part_columns = places[i]
    thumbnail.add(part_rows, part_columns, image[part_rows, part_columns])
  return thumbnail


def _means(image: np.ndarray, factor: int) -> np.ndarray:
  """The mean of each cell, cut out one by one."""
  rows, columns = image.shape
  return np.array(
    [
      [
        image[r : r + factor, c : c + factor].mean(dtype=np.float64)
        for c in range(0, columns, factor)
      ]
      for r in range(0, rows, factor)
    ]
  )


@pytest.mark.parametrize(
  ('shape', 'longest', 'factor'),
  [
    ((40, 60), 20, 3),
    ((61, 40), 20, 4),  # Neither side is a multiple of 4.
    ((37, 53), 18, 3),
    ((12, 7), 12, 1),
    ((12, 7), 500, 1),
    ((1, 500), 10, 50),
    ((20, 20), 1, 20),
  ],
)
@pytest.mark.parametrize(('step', 'first'), [(1000, 1000), (8, 8), (7, 3), (2, 1)])
def test_each_pixel_is_the_mean_of_its_cell(shape, longest, factor, step, first):
  image = np.random.default_rng(0).random(shape, dtype=np.float32)
  thumbnail = _filled(image, longest, step, first)
  assert thumbnail.factor == factor
  assert max(thumbnail.size) <= longest
  picture = thumbnail.picture()
  expected = _means(image, factor)
  assert picture.dtype == np.uint8
  assert picture.shape == expected.shape == thumbnail.size
  # Rounded to the next integer: half a step at most, but for the sums' own rounding.
  assert np.abs(picture - 255 * expected).max() <= 0.5 + 1e-9


def test_parts_do_not_show():
  # 0.5 * 255 rounds to 128, what is less than that in any digit to 127.
  image = np.full((100, 90), 0.5, np.float32)
  image[::7, ::3] = np.nextafter(np.float32(0.5), np.float32(0))
  whole = _filled(image, 30, 1000, 1000).picture()
  assert set(whole.ravel()) == {127, 128}
  for step in (1, 11, 64):
    np.testing.assert_array_equal(_filled(image, 30, step, 5).picture(), whole)


def test_black_and_white_are_kept_at_ragged_edges():
  for value in (0, 1):
    picture = _filled(np.full((31, 45), value, np.float32), 10, 8, 8).picture()
    assert (picture == 255 * value).all()


def test_values_beyond_white_do_not_wrap_around():
  picture = _filled(np.full((4, 4), np.float32(1 + 1e-3)), 2, 8, 8).picture()
  assert (picture == 255).all()


def test_only_the_small_picture_is_in_memory():
  thumbnail = Thumbnail((100_000, 80_000), 512)
  assert thumbnail.factor == 196
  held = [x for x in vars(thumbnail).values() if isinstance(x, np.ndarray)]
  assert sum(x.nbytes for x in held) == 8 * np.prod(thumbnail.size)


def test_missing_pixels_are_noticed():
  thumbnail = Thumbnail((4, 4), 2)
  thumbnail.add(slice(0, 4), slice(0, 3), np.zeros((4, 3), np.float32))
  with pytest.raises(AssertionError, match='4 pixels'):
    thumbnail.picture()


@pytest.mark.parametrize(
  ('rows', 'columns', 'shape'),
  [
    (slice(2, 5), slice(0, 4), (3, 4)),  # One row too low.
    (slice(-1, 1), slice(0, 4), (2, 4)),
    (slice(0, 4), slice(0, 4), (4, 3)),
    (slice(0, 4), slice(0, 4), (4, 4, 3)),
  ],
)
def test_parts_elsewhere_or_of_another_size_are_noticed(rows, columns, shape):
  with pytest.raises(AssertionError):
    Thumbnail((4, 4), 2).add(rows, columns, np.zeros(shape, np.float32))


@pytest.mark.parametrize(('size', 'longest'), [((0, 4), 2), ((4, 0), 2), ((4, 4), 0)])
def test_sizes_must_be_positive(size, longest):
  with pytest.raises(ValueError, match='at least one pixel, got'):
    Thumbnail(size, longest)


@pytest.mark.parametrize('is_rgb', [False, True])
def test_encoded_picture_is_decoded(is_rgb):
  # Red rises along the columns, blue falls along the rows: swapped colours would be seen.
  rows, columns = np.mgrid[:48, :64].astype(np.float32)
  picture = np.rint(4 * columns).astype(np.uint8)
  if is_rgb:
    picture = np.stack(
      [picture, np.zeros_like(picture), (240 - 5 * rows).astype(np.uint8)], axis=-1
    )
  encoded = np.frombuffer(thumbnails.encode(picture), np.uint8)
  decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
  assert decoded is not None
  decoded = decoded[..., ::-1] if is_rgb else decoded
  assert decoded.shape == picture.shape
  assert np.abs(decoded.astype(int) - picture).max() <= 8


@pytest.mark.parametrize('is_known', [False, True])
def test_pictures_of_a_label_are_of_the_medians_and_of_what_is_known(is_known):
  key = ImageKey('MAXPROJECT', 'DAPI_CONFOCAL')
  median, truth = np.random.default_rng(0).random((2, 9, 12), np.float32)
  pictures = Thumbnails(key, (9, 12), 4)
  assert pictures.keys == (key,)
  assert pictures.statistics == (Statistic.MEDIAN,)
  for rows in (slice(0, 5), slice(5, 9)):
    pictures.add(
      Part(
        key=key,
        rows=rows,
        columns=slice(0, 12),
        predicted={Statistic.MEDIAN: median[rows], Statistic.MEAN: truth[rows]},
        truth=truth[rows] if is_known else None,
      )
    )
  np.testing.assert_array_equal(pictures.prediction.picture(), _filled(median, 4, 12, 12).picture())
  assert (pictures.truth is not None) == is_known
  if pictures.truth is not None:
    np.testing.assert_array_equal(pictures.truth.picture(), _filled(truth, 4, 12, 12).picture())
