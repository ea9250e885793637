"""Tests of folders.py."""

import errno
import os
import pathlib

import pytest

from isl.system import folders
from tests.support.program import python_process


def _anything(folder):
  return True


def _contents(folder: pathlib.Path) -> dict[str, str]:
  """By path, the text of all files."""
  files = (path for path in folder.rglob('*') if not path.is_dir())
  return {str(path.relative_to(folder)): path.read_text() for path in files}


def _write(folder: pathlib.Path, text: str) -> None:
  (folder / 'chunks').mkdir(parents=True)
  (folder / 'chunks' / '0').write_text(text)


def test_final_name_appears_with_its_whole_contents(tmp_path):
  final = tmp_path / 'made' / 'on the way' / 'image.zarr'
  with folders.whole_folder(final, _anything) as partial:
    _write(partial, 'whole')
    assert _contents(tmp_path) == {'made/on the way/image.zarr.partial/chunks/0': 'whole'}
  assert _contents(tmp_path) == {'made/on the way/image.zarr/chunks/0': 'whole'}
  assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize('leftover', [False, True])
def test_an_older_folder_is_replaced_in_the_end(tmp_path, leftover):
  final = tmp_path / 'image.zarr'
  _write(final, 'older')
  if leftover:
    _write(tmp_path / 'image.zarr.partial', 'half')
    _write(tmp_path / 'image.zarr.older.partial', 'oldest')
  with folders.whole_folder(final, _anything) as partial:
    assert not list(partial.iterdir())
    _write(partial, 'new')
    assert (final / 'chunks' / '0').read_text() == 'older'
  assert _contents(tmp_path) == {'image.zarr/chunks/0': 'new'}
  assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize('exception', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('older', [False, True])
def test_exception_leaves_the_older_folder_or_nothing(tmp_path, exception, older):
  final = tmp_path / 'image.zarr'
  if older:
    _write(final, 'older')
  with pytest.raises(exception), folders.whole_folder(final, _anything) as partial:
    _write(partial, 'half')
    raise exception
  assert _contents(tmp_path) == ({'image.zarr/chunks/0': 'older'} if older else {})
  assert list(tmp_path.iterdir()) == ([final] if older else [])


def test_what_may_not_be_replaced_stays(tmp_path):
  final = tmp_path / 'microscope'
  _write(final, 'irreplaceable')
  with (
    pytest.raises(ValueError, match=r"microscope' is a folder of something else"),
    folders.whole_folder(final, lambda folder: False),
  ):
    raise AssertionError('begun')
  assert _contents(tmp_path) == {'microscope/chunks/0': 'irreplaceable'}


def test_an_empty_folder_is_replaced(tmp_path):
  final = tmp_path / 'image.zarr'
  final.mkdir()
  with folders.whole_folder(final, lambda folder: False) as partial:
    _write(partial, 'new')
  assert _contents(tmp_path) == {'image.zarr/chunks/0': 'new'}


def test_a_link_is_replaced_but_not_what_it_leads_to(tmp_path):
  _write(tmp_path / 'elsewhere', 'older')
  final = tmp_path / 'image.zarr'
  final.symlink_to(tmp_path / 'elsewhere')
  with folders.whole_folder(final, _anything) as partial:
    _write(partial, 'new')
  assert (final / 'chunks' / '0').read_text() == 'new'
  assert (tmp_path / 'elsewhere' / 'chunks' / '0').read_text() == 'older'


def test_renaming_that_fails_puts_the_older_folder_back(tmp_path):
  final = tmp_path / 'image.zarr'
  _write(final, 'older')
  with pytest.raises(OSError) as raised, folders.whole_folder(final, _anything) as partial:
    partial.rename(tmp_path / 'gone')
  assert raised.value.filename == str(final)
  assert (final / 'chunks' / '0').read_text() == 'older'


_KILLED_AMID = """if True:
  import os, pathlib, sys
  from isl.system import folders
  # Stops where the older folder has been moved aside, and the new one is not in its place.
  rename, moved = pathlib.Path.rename, []
  def stopping(path, target):
    if moved:
      print('between', flush=True)
      sys.stdin.read()
    moved.append(path)
    return rename(path, target)
  pathlib.Path.rename = stopping
  with folders.whole_folder(sys.argv[1], lambda folder: True) as partial:
    (partial / 'new').write_text('new')
"""


def test_killed_between_the_renames_the_older_is_put_back_by_the_next(tmp_path):
  final = tmp_path / 'image.zarr'
  _write(final, 'older')
  process = python_process(_KILLED_AMID, final)
  assert process.stdout
  assert process.stdout.readline() == 'between\n'
  process.kill()
  process.communicate(timeout=60)
  assert not final.exists()
  with pytest.raises(KeyError), folders.whole_folder(final, _anything):
    assert (final / 'chunks' / '0').read_text() == 'older'
    raise KeyError
  assert _contents(tmp_path) == {'image.zarr/chunks/0': 'older'}
  assert list(tmp_path.iterdir()) == [final]


def _file(folder: pathlib.Path) -> pathlib.Path:
  (folder / 'image.zarr').write_text('')
  return folder / 'image.zarr'


def _under_a_file(folder: pathlib.Path) -> pathlib.Path:
  return _file(folder) / 'image.zarr'


def _too_long(folder: pathlib.Path) -> pathlib.Path:
  return folder / ('n' * 256)


@pytest.mark.parametrize(
  ('make_path', 'code'),
  [
    (_file, errno.ENOTDIR),
    (_under_a_file, errno.ENOTDIR),
    (_too_long, errno.ENAMETOOLONG),
    (lambda folder: folder / ('n' * 250), errno.ENAMETOOLONG),
  ],
)
def test_what_cannot_be_written_is_named_before_the_work(tmp_path, make_path, code):
  final = make_path(tmp_path)
  before = _contents(tmp_path)
  with pytest.raises(OSError) as raised, folders.whole_folder(final, _anything):
    raise AssertionError('begun')
  assert raised.value.errno == code
  assert raised.value.filename == str(final)
  assert raised.value.strerror == os.strerror(code)
  assert _contents(tmp_path) == before


def test_error_of_another_file_keeps_its_name(tmp_path):
  final = tmp_path / 'image.zarr'
  with (
    pytest.raises(FileNotFoundError, match='input'),
    folders.whole_folder(final, _anything),
  ):
    (tmp_path / 'input').read_bytes()
  assert not list(tmp_path.iterdir())
