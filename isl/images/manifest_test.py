"""Tests of manifest.py."""

import pathlib

import numpy as np
import pytest
import tifffile

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import microscope_scenes, png_folders, png_io
from isl.images.manifest import read_manifest
from tests.support.microscope import write_manifest
from tests.support.program import write_field

_HEADER = 'field,z,channel,path'
_STACK = np.random.default_rng(0).integers(0, 1 << 16, (2, 3, 6, 9), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """A folder with plain files of each depth of a z-stack, and a file of two z-stacks of three."""
  for z, image in enumerate(_STACK[0]):
    png_io.write_png(tmp_path / f'{z}.png', image)
    tifffile.imwrite(tmp_path / f'{z}.tif', image, photometric='minisblack')
  _write_tiff(tmp_path / 'two.ome.tif', ['Bright', '405 nm'])
  return tmp_path


def _write_tiff(path, names, pixel_size=0.5):
  sizes = {'PhysicalSizeY': pixel_size, 'PhysicalSizeX': pixel_size}
  metadata = {'axes': 'CZYX', 'Channel': {'Name': names}, **sizes}
  tifffile.imwrite(path, _STACK[: len(names)], photometric='minisblack', metadata=metadata)


def _manifest(folder, *lines, header=_HEADER, name='images.csv') -> pathlib.Path:
  path = folder / name
  path.write_text('\n'.join([header, *lines]))
  return path


def _images(field):
  return {key: image[:, :] for key, image in field.read().images.items()}


def _error(path, kind=ValueError) -> str:
  with pytest.raises(kind) as raised:
    read_manifest(path)
  message = str(raised.value)
  assert '\n' not in message and message.startswith(f"'{path}' ")
  return message.removeprefix(f"'{path}' ")


def test_a_folders_fields_as_a_manifest(tmp_path):
  write_field(tmp_path / 'png', wells=('B2', 'A4'))
  expected = png_folders.find_png_fields(tmp_path / 'png')
  path = write_manifest(tmp_path / 'images.csv', expected)
  found = read_manifest(str(path))
  assert [field.name for field in found] == [field.name for field in expected]
  for field, other in zip(found, expected, strict=True):
    assert (field.origin, field.pixel_size) == (str(path), None)
    images = _images(field)
    for key, image in other.read().images.items():
      np.testing.assert_array_equal(images[key], image)
    # What the folder does not have: the projection of the stack.
    stack = [images[ImageKey(z, 'PHASE_CONTRAST')] for z in range(3)]
    added = images[ImageKey(MAXPROJECT, 'PHASE_CONTRAST')]
    np.testing.assert_array_equal(added, np.max(stack, axis=0))
    assert len(images) == len(other.sources) + 1


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_a_file_for_each_depth(folder, suffix):
  lines = [f'A4,{z},DIC,{z}.{suffix}' for z in (2, 0, 1)]
  (field,) = read_manifest(_manifest(folder, *lines))
  expected = dict(enumerate(_STACK[0])) | {MAXPROJECT: _STACK[0].max(axis=0)}
  images = _images(field)
  assert images.keys() == {ImageKey(z, 'DIC') for z in expected}
  for z, image in expected.items():
    np.testing.assert_array_equal(images[ImageKey(z, 'DIC')], image)


def test_projection_that_is_there_is_not_made(folder):
  lines = ['A4,0,DIC,0.png', 'A4,1,DIC,1.png', 'A4,MAXPROJECT,DIC,2.png']
  (field,) = read_manifest(_manifest(folder, *lines))
  np.testing.assert_array_equal(_images(field)[ImageKey(MAXPROJECT, 'DIC')], _STACK[0, 2])


@pytest.mark.parametrize(
  ('path', 'channel'),
  [
    ('two.ome.tif#Bright', 0),
    ('two.ome.tif#405 nm', 1),
    ('two.ome.tif#0', 0),
    ('two.ome.tif# 1', 1),
    ('./two.ome.tif#1', 1),
  ],
)
def test_channel_of_a_file(folder, path, channel):
  lines = [f'A4,,DIC,{path}', f'B1,1,DIC,{path}', f'B2,MAXPROJECT,DIC,{path}']
  a4, b1, b2 = read_manifest(_manifest(folder, *lines))
  for z in range(3):
    np.testing.assert_array_equal(_images(a4)[ImageKey(z, 'DIC')], _STACK[channel, z])
  projection = _STACK[channel].max(axis=0)
  np.testing.assert_array_equal(_images(a4)[ImageKey(MAXPROJECT, 'DIC')], projection)
  np.testing.assert_array_equal(_images(b1)[ImageKey(1, 'DIC')], _STACK[channel, 1])
  (image,) = _images(b2).values()
  np.testing.assert_array_equal(image, projection)
  assert {field.pixel_size for field in (a4, b1, b2)} == {(0.5, 0.5)}


def test_channel_named_as_the_line_says(folder):
  (field,) = read_manifest(_manifest(folder, 'A4,0,405 nm,two.ome.tif'))
  np.testing.assert_array_equal(_images(field)[ImageKey(0, '405 nm')], _STACK[1, 0])


def test_name_of_a_channel_goes_before_its_number(folder):
  _write_tiff(folder / 'c.ome.tif', ['1', '0'])
  (field,) = read_manifest(_manifest(folder, 'A4,0,DIC,c.ome.tif#1'))
  np.testing.assert_array_equal(_images(field)[ImageKey(0, 'DIC')], _STACK[0, 0])


def test_hash_in_names(folder):
  _write_tiff(folder / 'well #1.ome.tif', ['Cy5 #1', 'Cy5 #2'])
  (folder / '0.png').rename(folder / 'image#1.png')
  lines = ['A4,0,A,well #1.ome.tif#Cy5 #2', 'A4,0,B,image#1.png']
  (field,) = read_manifest(_manifest(folder, *lines))
  images = _images(field)
  np.testing.assert_array_equal(images[ImageKey(0, 'A')], _STACK[1, 0])
  np.testing.assert_array_equal(images[ImageKey(0, 'B')], _STACK[0, 0])


def test_one_plane_is_all_that_a_line_may_ask_for(folder):
  lines = ['A4,,A,0.png', 'A4,7,B,0.tif', 'A4,MAXPROJECT,C,0.png']
  (field,) = read_manifest(_manifest(folder, *lines))
  keys: list[tuple[int | str, str]] = [
    (0, 'A'),
    (MAXPROJECT, 'A'),
    (7, 'B'),
    (MAXPROJECT, 'B'),
    (MAXPROJECT, 'C'),
  ]
  images = _images(field)
  assert images.keys() == {ImageKey(z, channel) for z, channel in keys}
  assert all(np.array_equal(image, _STACK[0, 0]) for image in images.values())


def test_how_tables_are_written(folder):
  lines = [
    '\ufeffpath, z ,channel,field',
    '"0.png",0,DIC,"A4, left"',
    '',
    ',,,',
    '  ',
    f'{folder / "1.png"},1, DIC ,"A4, left"',
    '2.png,0,DIC,Ä4',
  ]
  path = folder / 'images.csv'
  path.write_bytes('\r\n'.join(lines).encode())
  fields = read_manifest(path)
  assert [field.name for field in fields] == ['A4, left', 'Ä4']
  assert [len(field.sources) for field in fields] == [3, 2]


def test_home_folder(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  (folder / 'elsewhere').mkdir()
  (field,) = read_manifest(_manifest(folder / 'elsewhere', 'A4,0,DIC,~/0.png'))
  assert field.sources[ImageKey(0, 'DIC')].path == folder / '0.png'


def test_pixel_sizes_that_differ_are_none(folder):
  for name, size in (('a', 0.5), ('b', 0.50001), ('c', 0.6)):
    _write_tiff(folder / f'{name}.ome.tif', ['A'], size)
  lines = ['A4,0,A,a.ome.tif', 'A4,0,B,b.ome.tif', 'A4,0,D,0.png', 'A4,0,E,0.tif']
  (field,) = read_manifest(_manifest(folder, *lines))
  assert field.pixel_size == pytest.approx((0.5, 0.5), rel=1e-3)
  (field,) = read_manifest(_manifest(folder, *lines, 'A4,0,C,c.ome.tif'))
  assert field.pixel_size is None


@pytest.mark.parametrize(
  'header', ['', 'field,z,channel', 'field;z;channel;path', 'field,z,channel,path,dye', 'a,b,c,d']
)
def test_other_columns(folder, header):
  message = _error(_manifest(folder, 'A4,0,DIC,0.png', header=header))
  assert message.startswith('line 1: the columns must be field,z,channel,path')
  assert message.endswith(f'got {header!r}')


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    ('A4,0,DIC', 'expected 4 cells (field,z,channel,path), got 3'),
    ('A4,0,DIC,0.png,', 'expected 4 cells (field,z,channel,path), got 5'),
    (',0,DIC,0.png', 'field is empty'),
    ('A4,0,,0.png', 'channel is empty'),
    ('A4,0,DIC,', 'path is empty'),
    ('A/4,0,DIC,0.png', 'field must be fit for the name of a file'),
    (
      'A4,-1,DIC,0.png',
      "z must be a whole number, MAXPROJECT, or empty for all of a file, got '-1",
    ),
    ('A4,max,DIC,0.png', 'z must be a whole number'),
    ('A4,1.0,DIC,0.png', 'z must be a whole number'),
    ('A4,3,DIC,two.ome.tif#0', "two.ome.tif' has the depths 0 to 2, got z 3"),
    ('A4,0,DIC,images.csv', "images.csv' is not named like an image; expected .png, .tif"),
    ('A4,0,DIC,0.png#1', "0.png' is a PNG, which has no channel '1'"),
    ('A4,0,DIC,two.ome.tif', "no channel 'DIC'; expected PATH#CHANNEL with one of Bright, 405 nm"),
    ('A4,0,DIC,two.ome.tif#DAPI', "no channel 'DAPI'; expected PATH#CHANNEL with one of Bright"),
    ('A4,0,DIC,two.ome.tif#2', "no channel '2'"),
    ('A4,0,DIC,twins.ome.tif#A', "several channels 'A'"),
    ('A4,0,DIC,scenes.ome.tif', "scenes.ome.tif' has 2 scenes; expected one in a manifest"),
    ('A4,0,DIC,damaged.tif', "damaged.tif' cannot be read"),
    ('A4,0,DIC,"0.png', 'unexpected end of data'),
  ],
)
def test_error_names_the_line(folder, line, problem):
  _write_tiff(folder / 'twins.ome.tif', ['A', 'A'])
  with tifffile.TiffWriter(folder / 'scenes.ome.tif') as writer:
    for image in _STACK[0, :2]:
      writer.write(image, photometric='minisblack', metadata={'axes': 'YX'})
  (folder / 'damaged.tif').write_text('notes')
  message = _error(_manifest(folder, 'A4,0,DAPI,0.png', '', line))
  assert message.startswith('line 4: ') and problem in message


def test_channels_of_one_name_have_numbers(folder):
  _write_tiff(folder / 'twins.ome.tif', ['A', 'A'])
  (field,) = read_manifest(_manifest(folder, 'A4,0,DIC,twins.ome.tif#1'))
  np.testing.assert_array_equal(_images(field)[ImageKey(0, 'DIC')], _STACK[1, 0])


@pytest.mark.parametrize('path', ['no/image.png', 'no/image.png#DIC', '~no such user/image.png'])
def test_missing_file(folder, path):
  message = _error(_manifest(folder, f'A4,0,DIC,{path}'), FileNotFoundError)
  assert message == f"line 2: '{folder / path.removesuffix('#DIC')}' does not exist"


@pytest.mark.parametrize(
  'lines',
  [
    ['A4,0,DIC,0.png', 'A4,00,DIC,1.png'],
    ['A4,MAXPROJECT,DIC,0.png', 'A4,MAXPROJECT,DIC,0.png'],
    ['A4,,DIC,two.ome.tif#0', 'A4,2,DIC,2.png'],
    ['A4,1,DIC,1.png', 'A4,,DIC,two.ome.tif#0'],
  ],
)
def test_same_image_twice(folder, lines):
  message = _error(_manifest(folder, *lines))
  assert message.startswith('line 3: DIC at z ')
  assert message.endswith("of field 'A4' is on line 2, too; expected each image once")


def test_nothing_in_it(folder):
  assert 'has no line below its header' in _error(_manifest(folder, '', ',,,'))


def test_no_manifest(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'images\.csv'):
    read_manifest(tmp_path / 'images.csv')


def test_no_text(folder):
  path = folder / 'images.csv'
  path.write_bytes(_HEADER.encode('utf-16'))
  assert 'is not a text in UTF-8' in _error(path)


def test_file_is_opened_once(folder, monkeypatch):
  opened = []
  opener = microscope_scenes.open_scenes

  def opening(path):
    opened.append(path)
    return opener(path)

  monkeypatch.setattr(microscope_scenes, 'open_scenes', opening)
  lines = [f'A4,{z},{c},two.ome.tif#{c}' for z in range(3) for c in range(2)]
  (field,) = read_manifest(_manifest(folder, *lines))
  field.read()
  assert opened == [folder / 'two.ome.tif']
