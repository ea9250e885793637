"""Tests of microscope_files.py."""

import concurrent.futures
import pathlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile
from pylibCZIrw import czi

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import microscope_files, microscope_scenes, png_folders
from isl.images.fields_of_view import FieldFiles
from isl.images.microscope_files import MicroscopeFile, PlaneSource, fields_of_file
from tests.support import microscope
from tests.support.microscope import stack_of, write_ome_tiff, write_ome_zarr
from tests.support.program import shared_path, write_field

_PIXEL_SIZE = (0.3, 0.4)


@pytest.fixture(scope='module')
def png_field(tmp_path_factory):
  folder = tmp_path_factory.mktemp('png')
  write_field(folder, rows=70, columns=150, depths=4)
  (field,) = png_folders.find_png_fields(folder)
  return field


@pytest.fixture
def decoded(monkeypatch) -> list[object]:
  """Collects what is decoded: channels by number, chunks by index."""
  result: list[object] = []

  def noting(read):
    def read_and_note(scene, what):
      result.append(what)
      return read(scene, what)

    return read_and_note

  for name in ('read_channel', 'read_chunk'):
    read = getattr(microscope_scenes.Scene, name)
    monkeypatch.setattr(microscope_scenes.Scene, name, noting(read))
  monkeypatch.setattr(microscope_files, '_chunks', microscope_files._Chunks())
  return result


def _write_czi(path, field, pixel_size):
  with czi.create_czi(str(path)) as file:
    for (c, z), image in _planes(stack_of(field)):
      file.write(image, plane={'C': c, 'Z': z})
    rows, columns = (side * 1e-6 for side in pixel_size)
    names = dict(enumerate(field.channels))
    file.write_metadata(channel_names=names, scale_y=rows, scale_x=columns)
  return path


def _planes(stack):
  return [(index, stack[index]) for index in np.ndindex(stack.shape[:2])]


def _write_zarr_04(path, field, pixel_size):
  return write_ome_zarr(path, field, pixel_size, version='0.4')


_WRITERS = {
  'well A4,site-1.ome.tif': write_ome_tiff,
  'well #1.OME.TIFF': write_ome_tiff,
  'b.czi': _write_czi,
  'c.ome.zarr': write_ome_zarr,
  'd 5%.zarr': _write_zarr_04,
}


def _assert_same(field, expected):
  """All images of `expected` are in `field`, to the bit."""
  images = field.read().images
  for key, image in expected.read().images.items():
    assert (images[key].shape, images[key].dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(images[key][:, :], image)
    assert field.sources[key].size == image.shape


@pytest.mark.parametrize('name', _WRITERS)
def test_same_pixels_in_every_format(tmp_path, png_field, name):
  path = _WRITERS[name](tmp_path / name, png_field, _PIXEL_SIZE)
  assert microscope_files.is_microscope_file(path)
  (field,) = fields_of_file(path)
  assert field.name == name[: name.lower().index('.ome' if '.ome' in name.lower() else '.')]
  assert field.origin == str(path) and set(field.paths.values()) == {path}
  assert field.pixel_size == pytest.approx(_PIXEL_SIZE)
  assert set(field.sources) == {
    ImageKey(z, channel) for z in (*range(4), MAXPROJECT) for channel in png_field.channels
  }
  _assert_same(field, png_field)
  images = field.read().images
  light = [images[ImageKey(z, 'PHASE_CONTRAST')][:, :] for z in range(4)]
  projection = images[ImageKey(MAXPROJECT, 'PHASE_CONTRAST')][:, :]
  np.testing.assert_array_equal(projection, np.max(light, axis=0))


@pytest.mark.parametrize('name', ['a.ome.tif', 'a.czi', 'a.ome.zarr'])
def test_real_sample(tmp_path, name):
  (expected,) = png_folders.find_png_fields(shared_path('data', 'condition_b_sample'))
  if name == 'a.czi':
    path = _write_czi(tmp_path / name, expected, _PIXEL_SIZE)
  elif name == 'a.ome.tif':
    path = write_ome_tiff(tmp_path / name, expected)
  else:
    path = write_ome_zarr(tmp_path / name, expected, chunk=512)
  (found,) = fields_of_file(path)
  _assert_same(found, expected)


def test_select_takes_a_files_channels_for_pngs(tmp_path, png_field):
  (field,) = fields_of_file(write_ome_tiff(tmp_path / 'a.tif', png_field))
  chosen = ('TRANSMISSION',), ('DAPI_CONFOCAL', 'NEURITE_CONFOCAL')
  assert field.select(*chosen).sources.keys() == png_field.select(*chosen).sources.keys()


def test_one_plane_is_its_projection(tmp_path):
  tifffile.imwrite(tmp_path / 'a.tif', np.ones((4, 5), np.uint8), photometric='minisblack')
  (field,) = fields_of_file(tmp_path / 'a.tif')
  (channel,) = field.channels
  assert field.sources[ImageKey(MAXPROJECT, channel)] is field.sources[ImageKey(0, channel)]


@pytest.mark.parametrize('dtype', ['>u2', 'i4', 'u4', 'f4', 'f8'])
@pytest.mark.parametrize('name', ['a.tif', 'a.zarr'])
def test_numbers_become_float32(tmp_path, monkeypatch, name, dtype, png_field):
  image = np.arange(20).reshape(1, 1, 4, 5).astype(dtype) / (20 if 'f' in dtype else 1)
  image = image.astype(dtype)
  monkeypatch.setattr(microscope, 'stack_of', lambda field: image)
  one = FieldFiles(
    name='', origin='', sources={ImageKey(0, 'A'): png_field.sources[ImageKey(0, 'PHASE_CONTRAST')]}
  )
  write = {'a.tif': write_ome_tiff, 'a.zarr': write_ome_zarr}
  (field,) = fields_of_file(write[name](tmp_path / name, one))
  source = field.sources[ImageKey(0, 'A')]
  assert isinstance(source, PlaneSource)
  assert source.stored_dtype.newbyteorder('=') == np.dtype(dtype).newbyteorder('=')
  read = source.read()
  wanted = np.uint16 if dtype == '>u2' else np.float32
  assert read.dtype == read[:, :].dtype == wanted
  np.testing.assert_array_equal(read[:, :], image[0, 0].astype(wanted))


def test_what_float32_cannot_hold_is_inf(tmp_path):
  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, np.full((4, 5), 1e300), photometric='minisblack')
  (field,) = fields_of_file(path)
  assert np.isinf(next(iter(field.read().images.values()))[:, :]).all()


def test_each_channel_of_a_tiff_is_decoded_once(tmp_path, png_field, decoded):
  (field,) = fields_of_file(write_ome_tiff(tmp_path / 'a.tif', png_field))
  assert not decoded
  images = field.read()
  assert sorted(decoded) == [0, 1, 2, 3]
  # Nothing refers to the planes any more.
  del images
  chosen = field.select(('PHASE_CONTRAST',), ())
  chosen.read()
  assert decoded[4:] == [3]


@pytest.fixture(scope='module')
def zarr_file(tmp_path_factory, png_field) -> pathlib.Path:
  """An OME-Zarr with chunks of 32 x 32 pixels."""
  path = tmp_path_factory.mktemp('zarr') / 'a.zarr'
  return write_ome_zarr(path, png_field, chunk=32)


@pytest.mark.parametrize('z', [2, MAXPROJECT])
def test_windows_are_parts_of_the_whole(zarr_file, png_field, z):
  stack = stack_of(png_field)[3]
  whole = stack.max(axis=0) if z == MAXPROJECT else stack[z]
  pixels = PlaneSource(MicroscopeFile(zarr_file), 0, 3, z).read()
  assert not isinstance(pixels, np.ndarray)
  assert (pixels.shape, pixels.dtype) == (whole.shape, np.dtype('uint16'))
  rng = np.random.default_rng(0)
  windows: list[Any] = [
    np.s_[:, :],
    np.s_[64:, -1:],
    np.s_[5:5, :],
    np.s_[::3, 1::40],
    np.s_[3:1000, 7:],
  ]
  for _ in range(30):
    (top, bottom), (left, right) = (np.sort(rng.integers(0, n, 2)) for n in whole.shape)
    windows.append(np.s_[top : bottom + 1, left : right + 1 : rng.integers(1, 50)])
  for window in windows:
    np.testing.assert_array_equal(pixels[window], whole[window])


def test_each_chunk_is_decoded_once_while_it_is_remembered(zarr_file, decoded):
  file = MicroscopeFile(zarr_file)
  planes = [PlaneSource(file, 0, 3, z).read() for z in range(4)]
  assert not decoded
  for column in (0, 10, 20):
    for plane in planes:
      plane[0:30, column : column + 40]
  # All depths of two chunks that lie side by side; of the third, the window saw nothing.
  assert sorted(decoded) == [(3, z, 0, j) for z in range(4) for j in (0, 1)]


def test_chunks_are_forgotten(zarr_file, decoded, monkeypatch):
  size = 32 * 32 * 2
  monkeypatch.setattr(microscope_files, '_MOST_CHUNKS', 2 * size)
  plane = PlaneSource(MicroscopeFile(zarr_file), 0, 3, 0).read()
  for column, in_all in ((0, 1), (32, 2), (0, 2), (64, 3), (0, 3), (32, 4)):
    plane[0:1, column : column + 1]
    assert len(decoded) == in_all
  # A chunk that is too large is kept alone.
  monkeypatch.setattr(microscope_files, '_MOST_CHUNKS', 1)
  for _ in range(2):
    plane[0:1, 140:141]
    assert len(decoded) == 5


def test_windows_need_little_memory(tmp_path, monkeypatch, decoded):
  side, chunk = 768, 64
  stack = np.random.default_rng(0).integers(0, 1 << 16, (1, 2, side, side), dtype=np.uint16)
  monkeypatch.setattr(microscope, 'stack_of', lambda field: stack)
  sources: Any = {ImageKey(0, 'DIC'): None}
  field = FieldFiles(name='', origin='', sources=sources)
  path = write_ome_zarr(tmp_path / 'a.zarr', field, chunk=chunk)
  most = 16 * chunk * chunk * 2
  monkeypatch.setattr(microscope_files, '_MOST_CHUNKS', most)
  pixels = PlaneSource(MicroscopeFile(path), 0, 0, MAXPROJECT).read()
  # What is loaded with the first chunk.
  pixels[0:1, 0:1]
  tracemalloc.start()
  try:
    for row, column in np.ndindex(6, 6):
      pixels[row * 128 : row * 128 + 90, column * 128 : column * 128 + 90]
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert len(decoded) == 2 * (side // chunk) ** 2
  assert most < peak < stack[0, 0].nbytes / 3


@pytest.mark.parametrize('name', ['a.tif', 'a.zarr'])
def test_threads(tmp_path, png_field, name, decoded):
  write = {'a.tif': write_ome_tiff, 'a.zarr': write_ome_zarr}
  file = MicroscopeFile(write[name](tmp_path / name, png_field))
  stack = stack_of(png_field)
  planes = 3 * list(np.ndindex(stack.shape[:2]))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    images = list(pool.map(lambda i: PlaneSource(file, 0, *i).read()[:, :], planes))
  for index, image in zip(planes, images, strict=True):
    np.testing.assert_array_equal(image, stack[index])
  # Of either, nothing twice.
  assert len(decoded) == len(set(decoded)) > 1


def test_damaged_chunk_names_the_file(tmp_path, png_field):
  path = write_ome_zarr(tmp_path / 'a.zarr', png_field)
  for chunk in (p for p in path.rglob('*') if p.is_file() and 'json' not in p.name):
    chunk.write_bytes(chunk.read_bytes()[:-20])
  (field,) = fields_of_file(path)
  pixels = field.sources[ImageKey(0, 'PHASE_CONTRAST')].read()
  with pytest.raises(ValueError) as raised:
    pixels[0:1, 0:1]
  assert str(raised.value).startswith(f"'{path}' cannot be read") and '\n' not in str(raised.value)


def test_file_that_goes_away(tmp_path, png_field):
  (field,) = fields_of_file(write_ome_tiff(tmp_path / 'a.tif', png_field))
  (tmp_path / 'a.tif').unlink()
  with pytest.raises((OSError, ValueError), match=r'a\.tif'):
    field.read()


def test_scenes_are_fields(tmp_path):
  path = tmp_path / 'plate 1.ome.tif'
  images = np.random.default_rng(0).integers(0, 255, (3, 4, 5), dtype=np.uint8)
  with tifffile.TiffWriter(path) as writer:
    for image in images:
      writer.write(image, photometric='minisblack', metadata={'axes': 'YX'})
  fields = fields_of_file(path)
  assert [f.name for f in fields] == [f'plate 1,scene-Image-{i}' for i in range(3)]
  for field, image in zip(fields, images, strict=True):
    np.testing.assert_array_equal(field.sources[ImageKey(0, *field.channels)].read(), image)


def test_two_channels_of_one_name(tmp_path):
  path = tmp_path / 'a.tif'
  metadata = {'axes': 'CYX', 'Channel': {'Name': ['DAPI', 'DIC', 'DAPI ']}}
  image = np.zeros((3, 4, 5), np.uint8)
  tifffile.imwrite(path, image, photometric='minisblack', metadata=metadata, ome=True)
  with pytest.raises(ValueError, match=r"a.tif' has 2 channels named 'DAPI'.*DAPI, DIC, DAPI$"):
    fields_of_file(path)


def test_which_paths_are_microscope_files(tmp_path):
  for name in ('a.tif', 'b.CZI', 'c.ome.tiff', 'd.png', 'e.zarr', 'f.csv', 'g'):
    (tmp_path / name).write_text('')
  for name in ('h.zarr', 'i.tif', 'j'):
    (tmp_path / name).mkdir()
  (tmp_path / 'j' / 'zarr.json').write_text('{}')
  found = [p.name for p in sorted(tmp_path.iterdir()) if microscope_files.is_microscope_file(p)]
  assert found == ['a.tif', 'b.CZI', 'c.ome.tiff', 'h.zarr', 'j']
