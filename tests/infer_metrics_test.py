"""Tests of infer.py through the command line: metrics, and other libraries' from the files."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import png
import pytest
import scoringrules
import zarr
from skimage import measure
from skimage import metrics as skimage_metrics

from isl import launch
from isl.images import png_io
from isl.report import metrics
from tests.support.program import (
  REPOSITORY,
  InferRun,
  InferSetting,
  make_fovea_shallow,
  run_in_process,
)

_IMAGES = REPOSITORY / 'data_sample' / 'synthetic_evaluation'
# In the order of the predictions; of the last one there is no truth.
_LABELS = ('MAP2_CONFOCAL', 'DAPI_CONFOCAL', 'NFH_CONFOCAL')
_KNOWN = _LABELS[:2]
_SIDE = 96
_NAMES = (
  'MEDIAN',
  'MODE',
  'QUANTILE_2.5',
  'QUANTILE_10',
  'QUANTILE_25',
  'QUANTILE_75',
  'QUANTILE_90',
  'QUANTILE_97.5',
)
_VALUES = np.arange(256) / 255
_BINS = 15
# float16 has a probability to one part in 2048, and none below this.
_LEAST = 2.0**-25


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """The simulated field of view without one of its labels."""
  folder = tmp_path_factory.mktemp('images')
  for path in _IMAGES.iterdir():
    if _LABELS[-1] not in path.name:
      (folder / path.name).symlink_to(path)
  return folder


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
  """A crop of it, by the small network that was trained on such."""
  base = tmp_path_factory.mktemp('base')
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--restore_directory={REPOSITORY / "checkpoints"}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
    f'--stitch_crop_size={102 + _SIDE}',
    f'--infer_channel_whitelist={",".join(_LABELS)}',
    f'--infer_statistics={",".join(_NAMES)},DISTRIBUTION',
    '--prediction_format=OME_ZARR',
    '--infer_panels=',
    # Scores are sums over tiles, of which some overlap.
    '--infer_size=5',
  )
  assert outcome.status == 0, outcome.stderr
  (folder,) = (base / 'eval_eval_infer').iterdir()
  return InferRun(folder, outcome)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Label:
  """What was written of a label, and what is true: float64 [row, column]."""

  name: str
  statistics: dict[str, np.ndarray]
  distribution: np.ndarray  # [row, column, class]
  truth: np.ndarray
  row: dict[str, float]

  @property
  def true_class(self):
    return np.rint(self.truth * 255).astype(int)

  @property
  def probability(self):
    """The probability of the true class."""
    p = np.take_along_axis(self.distribution, self.true_class[..., np.newaxis], -1)[..., 0]
    return np.maximum(p, _LEAST)


@pytest.fixture(scope='module', params=_KNOWN)
def label(request, run):
  name = request.param
  pictures = zarr.open_group(run.folder / 'predictions.ome.zarr', mode='r')['0'][:].astype(float)
  assert pictures.shape == (len(_LABELS) * len(_NAMES), _SIDE, _SIDE)
  first = _LABELS.index(name) * len(_NAMES)
  distribution = zarr.open_group(run.folder / f'{name}_distribution.ome.zarr', mode='r')['0'][:]
  (path,) = _IMAGES.glob(f'*channel-{name},*')
  truth = png_io.read_png(path)[51 : 51 + _SIDE, 51 : 51 + _SIDE]
  assert truth.dtype == np.uint8
  (row,) = (row for row in run.metrics if row['channel'] == name)
  return _Label(
    name=name,
    statistics=dict(zip(_NAMES, pictures[first : first + len(_NAMES)], strict=True)),
    distribution=np.moveaxis(distribution, 0, -1).astype(float),
    truth=truth / 255,
    row={key: float(value) for key, value in row.items() if key not in ('field', 'channel')},
  )


def test_pictures_are_as_good_as_scikit_image_says(label):
  median, truth = label.statistics['MEDIAN'], label.truth
  squared = skimage_metrics.mean_squared_error(truth, median)
  expected = {
    'pixels': _SIDE * _SIDE,
    'pearson_r': measure.pearson_corr_coeff(median, truth)[0],
    'ssim': skimage_metrics.structural_similarity(truth, median, data_range=1),
    'psnr': skimage_metrics.peak_signal_noise_ratio(truth, median, data_range=1),
    'rmse': np.sqrt(squared),
    'mae': np.abs(median - truth).mean(),
  }
  # The truth is of single precision in the program, the table has six digits.
  for name, value in expected.items():
    assert label.row[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_crps_is_scoringrules(label):
  expected = scoringrules.crps_ensemble(
    label.true_class / 255,
    np.broadcast_to(_VALUES, label.distribution.shape),
    ens_w=label.distribution,
    estimator='int',
    backend='numpy',
  )
  assert label.row['crps'] == pytest.approx(np.mean(expected), rel=1e-3)


def test_likelihood_is_that_of_the_distributions(label):
  expected = -np.log(label.probability).mean()
  assert label.row['negative_log_likelihood'] == pytest.approx(expected, abs=1e-3)
  assert label.row['cross_entropy'] == pytest.approx(expected / math.log(256), abs=1e-3)


def _coverage(label, nominal):
  """Each pixel's truth is spread evenly over its class's part of the distribution."""
  cumulative = np.cumsum(label.distribution, -1)
  up_to = np.take_along_axis(cumulative, label.true_class[..., np.newaxis], -1)[..., 0]
  below = up_to - label.probability
  inside = np.minimum(up_to, 0.5 + nominal / 2) - np.maximum(below, 0.5 - nominal / 2)
  return np.mean(np.maximum(inside, 0) / (up_to - below))


@pytest.mark.parametrize('percent', [50, 80, 95])
def test_coverage_is_that_of_the_distributions(label, percent):
  expected = _coverage(label, percent / 100)
  assert label.row[f'coverage_{percent}'] == pytest.approx(expected, abs=1e-3)


def test_coverage_error_is_of_all_central_intervals(label):
  shares = np.arange(1, 20) / 20
  expected = np.mean([abs(_coverage(label, share) - share) for share in shares])
  assert label.row['coverage_error'] == pytest.approx(expected, abs=1e-3)


def test_widths_are_those_of_the_quantiles(label):
  ends = {
    50: ('QUANTILE_25', 'QUANTILE_75'),
    80: ('QUANTILE_10', 'QUANTILE_90'),
    95: ('QUANTILE_2.5', 'QUANTILE_97.5'),
  }
  for percent, (low, high) in ends.items():
    expected = np.mean(label.statistics[high] - label.statistics[low])
    assert label.row[f'width_{percent}'] == pytest.approx(expected, rel=1e-5)


def test_calibration_error_is_of_the_likeliest_class(label):
  confidence = label.distribution.max(-1)
  correct = np.rint(label.statistics['MODE'] * 255) == label.true_class
  bins = np.ceil(confidence * _BINS)
  expected = sum(
    abs(correct[bins == i].mean() - confidence[bins == i].mean()) * np.mean(bins == i)
    for i in np.unique(bins)
  )
  assert label.row['expected_calibration_error'] == pytest.approx(expected, abs=1e-3)


def test_json_has_the_same_numbers(run):
  held = json.loads((run.folder / 'metrics.json').read_text())
  assert [of_label['channel'] for of_label in held] == list(_KNOWN)
  for of_label, row in zip(held, run.metrics, strict=True):
    calibration = of_label.pop('calibration')
    assert list(of_label) == list(row)
    for name, value in of_label.items():
      expected = row[name] if isinstance(value, str) else pytest.approx(float(row[name]), rel=1e-5)
      assert value == expected
    curve = metrics.Reliability(**calibration)
    for percent in (50, 80, 95):
      assert curve.coverage(percent) == of_label[f'coverage_{percent}']


def test_each_known_label_has_a_diagram(run):
  diagrams = {path.name for path in run.folder.glob('reliability_*')}
  assert diagrams == {f'reliability_{label}.png' for label in _KNOWN}
  for name in diagrams:
    columns, rows, pixels, _ = png.Reader(bytes=(run.folder / name).read_bytes()).read()
    assert min(rows, columns) > 200
    assert len({bytes(row) for row in pixels}) > 10, 'nothing is drawn'


def test_report_shows_each_label(run):
  page = (run.folder / 'report.html').read_text()
  for label in _LABELS:
    assert label in page
  # Small pictures are in the page: of the input, the predictions, and of what is known.
  assert page.count('data:image/jpeg;base64,') == 1 + len(_LABELS) + 2 * len(_KNOWN)
  assert page.count('data:image/png;base64,') == len(_KNOWN)
  for row in run.metrics:
    for name in ('pearson_r', 'ssim', 'coverage_80'):
      assert f'{float(row[name]):.4f}' in page, name


def test_constant_label_has_no_correlation(tmp_path_factory, monkeypatch):
  """And JSON no word for that."""
  make_fovea_shallow(monkeypatch)
  setting = InferSetting(launch.run, tmp_path_factory)
  images = setting.new_folder()
  for path in setting.images.iterdir():
    image = png_io.read_png(path)
    png_io.write_png(images / path.name, image * ('DAPI' not in path.name))
  run = setting.run('--infer_channel_whitelist=DAPI_CONFOCAL', '--infer_panels=', images=images)
  (row,) = run.metrics
  assert row['pearson_r'] == 'nan'
  (of_label,) = json.loads((run.folder / 'metrics.json').read_text())
  assert of_label['pearson_r'] is None
  median = run.prediction(setting.field, 'DAPI_CONFOCAL') / 65535
  assert of_label['mae'] == pytest.approx(median.mean(), rel=1e-6)
  assert 'n/a' in (run.folder / 'report.html').read_text()
