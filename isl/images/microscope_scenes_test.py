"""Tests of microscope_scenes.py."""

import logging
import warnings
from typing import Any

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from pylibCZIrw import czi
from zarr import codecs

from isl.images import microscope_scenes
from isl.images.microscope_scenes import open_scenes

_STACK = np.random.default_rng(0).integers(0, 1 << 16, (2, 3, 20, 30), dtype=np.uint16)
_SIZED_STACK = np.zeros((3, 20, 30), np.uint16)


@pytest.fixture(autouse=True)
def silent(capfd, caplog):
  """Nothing of what the libraries have to say reaches the terminal."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # As loading a library may warn of its own syntax.
    warnings.simplefilter('ignore', DeprecationWarning)
    yield
  assert capfd.readouterr() == ('', '')
  assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _error(path) -> str:
  """Opens a file that is wrong, and gives the error: one line that names the file."""
  with pytest.raises(ValueError) as raised:
    open_scenes(path)
  message = str(raised.value)
  assert message.startswith(f"'{path}' ") and '\n' not in message
  return message


def _write_tiff(path, image=_STACK, axes='CZYX', **metadata):
  tifffile.imwrite(path, image, photometric='minisblack', metadata={'axes': axes, **metadata})
  return path


def _write_czi(path, times=1, colour=False):
  with czi.create_czi(str(path)) as file:
    for c, z, t in np.ndindex(*_STACK.shape[:2], times):
      image = np.repeat(_STACK[c, z][..., np.newaxis], 3, axis=2) if colour else _STACK[c, z]
      file.write(image, plane={'C': c, 'Z': z, 'T': t})
    names = {0: ' BRIGHTFIELD', 1: 'DAPI'}
    file.write_metadata(channel_names=names, scale_x=4e-7, scale_y=3e-7)
  return path


def _write_zarr(path, image=_STACK, axes='czyx', omero=None, zarr_format=3, **array):
  group = zarr.open_group(path, mode='w', zarr_format=zarr_format)
  group.create_array('full', data=image, chunks=(1,) * (image.ndim - 2) + (16, 16), **array)
  scales = {'type': 'scale', 'scale': [1.0] * len(axes)}
  dataset = {'path': 'full', 'coordinateTransformations': [scales]}
  multiscale = {'axes': [{'name': axis} for axis in axes], 'datasets': [dataset]}
  attributes = {'multiscales': [multiscale]} | ({'omero': omero} if omero else {})
  if zarr_format == 2:
    group.attrs.update(attributes)
  else:
    group.attrs['ome'] = {'version': '0.5', **attributes}
  return path


def test_ome_tiff(tmp_path):
  names = {'Name': ['BRIGHTFIELD ', 'DAPI']}
  (scene,) = open_scenes(_write_tiff(tmp_path / 'a.ome.tif', Channel=names))
  assert scene.channels == ('BRIGHTFIELD', 'DAPI')
  assert (scene.depths, scene.size) == (3, (20, 30))
  assert (scene.stored_dtype, scene.dtype) == (np.dtype('uint16'),) * 2
  np.testing.assert_array_equal(scene.read_channel(1), _STACK[1])


def test_czi(tmp_path):
  (scene,) = open_scenes(_write_czi(tmp_path / 'a.czi'))
  assert scene.channels == ('BRIGHTFIELD', 'DAPI')
  assert (scene.depths, scene.size, scene.stored_dtype) == (3, (20, 30), np.dtype('uint16'))
  assert scene.pixel_size == pytest.approx((0.3, 0.4))
  np.testing.assert_array_equal(scene.read_channel(1), _STACK[1])


@pytest.mark.parametrize('axes', ['tczyx', 'czyx', 'cyx', 'zyx', 'yx', 'yxc'])
def test_axes_of_ome_zarr(tmp_path, axes):
  parts = tuple(slice(None) if axis in axes else 0 for axis in 'czyx')
  image = np.moveaxis(_STACK[parts], 0, -1) if axes == 'yxc' else _STACK[parts]
  image = image[np.newaxis] if 't' in axes else image
  path = tmp_path / 'image'
  _write_zarr(path, image, axes)
  (scene,) = open_scenes(path)
  whole = _STACK[tuple(slice(None) if axis in axes else slice(1) for axis in 'czyx')]
  np.testing.assert_array_equal(np.stack([scene.read_channel(c) for c in range(len(whole))]), whole)
  for i in np.ndindex(*(-(-n // side) for n, side in zip(whole.shape, scene.chunk, strict=True))):
    start = np.multiply(i, scene.chunk)
    expected = whole[tuple(map(slice, start, start + scene.chunk))]
    np.testing.assert_array_equal(scene.read_chunk(i), expected)


def test_name_of_an_only_channel(tmp_path):
  omero = {'channels': [{'label': 'DIC'}]}
  (scene,) = open_scenes(_write_zarr(tmp_path / 'a.zarr', _STACK[0], 'zyx', omero=omero))
  assert scene.channels == ('DIC',)


@pytest.mark.parametrize(
  ('zarr_format', 'compressor'),
  [
    (2, numcodecs.Blosc('lz4')),
    (2, numcodecs.Zlib()),
    (2, None),
    (3, codecs.BloscCodec()),
    (3, codecs.ZstdCodec()),
    (3, codecs.GzipCodec()),
    (3, None),
  ],
)
def test_truncated_chunk_is_an_error(tmp_path, zarr_format, compressor):
  path = _write_zarr(tmp_path / 'a.zarr', zarr_format=zarr_format, compressors=compressor)
  (scene,) = open_scenes(path)
  index = (1, 2, 1, 1)
  np.testing.assert_array_equal(scene.read_chunk(index), _STACK[1:, 2:, 16:, 16:])
  file = path / 'full' / scene.array.metadata.encode_chunk_key(index)
  data = file.read_bytes()
  for left in (len(data) - 1, len(data) // 2, 17, 10, 0):
    file.write_bytes(data[:left])
    with pytest.raises(ValueError, match='cannot be read'), microscope_scenes.explained(path):
      scene.read_chunk(index)
  # The rule of Zarr: what was not written is black.
  file.unlink()
  assert not scene.read_chunk(index).any()


def test_truncated_shard_is_an_error(tmp_path):
  path = _write_zarr(tmp_path / 'a.zarr', compressors=codecs.BloscCodec(), shards=(1, 1, 32, 32))
  (scene,) = open_scenes(path)
  np.testing.assert_array_equal(scene.read_chunk((1, 2, 1, 1)), _STACK[1:, 2:, 16:, 16:])
  file = path / 'full' / 'c' / '1' / '2' / '0' / '0'
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(ValueError, match='cannot be read'), microscope_scenes.explained(path):
    scene.read_chunk((1, 2, 1, 1))


def test_scenes(tmp_path):
  path = tmp_path / 'a.ome.tif'
  with tifffile.TiffWriter(path) as writer:
    for channel in range(2):
      writer.write(_STACK[channel], photometric='minisblack', metadata={'axes': 'ZYX'})
  scenes = open_scenes(path)
  assert len({scene.name for scene in scenes}) == 2
  for scene, stack in zip(scenes, _STACK, strict=True):
    np.testing.assert_array_equal(scene.read_channel(0), stack)


@pytest.mark.parametrize(
  ('stored', 'read'),
  [
    ('u1', 'u1'),
    ('>u2', 'u2'),
    ('u4', 'f4'),
    ('i2', 'f4'),
    ('f2', 'f4'),
    ('f4', 'f4'),
    ('f8', 'f4'),
  ],
)
def test_types(tmp_path, stored, read):
  (scene,) = open_scenes(_write_tiff(tmp_path / 'a.tif', np.ones((4, 5), stored), 'YX'))
  assert (scene.stored_dtype.newbyteorder('='), scene.dtype) == (np.dtype(stored[-2:]), read)


def test_what_is_no_stack_of_grey_values(tmp_path):
  path = tmp_path / 'a.ome.tif'
  _write_tiff(path, _STACK, 'TZYX')
  assert 'has 2 time points; expected one' in _error(path)
  tifffile.imwrite(path, np.zeros((4, 5, 3), np.uint8), photometric='rgb')
  assert 'has 3 samples per pixel (colour); expected one' in _error(path)
  for dtype in ('bool', 'complex64'):
    tifffile.imwrite(path, np.zeros((4, 5), dtype), photometric='minisblack')
    assert f'holds {dtype}, neither whole numbers nor floats' in _error(path)
  assert 'has 2 time points' in _error(_write_czi(tmp_path / 't.czi', times=2))
  assert 'has 3 samples per pixel' in _error(_write_czi(tmp_path / 's.czi', colour=True))
  # Of axes c, z, y, x, the z-stacks of which would be 2 times.
  assert 'has 2 time points' in _error(_write_zarr(tmp_path / 'a.zarr', axes='tzyx'))


def test_no_image_in_a_zarr(tmp_path):
  path = tmp_path / 'a.zarr'
  path.mkdir()
  assert 'cannot be read' in _error(path)
  zarr.open_group(path, mode='w')
  assert 'has no image in it' in _error(path)
  zarr.open_group(path, mode='w').attrs['bioformats2raw.layout'] = 3
  assert 'multiple image series' in _error(path)
  _write_zarr(path, omero={'channels': [{'label': 'DAPI'}]})
  assert "cannot be read (conflicting sizes for dimension 'C'" in _error(path)


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"a.tif' does not exist; expected a microscope"):
    open_scenes(tmp_path / 'a.tif')


@pytest.mark.parametrize('name', ['a.tif', 'a.ome.tif', 'a.czi', 'a.nd2', 'a.lif', 'a.zarr'])
def test_other_files(tmp_path, name):
  path = tmp_path / name
  for contents in (b'', b'notes on the\nexperiment'):
    path.write_bytes(contents)
    assert 'cannot be read' in _error(path)


@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('name', ['a.tif', 'a.ome.tif', 'a.czi'])
def test_truncated_file_is_an_error(tmp_path, name, compression):
  path = tmp_path / name
  if path.suffix == '.czi':
    _write_czi(path)
  else:
    # Plane by plane, so that there is a directory for each.
    with tifffile.TiffWriter(path) as writer:
      writer.write(
        iter(_STACK.reshape(6, 20, 30)),
        shape=_STACK.shape,
        dtype=_STACK.dtype,
        photometric='minisblack',
        compression=compression,
        metadata={'axes': 'CZYX'},
      )
  data = path.read_bytes()
  for share in (0.001, 0.1, 0.5, 0.9, 0.97):
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError) as raised:
      for scene in open_scenes(path):
        with microscope_scenes.explained(path):
          read = [scene.read_channel(c) for c in range(len(scene.channels))]
          np.testing.assert_array_equal(read, _STACK)
    assert str(raised.value).startswith(f"'{path}' ")


def test_missing_libraries(tmp_path, monkeypatch):
  installed = microscope_scenes._installed
  path = tmp_path / 'a.czi'
  path.write_text('')

  def hide(hidden):
    monkeypatch.setattr(
      microscope_scenes, '_installed', lambda name: name != hidden and installed(name)
    )

  hide('bioio_czi')
  assert _error(path) == f"'{path}' needs bioio_czi, not installed: pip install 'isl[czi]'"
  hide('bioio')
  with pytest.raises(ValueError, match=r"need bioio, not installed: pip install 'isl\[bioio\]'$"):
    open_scenes(path)


def _pixel_size(path) -> tuple[float, float] | None:
  (scene,) = open_scenes(path)
  return scene.pixel_size


def _write_sized_tiff(path, **options: Any) -> None:
  tifffile.imwrite(path, _SIZED_STACK, photometric='minisblack', **options)


def _about(expected):
  return expected and pytest.approx(expected)


@pytest.mark.parametrize(
  ('unit', 'expected'),
  [('nm', (2e-3, 3e-3)), ('µm', (2, 3)), ('mm', (2e3, 3e3)), ('pixel', None)],
)
def test_pixel_size_of_ome_tiff(tmp_path, unit, expected):
  sizes = {'PhysicalSizeY': 2.0, 'PhysicalSizeX': 3.0}
  units = dict.fromkeys(('PhysicalSizeYUnit', 'PhysicalSizeXUnit'), unit)
  _write_sized_tiff(tmp_path / 'a.ome.tif', metadata={'axes': 'ZYX', **sizes, **units})
  assert _pixel_size(tmp_path / 'a.ome.tif') == _about(expected)


@pytest.mark.parametrize('sizes', [{}, {'PhysicalSizeX': 3.0}])
def test_ome_tiff_that_does_not_say(tmp_path, sizes):
  _write_sized_tiff(tmp_path / 'a.ome.tif', metadata={'axes': 'ZYX', **sizes})
  assert _pixel_size(tmp_path / 'a.ome.tif') is None


# There are 4000 columns and 5000 rows to the unit.
@pytest.mark.parametrize(
  ('unit', 'expected'), [('CENTIMETER', (2.0, 2.5)), ('INCH', None), ('NONE', None)]
)
def test_plain_tiff(tmp_path, unit, expected):
  _write_sized_tiff(tmp_path / 'a.tif', resolution=(4000, 5000), resolutionunit=unit)
  assert _pixel_size(tmp_path / 'a.tif') == _about(expected)


@pytest.mark.parametrize(
  ('unit', 'expected'),
  [('nm', (2e-7, 2.5e-7)), ('micron', (2e-4, 2.5e-4)), ('pixel', None), (None, None)],
)
def test_imagej(tmp_path, unit, expected):
  metadata = {'axes': 'ZYX'} | ({'unit': unit} if unit else {})
  _write_sized_tiff(tmp_path / 'a.tif', resolution=(4000, 5000), imagej=True, metadata=metadata)
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
  group.create_array('0', data=_SIZED_STACK)
  scales = {'type': 'scale', 'scale': [1.0, scale, scale / 2]}
  dataset: Any = {'path': '0', 'coordinateTransformations': [scales]}
  axes = [{'name': axis} | ({'unit': unit} if unit else {}) for axis in 'zyx']
  group.attrs['ome'] = {'version': '0.5', 'multiscales': [{'axes': axes, 'datasets': [dataset]}]}
  assert _pixel_size(tmp_path / 'a.zarr') == _about(expected)
