"""Tests of ome_zarr_io.py."""

import errno
import itertools
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from isl.core.statistic import NUM_CLASSES
from isl.images import ome_zarr_io
from isl.images.ome_zarr_io import OmeZarrImage
from isl.images.placement import Placement, halved, level_sizes
from tests.support.program import finish, python_process, small_disk

zarr = pytest.importorskip('zarr')
pytest.importorskip('ome_zarr')

_NAMES = ('DAPI_CONFOCAL/MEDIAN', 'NFH_CONFOCAL/MEDIAN')
_DTYPES = ('uint16', 'float32', 'float16')
_ALL = slice(None)


def _values(dtype, shape):
  classes = np.random.default_rng(0).integers(0, NUM_CLASSES, shape)
  return (classes * 257 if dtype == 'uint16' else classes / 255).astype(dtype)


def _open(path, values, tile=(100, 100), placement=None, attributes=None):
  return OmeZarrImage(
    path,
    size=values.shape[1:],
    channels=_NAMES[: len(values)],
    dtype=values.dtype,
    tile=tile,
    placement=placement or Placement(),
    attributes=attributes,
  )


def _write(path, values, **arguments):
  with _open(path, values, **arguments) as image:
    image.write(_ALL, _ALL, _ALL, values)


def _level(path, level=0):
  return zarr.open_array(path / str(level), mode='r')[...]


def _tiles(size, tile):
  for row, column in itertools.product(range(0, size[0], tile[0]), range(0, size[1], tile[1])):
    yield slice(row, min(row + tile[0], size[0])), slice(column, min(column + tile[1], size[1]))


@pytest.mark.parametrize('dtype', _DTYPES)
# Those that fit chunks, and those that do not.
@pytest.mark.parametrize(('tile', 'written'), [((100, 90), (100, 90)), ((300, 256), (77, 310))])
def test_tiles_make_the_image(tmp_path, dtype, tile, written):
  values = _values(dtype, (2, 330, 620))
  with _open(tmp_path / 'image.zarr', values, tile) as image:
    for number, (rows, columns) in enumerate(_tiles((330, 620), written)):
      if number % 2:
        image.write(_ALL, rows, columns, values[:, rows, columns])
      else:
        for channel in range(2):
          image.write(channel, rows, columns, values[channel, rows, columns])
    np.testing.assert_array_equal(
      image.read(1, slice(3, 303), slice(5, None)), values[1, 3:303, 5:]
    )
  result = _level(tmp_path / 'image.zarr')
  assert result.dtype == dtype
  np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize('size', [(1, 1), (7, 513), (620, 330)])
@pytest.mark.parametrize('dtype', _DTYPES)
def test_each_level_is_half_of_the_one_before(tmp_path, size, dtype):
  path, values = tmp_path / 'image.zarr', _values(dtype, (2, *size))
  _write(path, values)
  levels = len(level_sizes(size))
  assert set(zarr.open_group(path, mode='r').array_keys()) == {str(k) for k in range(levels)}
  for level in range(1, levels):
    values = halved(values)
    np.testing.assert_array_equal(_level(path, level), values)


@pytest.mark.parametrize('pixel_size', [None, (0.5, 0.25)])
def test_metadata_are_valid_and_say_where_each_level_lies(tmp_path, pixel_size):
  v05 = pytest.importorskip('ome_zarr_models.v05')
  placement = Placement(pixel_size=pixel_size, offset=(3, 5))
  _write(tmp_path / 'image.zarr', _values('float32', (2, 600, 30)), placement=placement)
  image = v05.Image.from_zarr(zarr.open_group(tmp_path / 'image.zarr', mode='r'))
  (multiscale,) = image.ome_attributes.multiscales
  assert (multiscale.name, multiscale.type) == ('image', 'local_mean')
  unit = pixel_size and 'micrometer'
  axes = [(axis.name, axis.type, axis.unit) for axis in multiscale.axes]
  assert axes == [('c', 'channel', None), ('y', 'space', unit), ('x', 'space', unit)]
  assert len(multiscale.datasets) == len(level_sizes((600, 30)))
  height, width = pixel_size or (1, 1)
  for level, dataset in enumerate(multiscale.datasets):
    scale, translation = dataset.coordinateTransformations
    shift = (2**level - 1) / 2
    assert scale.scale == [1, height * 2**level, width * 2**level]
    assert translation.translation == [0, (3 + shift) * height, (5 + shift) * width]


@pytest.mark.parametrize(('dtype', 'highest'), [('float32', 1), ('uint16', 65535)])
def test_channels_have_names_colours_and_a_window(tmp_path, dtype, highest):
  _write(tmp_path / 'image.zarr', _values(dtype, (2, 3, 5)))
  channels = zarr.open_group(tmp_path / 'image.zarr', mode='r').attrs['ome']['omero']['channels']
  assert [channel['label'] for channel in channels] == list(_NAMES)
  assert len({channel['color'] for channel in channels}) == 2
  for channel in channels:
    assert channel['window'] == {'min': 0, 'max': highest, 'start': 0, 'end': highest}


def test_colours_are_distinct():
  colours = [ome_zarr_io.colour(index) for index in range(NUM_CLASSES)]
  assert len(set(colours)) == NUM_CLASSES
  for near in itertools.pairwise(colours):
    first, second = (np.frombuffer(bytes.fromhex(colour), np.uint8).astype(int) for colour in near)
    assert np.abs(first - second).max() > 100


def test_bioio_reads_it(tmp_path):
  bioio = pytest.importorskip('bioio')
  values = _values('float32', (2, 300, 513))
  placement = Placement(pixel_size=(0.5, 0.25), offset=(3, 5))
  _write(tmp_path / 'image.zarr', values, placement=placement)
  image = bioio.BioImage(tmp_path / 'image.zarr')
  assert image.channel_names == list(_NAMES)
  assert image.dims.order == 'TCZYX'
  assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == (0.5, 0.25)
  np.testing.assert_array_equal(image.get_image_data('CYX'), values)
  image.set_resolution_level(1)
  np.testing.assert_array_equal(image.get_image_data('CYX'), halved(values))


def test_ome_zarr_reads_it(tmp_path):
  reader = pytest.importorskip('ome_zarr.reader')
  ome_zarr_files = pytest.importorskip('ome_zarr.io')
  values = _values('uint16', (2, 300, 513))
  _write(tmp_path / 'image.zarr', values)
  (node,) = reader.Reader(ome_zarr_files.parse_url(tmp_path / 'image.zarr'))()
  assert node.metadata['channel_names'] == list(_NAMES)
  assert [level.shape[1:] for level in node.data] == level_sizes((300, 513))
  np.testing.assert_array_equal(node.data[0], values)


def test_attributes_are_beside_those_of_ome(tmp_path):
  attributes = {'labels': ['DAPI'], 'version': 1, 'seconds': 0.5, 'nothing': None}
  _write(tmp_path / 'image.zarr', _values('uint16', (1, 3, 5)), attributes=attributes)
  contents = json.loads((tmp_path / 'image.zarr' / 'zarr.json').read_text())['attributes']
  assert contents['isl'] == attributes
  assert contents['ome']['version'] == '0.5'


@pytest.mark.parametrize('tile', [(8, 8), (20, 500), (4096, 63)])
def test_one_chunk_holds_all_classes_of_a_pixel(tmp_path, tile):
  with OmeZarrImage(
    tmp_path / 'image.zarr',
    size=(100, 100),
    channels=[f'{label}/{k}' for label in _NAMES for k in range(NUM_CLASSES)],
    dtype=np.float16,
    tile=tile,
    placement=Placement(),
  ):
    pass
  chunks = zarr.open_array(tmp_path / 'image.zarr' / '0', mode='r').chunks
  assert chunks[0] == NUM_CLASSES
  assert 2 * np.prod(chunks) <= 2 << 20


@pytest.mark.parametrize('tile', [1, 8, 90, 255, 256, 300, 1024, 1025, 2000, 5000])
def test_chunks_fit_tiles(tile):
  side = ome_zarr_io.chunk_side(tile, 256, 1024)
  if tile < 256:
    assert side % tile == 0
    assert 256 <= side < 256 + tile
  elif tile <= 1024:
    assert side == tile
  else:
    parts = -(-tile // side)
    assert 512 <= side <= 1024
    assert parts * side - tile < parts


@pytest.mark.parametrize('exception', [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('older', [False, True])
def test_exception_leaves_the_older_image_or_nothing(tmp_path, exception, older):
  path, values = tmp_path / 'image.zarr', _values('uint16', (1, 30, 50))
  if older:
    _write(path, values)
  with pytest.raises(exception), _open(path, values) as image:
    image.write(_ALL, _ALL, _ALL, values // 2)
    raise exception
  assert list(tmp_path.iterdir()) == ([path] if older else [])
  if older:
    np.testing.assert_array_equal(_level(path), values)


def test_exception_amid_the_pyramid_leaves_nothing(tmp_path, monkeypatch):
  def interrupted(image):
    raise KeyboardInterrupt

  monkeypatch.setattr(ome_zarr_io, 'halved', interrupted)
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path / 'image.zarr', _values('uint16', (1, 300, 50)))
  assert not list(tmp_path.iterdir())


def test_finished_image_stays_whatever_follows(tmp_path):
  path, values = tmp_path / 'image.zarr', _values('uint16', (1, 30, 50))
  with pytest.raises(KeyError), _open(path, values) as image:
    image.write(_ALL, _ALL, _ALL, values)
    image.finish()
    image.finish()
    raise KeyError
  assert list(tmp_path.iterdir()) == [path]
  np.testing.assert_array_equal(_level(path), values)


def test_an_earlier_image_of_another_size_is_replaced(tmp_path):
  path, values = tmp_path / 'image.zarr', _values('uint16', (2, 30, 50))
  _write(path, _values('float32', (1, 600, 600)))
  _write(path, values)
  assert list(tmp_path.iterdir()) == [path]
  assert set(zarr.open_group(path, mode='r').array_keys()) == {'0'}
  np.testing.assert_array_equal(_level(path), values)


def test_a_microscopes_image_is_not_replaced(tmp_path):
  path = tmp_path / 'image.zarr'
  zarr.create_group(path, zarr_format=3, attributes={'ome': {'version': '0.5'}})
  before = (path / 'zarr.json').read_bytes()
  with pytest.raises(ValueError, match=r"image.zarr' is a folder of something else"):
    _write(path, _values('uint16', (1, 30, 50)))
  assert list(tmp_path.iterdir()) == [path]
  assert (path / 'zarr.json').read_bytes() == before


@pytest.mark.parametrize(
  ('region', 'values', 'problem'),
  [
    ((2, _ALL, _ALL), np.zeros((30, 50), 'u2'), 'channels must be within 0:2, got 2'),
    ((-1, _ALL, _ALL), np.zeros((30, 50), 'u2'), 'channels must be within 0:2, got -1'),
    ((0, slice(20, 31), _ALL), np.zeros((11, 50), 'u2'), 'rows must be within 0:30'),
    ((0, slice(-5, None), _ALL), np.zeros((5, 50), 'u2'), 'rows must be within 0:30'),
    ((0, _ALL, slice(0, 50, 2)), np.zeros((30, 25), 'u2'), 'columns must be within 0:50'),
    ((0, _ALL, _ALL), np.zeros((1, 1), 'u2'), r'uint16 \[30, 50\], got uint16 \[1, 1\]'),
    ((_ALL, _ALL, _ALL), np.zeros((30, 50), 'u2'), r'uint16 \[2, 30, 50\], got'),
    ((0, _ALL, _ALL), np.zeros((30, 50)), r'uint16 \[30, 50\], got float64'),
    ((0, _ALL, _ALL), np.zeros((30, 50), 'u4'), r'uint16 \[30, 50\], got uint32'),
  ],
)
def test_no_such_region_is_written(tmp_path, region, values, problem):
  with (
    _open(tmp_path / 'image.zarr', _values('uint16', (2, 30, 50))) as image,
    pytest.raises(ValueError, match=f"image.zarr'.*{problem}"),
  ):
    image.write(*region, values)
  assert not _level(tmp_path / 'image.zarr').any()


@pytest.mark.parametrize(
  ('changed', 'problem'),
  [
    ({'dtype': 'float64'}, 'dtype must be one of float16, float32, uint16, got float64'),
    ({'channels': []}, 'got 0 channels'),
    ({'size': (0, 5)}, r'the size \(0, 5\)'),
    ({'tile': (5, 0)}, r'the tile \(5, 0\)'),
    ({'attributes': {'loss': float('nan')}}, 'JSON'),
  ],
)
def test_there_is_no_such_image(tmp_path, changed, problem):
  arguments: dict[str, Any] = {'size': (3, 5), 'channels': _NAMES, 'dtype': 'uint16'}
  arguments |= {'tile': (2, 2), 'placement': Placement()} | changed
  with pytest.raises(ValueError, match=problem):
    OmeZarrImage(tmp_path / 'image.zarr', **arguments)


@pytest.mark.parametrize('missing', ['zarr', 'ome_zarr.format', 'ome_zarr.writer'])
def test_missing_package_is_said_before_the_work(tmp_path, monkeypatch, missing):
  ome_zarr_io.require()
  monkeypatch.setitem(sys.modules, missing, None)
  for attempt in (
    ome_zarr_io.require,
    lambda: _open(tmp_path / 'image.zarr', _values('uint16', (1, 3, 5))).__enter__(),
  ):
    with pytest.raises(ValueError, match=rf"{missing}.*pip install 'isl\[bioio\]'") as raised:
      attempt()
    assert '\n' not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_packages_are_imported_when_they_are_needed():
  """They take seconds, which other formats of predictions do without."""
  script = (
    'import sys, isl.images.ome_zarr_io; print({"dask", "ome_zarr", "zarr"} & sys.modules.keys())'
  )
  assert finish(python_process(script)).stdout == 'set()\n'


_WRITE = """if True:
  import pathlib, re, resource, sys
  import numpy as np
  from isl.images.ome_zarr_io import OmeZarrImage
  from isl.images.placement import Placement

  path, side, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  tile = np.random.default_rng(0).integers(0, 1 << 16, (2, 512, 512), dtype=np.uint16)
  try:
    with OmeZarrImage(
      path,
      size=(side, side),
      channels=('A', 'B'),
      dtype=np.uint16,
      tile=tile.shape[1:],
      placement=Placement(),
    ) as image:
      if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
      for row in range(0, side, 512):
        for column in range(0, side, 512):
          image.write(slice(0, 2), slice(row, row + 512), slice(column, column + 512), tile)
  except OSError as error:
    print(error)
  status = pathlib.Path('/proc/self/status')
  if not limit and status.exists():
    print(re.search(r'VmHWM:\\s*(\\d+) kB', status.read_text())[1])
"""


def _growth_mb(folder, side):
  """The growth of peak memory from an image of side 1024 to one of `side` pixels, in MB."""
  if not pathlib.Path('/proc/self/status').exists():
    pytest.skip('this system does not tell a peak')
  peaks = []
  for each in (1024, side):
    outcome = finish(python_process(_WRITE, folder / 'image.zarr', each, 0), 300)
    assert outcome.status == 0, outcome.stderr
    peaks.append(int(outcome.stdout) * 1024 / 1e6)
  return peaks[1] - peaks[0]


def test_memory_does_not_grow_with_the_image(tmp_path):
  """A channel of the larger image alone has 33 MB."""
  assert _growth_mb(tmp_path, 4096) < 25


@pytest.mark.soak
def test_memory_does_not_grow_with_a_large_image(tmp_path):
  """A channel of the larger image alone has 134 MB."""
  assert _growth_mb(tmp_path, 8192) < 25


def test_full_disk_names_the_image(tmp_path):
  path = tmp_path / 'image.zarr'
  outcome = finish(python_process(_WRITE, path, 1024, 10_000))
  assert outcome.stdout == f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{path}'\n"
  assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_region_of_many_chunks(tmp_path):
  """Zarr has threads, none of which may go on writing when another has met the full disk."""
  path = tmp_path / 'image.zarr'
  values = np.random.default_rng(0).integers(0, 1 << 16, (4, 512, 512), dtype=np.uint16)
  for _ in range(5):
    with (
      pytest.raises(OSError, match='File too large'),
      OmeZarrImage(
        path,
        size=(512, 512),
        channels='ABCD',
        dtype=np.uint16,
        tile=(256, 256),
        placement=Placement(),
      ) as image,
      small_disk(10_000),
    ):
      image.write(slice(0, 4), slice(0, 512), slice(0, 512), values)
    assert not list(tmp_path.iterdir())
