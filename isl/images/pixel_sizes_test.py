"""Tests of pixel_sizes.py."""

from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from isl.images.microscope_scenes import open_scenes

_STACK = np.zeros((3, 20, 30), np.uint16)


def _pixel_size(path) -> tuple[float, float] | None:
  (scene,) = open_scenes(path)
  return scene.pixel_size


def _write_tiff(path, **options: Any) -> None:
  tifffile.imwrite(path, _STACK, photometric='minisblack', **options)


def _about(expected):
  return expected and pytest.approx(expected)


@pytest.mark.parametrize(
  ('unit', 'expected'),
  [('nm', (2e-3, 3e-3)), ('µm', (2, 3)), ('mm', (2e3, 3e3)), ('pixel', None)],
)
def test_ome_tiff(tmp_path, unit, expected):
  sizes = {'PhysicalSizeY': 2.0, 'PhysicalSizeX': 3.0}
  units = dict.fromkeys(('PhysicalSizeYUnit', 'PhysicalSizeXUnit'), unit)
  _write_tiff(tmp_path / 'a.ome.tif', metadata={'axes': 'ZYX', **sizes, **units})
  assert _pixel_size(tmp_path / 'a.ome.tif') == _about(expected)


@pytest.mark.parametrize('sizes', [{}, {'PhysicalSizeX': 3.0}])
def test_ome_tiff_that_does_not_say(tmp_path, sizes):
  _write_tiff(tmp_path / 'a.ome.tif', metadata={'axes': 'ZYX', **sizes})
  assert _pixel_size(tmp_path / 'a.ome.tif') is None


# There are 4000 columns and 5000 rows to the unit.
@pytest.mark.parametrize(
  ('unit', 'expected'), [('CENTIMETER', (2.0, 2.5)), ('INCH', None), ('NONE', None)]
)
def test_plain_tiff(tmp_path, unit, expected):
  _write_tiff(tmp_path / 'a.tif', resolution=(4000, 5000), resolutionunit=unit)
  assert _pixel_size(tmp_path / 'a.tif') == _about(expected)


@pytest.mark.parametrize(
  ('unit', 'expected'),
  [('nm', (2e-7, 2.5e-7)), ('micron', (2e-4, 2.5e-4)), ('pixel', None), (None, None)],
)
def test_imagej(tmp_path, unit, expected):
  metadata = {'axes': 'ZYX'} | ({'unit': unit} if unit else {})
  _write_tiff(tmp_path / 'a.tif', resolution=(4000, 5000), imagej=True, metadata=metadata)
  assert _pixel_size(tmp_path / 'a.tif') == _about(expected)


@pytest.mark.parametrize(
  ('unit', 'scale', 'expected'),
  [
    ('micrometer', 0.5, (0.5, 0.25)),
    ('nanometer', 500.0, (0.5, 0.25)),
    (None, 0.5, None),
    ('micrometer', 0.0, None),
    ('furlong per fortnight', 0.5, None),
  ],
)
def test_ome_zarr(tmp_path, unit, scale, expected):
  group = zarr.open_group(tmp_path / 'a.zarr', mode='w')
  group.create_array('0', data=_STACK)
  scales = {'type': 'scale', 'scale': [1.0, scale, scale / 2]}
  dataset: Any = {'path': '0', 'coordinateTransformations': [scales]}
  axes = [{'name': axis} | ({'unit': unit} if unit else {}) for axis in 'zyx']
  group.attrs['ome'] = {'version': '0.5', 'multiscales': [{'axes': axes, 'datasets': [dataset]}]}
  assert _pixel_size(tmp_path / 'a.zarr') == _about(expected)
