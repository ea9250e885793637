"""Tests of infer.py through the command line: what a run finds done already, and what may fail."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from isl import launch
from isl.core.channels import MAXPROJECT
from isl.images import png_io
from isl.programs import random_checkpoint
from tests.support.program import (
  InferRun,
  InferSetting,
  field_name,
  files_in,
  image_name,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_LABEL = 'DAPI_CONFOCAL'
_WELLS = ('A1', 'A2', 'A3')
_FIELDS = tuple(field_name(well) for well in _WELLS)
_FLAGS = (f'--infer_channel_whitelist={_LABEL}', '--infer_panels=TARGET')


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def original(setting):
  """Three fields of view, of a few blocks each."""
  folder = setting.new_folder()
  write_field(folder, rows=20, columns=27, wells=_WELLS, channels=[_LABEL])
  return folder


@pytest.fixture(scope='module')
def done(setting, original):
  return setting.run(*_FLAGS, images=original)


@pytest.fixture
def base(done, tmp_path):
  """A copy of all that was done, times of files included."""
  return shutil.copytree(done.folder.parents[1], tmp_path / 'base')


@pytest.fixture
def images(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'images')


def _times(base):
  """The times at which files were written, by field of view and path."""
  (folder,) = (base / 'eval_eval_infer').iterdir()
  return {
    field: {p: (folder / field / p).stat().st_mtime_ns for p in files_in(folder / field)}
    for field in _FIELDS
  }


def _done_again(setting, base, *flags, images):
  """Runs again; returns the run, and the fields of which all was written again.

  Of the others nothing may have been touched.
  """
  before = _times(base)
  run = setting.run(*_FLAGS, *flags, images=images, base=base)
  after = _times(base)
  again = [field for field in _FIELDS if after[field] != before[field]]
  for field in again:
    replaced = [path for path in before[field] if before[field][path] == after[field][path]]
    assert not replaced
  for number, field in enumerate(_FIELDS, start=1):
    said = f'Field {number} of 3 is done already; --overwrite does it again'
    assert (said in run.outcome.stderr) == (field not in again)
  return run, again


def _image(images, well, z=MAXPROJECT, channel=_LABEL):
  return images / image_name(well, z, channel)


def _invert(path):
  image = png_io.read_png(path)
  png_io.write_png(path, image ^ np.array(np.iinfo(image.dtype).max, image.dtype))


def test_what_is_done_is_not_done_again(setting, done, base, images):
  run, again = _done_again(setting, base, images=images)
  assert not again
  assert 'blocks done' not in run.outcome.stderr
  assert run.metrics == done.metrics and len(run.metrics) == 3
  assert (run.folder / 'metrics.json').read_bytes() == (done.folder / 'metrics.json').read_bytes()
  assert run.record['fields'] == done.record['fields']
  # What a log says of scores is said of these, too.
  assert run.outcome.stderr.count(f"{_LABEL}: Pearson's r") == 3


def test_overwrite_does_all_again(setting, done, base, images):
  run, again = _done_again(setting, base, '--overwrite', images=images)
  assert again == list(_FIELDS)
  assert run.metrics == done.metrics
  for field in _FIELDS:
    one, other = (r.prediction(field, _LABEL) for r in (run, done))
    np.testing.assert_array_equal(one, other)


def test_changed_images_are_labeled_again(setting, done, base, images):
  """The input of one field and the label of another; the third one's name and time change nothing.

  An image that the network does not read does not matter either.
  """
  _invert(_image(images, 'A1', 0, 'PHASE_CONTRAST'))
  _invert(_image(images, 'A2'))
  _image(images, 'A3').touch()
  shutil.copy(_image(images, 'A3'), _image(images, 'A3', channel='TUJ1'))
  run, again = _done_again(setting, base, images=images)
  assert again == list(_FIELDS[:2])
  same = [
    np.array_equal(run.prediction(field, _LABEL), done.prediction(field, _LABEL))
    for field in _FIELDS
  ]
  assert same == [False, True, True]
  errors = [[row['mae'] for row in r.metrics] for r in (run, done)]
  assert [one == other for one, other in zip(*errors, strict=True)] == [False, False, True]


@pytest.mark.parametrize('flag', ['--infer_statistics=MEDIAN,MEAN', '--input_range=auto'])
def test_changed_flag_does_all_again(setting, base, images, flag):
  run, again = _done_again(setting, base, flag, images=images)
  assert again == list(_FIELDS)
  name = flag[2:].partition('=')[0]
  assert run.record['flags'][name] in (['MEDIAN', 'MEAN'], 'auto')


def test_checkpoint_counts_by_its_values(setting, done, base, images, tmp_path):
  """A copy of the checkpoint is the same; one of the same step and other values is not."""
  copy = shutil.copytree(setting.checkpoint, tmp_path / 'copy')
  _, again = _done_again(setting, base, f'--restore_directory={copy}', images=images)
  assert not again
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'other', model='FOVEA', base_depth=8, num_z_values=3, seed=1
  )
  other = f'--restore_directory={tmp_path / "other"}'
  run, again = _done_again(setting, base, other, images=images)
  assert again == list(_FIELDS)
  one, before = (r.prediction(_FIELDS[0], _LABEL) for r in (run, done))
  assert (one != before).any()


def test_field_that_lacks_a_file_is_labeled_again(setting, done, base, images):
  """A small picture of one, the record of another."""
  folder = base / 'eval_eval_infer' / '00001000'
  (folder / _FIELDS[0] / 'thumbnails' / 'input.jpg').unlink()
  record = folder / _FIELDS[1] / 'field.json'
  record.write_text(record.read_text()[:-20])
  run, again = _done_again(setting, base, images=images)
  assert again == list(_FIELDS[:2])
  assert files_in(run.folder) == files_in(done.folder)
  assert run.metrics == done.metrics


def test_prediction_that_is_missing_is_made_again(setting, done, base, images):
  (path,) = (base / 'eval_eval_infer' / '00001000' / _FIELDS[2] / 'predictions').iterdir()
  path.unlink()
  _, again = _done_again(setting, base, images=images)
  assert again == [_FIELDS[2]]
  assert path.exists()


def _truncate(path):
  path.write_bytes(path.read_bytes()[:200])


@pytest.fixture
def with_a_bad_one(setting, images, tmp_path):
  """Three fields of view were to be labeled, the second of which is damaged."""
  _truncate(_image(images, 'A2', 1, 'PHASE_CONTRAST'))
  base = tmp_path / 'partly'
  outcome = run_in_process(launch.run, *setting.flags(base, images), *_FLAGS)
  return InferRun(base / 'eval_eval_infer' / '00001000', outcome)


def test_others_are_done_where_one_is_bad(setting, done, with_a_bad_one, original, images):
  run, bad = with_a_bad_one, _FIELDS[1]
  assert run.outcome.status == 3
  errors = [line for line in run.outcome.error_lines if line.startswith('isl-launch: ')]
  (line,) = errors
  assert line.startswith(f'isl-launch: field of view {bad!r} failed: ')
  assert str(_image(images, 'A2', 1, 'PHASE_CONTRAST')) in line
  # Beside the log's own line of the moment when it happened.
  others = [x for x in run.outcome.error_lines if x not in errors]
  assert len(others) == 1 and others[0].startswith('E') and 'Field 2 of 3: ' in others[0]

  good = [_FIELDS[0], _FIELDS[2]]
  assert [record['field'] for record in run.record['fields']] == good
  (failure,) = run.record['failures']
  assert failure['name'] == bad
  assert line.endswith(failure['reason'])
  assert run.metrics == [row for row in done.metrics if row['field'] in good]
  for field in good:
    one, other = (r.prediction(field, _LABEL) for r in (run, done))
    np.testing.assert_array_equal(one, other)
  listed = {path for record in run.record['fields'] for path in record['files']}
  assert files_in(run.folder) == listed | set(run.record['tables'])

  # Mended, it alone is done.
  name = _image(images, 'A2', 1, 'PHASE_CONTRAST').name
  shutil.copy(original / name, images / name)
  again = setting.run(*_FLAGS, images=images, base=run.folder.parents[1])
  assert again.outcome.stderr.count('is done already') == 2
  assert 'Field 2 of 3 is done already' not in again.outcome.stderr
  assert again.metrics == done.metrics
  assert again.record['failures'] == []
  assert files_in(again.folder) == files_in(done.folder)


def test_report_says_what_failed(with_a_bad_one):
  page = (with_a_bad_one.folder / 'report.html').read_text()
  (failure,) = with_a_bad_one.record['failures']
  said = failure['reason'].replace("'", '&#39;')
  assert said in page
  assert 'well-A2' in page


def test_field_that_is_not_there_as_expected_fails_alone(setting, images, tmp_path):
  """Found before anything is read: a depth is missing."""
  _image(images, 'A3', 1, 'PHASE_CONTRAST').unlink()
  outcome = run_in_process(launch.run, *setting.flags(tmp_path / 'b', images), *_FLAGS)
  assert outcome.status == 3
  assert outcome.error_lines[-1].startswith(f'isl-launch: field of view {_FIELDS[2]!r} failed: ')
  assert 'z_depth-1' in outcome.error_lines[-1]


def test_single_bad_field_is_an_error(setting, images, tmp_path):
  for well in ('A1', 'A3'):
    for path in images.glob(f'*well-{well},*'):
      path.unlink()
  bad = _image(images, 'A2', 1, 'PHASE_CONTRAST')
  _truncate(bad)
  outcome = run_in_process(launch.run, *setting.flags(tmp_path / 'b', images), *_FLAGS)
  assert outcome.status == 1
  assert outcome.error.startswith('isl-launch: ')
  assert str(bad) in outcome.error
  assert files_in(tmp_path / 'b') == set()


def test_record_of_a_field_that_fails_now_is_gone(setting, base, images):
  """Results of an earlier run do not pass for those of a run in which the field of view fails."""
  folder = base / 'eval_eval_infer' / '00001000'
  _truncate(_image(images, 'A2'))
  outcome = run_in_process(launch.run, *setting.flags(base, images), *_FLAGS)
  assert outcome.status == 3
  assert not (folder / _FIELDS[1] / 'field.json').exists()
  record = json.loads((folder / 'run.json').read_text())
  assert [of_field['field'] for of_field in record['fields']] == [_FIELDS[0], _FIELDS[2]]
