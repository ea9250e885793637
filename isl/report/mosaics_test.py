"""Tests of mosaics.py: where each patch is found again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isl.report import mosaics, visualize
from isl.report.visualize import Layout
from tests.support.program import panel_boxes


def _random(*shape, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 8, 9, 10, 16, 17])
def test_mosaic_holds_each_image_once(count):
  images = _random(count, 3, 5)
  mosaic = mosaics.mosaic(images)
  down, across = mosaic.shape[0] // 3, mosaic.shape[1] // 5
  assert mosaic.shape == (down * 3, across * 5)
  assert across == math.ceil(math.sqrt(count))
  assert (down - 1) * across < count <= down * across
  cells = [mosaic[r * 3 : r * 3 + 3, c * 5 : c * 5 + 5] for r in range(down) for c in range(across)]
  np.testing.assert_array_equal(cells[:count], images)
  assert not np.any(cells[count:])


def test_patch_panel_is_a_panel_of_mosaics():
  shape = (2, 5, 4, 6)
  names = ('mode', 'median', 'mean', 'standard_deviation', 'entropy', 'cross_entropy', 'truth')
  arrays = {name: _random(*shape, seed=i) for i, name in enumerate(names)}
  mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], np.float32)[..., np.newaxis, np.newaxis]
  panel = mosaics.patch_panel(mosaics.PredictedPatches(**arrays, mask=mask))
  size = (2 * 4, 3 * 6)
  assert panel.shape == (*visualize.panel_size(2, *size, Layout.STITCH), 3)
  for head, strip in enumerate(np.split(panel, 2)):
    boxes = panel_boxes(strip, len(Layout.STITCH.columns))
    for column, box in zip(Layout.STITCH.columns, boxes, strict=True):
      if column.draw is visualize.as_is:
        whole = np.broadcast_to(mask, shape) if column.image == 'mask' else arrays[column.image]
        expected = (mosaics.mosaic(whole[head]) * np.float32(65535)).astype(np.uint16)
        np.testing.assert_array_equal(box, np.repeat(expected[..., np.newaxis], 3, axis=-1))


def test_grey_boxes():
  images = _random(3, 4, 6)
  row = mosaics.grey_boxes(images, visualize.MANGO)
  assert row.dtype == np.uint16
  assert row.shape == (4 + 8, 3 * (6 + 8), 3)
  boxes = panel_boxes(row, 3)
  for box, image in zip(boxes, images, strict=True):
    expected = (image * np.float32(65535)).astype(np.uint16)
    np.testing.assert_array_equal(box, np.repeat(expected[..., np.newaxis], 3, axis=-1))
  corner = (np.array(visualize.MANGO) * 65535).astype(np.uint16)
  np.testing.assert_array_equal(row[0, 0], corner)
  np.testing.assert_array_equal(row[-1, -1], corner)
