"""Tests of --calibrate and --calibrated through the command line."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import sys

import numpy as np
import pytest
import zarr

from isl import (
  bare_checkpoint,
  checkpoints,
  launch,
  png_io,
  random_checkpoint,
  testing,
)
from isl.stack import MAXPROJECT

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_LABELS = ('MAP2_CONFOCAL', 'DAPI_CONFOCAL', 'DEAD_CONFOCAL')
# Of the last one there is no truth.
_KNOWN = _LABELS[:2]
_FLAGS = (
  f'--infer_channel_whitelist={",".join(_LABELS)}',
  '--infer_statistics=DISTRIBUTION',
  '--prediction_format=OME_ZARR',
  '--infer_panels=',
)
_ROWS, _COLUMNS = testing.InferSetting.size


class _Calibrated:
  """A checkpoint with a calibration, what that was fitted on, and runs without it."""

  def __init__(self, tmp_path_factory):
    self.setting = testing.InferSetting(launch.run, tmp_path_factory)
    self.fitted_on = self.setting.new_folder()
    (self.field,) = testing.write_image_set(
      self.fitted_on, rows=139, columns=155, depths=5, bits=8, wells=['B2'], seed=1
    )
    self.before = self.setting.run(*_FLAGS, images=self.fitted_on)
    self.other_before = self.setting.run(*_FLAGS)
    self.outcome = self.calibrate(self.fitted_on)
    self.calibration = json.loads((self.folder / 'calibration.json').read_text())

  @property
  def folder(self):
    return self.setting.checkpoint

  @property
  def temperatures(self):
    return {label: fit['temperature'] for label, fit in self.calibration['fits'].items()}

  def calibrate(self, images):
    base = self.setting.new_folder() / 'base'
    flags = [*self.setting.flags(base, images), *_FLAGS[:1], '--calibrate']
    outcome = testing.run_in_process(launch.run, *flags)
    assert not base.exists()
    return outcome

  def refused(self, *flags, images=None):
    base = self.setting.new_folder()
    outcome = testing.run_in_process(
      launch.run, *self.setting.flags(base, images), *_FLAGS, '--calibrated', *flags
    )
    assert testing.files_in(base) == set()
    return outcome.error


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
  return _Calibrated(tmp_path_factory)


@pytest.fixture(scope='module')
def run(calibrated):
  """Of the field of view that was not fitted on."""
  return calibrated.setting.run('--calibrated', *_FLAGS)


def _distribution(run, label):
  """[row, column, class]."""
  group = zarr.open_group(run.folder / f'{label}_distribution.ome.zarr', mode='r')
  return np.moveaxis(group['0'][:], 0, -1).astype(float)


def _at(p, temperature):
  powers = p ** (1 / temperature)
  return powers / powers.sum(-1, keepdims=True)


def test_file_says_what_was_fitted(calibrated):
  assert calibrated.outcome.status == 0
  assert not calibrated.outcome.error_lines
  assert list(calibrated.calibration['fits']) == list(_KNOWN)
  assert calibrated.calibration['checkpoint'] == 'model.ckpt-1000'
  assert calibrated.calibration['step'] == 1000
  assert calibrated.calibration['folders'] == [str(calibrated.fitted_on)]
  assert list(calibrated.calibration['fields'].values()) == [calibrated.field]
  for label in _KNOWN:
    assert f'{label}: temperature {calibrated.temperatures[label]:.3f}' in calibrated.outcome.stderr


def test_likelihood_without_is_that_of_the_metrics(calibrated):
  rows = {row['channel']: row for row in calibrated.before.metrics}
  for label, fit in calibrated.calibration['fits'].items():
    assert fit['pixels'] == int(rows[label]['pixels']) == _ROWS * _COLUMNS
    nll = float(rows[label]['negative_log_likelihood'])
    assert fit['nll_before'] == pytest.approx(nll, rel=1e-4)


def test_likelihood_is_the_best_of_all_temperatures(calibrated):
  """Where it was fitted; by the distributions that a run without it writes there."""
  for label, fit in calibrated.calibration['fits'].items():
    image = (
      png_io.read_png(calibrated.fitted_on / testing.image_name('B2', MAXPROJECT, label))
      if label == 'DAPI_CONFOCAL'
      else None
    )
    assert fit['nll_after'] < fit['nll_before'] - 0.01
    if image is None:
      continue
    true = image[51 : 51 + _ROWS, 51 : 51 + _COLUMNS, np.newaxis].astype(int)
    # What halves cannot hold, nobody expected.
    p = np.maximum(_distribution(calibrated.before, label), 2.0**-25)

    def nll(temperature, p=p, true=true):
      return -np.log(np.take_along_axis(_at(p, temperature), true, -1)).mean()

    best = fit['temperature']
    assert fit['nll_after'] == pytest.approx(nll(best), rel=0.02)
    assert nll(best) < min(nll(best * 1.2), nll(best / 1.2))


def test_distributions_are_scaled(calibrated, run):
  for label in _KNOWN:
    temperature = calibrated.temperatures[label]
    assert abs(math.log(temperature)) > 0.1, 'nothing to tell apart'
    before = _distribution(calibrated.other_before, label)
    # Halves have lost the rest of what is smaller.
    common = before > 2.0**-14
    after = _distribution(run, label)
    # Of two classes the ratio's logarithm is divided, whatever else there is.
    first = before.argmax(-1)[..., np.newaxis]
    expected = np.log(before / np.take_along_axis(before, first, -1), where=common) / temperature
    found = np.log(after / np.take_along_axis(after, first, -1), where=common & (after > 0))
    np.testing.assert_allclose(found[common], expected[common], atol=3e-3)
    np.testing.assert_allclose(after.sum(-1), 1, atol=2e-3)


def test_label_without_truth_stays_as_it_is(calibrated, run):
  before, after = (_distribution(r, 'DEAD_CONFOCAL') for r in (calibrated.other_before, run))
  np.testing.assert_array_equal(before, after)


def test_it_is_asked_for(calibrated, run):
  """Beside the file, a run without the flag gives what it gave before, and is not done again."""
  base = shutil.copytree(
    calibrated.other_before.folder.parents[1], calibrated.setting.new_folder() / 'base'
  )
  again = calibrated.setting.run(*_FLAGS, base=base)
  assert 'is done already' in again.outcome.stderr
  fresh = calibrated.setting.run(*_FLAGS, '--overwrite', base=base)
  assert fresh.metrics == calibrated.other_before.metrics
  with_it = calibrated.setting.run('--calibrated', *_FLAGS, base=base)
  assert 'is done already' not in with_it.outcome.stderr
  assert with_it.metrics == run.metrics
  assert with_it.record['flags']['calibrated'] is True
  scores = [[float(row['negative_log_likelihood']) for row in r.metrics] for r in (fresh, run)]
  assert len(scores[0]) == len(_KNOWN)
  assert all(after < before for before, after in zip(*scores, strict=True))


def test_images_of_the_fit_are_refused(calibrated, tmp_path):
  error = calibrated.refused(images=calibrated.fitted_on)
  assert str(calibrated.fitted_on) in error
  copy = shutil.copytree(calibrated.fitted_on, tmp_path / 'copy')
  error = calibrated.refused(images=copy)
  assert calibrated.field in error and 'were fitted on' in error
  # By another name and with other labels, it is the same field of view.
  renamed = tmp_path / 'renamed'
  renamed.mkdir()
  for path in copy.glob('*PHASE_CONTRAST*'):
    path.rename(renamed / path.name.replace('well-B2', 'well-C3'))
  assert 'well-C3' in calibrated.refused(images=renamed)
  # Beside others, too.
  for path in calibrated.setting.images.iterdir():
    shutil.copy(path, renamed)
  assert 'well-C3' in calibrated.refused(images=renamed)


def test_checkpoint_without_calibration(calibrated, tmp_path):
  folder = shutil.copytree(calibrated.folder, tmp_path / 'c')
  (folder / 'calibration.json').unlink()
  error = calibrated.refused(f'--restore_directory={folder}')
  assert repr(str(folder / 'calibration.json')) in error and '--calibrate' in error


def test_calibration_of_another_checkpoint(calibrated, tmp_path):
  random_checkpoint.write_random_checkpoint(
    tmp_path, model='FOVEA', base_depth=8, num_z_values=3, seed=3
  )
  shutil.copy(calibrated.folder / 'calibration.json', tmp_path)
  error = calibrated.refused(f'--restore_directory={tmp_path}')
  assert 'another checkpoint' in error and '--calibrate' in error


def test_images_without_labels_have_nothing_to_fit(calibrated, tmp_path):
  for path in calibrated.fitted_on.glob('*PHASE_CONTRAST*'):
    shutil.copy(path, tmp_path)
  before = (calibrated.folder / 'calibration.json').read_bytes()
  error = calibrated.calibrate(tmp_path).error
  assert ', '.join(_LABELS) in error
  assert (calibrated.folder / 'calibration.json').read_bytes() == before


@pytest.mark.parametrize(
  'flags', [('--calibrate', '--calibrated'), ('--calibrate', '--infer_continuously')]
)
def test_flags_that_exclude_each_other(calibrated, tmp_path, flags):
  outcome = testing.run_in_process(launch.run, *calibrated.setting.flags(tmp_path), *flags)
  assert all(flag in outcome.error for flag in flags)


# A network that is too sure of itself.

_TRAINED = ('DAPI_CONFOCAL', 'NFH_CONFOCAL')


@pytest.fixture(scope='module')
def overconfident(tmp_path_factory):
  """The trained network with all logits doubled."""
  folder = tmp_path_factory.mktemp('overconfident')
  bare_checkpoint.copy_bare(_REPOSITORY / 'checkpoints', folder, _TRAINED)
  checkpoint = checkpoints.Checkpoint(checkpoints.find_newest(folder))
  values = {name: checkpoint.value(name) for name in checkpoint.shapes}
  for name in values:
    if name.startswith('head/') and name.endswith(('Conv/weights', 'Conv/biases')):
      values[name] = 2 * values[name]
  bare_checkpoint.write_values(checkpoint.prefix, values)
  return folder


@pytest.fixture(scope='module')
def simulated(tmp_path_factory):
  """Two simulated fields of view: one to fit on, one to report."""
  sys.path.insert(0, str(_REPOSITORY / 'data_sample'))
  try:
    import make_synthetic
  finally:
    sys.path.pop(0)
  folders = []
  for seed in (7001, 7002):
    folders.append(tmp_path_factory.mktemp('simulated'))
    make_synthetic.write_fields(folders[-1], rows=294, columns=294, wells=['A1'], seed=seed)
  return folders


def test_overconfident_network_is_mended(overconfident, simulated, tmp_path):
  """On a field of view that the temperatures have not seen."""

  def run(images, name, *flags):
    outcome = testing.run_in_process(
      launch.run,
      '--mode=EVAL_EVAL',
      '--metric=INFER_FULL',
      '--read_pngs',
      f'--restore_directory={overconfident}',
      f'--dataset_eval_directory={images}',
      f'--base_directory={tmp_path / name}',
      '--infer_panels=',
      '--infer_statistics=',
      *flags,
    )
    assert outcome.status == 0, outcome.stderr
    return outcome

  fit, held_out = simulated
  run(held_out, 'before')
  run(fit, 'nothing', '--calibrate')
  outcome = run(held_out, 'after', '--calibrated')
  scores = {
    name: testing.InferRun(tmp_path / name / 'eval_eval_infer' / '00003350', outcome).metrics
    for name in ('before', 'after')
  }
  for before, after in zip(scores['before'], scores['after'], strict=True):
    assert float(before['coverage_80']) < 0.7
    assert abs(float(after['coverage_80']) - 0.8) < 0.03
    assert float(after['negative_log_likelihood']) < float(before['negative_log_likelihood'])
    assert float(after['coverage_error']) < float(before['coverage_error']) / 2
