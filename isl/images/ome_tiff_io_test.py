"""Tests of ome_tiff_io.py."""

import errno
import os
import weakref

import numpy as np
import pytest
import tifffile

from isl.core.statistic import NUM_CLASSES
from isl.images import ome_tiff_io
from isl.images.placement import Placement, halved, level_sizes
from tests.support.program import finish, python_process

_NAMES = ('DAPI_CONFOCAL/MEDIAN', 'NFH_CONFOCAL/QUANTILE_2.5')
_SIZES = [(1, 1), (7, 513), (620, 330)]


def _values(dtype, shape):
  classes = np.random.default_rng(0).integers(0, NUM_CLASSES, shape)
  scaled = {'uint8': classes, 'uint16': classes * 257, 'float32': classes / 255}
  return scaled[dtype].astype(dtype)


def _write(path, values, *, names=_NAMES, placement=None, description=''):
  ome_tiff_io.write_ome_tiff(
    path,
    iter(values),
    size=values.shape[1:],
    channels=names[: len(values)],
    dtype=values.dtype,
    placement=placement or Placement(),
    description=description,
  )


def _document(path):
  """Reads and validates a file's OME-XML."""
  ome_types = pytest.importorskip('ome_types')
  with tifffile.TiffFile(path) as tiff:
    xml = tiff.ome_metadata
  ome_types.validate_xml(xml)
  return ome_types.from_xml(xml)


@pytest.mark.parametrize('size', _SIZES)
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
@pytest.mark.parametrize('channels', [1, 2])
def test_planes_and_their_pyramids_are_read_back(tmp_path, size, dtype, channels):
  values = _values(dtype, (channels, *size))
  _write(tmp_path / 'image.ome.tif', values)
  with tifffile.TiffFile(tmp_path / 'image.ome.tif') as tiff:
    assert tiff.is_ome
    (series,) = tiff.series
    assert len(series.levels) == len(level_sizes(size))
    for level in series.levels:
      assert level.dtype == dtype
      np.testing.assert_array_equal(level.asarray().reshape(values.shape), values)
      values = halved(values)


def test_pages_are_tiled_and_compressed(tmp_path):
  _write(tmp_path / 'image.ome.tif', np.zeros((2, 600, 600), np.uint16))
  assert (tmp_path / 'image.ome.tif').stat().st_size < 2 * 600 * 600 * 2 / 20
  with tifffile.TiffFile(tmp_path / 'image.ome.tif') as tiff:
    assert not tiff.is_bigtiff
    assert len(tiff.pages) == 2
    for page in tiff.pages:
      assert isinstance(page, tifffile.TiffPage)
      assert page.is_tiled
      assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE


@pytest.mark.parametrize(
  ('pixel_size', 'unit', 'row', 'column'),
  [(None, 'pixel', 3, 5), ((0.5, 0.25), 'µm', 3 * 0.5, 5 * 0.25)],
)
def test_metadata_are_valid_and_say_where_the_image_lies(tmp_path, pixel_size, unit, row, column):
  placement = Placement(pixel_size=pixel_size, offset=(3, 5))
  text = 'median, 5 µm <thick> & "bright"'
  values = _values('float32', (2, 20, 30))
  _write(tmp_path / 'image.ome.tif', values, placement=placement, description=text)
  (image,) = _document(tmp_path / 'image.ome.tif').images
  pixels = image.pixels
  assert image.description == text
  assert [channel.name for channel in pixels.channels] == list(_NAMES)
  assert (pixels.size_c, pixels.size_y, pixels.size_x) == values.shape
  assert (pixels.physical_size_y, pixels.physical_size_x) == (pixel_size or (None, None))
  assert [plane.the_c for plane in pixels.planes] == [0, 1]
  for plane in pixels.planes:
    assert (plane.position_y, plane.position_x) == (row, column)
    assert plane.position_y_unit.value == plane.position_x_unit.value == unit


def test_each_level_says_its_resolution(tmp_path):
  placement = Placement(pixel_size=(0.5, 0.25))
  _write(tmp_path / 'image.ome.tif', _values('uint16', (1, 600, 30)), placement=placement)
  with tifffile.TiffFile(tmp_path / 'image.ome.tif') as tiff:
    (page,) = tiff.pages
    assert page.pages
    for level, each in enumerate([page, *page.pages]):
      assert each.get_resolution('MICROMETER') == pytest.approx((4 / 2**level, 2 / 2**level))


def test_bioio_reads_it(tmp_path):
  bioio = pytest.importorskip('bioio')
  values = _values('float32', (2, 300, 513))
  placement = Placement(pixel_size=(0.5, 0.25), offset=(3, 5))
  _write(tmp_path / 'image.ome.tif', values, placement=placement)
  image = bioio.BioImage(tmp_path / 'image.ome.tif')
  assert image.channel_names == list(_NAMES)
  assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == (0.5, 0.25)
  np.testing.assert_array_equal(image.get_image_data('CYX'), values)


def test_tens_of_channels_are_in_order(tmp_path):
  names = [f'label {i}' for i in range(40)]
  values = _values('uint16', (40, 30, 300))
  _write(tmp_path / 'image.ome.tif', values, names=names)
  np.testing.assert_array_equal(tifffile.imread(tmp_path / 'image.ome.tif'), values)
  (image,) = _document(tmp_path / 'image.ome.tif').images
  assert [channel.name for channel in image.pixels.channels] == names


def test_one_plane_exists_at_a_time(tmp_path):
  made: list[weakref.ref[np.ndarray]] = []

  def planes():
    for number in range(3):
      assert all(plane() is None for plane in made)
      plane = np.full((300, 300), number, np.uint16)
      made.append(weakref.ref(plane))
      yield plane
      del plane

  ome_tiff_io.write_ome_tiff(
    tmp_path / 'image.ome.tif',
    planes(),
    size=(300, 300),
    channels=['A', 'B', 'C'],
    dtype=np.uint16,
    placement=Placement(),
  )
  assert len(made) == 3


def test_large_files_are_big_tiffs(tmp_path, monkeypatch):
  values = _values('uint16', (2, 100, 100))
  monkeypatch.setattr(ome_tiff_io, '_MAX_CLASSIC', values.nbytes - 1)
  _write(tmp_path / 'image.ome.tif', values)
  with tifffile.TiffFile(tmp_path / 'image.ome.tif') as tiff:
    assert tiff.is_bigtiff
    np.testing.assert_array_equal(tiff.asarray(), values)


@pytest.mark.parametrize(
  ('planes', 'problem'),
  [
    ([], 'expected 2 planes, got 0'),
    ([np.zeros((3, 5), 'u2')], 'expected 2 planes, got 1'),
    ([np.zeros((3, 5), 'u2')] * 3, r'expected 2 planes of.*got one of.*behind 2'),
    ([np.zeros((5, 3), 'u2')] * 2, r'uint16 \[3, 5\], got one of uint16 \[5, 3\] behind 0'),
    ([np.zeros((3, 5), 'u1')] * 2, 'got one of uint8'),
    ([np.zeros((3, 5))] * 2, r'uint16 \[3, 5\], got one of float64 \[3, 5\] behind 0'),
  ],
)
@pytest.mark.parametrize('older', [False, True])
def test_planes_of_another_image_are_refused(tmp_path, planes, problem, older):
  path = tmp_path / 'image.ome.tif'
  if older:
    path.write_text('older')
  with pytest.raises(ValueError, match=f"image.ome.tif'.*{problem}"):
    ome_tiff_io.write_ome_tiff(
      path, planes, size=(3, 5), channels=_NAMES, dtype='uint16', placement=Placement()
    )
  assert list(tmp_path.iterdir()) == ([path] if older else [])
  assert not older or path.read_text() == 'older'


@pytest.mark.parametrize(
  ('changed', 'problem'),
  [
    ({'dtype': 'float16'}, 'dtype must be one of uint8, uint16, float32, got float16'),
    ({'channels': []}, 'got 0 channels'),
    ({'size': (0, 5)}, r'the size \(0, 5\)'),
    ({'description': 'a\0b'}, r"text that XML can hold.*'a\\x00b'"),
  ],
)
def test_there_is_no_such_image(tmp_path, changed, problem):
  arguments = {'size': (3, 5), 'channels': _NAMES, 'dtype': 'uint16', 'placement': Placement()}
  with pytest.raises(ValueError, match=problem):
    ome_tiff_io.write_ome_tiff(tmp_path / 'image.ome.tif', [], **arguments | changed)
  assert not list(tmp_path.iterdir())


_WRITE = """if True:
  import resource, sys
  # It is not among the packages that we need.
  sys.modules['imagecodecs'] = None
  import numpy as np
  from isl.images import ome_tiff_io
  from isl.images.placement import Placement
  path, limit = sys.argv[1], int(sys.argv[2])
  if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  planes = np.random.default_rng(0).integers(0, 1 << 16, (2, 300, 300), dtype=np.uint16)
  try:
    ome_tiff_io.write_ome_tiff(
      path, planes, size=(300, 300), channels='AB', dtype='uint16', placement=Placement()
    )
  except OSError as error:
    print(error)
"""


def test_imagecodecs_may_be_missing(tmp_path):
  outcome = finish(python_process(_WRITE, tmp_path / 'image.ome.tif', 0))
  assert (outcome.status, outcome.stdout) == (0, ''), outcome.stderr
  values = np.random.default_rng(0).integers(0, 1 << 16, (2, 300, 300), dtype=np.uint16)
  np.testing.assert_array_equal(tifffile.imread(tmp_path / 'image.ome.tif'), values)


def test_full_disk_names_the_file(tmp_path):
  path = tmp_path / 'image.ome.tif'
  outcome = finish(python_process(_WRITE, path, 10_000))
  assert outcome.stdout == f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{path}'\n"
  assert not list(tmp_path.iterdir())
