"""Tests of evaluate.py through the command line: what TensorBoard is given to show."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest

from isl import launch
from isl.checkpoints import watching
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS, input_stack, target_stack
from isl.core.experiment import Loss
from isl.core.statistic import Statistic
from isl.data import data_provider
from isl.images import png_io
from isl.inference.controller import HeadGroup, Labeler
from isl.programs import random_checkpoint
from tests.support.program import (
  SHALLOW,
  events,
  files_in,
  make_fovea_shallow,
  original_fields,
  run_in_process,
  shared_path,
  write_field,
  write_reference_checkpoint,
)

_ROWS, _COLUMNS = 47, 63
_PATCH, _MARGIN = SHALLOW.patch, SHALLOW.margin
_CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')
_INPUTS, _TARGETS = input_stack(3), target_stack()
_HEADS = (*_INPUTS.keys, *_TARGETS.keys)


def _write_checkpoint(folder, step=1000, seed=0):
  return random_checkpoint.write_random_checkpoint(
    folder, model='FOVEA', base_depth=8, num_z_values=3, global_step=step, seed=seed
  )


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """A folder with a checkpoint."""
  return _write_checkpoint(tmp_path_factory.mktemp('checkpoint')).parent


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A folder with a field of view."""
  folder = tmp_path_factory.mktemp('images')
  write_field(folder, rows=_ROWS, columns=_COLUMNS, depths=5, channels=_CHANNELS)
  return folder


def _arguments(base, images, *flags):
  return [
    '--mode=EVAL_EVAL',
    '--read_pngs',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
    '--loss_crop_size=28',
    '--metric_num_examples=6',
    *flags,
  ]


def _run(base, images, *flags, status=0):
  outcome = run_in_process(launch.run, *_arguments(base, images, *flags))
  assert outcome.status == status, outcome.stderr
  return outcome


def _losses(folder, step=1000):
  """Tag -> loss, of the events of one step."""
  return {tag: float(value) for (at, tag), value in events(folder).items() if at == step}


def _expected_losses(checkpoint, images, statistic, size):
  """Head -> loss, of the one patch at the image's top left, or of the only one."""
  (field,) = original_fields(images)
  field_of_view = field.read()
  window, centre = slice(0, size), slice(_MARGIN, _MARGIN + 8)
  reader = Checkpoint(find_newest(checkpoint))
  labeler = Labeler(
    reader.describe().plan(),
    reader,
    groups=[HeadGroup(heads=tuple(_HEADS), statistics=(statistic,))],
    batch=1,
    blocks=(1, 1),
  )
  truth = [
    data_provider.input_crop(field_of_view, _INPUTS, centre, centre),
    data_provider.target_crop(field_of_view, _TARGETS, centre, centre),
  ]
  values, masks = (
    np.concatenate([t[..., i].reshape(8, 8, -1) for t in truth], axis=-1) for i in (0, 1)
  )
  crop = data_provider.input_crop(field_of_view, _INPUTS, window, window)
  classes = np.moveaxis(np.rint(values * 255).astype(np.uint8), -1, 0)
  (outputs,) = labeler(crop[np.newaxis], [classes[:, np.newaxis]])
  (loss,) = outputs.values()
  labeler.close()
  return dict(zip(_HEADS, (loss[:, 0].mean(axis=(1, 2)) * masks[0, 0]).tolist(), strict=True))


@pytest.mark.parametrize('loss', Loss)
def test_losses_are_the_networks(checkpoint, tmp_path, loss):
  """Every patch of an image of a patch's size is the same."""
  images = tmp_path / 'images'
  write_field(images, rows=_PATCH, columns=_PATCH, depths=5, channels=_CHANNELS)
  base = tmp_path / 'base'
  outcome = _run(
    base,
    images,
    f'--restore_directory={checkpoint}',
    '--eval_once',
    f'--loss_crop_size={_PATCH}',
    f'--loss={loss.value}',
  )
  found = _losses(base / f'eval_eval_loss_{loss.value}')
  expected = _expected_losses(checkpoint, images, Statistic[loss.value], _PATCH)
  inputs, targets = (np.mean([expected[key] for key in s.keys]) for s in (_INPUTS, _TARGETS))
  assert found == {
    **{f'loss/{key}': pytest.approx(value, rel=1e-5) for key, value in expected.items()},
    'loss/input': pytest.approx(inputs, rel=1e-5),
    'loss/target': pytest.approx(targets, rel=1e-5),
    'total_loss': pytest.approx(0.5 * inputs + 0.5 * targets, rel=1e-5),
  }
  for channel in TARGET_CHANNELS:
    recorded = channel in (*_CHANNELS, 'NEURITE_CONFOCAL')
    assert (found[f'loss/MAXPROJECT/{channel}'] > 0) == recorded
  logged = dict(re.findall(r'Step 1000: (\S+) (\S+)', outcome.stderr))
  assert {tag: float(value) for tag, value in logged.items()} == pytest.approx(found, abs=1e-6)
  assert not outcome.error_lines


@pytest.mark.soak
def test_losses_are_the_originals(tmp_path):
  """At full width, on the real sample; see the reference's README."""
  reference = shared_path('reference', 'losses_seed7_row0_col0.json')
  sample = shared_path('data', 'condition_b_sample')
  checkpoint = tmp_path / 'checkpoint'
  write_reference_checkpoint(checkpoint, 'variables_concordance.json', seed=7)
  images = tmp_path / 'images'
  for path in sample.glob('*.png'):
    png_io.write_png(images / path.name, png_io.read_png(path)[:506, :506])
  base = tmp_path / 'base'
  _run(
    base,
    images,
    '--metric=LOSS',
    '--eval_once',
    '--loss_crop_size=506',
    '--metric_num_examples=4',
    f'--restore_directory={checkpoint}',
  )
  found = _losses(base / 'eval_eval_loss_CROSS_ENTROPY', 375000)
  expected = json.loads(reference.read_text())['eval']
  assert found['total_loss'] == pytest.approx(expected['total'], abs=2e-4)
  assert len(found) == len(expected['items']) + 3
  for head, value in expected['items'].items():
    assert found[f'loss/{head}'] == pytest.approx(value, abs=2e-4)


def test_losses_are_means_over_all_patches(checkpoint, images, tmp_path):
  """Losses are means over whole batches and the rest of the last, of the same patches each time."""
  found = {}
  for count in (1, 4, 5):
    base = tmp_path / str(count)
    flags = (f'--restore_directory={checkpoint}', '--eval_once', f'--metric_num_examples={count}')
    _run(base, images, *flags)
    found[count] = _losses(base / 'eval_eval_loss_CROSS_ENTROPY')
  # Outputs of training's size would not be comparable.
  _run(tmp_path / 'more', images, *flags, '--loss_output_size=24')
  assert _losses(tmp_path / 'more' / 'eval_eval_loss_CROSS_ENTROPY') == found[5]
  _run(tmp_path / 'other', images, *flags, '--random_seed=1')
  assert _losses(tmp_path / 'other' / 'eval_eval_loss_CROSS_ENTROPY') != found[5]
  assert found[1] != found[4] != found[5]
  # The first patches of five are those of four, so the fifth's loss follows; none is negative.
  for tag, mean in found[5].items():
    assert 5 * mean - 4 * found[4][tag] >= -1e-5


def test_field_without_a_label_does_not_count_for_it(checkpoint, images, tmp_path):
  """Two fields of view; the second lacks a label that the first has."""
  both = shutil.copytree(images, tmp_path / 'both')
  for path in images.iterdir():
    if 'DAPI' not in path.name:
      shutil.copy(path, both / path.name.replace('well-A4', 'well-B5'))
  found = {}
  for name, folder in (('one', images), ('both', both)):
    flags = (f'--restore_directory={checkpoint}', '--eval_once', '--metric_num_examples=16')
    _run(tmp_path / name, folder, *flags)
    found[name] = _losses(tmp_path / name / 'eval_eval_loss_CROSS_ENTROPY')
  # Patches with and without DAPI; the mean over those with it is of the usual size.
  dapi = 'loss/MAXPROJECT/DAPI_CONFOCAL'
  assert found['both'][dapi] == pytest.approx(found['one'][dapi], rel=0.3)
  assert found['both'][dapi] != found['one'][dapi]


class _Training:
  """In place of the clock: writes a checkpoint whenever the evaluation waits, then stops it."""

  def __init__(self, folder, *seeds):
    self._folder = folder
    self._seeds = list(seeds)
    self._step = 0

  def sleep(self, seconds):
    del seconds
    if not self._seeds:
      raise KeyboardInterrupt
    self._step += 100
    _write_checkpoint(self._folder, self._step, self._seeds.pop(0))


def test_each_new_checkpoint_is_evaluated_and_the_best_kept(images, tmp_path, monkeypatch):
  base = tmp_path / 'base'
  monkeypatch.setattr(watching, 'time', _Training(base / 'train', 1, 2, 1, 3))
  outcome = _run(base, images, status=130)
  assert outcome.error_lines == ['isl-launch: stopped']
  folder = base / 'eval_eval_loss_CROSS_ENTROPY'
  losses = [_losses(folder, step)['total_loss'] for step in (100, 200, 300, 400)]
  assert len(set(losses)) == 3
  assert losses[0] == losses[2]
  # The first of equals.
  best = 100 * (1 + losses.index(min(losses)))
  assert Checkpoint(find_newest(base / 'best')).describe().global_step == best
  # It can be evaluated itself, and stays.
  monkeypatch.undo()
  before = {p.name: p.read_bytes() for p in (base / 'best').iterdir()}
  _run(base, images, f'--restore_directory={base / "best"}', '--eval_once')
  assert {p.name: p.read_bytes() for p in (base / 'best').iterdir()} == before
  assert _losses(folder, best)['total_loss'] == min(losses)
  # Another loss has another lowest.
  outcome = _run(base, images, '--loss=RANKED_PROBABILITY_SCORE', '--eval_once')
  assert 'keeps the best checkpoint by --loss=CROSS_ENTROPY,' in outcome.stderr
  assert files_in(base / 'eval_eval_loss_RANKED_PROBABILITY_SCORE')
  assert {p.name: p.read_bytes() for p in (base / 'best').iterdir()} == before


def test_evaluation_of_the_training_set_keeps_no_checkpoint(checkpoint, images, tmp_path):
  base = tmp_path / 'base'
  flags = ['--mode=EVAL_TRAIN', f'--dataset_train_directory={images}', '--eval_once']
  _run(base, '/no/such/folder', *flags, f'--restore_directory={checkpoint}')
  assert [path.name for path in base.iterdir()] == ['eval_train_loss_CROSS_ENTROPY']


def test_folders_may_have_fields_of_one_name(checkpoint, images, tmp_path):
  base = tmp_path / 'base'
  other = shutil.copytree(images, tmp_path / 'other')
  flags = ['--mode=EVAL_TRAIN', f'--restore_directory={checkpoint}', '--eval_once']
  folders = f'--dataset_train_directory={images},{other}'
  _run(base, '/no/such/folder', *flags, folders)
  losses = _losses(base / 'eval_train_loss_CROSS_ENTROPY')
  assert losses['total_loss'] > 0
  _run(base, '/no/such/folder', *flags, folders, '--metric=STITCH', '--infer_panels=TARGET')
  (field,) = original_fields(images)
  assert events(base / 'eval_train_stitch').keys() == {
    (1000, f'target_error_panel/{field.name},folder-{folder.name}') for folder in (images, other)
  }


def test_folders_of_one_name_with_fields_of_one_name(checkpoint, images, tmp_path):
  """Fields of view whose results would have the same names are an error."""
  other = shutil.copytree(images, tmp_path / images.name)
  line = _error(
    tmp_path / 'base',
    '/no/such/folder',
    '--mode=EVAL_TRAIN',
    '--metric=STITCH',
    f'--restore_directory={checkpoint}',
    f'--dataset_train_directory={images},{other}',
  )
  assert f'is in several folders named {images.name!r}' in line


def _error(base, images, *flags):
  """The one line of a run that must fail without having written anything."""
  outcome = run_in_process(launch.run, *_arguments(base, images, '--eval_once', *flags))
  assert outcome.status == 1
  assert not files_in(base)
  return outcome.error


@pytest.mark.parametrize('metric', ['LOSS', 'STITCH', 'JITTER_STITCH'])
def test_errors_of_all_metrics(checkpoint, images, tmp_path, metric):
  base, nowhere = tmp_path / 'base', tmp_path / 'nowhere'
  metric, restore = f'--metric={metric}', f'--restore_directory={checkpoint}'
  assert f"'{base / 'train'}' is not a folder" in _error(base, images, metric)
  assert f"'{nowhere}' does not exist" in _error(base, nowhere, metric, restore)
  # Nobody will make it, so it is not waited for.
  for once in ('--eval_once', '--noeval_once'):
    line = _error(base, images, metric, f'--restore_directory={nowhere}', once)
    assert f"'{nowhere}' is not a folder" in line
  (base / 'train').mkdir(parents=True)
  assert f"'{base / 'train'}' holds no checkpoint" in _error(base, images, metric)
  line = _error(base, images, metric, restore, '--num_z_values=4')
  assert 'does not fit the flags' in line
  (tmp_path / 'file').touch()
  line = _error(tmp_path / 'file' / 'base', images, metric, restore)
  assert 'Not a directory' in line


def test_missing_folder_is_found_before_waiting_for_a_checkpoint(tmp_path):
  outcome = run_in_process(launch.run, *_arguments(tmp_path / 'base', tmp_path / 'nowhere'))
  assert 'does not exist' in outcome.error


def test_no_target_to_compute_a_loss_of(checkpoint, images, tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  for path in images.glob('*PHASE_CONTRAST*'):
    shutil.copy(path, folder)
  line = _error(tmp_path / 'base', folder, f'--restore_directory={checkpoint}')
  assert f"'{folder}' has no target" in line


def test_label_that_the_checkpoint_lacks(images, tmp_path):
  """Unlike a training on it, an evaluation can do without."""
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'one',
    model='FOVEA',
    base_depth=8,
    num_z_values=3,
    target_channels=('MAP2_CONFOCAL',),
  )
  flags = ['--eval_once', f'--restore_directory={tmp_path / "one"}']
  outcome = _run(tmp_path / 'base', images, *flags)
  assert (
    'left out DAPI_CONFOCAL, NFH_CONFOCAL; the network predicts MAP2_CONFOCAL' in outcome.stderr
  )
  found = _losses(tmp_path / 'base' / 'eval_eval_loss_CROSS_ENTROPY', 1000)
  assert found['loss/target'] == found['loss/MAXPROJECT/MAP2_CONFOCAL']
  # Another's checkpoints are not kept as this training's best.
  assert not (tmp_path / 'base' / 'best').exists()


def test_crop_larger_than_the_image(checkpoint, images, tmp_path):
  restore = f'--restore_directory={checkpoint}'
  line = _error(tmp_path / 'base', images, restore, '--loss_crop_size=48')
  assert 'is 47 rows x 63 columns, too small for --loss_crop_size 48' in line


def test_unknown_channel_in_the_whitelist(checkpoint, images, tmp_path):
  flags = [f'--restore_directory={checkpoint}', '--infer_channel_whitelist=GFP_CONFOCAL']
  line = _error(tmp_path / 'base', images, '--metric=STITCH', *flags)
  assert '--infer_channel_whitelist has GFP_CONFOCAL' in line


def test_no_panel(checkpoint, images, tmp_path):
  flags = [f'--restore_directory={checkpoint}', '--infer_panels=']
  line = _error(tmp_path / 'base', images, '--metric=STITCH', *flags)
  assert '--infer_panels must name a panel for --metric STITCH: TARGET or INPUT' in line


def test_training_that_diverged(images, tmp_path, monkeypatch):
  """A loss that is not finite is written, but is not the best."""
  base = tmp_path / 'base'
  _write_checkpoint(base / 'train')
  monkeypatch.setattr(
    Labeler,
    '__call__',
    lambda self, inputs, labels: [
      {Statistic.CROSS_ENTROPY: np.full(labels[0].shape, np.nan, np.float32)}
    ],
  )
  _run(base, images, '--eval_once')
  assert math.isnan(_losses(base / 'eval_eval_loss_CROSS_ENTROPY')['total_loss'])
  assert not (base / 'best').exists()
