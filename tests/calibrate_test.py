"""Tests of --calibrate and --calibrated through the command line."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import zarr

import isl
from isl import launch
from isl.checkpoints import saving
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import MAXPROJECT
from isl.images import png_folders, png_io
from isl.models import fovea, networks
from isl.programs import bare_checkpoint, random_checkpoint
from tests.support.program import (
  REPOSITORY,
  InferRun,
  InferSetting,
  files_in,
  image_name,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_LABELS = ('MAP2_CONFOCAL', 'DAPI_CONFOCAL', 'DEAD_CONFOCAL')
# Of the last one there is no truth.
_KNOWN = _LABELS[:2]
_FLAGS = (
  f'--infer_channel_whitelist={",".join(_LABELS)}',
  '--infer_statistics=DISTRIBUTION',
  '--prediction_format=OME_ZARR',
  '--infer_panels=',
)
# What the truth is drawn from is the network's distributions at these temperatures.
_TEMPERATURES = {'MAP2_CONFOCAL': 2.0, 'DAPI_CONFOCAL': 0.6}
_ROWS, _COLUMNS = InferSetting.size
_MARGIN = InferSetting.margin


def _multiply_logits(folder, factor):
  """Changes a checkpoint: the distributions become narrower, if the factor is above 1."""
  checkpoint = Checkpoint(find_newest(folder))
  values = {name: checkpoint.value(name) for name in checkpoint.shapes}
  for name in values:
    if name.startswith('head/') and name.endswith(('Conv/weights', 'Conv/biases')):
      values[name] = factor * values[name]
  saving.write_values(checkpoint.prefix, values)


class _Calibrated:
  """A checkpoint with a calibration, what that was fitted on, and runs without it."""

  def __init__(self, tmp_path_factory):
    self.setting = InferSetting(launch.run, tmp_path_factory)
    # Those of so small a network are so wide that a temperature hardly changes their intervals.
    _multiply_logits(self.folder, 2)
    self.fitted_on = self._make_field('B2')
    self.other = self._make_field('C1')
    (self.field,) = (field.name for field in png_folders.find_png_fields(self.fitted_on))
    self.before = self.setting.run(*_FLAGS, images=self.fitted_on)
    self.other_before = self.setting.run(*_FLAGS, images=self.other)
    self.outcome = self.calibrate(self.fitted_on)
    self.calibration = json.loads((self.folder / 'calibration.json').read_text())

  def _make_field(self, well):
    """A field of view of random light, and labels that are drawn as the network has it."""
    folder = self.setting.new_folder()
    rows, columns, seed = self.setting.rows, self.setting.columns, ord(well[0])
    write_field(folder, rows=rows, columns=columns, depths=5, wells=[well], channels=(), seed=seed)
    paths = [folder / image_name(well, z, 'PHASE_CONTRAST') for z in range(5)]
    with isl.Predictor(self.folder) as predictor:
      predicted = predictor.predict(
        np.stack([png_io.read_png(path) for path in paths]),
        statistics=['DISTRIBUTION'],
        labels=_KNOWN,
      )
    random = np.random.default_rng(0)
    for label in _KNOWN:
      p = _at(predicted[label]['DISTRIBUTION'].astype(float), _TEMPERATURES[label])
      drawn = (np.cumsum(p, -1) < random.random((_ROWS, _COLUMNS, 1))).sum(-1)
      image = np.zeros((rows, columns), np.uint16)
      image[_MARGIN : _MARGIN + _ROWS, _MARGIN : _MARGIN + _COLUMNS] = np.minimum(drawn, 255)
      path = folder / image_name(well, MAXPROJECT, label)
      png_io.write_png(path, image * 257)
    return folder

  @property
  def folder(self):
    return self.setting.checkpoint

  @property
  def temperatures(self):
    return {label: fit['temperature'] for label, fit in self.calibration['fits'].items()}

  def calibrate(self, images):
    base = self.setting.new_folder() / 'base'
    flags = [*self.setting.flags(base, images), *_FLAGS[:1], '--calibrate']
    outcome = run_in_process(launch.run, *flags)
    assert not base.exists()
    return outcome

  def refused(self, *flags, images=None):
    base = self.setting.new_folder()
    outcome = run_in_process(
      launch.run, *self.setting.flags(base, images), *_FLAGS, '--calibrated', *flags
    )
    assert files_in(base) == set()
    return outcome.error


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield _Calibrated(tmp_path_factory)


@pytest.fixture(scope='module')
def run(calibrated):
  """A calibrated run on the field of view that was not used for the fit."""
  return calibrated.setting.run('--calibrated', *_FLAGS, images=calibrated.other)


def _distribution(run, label):
  """The distributions that a run wrote of a label, [row, column, class]."""
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


def test_temperatures_are_those_of_the_truth(calibrated):
  for label, fit in calibrated.calibration['fits'].items():
    assert fit['temperature'] == pytest.approx(_TEMPERATURES[label], rel=0.1)
    assert fit['nll_after'] < fit['nll_before'] - 0.01


def test_distributions_are_scaled(calibrated, run):
  for label, temperature in calibrated.temperatures.items():
    before = _distribution(calibrated.other_before, label)
    expected = _at(before, temperature)
    # float16 is less precise for smaller numbers.
    likely = np.minimum(before, expected) > 2.0**-13
    found = _distribution(run, label)
    np.testing.assert_allclose(found[likely], expected[likely], rtol=4e-3)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found - before).max() > 0.02, 'nothing to tell apart'


def test_scores_on_other_images_are_better(calibrated, run):
  """The network is too sure of itself for one label, and not enough for the other."""
  found = []
  for before, after in zip(calibrated.other_before.metrics, run.metrics, strict=True):
    assert float(after['negative_log_likelihood']) < float(before['negative_log_likelihood'])
    found.append(float(before['coverage_80']))
    assert abs(found[-1] - 0.8) > 0.05
    assert abs(float(after['coverage_80']) - 0.8) < 0.03
    is_sure = _TEMPERATURES[before['channel']] > 1
    assert (found[-1] < 0.8) == is_sure
  assert min(found) < 0.8 < max(found)


def test_label_without_truth_stays_as_it_is(calibrated, run):
  before, after = (_distribution(r, 'DEAD_CONFOCAL') for r in (calibrated.other_before, run))
  np.testing.assert_array_equal(before, after)


def test_it_is_asked_for(calibrated, run):
  """Beside the file, a run without the flag gives what it gave before, and is not done again."""
  base = shutil.copytree(
    calibrated.other_before.folder.parents[1], calibrated.setting.new_folder() / 'base'
  )
  again = calibrated.setting.run(*_FLAGS, images=calibrated.other, base=base)
  assert 'is done already' in again.outcome.stderr
  fresh = calibrated.setting.run(*_FLAGS, '--overwrite', images=calibrated.other, base=base)
  assert fresh.metrics == calibrated.other_before.metrics
  with_it = calibrated.setting.run('--calibrated', *_FLAGS, images=calibrated.other, base=base)
  assert 'is done already' not in with_it.outcome.stderr
  assert with_it.metrics == run.metrics
  assert with_it.record['flags']['calibrated'] is True


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
  for path in calibrated.other.iterdir():
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
  outcome = run_in_process(launch.run, *calibrated.setting.flags(tmp_path), *flags)
  assert all(flag in outcome.error for flag in flags)


# A network that is too sure of itself.

_TRAINED = ('DAPI_CONFOCAL', 'NFH_CONFOCAL')


@pytest.fixture
def overconfident(tmp_path_factory, monkeypatch):
  """The trained network with all logits doubled."""
  monkeypatch.setitem(networks.NETWORKS, 'FOVEA', fovea.FOVEA)
  folder = tmp_path_factory.mktemp('overconfident')
  bare_checkpoint.copy_bare(REPOSITORY / 'checkpoints', folder, _TRAINED)
  _multiply_logits(folder, 2)
  return folder


@pytest.fixture(scope='module')
def simulated(tmp_path_factory):
  """Two simulated fields of view: one to fit on, one to report."""
  sys.path.insert(0, str(REPOSITORY / 'data_sample'))
  try:
    make_synthetic = importlib.import_module('make_synthetic')
  finally:
    sys.path.pop(0)
  folders = []
  for seed in (7001, 7002):
    folders.append(tmp_path_factory.mktemp('simulated'))
    make_synthetic.write_fields(folders[-1], rows=294, columns=294, wells=['A1'], seed=seed)
  return folders


@pytest.mark.soak
def test_overconfident_network_is_mended(overconfident, simulated, tmp_path):
  """Intervals hold on a field of view that the temperatures have not seen."""

  def run(images, name, *flags):
    outcome = run_in_process(
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
    name: InferRun(tmp_path / name / 'eval_eval_infer' / '00003350', outcome).metrics
    for name in ('before', 'after')
  }
  distances = []
  for before, after in zip(scores['before'], scores['after'], strict=True):
    assert float(after['negative_log_likelihood']) < float(before['negative_log_likelihood']) - 0.1
    assert float(before['coverage_80']) < 0.7
    distances.append(abs(float(after['coverage_80']) - 0.8))
  # Axons differ more from field to field than nuclei do: one is too few to fit them well.
  nuclei, axons = distances
  assert nuclei < 0.03
  assert axons < 0.1
