"""Tests of spill.py, and of fields of view that are larger than what is kept in memory."""

import concurrent.futures
import gc

import numpy as np
import pytest

from isl.images import fields_of_view, png_folders
from isl.images.spill import Spill, SpilledPixels
from tests.support.program import write_image_set


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_windows_are_the_images(dtype):
  rng = np.random.default_rng(0)
  images = [(rng.random((9, n)) * 200).astype(dtype) for n in (1, 13, 40)]
  spill = Spill()
  kept = [spill.add(image) for image in images]
  for image, pixels in zip(images, kept, strict=True):
    assert (pixels.shape, pixels.dtype) == (image.shape, image.dtype)
    for window in (
      (slice(None), slice(None)),
      (slice(2, 5), slice(0, 7)),
      (slice(7, 99), slice(1)),
    ):
      np.testing.assert_array_equal(pixels[window], image[window])


def test_threads_write_and_read_at_once():
  images = [np.full((50, 60), i, np.uint16) for i in range(64)]
  spill = Spill()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    kept = list(pool.map(spill.add, images))
    read = list(pool.map(lambda pixels: pixels[10:20, 5:9], kept))
  assert all((part == i).all() for i, part in enumerate(read))


def test_the_file_is_gone_with_the_last_image():
  spill = Spill()
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
  write_image_set(tmp_path, rows=40, columns=50)
  (field,) = png_folders.find_image_sets(tmp_path)
  small = field.read()
  assert all(isinstance(image, np.ndarray) for image in small.images.values())
  monkeypatch.setattr(fields_of_view, '_MOST_BYTES', 6 * 40 * 50 * 2 - 1)
  large = field.read()
  assert all(isinstance(image, SpilledPixels) for image in large.images.values())
  for key, image in small.images.items():
    np.testing.assert_array_equal(large.images[key][3:30, 4:44], image[3:30, 4:44])
