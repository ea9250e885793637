"""Tests of files.py."""

import errno
import os
import pathlib

import pytest

from isl.system import files
from tests.support.program import finish, python_process

_KILLED_AMID = """if True:
  import os, pathlib, sys
  from isl.system import files
  # Stops where the older folder has been moved aside, and the new one is not in its place.
  rename, moved = pathlib.Path.rename, []
  def stopping(path, target):
    if moved:
      print('between', flush=True)
      sys.stdin.read()
    moved.append(path)
    return rename(path, target)
  pathlib.Path.rename = stopping
  with files.whole_folder(sys.argv[1], lambda folder: True) as partial:
    (partial / 'new').write_text('new')
"""


def _names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_final_name_appears_with_its_whole_contents(tmp_path):
  final = tmp_path / 'made' / 'on the way' / 'metrics.csv'
  with files.whole_file(final) as partial:
    partial.write_text('half')
    assert _names(final.parent) == ['metrics.csv.partial']
    partial.write_text('whole')
  assert _names(final.parent) == ['metrics.csv']
  assert final.read_text() == 'whole'


def test_path_may_be_a_string_relative_to_the_working_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with files.whole_file('run.json') as partial:
    partial.write_text('{}')
  assert _names(tmp_path) == ['run.json']


@pytest.mark.parametrize('exception', [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_the_older_file(tmp_path, exception):
  final = tmp_path / 'run.json'
  final.write_text('older')
  with pytest.raises(exception), files.whole_file(final) as partial:
    partial.write_text('half')
    raise exception
  assert _names(tmp_path) == ['run.json']
  assert final.read_text() == 'older'


def test_leftover_of_a_killed_run_is_overwritten(tmp_path):
  (tmp_path / 'run.json.partial').write_text('what a killed run left, and it is long')
  with files.whole_file(tmp_path / 'run.json') as partial, partial.open('a') as stream:
    stream.write('short')
  assert _names(tmp_path) == ['run.json']
  assert (tmp_path / 'run.json').read_text() == 'short'


def test_longest_name_is_written(tmp_path):
  final = tmp_path / ('n' * 255)
  with files.whole_file(final) as partial:
    partial.write_text('whole')
  assert _names(tmp_path) == [final.name]


def _too_long(folder: pathlib.Path) -> pathlib.Path:
  return folder / ('n' * 256)


def _folder(folder: pathlib.Path) -> pathlib.Path:
  (folder / 'run.json').mkdir()
  return folder / 'run.json'


def _under_a_file(folder: pathlib.Path) -> pathlib.Path:
  (folder / 'base').write_text('')
  return folder / 'base' / 'run.json'


def _forbidden(folder: pathlib.Path) -> pathlib.Path:
  if os.geteuid() == 0:
    pytest.skip('root may write anywhere')
  folder.chmod(0o500)
  return folder / 'run.json'


@pytest.mark.parametrize(
  ('make_path', 'code'),
  [
    (_too_long, errno.ENAMETOOLONG),
    (_folder, errno.EISDIR),
    (_under_a_file, errno.ENOTDIR),
    (_forbidden, errno.EACCES),
  ],
)
def test_what_cannot_be_written_is_named_before_the_work(tmp_path, make_path, code):
  final = make_path(tmp_path)
  before = _names(tmp_path)
  for attempt in (files.check_writable, lambda path: files.whole_file(path).__enter__()):
    with pytest.raises(OSError) as raised:
      attempt(final)
    assert raised.value.errno == code
    assert str(final) in str(raised.value)
    assert '\n' not in str(raised.value)
  assert _names(tmp_path) == before


def test_check_writable_leaves_nothing_but_the_folder(tmp_path):
  final = tmp_path / 'base' / 'run.json'
  files.check_writable(final)
  assert _names(final.parent) == []
  final.write_text('older')
  files.check_writable(final)
  assert final.read_text() == 'older'


def test_error_of_another_file_keeps_its_name(tmp_path):
  with pytest.raises(FileNotFoundError, match='input'), files.whole_file(tmp_path / 'output'):
    (tmp_path / 'input').read_bytes()
  assert _names(tmp_path) == []


def test_full_disk_names_the_final_file(tmp_path):
  final = tmp_path / 'run.json'
  code = """if True:
    import resource, sys
    from isl.system import files
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
      with files.whole_file(sys.argv[1]) as partial, partial.open('w') as stream:
        stream.write('x' * 2000)
    except OSError as error:
      print(error)
  """
  process = python_process(code, final)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert printed == f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{final}'\n"
  assert _names(tmp_path) == []


def test_kill_leaves_no_final_file(tmp_path):
  final = tmp_path / 'run.json'
  code = """if True:
    import sys
    from isl.system import files
    with files.whole_file(sys.argv[1]) as partial:
      partial.write_text('half')
      print('writing', flush=True)
      sys.stdin.read()
  """
  process = python_process(code, final)
  assert process.stdout
  assert process.stdout.readline() == 'writing\n'
  process.kill()
  process.communicate(timeout=60)
  assert _names(tmp_path) == ['run.json.partial']


def test_a_held_folder_cannot_be_held_again(tmp_path):
  with files.locked(tmp_path):
    with pytest.raises(BlockingIOError) as caught, files.locked(tmp_path):
      pass
    assert caught.value.filename == str(tmp_path)
  with files.locked(tmp_path):
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_nothing(tmp_path):
  code = """if True:
    import sys, time
    from isl.system import files
    with files.locked(sys.argv[1]):
      print('held', flush=True)
      time.sleep(600)
  """
  process = python_process(code, tmp_path)
  assert process.stdout
  assert process.stdout.readline() == 'held\n'
  with pytest.raises(BlockingIOError), files.locked(tmp_path):
    pass
  process.kill()
  finish(process)
  with files.locked(tmp_path):
    pass


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path):
  with pytest.raises(FileNotFoundError), files.locked(tmp_path / 'missing'):
    pass


def _anything(folder):
  return True


def _contents(folder: pathlib.Path) -> dict[str, str]:
  """The text of all files in a folder, by path."""
  files = (path for path in folder.rglob('*') if not path.is_dir())
  return {str(path.relative_to(folder)): path.read_text() for path in files}


def _write(folder: pathlib.Path, text: str) -> None:
  (folder / 'chunks').mkdir(parents=True)
  (folder / 'chunks' / '0').write_text(text)


def test_final_folder_appears_with_its_whole_contents(tmp_path):
  final = tmp_path / 'made' / 'on the way' / 'image.zarr'
  with files.whole_folder(final, _anything) as partial:
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
  with files.whole_folder(final, _anything) as partial:
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
  with pytest.raises(exception), files.whole_folder(final, _anything) as partial:
    _write(partial, 'half')
    raise exception
  assert _contents(tmp_path) == ({'image.zarr/chunks/0': 'older'} if older else {})
  assert list(tmp_path.iterdir()) == ([final] if older else [])


def test_what_may_not_be_replaced_stays(tmp_path):
  final = tmp_path / 'microscope'
  _write(final, 'irreplaceable')
  with (
    pytest.raises(ValueError, match=r"microscope' is a folder of something else"),
    files.whole_folder(final, lambda folder: False),
  ):
    raise AssertionError('begun')
  assert _contents(tmp_path) == {'microscope/chunks/0': 'irreplaceable'}


def test_an_empty_folder_is_replaced(tmp_path):
  final = tmp_path / 'image.zarr'
  final.mkdir()
  with files.whole_folder(final, lambda folder: False) as partial:
    _write(partial, 'new')
  assert _contents(tmp_path) == {'image.zarr/chunks/0': 'new'}


def test_a_link_is_replaced_but_not_what_it_leads_to(tmp_path):
  _write(tmp_path / 'elsewhere', 'older')
  final = tmp_path / 'image.zarr'
  final.symlink_to(tmp_path / 'elsewhere')
  with files.whole_folder(final, _anything) as partial:
    _write(partial, 'new')
  assert (final / 'chunks' / '0').read_text() == 'new'
  assert (tmp_path / 'elsewhere' / 'chunks' / '0').read_text() == 'older'


def test_renaming_that_fails_puts_the_older_folder_back(tmp_path):
  final = tmp_path / 'image.zarr'
  _write(final, 'older')
  with pytest.raises(OSError) as raised, files.whole_folder(final, _anything) as partial:
    partial.rename(tmp_path / 'gone')
  assert raised.value.filename == str(final)
  assert (final / 'chunks' / '0').read_text() == 'older'


def test_killed_between_the_renames_the_older_is_put_back_by_the_next(tmp_path):
  final = tmp_path / 'image.zarr'
  _write(final, 'older')
  process = python_process(_KILLED_AMID, final)
  assert process.stdout
  assert process.stdout.readline() == 'between\n'
  process.kill()
  process.communicate(timeout=60)
  assert not final.exists()
  with pytest.raises(KeyError), files.whole_folder(final, _anything):
    assert (final / 'chunks' / '0').read_text() == 'older'
    raise KeyError
  assert _contents(tmp_path) == {'image.zarr/chunks/0': 'older'}
  assert list(tmp_path.iterdir()) == [final]


def _file(folder: pathlib.Path) -> pathlib.Path:
  (folder / 'image.zarr').write_text('')
  return folder / 'image.zarr'


def _folder_under_a_file(folder: pathlib.Path) -> pathlib.Path:
  return _file(folder) / 'image.zarr'


def _folder_too_long(folder: pathlib.Path) -> pathlib.Path:
  return folder / ('n' * 256)


@pytest.mark.parametrize(
  ('make_path', 'code'),
  [
    (_file, errno.ENOTDIR),
    (_folder_under_a_file, errno.ENOTDIR),
    (_folder_too_long, errno.ENAMETOOLONG),
    (lambda folder: folder / ('n' * 250), errno.ENAMETOOLONG),
  ],
)
def test_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, make_path, code):
  final = make_path(tmp_path)
  before = _contents(tmp_path)
  with pytest.raises(OSError) as raised, files.whole_folder(final, _anything):
    raise AssertionError('begun')
  assert raised.value.errno == code
  assert raised.value.filename == str(final)
  assert raised.value.strerror == os.strerror(code)
  assert _contents(tmp_path) == before


def test_error_outside_of_the_folder_keeps_its_name(tmp_path):
  final = tmp_path / 'image.zarr'
  with (
    pytest.raises(FileNotFoundError, match='input'),
    files.whole_folder(final, _anything),
  ):
    (tmp_path / 'input').read_bytes()
  assert not list(tmp_path.iterdir())
