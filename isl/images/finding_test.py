"""Tests of finding.py."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import tifffile
from absl import logging

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import finding, microscope_scenes, png_folders, png_io
from isl.images.finding import contents_fingerprint, find_fields
from tests.support.microscope import write_manifest, write_ome_tiff, write_ome_zarr
from tests.support.program import write_field


@pytest.fixture
def logged(monkeypatch) -> list[str]:
  """The lines that isl logs."""
  lines: list[str] = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(logging, level, lambda line, *values: lines.append(line % values))
  return lines


@pytest.fixture
def png_fields(tmp_path):
  write_field(tmp_path / 'png', wells=('A4', 'B2'))
  return png_folders.find_png_fields(tmp_path / 'png')


def _error(path, kind=ValueError) -> str:
  with pytest.raises(kind) as raised:
    find_fields(path)
  message = str(raised.value)
  assert '\n' not in message
  return message


def _write_tiff(path, value=0):
  tifffile.imwrite(path, np.full((4, 5), value, np.uint8), photometric='minisblack')
  return path


def test_same_images_from_everywhere(tmp_path, png_fields, logged):
  files = tmp_path / 'files'
  files.mkdir()
  for well, field in zip('ab', png_fields, strict=True):
    write = {'a': write_ome_tiff, 'b': write_ome_zarr}[well]
    write(files / f'{well}.{"ome.tif" if well == "a" else "zarr"}', field)
  table = write_manifest(tmp_path / 'images.csv', png_fields)
  found = {
    'folder of PNGs': find_fields(str(tmp_path / 'png')),
    'manifest': find_fields(table),
    'folder of files': find_fields(files),
    'files': find_fields(files / 'a.ome.tif') + find_fields(files / 'b.zarr'),
  }
  assert [field.name for field in found['folder of files']] == ['a', 'b']
  for fields in found.values():
    for field, expected in zip(fields, png_fields, strict=True):
      images = field.read().images
      for key, image in expected.read().images.items():
        np.testing.assert_array_equal(images[key][:, :], image)
  assert not logged


def test_pngs_go_before_other_files(tmp_path, png_fields, logged):
  _write_tiff(tmp_path / 'png' / 'overview.tif')
  assert find_fields(tmp_path / 'png') == png_fields
  assert logged == [f"'{tmp_path / 'png'}': reading the PNGs in it alone, not 1 other files."]


def test_order_of_files_and_hidden_ones(tmp_path):
  for name in ('b10.tif', 'a.tif', 'b9.tif', '._a.tif', 'notes.txt'):
    _write_tiff(tmp_path / name)
  (tmp_path / 'subfolder').mkdir()
  assert [field.name for field in find_fields(tmp_path)] == ['a', 'b10', 'b9']


def test_two_fields_of_one_name(tmp_path):
  for name in ('a.tif', 'a.ome.tif', 'b.tif'):
    _write_tiff(tmp_path / name)
  assert _error(tmp_path) == (
    f"'{tmp_path}' has 2 fields of view named 'a', in '{tmp_path / 'a.ome.tif'}',"
    f" '{tmp_path / 'a.tif'}'; expected names that differ"
  )


def test_file_that_cannot_be_opened_is_a_problem_of_its_own(tmp_path):
  _write_tiff(tmp_path / 'a.tif')
  (tmp_path / 'b.ome.tif').write_text('notes')
  whole, damaged = find_fields(tmp_path)
  assert whole.problem is None and len(whole.sources) == 2
  assert (damaged.name, damaged.origin) == ('b', str(tmp_path / 'b.ome.tif'))
  assert not damaged.sources
  assert damaged.problem and damaged.problem.startswith(
    f"'{tmp_path / 'b.ome.tif'}' cannot be read"
  )
  with pytest.raises(ValueError) as raised:
    damaged.select(('TRANSMISSION',), ())
  assert str(raised.value) == damaged.problem
  # Alone, it is an error.
  assert _error(tmp_path / 'b.ome.tif') == damaged.problem


def test_missing_libraries_are_no_problem_of_a_file(tmp_path, monkeypatch):
  _write_tiff(tmp_path / 'a.tif')
  monkeypatch.setattr(microscope_scenes, '_installed', lambda module: False)
  assert "pip install 'isl[bioio]'" in _error(tmp_path)


def test_nothing_there(tmp_path):
  missing = tmp_path / 'missing'
  hint = 'or a folder of microscope files (.tif, .tiff, .zarr, .czi'
  message = _error(missing, FileNotFoundError)
  assert message.startswith(f"'{missing}' does not exist; expected a folder of PNGs; {hint}")
  assert 'manifest (.csv with the columns field,z,channel,path)' in message
  message = _error(tmp_path)
  assert (
    message.startswith(f"'{tmp_path}' has no PNG in it; expected names like") and hint in message
  )
  (tmp_path / 'notes.txt').write_text('')
  message = _error(tmp_path / 'notes.txt', NotADirectoryError)
  assert message.startswith(f"'{tmp_path / 'notes.txt'}' is not a folder;") and hint in message
  assert "'a.csv'" in _error(pathlib.Path('a.csv'), FileNotFoundError)


def test_fingerprint_is_of_the_contents(tmp_path, png_fields):
  field, other = png_fields
  prints = [contents_fingerprint(field)]
  assert len(prints[0]) == 64
  shutil.copytree(tmp_path / 'png', tmp_path / 'copy')
  for path in (tmp_path / 'copy').iterdir():
    os.utime(path, (0, 0))
  copied, _ = find_fields(tmp_path / 'copy')
  assert contents_fingerprint(copied) == prints[0]
  prints.append(contents_fingerprint(other))
  prints.append(contents_fingerprint(field.select(('TRANSMISSION',), ())))
  path = copied.sources[ImageKey(0, 'PHASE_CONTRAST')].path
  png_io.write_png(path, 1 - np.minimum(png_io.read_png(path), 1))
  prints.append(contents_fingerprint(copied))
  assert len(set(prints)) == len(prints)


@pytest.mark.parametrize('name', ['a.tif', 'a.zarr'])
def test_fingerprint_of_files(tmp_path, png_fields, name, monkeypatch):
  read = []
  digest = finding._digest

  def noting(path):
    read.append(path)
    return digest(path)

  monkeypatch.setattr(finding, '_digest', noting)
  for folder in ('1', '2'):
    (tmp_path / folder).mkdir()
    write = write_ome_tiff if '.tif' in name else None
    (write or write_ome_zarr)(tmp_path / folder / name, png_fields[0])
  (one,), (two,) = find_fields(tmp_path / '1'), find_fields(tmp_path / '2')
  # tifffile's metadata contain a random identifier.
  if name == 'a.tif':
    shutil.copy(tmp_path / '1' / name, tmp_path / '2' / name)
  (tmp_path / '2' / name).rename(tmp_path / '2' / f'b{name}')
  (two,) = find_fields(tmp_path / '2')
  first = contents_fingerprint(one)
  assert contents_fingerprint(two) == first
  assert read.count(tmp_path / '1' / name) == 1
  last = max(p for p in (tmp_path / '2').rglob('*') if p.is_file())
  data = bytearray(last.read_bytes())
  data[-1] ^= 1
  last.write_bytes(data)
  assert contents_fingerprint(two) != first


def test_fingerprint_knows_which_channel(tmp_path, png_fields):
  write_ome_tiff(tmp_path / 'a.tif', png_fields[0])
  table, prints = tmp_path / 'images.csv', set()
  for lines in ('0,A,a.tif#0', '0,A,a.tif#1', '1,A,a.tif#1', '1,B,a.tif#1', ',A,a.tif#0'):
    table.write_text(f'field,z,channel,path\nf,{lines}')
    prints.add(contents_fingerprint(*find_fields(table)))
  assert len(prints) == 5


def test_fingerprint_of_a_projection_reads_all_its_files(tmp_path, png_fields):
  write_manifest(tmp_path / 'images.csv', png_fields[:1])
  (field,) = find_fields(tmp_path / 'images.csv')
  chosen = field.select((), ('PHASE_CONTRAST',))
  assert list(chosen.sources) == [ImageKey(MAXPROJECT, 'PHASE_CONTRAST')]
  before = contents_fingerprint(chosen)
  last = field.sources[ImageKey(2, 'PHASE_CONTRAST')].path
  png_io.write_png(last, png_io.read_png(last) // 2)
  assert contents_fingerprint(chosen) != before
