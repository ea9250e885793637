"""Tests of sources.py: projections."""

from typing import Any

import numpy as np
import pytest

from isl.images import png_io
from isl.images.pixels import MaximumPixels
from isl.images.sources import PngSource, ProjectionSource

_STACK = np.random.default_rng(0).integers(0, 1 << 16, (4, 6, 9), dtype=np.uint16)


def _sources(folder, images) -> tuple[PngSource, ...]:
  sources = tuple(PngSource(folder / f'{i}.png') for i in range(len(images)))
  for source, image in zip(sources, images, strict=True):
    png_io.write_png(source.path, image)
  return sources


@pytest.mark.parametrize('window', [np.s_[:, :], np.s_[2:5, 1:8], np.s_[::2, 3:]])
def test_windows_of_the_maximum(window):
  pixels = MaximumPixels(list(_STACK))
  assert (pixels.shape, pixels.dtype) == ((6, 9), np.dtype('uint16'))
  np.testing.assert_array_equal(pixels[window], _STACK.max(axis=0)[window])


@pytest.mark.parametrize('depths', [1, 2, 4])
def test_projection_of_files(tmp_path, depths):
  source = ProjectionSource(_sources(tmp_path, _STACK[:depths]))
  assert (source.path, source.size) == (tmp_path / '0.png', (6, 9))
  image = source.read()
  assert isinstance(image, np.ndarray) and image.dtype == np.uint16
  np.testing.assert_array_equal(image, _STACK[:depths].max(axis=0))


class _Unread:
  """Pixels that are no array."""

  shape, dtype = (6, 9), np.dtype(np.uint16)

  def __init__(self, image):
    self._image = image

  def __getitem__(self, window):
    return self._image[window]


class _UnreadSource:
  path, size = None, (6, 9)

  def __init__(self, image):
    self._image = image

  def read(self):
    return _Unread(self._image)


def test_what_can_be_read_in_parts_is_not_read(tmp_path):
  first, last = _sources(tmp_path, _STACK[:2])
  parts: Any = (first, _UnreadSource(_STACK[2]), last, _UnreadSource(_STACK[3]))
  source = ProjectionSource(parts)
  image = source.read()
  assert not isinstance(image, np.ndarray)
  np.testing.assert_array_equal(image[1:3, :], _STACK.max(axis=0)[1:3])


@pytest.mark.parametrize(
  ('other', 'shown'),
  [
    (np.zeros((6, 8), np.uint16), '6 rows x 8 columns of uint16'),
    (np.zeros((6, 9), np.uint8), '6 rows x 9 columns of uint8'),
  ],
)
def test_images_that_make_no_stack(tmp_path, other, shown):
  source = ProjectionSource(_sources(tmp_path, [_STACK[0], other]))
  with pytest.raises(ValueError, match='expected one size and type') as raised:
    source.read()
  assert f"0.png' has 6 rows x 9 columns of uint16, '{tmp_path / '1.png'}' has {shown};" in str(
    raised.value
  )
