"""Tests of infer.py through the command line: the numbers in the files that a run writes."""

from __future__ import annotations

import dataclasses
import math
import platform

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import isl
from isl import launch
from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import MAXPROJECT, TARGET_CHANNELS, target_stack
from isl.core.statistic import PICTURE_STATISTICS, Statistic
from isl.data import data_provider
from isl.images import png_io
from isl.inference.controller import HeadGroup, Labeler
from isl.models import networks
from isl.programs import random_checkpoint
from isl.report import metrics
from tests.support.program import (
  InferRun,
  InferSetting,
  files_in,
  image_name,
  make_concordance_shallow,
  make_fovea_shallow,
  original_fields,
  panel_boxes,
  run_in_process,
  write_field,
)

_SIZE, _MARGIN = InferSetting.size, InferSetting.margin
_CHANNELS = InferSetting.channels
_COMPUTED = tuple(dict.fromkeys((*PICTURE_STATISTICS, *metrics.NEEDED)))
_BY_EQUAL_PIXELS = ('MODE', 'MEDIAN')

_ALL_STATISTICS = f'--infer_statistics={",".join(s.name for s in PICTURE_STATISTICS)}'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def whole(setting):
  """A run of all that there is: full panels, every statistic."""
  return setting.run('--noinfer_simplify_error_panels', _ALL_STATISTICS)


@pytest.fixture(scope='module')
def labeled(setting):
  """The network's statistics of the whole field of view at once, each [channel, row, column].

  Those that compare with the truth take the labels' true classes, 0 where the truth is unknown.
  """
  (files,) = original_fields(setting.images)
  field_of_view = files.read()
  checkpoint = Checkpoint(setting.checkpoint / 'model.ckpt-1000')
  plan = checkpoint.describe().plan()
  rows, columns = (slice(0, plan.spec.geometry.input_size(n // 8)) for n in _SIZE)
  output = [slice(_MARGIN, _MARGIN + n) for n in _SIZE]
  truth = data_provider.target_crop(field_of_view, target_stack(), *output)[:, :, 0, :, 0]
  labeler = Labeler(
    plan,
    checkpoint,
    groups=[HeadGroup(heads=target_stack().keys, statistics=_COMPUTED)],
    batch=1,
    blocks=(_SIZE[0] // 8, _SIZE[1] // 8),
  )
  crop = data_provider.input_crop(field_of_view, checkpoint.describe().inputs, rows, columns)
  labels = np.rint(truth * 255).astype(np.uint8).transpose(2, 0, 1)
  (outputs,) = labeler(crop[np.newaxis], [labels[:, np.newaxis]])
  labeler.close()
  return {statistic: values[:, 0] for statistic, values in outputs.items()}


def _assert_same_predictions(field, run, other, size=_SIZE, channels=TARGET_CHANNELS):
  """Asserts that predictions are the same in the part of `size` at the top left."""
  rows, columns = size
  for channel in channels:
    for statistic in PICTURE_STATISTICS:
      a, b = (
        r.prediction(field, channel, statistic.name)[:rows, :columns].astype(int)
        for r in (run, other)
      )
      assert a.shape == b.shape == size
      if statistic.name in _BY_EQUAL_PIXELS:
        assert np.mean(a == b) >= 0.999, (channel, statistic)
      else:
        assert np.abs(a - b).max() <= 2, (channel, statistic)


def test_predictions_are_the_networks(setting, whole, labeled):
  for i, channel in enumerate(TARGET_CHANNELS):
    for statistic in PICTURE_STATISTICS:
      image = whole.prediction(setting.field, channel, statistic.name)
      assert image.dtype == np.uint16
      assert image.shape == _SIZE
      expected = labeled[statistic][i] * 65535.0
      if statistic.name in _BY_EQUAL_PIXELS:
        assert np.mean(image == np.rint(expected)) >= 0.999
      else:
        assert np.abs(image - expected).max() <= 1.5
  medians = whole.prediction(setting.field, 'DAPI_CONFOCAL')
  assert len(np.unique(medians)) > 3, 'nothing to tell apart'


def test_every_file_is_on_record_and_no_other_is_there(setting, whole):
  name = f'predictions/{setting.field},depth_computation,value-MAXPROJECT,channel,value-{{}}'
  name += ',statistic,value-{},kind,value-PREDICTED.png'
  predictions = {name.format(c, s.name) for c in TARGET_CHANNELS for s in PICTURE_STATISTICS}
  panels = {'target_error_panel.png', 'input_error_panel.png'}
  thumbnails = {f'thumbnails/{c}_prediction.jpg' for c in TARGET_CHANNELS}
  thumbnails |= {'thumbnails/input.jpg'}
  for channel in (*_CHANNELS, 'NEURITE_CONFOCAL'):
    thumbnails |= {f'thumbnails/{channel}_{what}.jpg' for what in ('truth', 'error')}
    thumbnails |= {f'reliability_{channel}.png'}
  (record,) = whole.record['fields']
  assert sorted(record['files']) == sorted(predictions | panels | thumbnails | {'field.json'})
  assert whole.record['tables'] == ['metrics.csv', 'metrics.json', 'run.json', 'report.html']
  assert files_in(whole.folder) == set(record['files']) | set(whole.record['tables'])
  assert files_in(whole.folder.parents[1]) == {
    f'eval_eval_infer/00001000/{path}' for path in files_in(whole.folder)
  }


def test_run_is_on_record(setting, whole):
  record = whole.record
  assert record['checkpoint'] == str(setting.checkpoint / 'model.ckpt-1000')
  assert record['global_step'] == 1000
  assert (record['model'], record['num_z_values']) == ('FOVEA', 3)
  assert record['versions'] == {
    'python': platform.python_version(),
    'isl': isl.__version__,
    'tensorflow': tf.__version__,
    'numpy': np.__version__,
    'opencv': cv2.__version__,
  }
  flags = record['flags']
  assert flags['restore_directory'] == str(setting.checkpoint)
  assert flags['infer_statistics'] == [s.name for s in PICTURE_STATISTICS]
  assert flags['infer_simplify_error_panels'] is False
  assert flags['stitch_crop_size'] == 500
  (field,) = record['fields']
  assert field['field'] == setting.field
  assert field['image_size'] == [setting.rows, setting.columns]
  assert field['output_size'] == list(_SIZE)
  assert field['output_offset'] == [_MARGIN, _MARGIN]


def _truth(setting, run, channel, images=None):
  """A label's image where the predictions are, cut as run.json says; floats [row, column]."""
  if channel == 'NEURITE_CONFOCAL':
    parts = [_truth(setting, run, c, images) for c in ('NFH_CONFOCAL', 'MAP2_CONFOCAL')]
    return np.mean(parts, axis=0)
  record = run.record_of(setting.field)
  path = (images or setting.images) / image_name('A4', MAXPROJECT, channel)
  rows, columns = (
    slice(offset, offset + size)
    for offset, size in zip(record['output_offset'], record['output_size'], strict=True)
  )
  return png_io.read_png(path)[rows, columns] / 65535


def test_metrics_are_those_of_the_files(setting, whole, labeled):
  columns = ['field', 'channel', *(field.name for field in dataclasses.fields(metrics.Scores))]
  with (whole.folder / 'metrics.csv').open() as stream:
    assert stream.readline().strip().split(',') == columns
  with_truth = [c for c in TARGET_CHANNELS if c in (*_CHANNELS, 'NEURITE_CONFOCAL')]
  assert [row['channel'] for row in whole.metrics] == with_truth
  for row in whole.metrics:
    channel = row['channel']
    assert row['field'] == setting.field
    truth = _truth(setting, whole, channel)
    median = whole.prediction(setting.field, channel) / 65535
    cross_entropy = labeled[Statistic.CROSS_ENTROPY][TARGET_CHANNELS.index(channel)]
    assert int(row['pixels']) == math.prod(_SIZE)
    found = [float(row[name]) for name in ('pearson_r', 'mae', 'rmse', 'cross_entropy')]
    expected = [
      np.corrcoef(median.ravel(), truth.ravel())[0, 1],
      np.abs(median - truth).mean(),
      np.sqrt(np.mean((median - truth) ** 2)),
      cross_entropy.mean(dtype=float),
    ]
    assert found == pytest.approx(expected, rel=1e-4)


def test_log_has_what_a_user_wants_to_know(setting, whole):
  log = whole.outcome.stderr
  prefix = setting.checkpoint / 'model.ckpt-1000'
  for words in (
    f'Checkpoint {prefix}, step 1000',
    f'Field 1 of 1: {setting.field}',
    'field 1 of 1: 24 of 24 blocks done, 00:00 left',
    f'Wrote {whole.folder}',
  ):
    assert words in log


@pytest.mark.parametrize('infer_size', [1, 2, 3])
def test_tiles_join_anywhere(setting, whole, infer_size):
  run = setting.run(f'--infer_size={infer_size}', '--infer_panels=', _ALL_STATISTICS)
  _assert_same_predictions(setting.field, run, whole)


def test_patch_by_patch_is_the_same(setting, whole):
  run = setting.run('--infer_method=PATCHES', '--noinfer_simplify_error_panels', _ALL_STATISTICS)
  _assert_same_predictions(setting.field, run, whole)
  for name in ('target', 'input'):
    a, b = (r.panel(name).astype(int) for r in (run, whole))
    assert np.mean(np.abs(a - b) <= 2) >= 0.999
  for one, other in zip(run.metrics, whole.metrics, strict=True):
    assert one['channel'] == other['channel']
    assert float(one['cross_entropy']) == pytest.approx(float(other['cross_entropy']), rel=1e-4)


@pytest.mark.parametrize(
  ('crop', 'size'),
  [(18, (8, 8)), (33, (16, 16)), (1500, _SIZE), (0, _SIZE)],
)
def test_crop_is_at_the_top_left_and_clipped(setting, whole, crop, size):
  whitelist = '--infer_channel_whitelist=DAPI_CONFOCAL'
  run = setting.run(
    f'--stitch_crop_size={crop}', '--infer_panels=TARGET', _ALL_STATISTICS, whitelist
  )
  (record,) = run.record['fields']
  assert record['output_size'] == list(size)
  assert record['output_offset'] == [_MARGIN, _MARGIN]
  _assert_same_predictions(setting.field, run, whole, size, ['DAPI_CONFOCAL'])
  assert run.prediction(setting.field, 'DAPI_CONFOCAL').shape == size
  assert int(run.metrics[0]['pixels']) == math.prod(size)
  assert run.panel('target').shape == (size[0] + 8, 3 * (size[1] + 8), 3)


def test_full_panel_has_twelve_columns(setting, whole):
  panel = whole.panel('target')
  assert panel.shape == (len(TARGET_CHANNELS) * (_SIZE[0] + 8), 12 * (_SIZE[1] + 8), 3)
  strips = np.split(panel, len(TARGET_CHANNELS))
  for channel, strip in zip(TARGET_CHANNELS, strips, strict=True):
    boxes = panel_boxes(strip, 12)
    has_truth = channel in (*_CHANNELS, 'NEURITE_CONFOCAL')
    truth = _truth(setting, whole, channel) * 65535 if has_truth else np.zeros(_SIZE)
    # Truncated; the mean of two images may end in a half.
    assert np.abs(boxes[4] - truth[..., np.newaxis]).max() < 1.1
    assert (boxes[11] == 65535 * has_truth).all()
    names = ('MODE', 'MEDIAN', 'MEAN', 'STANDARD_DEVIATION')
    for box, statistic in zip(boxes, names, strict=False):
      predicted = whole.prediction(setting.field, channel, statistic)[..., np.newaxis].astype(int)
      assert np.abs(box - predicted).max() <= 1


def test_input_panel_has_the_stack_that_the_network_reads(setting, whole):
  panel = whole.panel('input')
  assert panel.shape == (3 * (_SIZE[0] + 8), 12 * (_SIZE[1] + 8), 3)
  # The network's positions 0, 0.5 and 1 in a stack of 5 depths.
  for strip, depth in zip(np.split(panel, 3), (0, 2, 4), strict=True):
    path = setting.images / image_name('A4', depth, 'PHASE_CONTRAST')
    truth = png_io.read_png(path)[*(slice(_MARGIN, _MARGIN + n) for n in _SIZE), np.newaxis].astype(
      int
    )
    boxes = panel_boxes(strip, 12)
    assert np.abs(boxes[4] - truth).max() <= 1
    assert (boxes[11] == 65535).all()


def test_whitelist_orders_the_labels_and_leaves_the_input_panel_alone(setting, whole):
  channels = ['NEURITE_CONFOCAL', 'NFH_CONFOCAL', 'DAPI_CONFOCAL']
  whitelist = f'--infer_channel_whitelist={",".join(channels)}'
  run = setting.run(whitelist, '--noinfer_simplify_error_panels', _ALL_STATISTICS)
  assert [row['channel'] for row in run.metrics] == channels
  _assert_same_predictions(setting.field, run, whole, channels=channels)
  strips = dict(zip(TARGET_CHANNELS, np.split(whole.panel('target'), 9), strict=True))
  expected = np.concatenate([strips[channel] for channel in channels])
  assert np.mean(np.abs(run.panel('target') - expected.astype(int)) <= 1) >= 0.999
  difference = np.abs(run.panel('input') - whole.panel('input').astype(int))
  assert np.mean(difference <= 1) >= 0.999


def test_label_without_ground_truth_is_predicted_all_the_same(setting, whole):
  whitelist = '--infer_channel_whitelist=DEAD_CONFOCAL,NEURITE_CONFOCAL,DAPI_CONFOCAL'
  images = setting.new_folder()
  for path in setting.images.iterdir():
    if 'NFH' not in path.name:
      (images / path.name).symlink_to(path)
  full = '--noinfer_simplify_error_panels'
  run = setting.run(whitelist, full, _ALL_STATISTICS, '--infer_panels=TARGET', images=images)
  channels = ['DEAD_CONFOCAL', 'NEURITE_CONFOCAL']
  _assert_same_predictions(setting.field, run, whole, channels=channels)
  for strip, drawn in zip(np.split(run.panel('target'), 3), (False, False, True), strict=True):
    boxes = panel_boxes(strip, 12)
    assert boxes[4].any() == drawn
    assert (boxes[11] == 65535 * drawn).all()
  assert [row['channel'] for row in run.metrics] == ['DAPI_CONFOCAL']


@pytest.mark.parametrize('is_shallow', [True, pytest.param(False, marks=pytest.mark.soak)])
def test_concordance_by_both_methods(tmp_path, monkeypatch, is_shallow):
  """2 x 3 blocks of patches of 250 pixels, or of shallow ones."""
  if is_shallow:
    make_concordance_shallow(monkeypatch)
  geometry = networks.NETWORKS['CONCORDANCE'].geometry
  checkpoint, images = tmp_path / 'checkpoint', tmp_path / 'images'
  random_checkpoint.write_random_checkpoint(checkpoint, base_depth=5, num_z_values=2)
  rows, columns = geometry.input_size(2), geometry.input_size(3) + 4
  (field,) = write_field(images, rows=rows, columns=columns, bits=8)
  runs = []
  for method in ('DENSE', 'PATCHES'):
    outcome = run_in_process(
      launch.run,
      '--mode=EVAL_EVAL',
      '--metric=INFER_FULL',
      '--read_pngs',
      f'--restore_directory={checkpoint}',
      f'--dataset_eval_directory={images}',
      f'--base_directory={tmp_path / method}',
      f'--infer_method={method}',
      '--infer_size=2',
      '--infer_panels=TARGET',
      _ALL_STATISTICS,
    )
    assert outcome.status == 0, outcome.stderr
    runs.append(InferRun(tmp_path / method / 'eval_eval_infer' / '00001000', outcome))
  _assert_same_predictions(field, runs[0], runs[1], size=(16, 24))
  (record,) = runs[0].record['fields']
  assert (record['output_size'], record['output_offset']) == ([16, 24], [geometry.margin] * 2)
