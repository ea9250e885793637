"""Tests of pixels.py: percentiles against NumPy on the whole images, and what is on the disk."""

from __future__ import annotations

import concurrent.futures
import gc

import numpy as np
import pytest

from isl.images import fields_of_view, pixels
from isl.images.pixels import DiskImages, DiskPixels, extremes, maximum, percentiles
from tests.support.program import original_fields, write_field

_PERCENTS = (0, 0.1, 13.7, 50, 99.9, 100)


class _Sliced:
  """An image that is read when it is sliced, and notes how many rows are read at once."""

  def __init__(self, image):
    self._image = image
    self.shape, self.dtype = image.shape, image.dtype
    self.most_rows = 0

  def __getitem__(self, window):
    part = self._image[window]
    self.most_rows = max(self.most_rows, len(part))
    return part


def _images(dtype, count=3, size=(601, 37)):
  rng = np.random.default_rng(0)
  values = rng.gamma(2, 0.1, (count, *size)).clip(0, 1)
  return list((values * maximum(np.dtype(dtype))).astype(dtype))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_percentiles_are_numpys(dtype):
  images = _images(dtype)
  found = percentiles([_Sliced(image) for image in images], _PERCENTS)
  np.testing.assert_allclose(found, np.percentile(np.stack(images), _PERCENTS), rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_percentiles_of_a_single_pixel_and_of_a_constant(dtype):
  for image in (np.full((1, 1), 1, dtype), np.full((30, 40), 1, dtype)):
    assert percentiles([image], (0.1, 99.9)) == (1, 1)


def test_many_floats_are_thinned_out(monkeypatch):
  images = _images(np.float32, size=(600, 500))
  exact = np.percentile(np.stack(images), (10, 90))
  monkeypatch.setattr(pixels, '_MOST_FLOATS', 100_000)
  found = percentiles(images, (10, 90))
  np.testing.assert_allclose(found, exact, rtol=0.02)
  assert tuple(found) != tuple(exact)


def test_extremes():
  image = np.random.default_rng(1).normal(size=(700, 20)).astype(np.float32)
  assert extremes(image) == (float(image.min()), float(image.max()))
  image[513, 3] = np.nan
  assert all(np.isnan(extremes(image)))


def test_an_image_is_never_read_as_a_whole():
  image = _Sliced(_images(np.uint16, count=1)[0])
  extremes(image)
  percentiles([image], (50,))
  assert image.most_rows < image.shape[0]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_windows_are_the_images(dtype):
  rng = np.random.default_rng(0)
  images = [(rng.random((9, n)) * 200).astype(dtype) for n in (1, 13, 40)]
  spill = DiskImages()
  kept = [spill.add(image) for image in images]
  for image, spilled in zip(images, kept, strict=True):
    assert (spilled.shape, spilled.dtype) == (image.shape, image.dtype)
    for window in (
      (slice(None), slice(None)),
      (slice(2, 5), slice(0, 7)),
      (slice(7, 99), slice(1)),
    ):
      np.testing.assert_array_equal(spilled[window], image[window])


def test_threads_write_and_read_at_once():
  images = [np.full((50, 60), i, np.uint16) for i in range(64)]
  spill = DiskImages()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    kept = list(pool.map(spill.add, images))
    read = list(pool.map(lambda pixels: pixels[10:20, 5:9], kept))
  assert all((part == i).all() for i, part in enumerate(read))


def test_the_file_is_gone_with_the_last_image():
  spill = DiskImages()
  kept = spill.add(np.zeros((5, 5), np.uint8))
  stream = spill._stream
  del spill
  gc.collect()
  assert kept[:, :].shape == (5, 5)
  assert not stream.closed
  del kept
  gc.collect()
  assert stream.closed


def test_large_fields_of_view_are_spilled(tmp_path, monkeypatch):
  write_field(tmp_path, rows=40, columns=50)
  (field,) = original_fields(tmp_path)
  small = field.read()
  assert all(isinstance(image, np.ndarray) for image in small.images.values())
  monkeypatch.setattr(fields_of_view, '_MOST_BYTES', 6 * 40 * 50 * 2 - 1)
  large = field.read()
  assert all(isinstance(image, DiskPixels) for image in large.images.values())
  for key, image in small.images.items():
    np.testing.assert_array_equal(large.images[key][3:30, 4:44], image[3:30, 4:44])
