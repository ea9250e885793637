"""Tests of intensities.py, against NumPy on the whole images."""

import numpy as np
import pytest

from isl.images import fields_of_view, intensities

_PERCENTS = (0, 0.1, 13.7, 50, 99.9, 100)


class _Sliced:
  """An image that is read when it is sliced, and notes how much of it at once."""

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
  return list((values * fields_of_view.maximum(np.dtype(dtype))).astype(dtype))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_percentiles_are_numpys(dtype):
  images = _images(dtype)
  found = intensities.percentiles([_Sliced(image) for image in images], _PERCENTS)
  np.testing.assert_allclose(found, np.percentile(np.stack(images), _PERCENTS), rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_percentiles_of_a_single_pixel_and_of_a_constant(dtype):
  for image in (np.full((1, 1), 1, dtype), np.full((30, 40), 1, dtype)):
    assert intensities.percentiles([image], (0.1, 99.9)) == (1, 1)


def test_many_floats_are_thinned_out(monkeypatch):
  images = _images(np.float32, size=(600, 500))
  exact = np.percentile(np.stack(images), (10, 90))
  monkeypatch.setattr(intensities, '_MOST_FLOATS', 100_000)
  found = intensities.percentiles(images, (10, 90))
  np.testing.assert_allclose(found, exact, rtol=0.02)
  assert tuple(found) != tuple(exact)


def test_extremes():
  image = np.random.default_rng(1).normal(size=(700, 20)).astype(np.float32)
  assert intensities.extremes(image) == (float(image.min()), float(image.max()))
  image[513, 3] = np.nan
  assert all(np.isnan(intensities.extremes(image)))


def test_an_image_is_never_read_as_a_whole():
  image = _Sliced(_images(np.uint16, count=1)[0])
  intensities.extremes(image)
  intensities.percentiles([image], (50,))
  assert image.most_rows < image.shape[0]
