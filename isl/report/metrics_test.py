"""Tests of metrics.py: closed forms, and other libraries on the whole image."""

import csv
import dataclasses
import io
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import scoringrules
import skimage.measure
import skimage.metrics
from scipy import special, stats

from isl.core.channels import ImageKey
from isl.core.parts import Part
from isl.core.statistic import INTERVALS, AnyStatistic, Statistic
from isl.report import metrics
from isl.report.metrics import Reliability, RunningScores

_LEVELS = np.arange(256) / 255
_KEY = ImageKey('MAXPROJECT', 'DAPI_CONFOCAL')


def _predicted(p, classes):
  """What a network would say of p [.., class], given the true classes [..]."""
  up_to = np.cumsum(p, axis=-1)
  true = classes[..., np.newaxis]
  of_true = np.take_along_axis(p, true, axis=-1)[..., 0]
  up_to_true = np.take_along_axis(up_to, true, axis=-1)[..., 0]
  step = np.arange(256) >= true

  def quantile(share):
    return np.minimum(np.count_nonzero(up_to < share, axis=-1), 255) / 255

  with np.errstate(divide='ignore'):
    values: dict[AnyStatistic, np.ndarray] = {
      Statistic.MEDIAN: quantile(0.5),
      Statistic.MODE: p.argmax(-1) / 255,
      Statistic.MODE_PROBABILITY: p.max(-1),
      Statistic.CROSS_ENTROPY: -np.log(of_true) / np.log(256),
      Statistic.RANKED_PROBABILITY_SCORE: ((up_to - step) ** 2).sum(-1) / 255,
      Statistic.PROBABILITY_BELOW: np.maximum(up_to_true - of_true, 0),
      Statistic.PROBABILITY_UP_TO: up_to_true,
    }
  values |= {q: quantile(q.percent / 100) for ends in INTERVALS.values() for q in ends}
  assert set(values) == set(metrics.NEEDED)
  return {statistic: value.astype(np.float32) for statistic, value in values.items()}


def _add(running, predicted, truth, rows=None, columns=None):
  """Adds a part of an image, or all of it; both are given as they are there."""
  rows, columns = rows or slice(0, truth.shape[0]), columns or slice(0, truth.shape[1])
  running.add(Part(key=_KEY, rows=rows, columns=columns, predicted=predicted, truth=truth))


def _running(p, classes):
  """Scores pixels in one row, given p [pixel, class] and classes [pixel]."""
  classes = np.atleast_1d(classes)
  running = RunningScores(_KEY, columns=len(classes))
  p = np.broadcast_to(p, (len(classes), 256))
  truth = (classes / 255).astype(np.float32)[np.newaxis]
  _add(running, _predicted(p[np.newaxis], classes[np.newaxis]), truth)
  return running


def _of_pictures(median, truth, parts=()):
  """Scores of medians alone, in parts or as a whole; the distributions are uniform."""
  running = RunningScores(_KEY, columns=truth.shape[1])
  some = _predicted(np.full((1, 1, 256), 1 / 256), np.zeros((1, 1), int))
  for part in parts or [tuple(slice(0, n) for n in truth.shape)]:
    predicted = {s: np.broadcast_to(v, truth[part].shape) for s, v in some.items()}
    _add(running, predicted | {Statistic.MEDIAN: median[part]}, truth[part], *part)
  return running.scores()


def _tiles(shape, heights, widths=()):
  """Parts of an image, row by row, each row from left to right."""
  ends = [
    [0, *np.cumsum(lengths), size] for lengths, size in zip((heights, widths), shape, strict=True)
  ]
  rows, columns = ([slice(int(a), int(b)) for a, b in itertools.pairwise(e)] for e in ends)
  return list(itertools.product(rows, columns))


def _random(seed, shape=(37, 23)):
  return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _point(k):
  return np.eye(256)[k]


# Medians as pictures.

_TILES = tuple(
  (rows, columns)
  for rows in (slice(0, 5), slice(6, 37), slice(5, 6))
  for columns in (slice(20, 23), slice(0, 20))
)


@pytest.mark.parametrize(
  'parts',
  [
    (),
    tuple((slice(i, i + 1), slice(0, 23)) for i in range(37)),
    _TILES,
  ],
)
def test_scores_of_pictures_are_those_of_the_whole_image(parts):
  median, truth = (_random(0) + _random(1)) / 2, _random(1)
  scores = _of_pictures(median, truth, parts)
  images = truth.astype(float), median.astype(float)
  assert scores.pixels == truth.size
  correlation, _ = skimage.measure.pearson_corr_coeff(*images)
  mean_squared = skimage.metrics.mean_squared_error(*images)
  psnr = skimage.metrics.peak_signal_noise_ratio(*images, data_range=1)
  assert scores.pearson_r == pytest.approx(correlation)
  assert scores.mae == pytest.approx(np.abs(images[0] - images[1]).mean())
  assert scores.rmse == pytest.approx(math.sqrt(mean_squared))
  assert scores.psnr == pytest.approx(psnr)


def test_perfect_picture():
  scores = _of_pictures(_random(0), _random(0))
  assert scores.pearson_r == pytest.approx(1)
  assert scores.ssim == pytest.approx(1)
  assert (scores.mae, scores.rmse, scores.psnr) == (0, 0, math.inf)


def test_inverted_picture():
  assert _of_pictures(1 - _random(0), _random(0)).pearson_r == pytest.approx(-1)


@pytest.mark.parametrize('value', [0, 0.1, 1 / 3, 1])
def test_constants_do_not_correlate(value):
  constant = np.full((37, 23), value, np.float32)
  for median, truth in ((constant, _random(0)), (_random(0), constant), (constant, constant)):
    scores = _of_pictures(median, truth, _TILES)
    assert math.isnan(scores.pearson_r)
    assert scores.mae == pytest.approx(np.abs(median.astype(float) - truth).mean())


def test_dim_image_with_a_bright_background_correlates():
  """A contrast of one 16-bit step in a single pixel is no rounding error."""
  truth = np.full((37, 23), 0.5, np.float32)
  truth[3, 4] += 1 / 65535
  assert _of_pictures(truth, truth, _TILES).pearson_r == pytest.approx(1, abs=1e-3)


def _ssim_of_whole(median, truth):
  return skimage.metrics.structural_similarity(
    median.astype(float), truth.astype(float), data_range=1
  )


@pytest.mark.parametrize(
  'heights', [(), (36,), (1,) * 36, (6, 7), (7, 6, 1), (3, 2, 1, 20, 1, 5), (5, 13)]
)
@pytest.mark.parametrize('widths', [(), (8, 8), (1, 21)])
def test_ssim_of_bands_is_that_of_the_whole(heights, widths):
  # Neither dim nor bright, so that constants, contrast and structure all matter.
  truth = _random(1)
  median = 0.7 * truth + 0.2 * _random(0)
  expected = _ssim_of_whole(median, truth)
  assert 0.1 < expected < 0.97
  parts = _tiles(truth.shape, heights, widths)
  assert _of_pictures(median, truth, parts).ssim == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_band_that_is_split(monkeypatch):
  monkeypatch.setattr(metrics, '_SSIM_PIXELS', 200)
  median, truth = _random(0), _random(1)
  assert _of_pictures(median, truth, _tiles(truth.shape, (30,))).ssim == pytest.approx(
    _ssim_of_whole(median, truth), abs=1e-9
  )


@pytest.mark.parametrize('shape', [(7, 7), (7, 30), (30, 7)])
def test_ssim_of_the_smallest_images(shape):
  median, truth = _random(0, shape), _random(1, shape)
  assert _of_pictures(median, truth, _tiles(shape, (2,))).ssim == pytest.approx(
    _ssim_of_whole(median, truth), abs=1e-9
  )


@pytest.mark.parametrize('shape', [(6, 30), (30, 6), (1, 1)])
def test_no_ssim_of_smaller_images(shape):
  scores = _of_pictures(_random(0, shape), _random(1, shape))
  assert math.isnan(scores.ssim)
  assert scores.mae > 0


# Distributions.


@pytest.mark.parametrize('c', [0, 100, 255])
def test_uniform_distribution(c):
  scores = _running(np.full(256, 1 / 256), c).scores()
  # F(k) = (k + 1) / 256; below c its square counts, from c on that of what lacks to 1.
  below, above = np.arange(1, c + 1) / 256, np.arange(c + 1, 257) / 256
  assert scores.crps == pytest.approx(((below**2).sum() + ((1 - above) ** 2).sum()) / 255)
  assert scores.cross_entropy == pytest.approx(1)
  assert scores.negative_log_likelihood == pytest.approx(math.log(256))
  assert scores.width_50 == pytest.approx(0.5, abs=1 / 255)
  assert scores.width_95 == pytest.approx(0.95, abs=1 / 255)


@pytest.mark.parametrize(('k', 'c'), [(10, 10), (10, 200), (200, 10)])
def test_crps_of_a_point_mass_is_the_absolute_error(k, c):
  with np.errstate(divide='ignore'):
    scores = _running(_point(k), c).scores()
  assert scores.crps == pytest.approx(abs(k - c) / 255)
  assert scores.crps == pytest.approx(scores.mae)
  assert (scores.width_50, scores.width_80, scores.width_95) == (0, 0, 0)


def test_two_points():
  scores = _running(0.25 * _point(50) + 0.75 * _point(150), 100).scores()
  # F is 1/4 up to the truth, from where it lacks 3/4.
  assert scores.crps == pytest.approx((50 * 0.25**2 + 50 * 0.75**2) / 255)
  assert scores.width_50 == pytest.approx(100 / 255)
  assert scores.mae == pytest.approx(50 / 255)
  assert scores.negative_log_likelihood == math.inf


def test_crps_is_scoringrules():
  random = np.random.default_rng(0)
  p = special.softmax(3 * random.standard_normal((50, 256)), axis=-1)
  classes = random.integers(0, 256, 50)
  expected = scoringrules.crps_ensemble(
    classes / 255, np.broadcast_to(_LEVELS, p.shape), ens_w=p, estimator='int', backend='numpy'
  )
  assert _running(p, classes).scores().crps == pytest.approx(np.mean(expected))


# Calibration.


def test_certain_background_is_covered_as_nominally():
  """All weight on the true class, black: every interval holds it, yet covers only its share."""
  reliability = _running(_point(0), np.zeros(5, int)).reliability()
  assert reliability.coverage(80) == pytest.approx(0.8, abs=1e-12)
  assert reliability.coverage_error == pytest.approx(0, abs=1e-12)
  np.testing.assert_allclose(reliability.pit, np.linspace(0, 1, 41), atol=1e-12)
  assert reliability.expected_calibration_error == 0


def test_weight_of_a_class_is_spread_evenly():
  """The true class has F from 0.2 to 0.6: its weight's density there is 2.5."""
  p = 0.2 * _point(3) + 0.4 * _point(7) + 0.4 * _point(9)
  reliability = _running(p, 7).reliability()
  assert reliability.coverage(50) == pytest.approx(2.5 * (0.6 - 0.25))
  assert reliability.coverage(20) == pytest.approx(2.5 * 0.2)
  assert reliability.coverage(95) == pytest.approx(1)


@pytest.mark.parametrize(('c', 'pit'), [(0, 0), (100, 0.5), (255, 1)])
def test_impossible_truth(c, pit):
  """All probability is at two points, with none between and around them; the PIT is F(c)."""
  reliability = _running(0.5 * _point(50) + 0.5 * _point(200), c).reliability()
  mass = np.diff(reliability.pit)
  assert mass.sum() == pytest.approx(1)
  bins = {0: 0, 0.5: 19, 1: 39}
  assert mass[bins[pit]] == pytest.approx(1)
  assert reliability.coverage(95) == pytest.approx(float(pit == 0.5))


def test_probability_above_one_by_rounding():
  predicted = _predicted(_point(9)[np.newaxis, np.newaxis], np.array([[9]]))
  above = np.array([[1.0000002]], np.float32)
  predicted |= dict.fromkeys((Statistic.PROBABILITY_UP_TO, Statistic.MODE_PROBABILITY), above)
  running = RunningScores(_KEY, columns=1)
  _add(running, predicted, np.array([[9 / 255]], np.float32))
  reliability = running.reliability()
  np.testing.assert_allclose(reliability.pit, np.linspace(0, 1, 41), atol=1e-12)
  assert reliability.bin_pixels == (0,) * 14 + (1,)


def _normal(means, deviation):
  """Normal distributions with these means, in classes, cut into classes: [pixel, class]."""
  edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
  return np.diff(stats.norm.cdf((edges - means[:, np.newaxis]) / deviation), axis=-1)


def _draws(count, deviation):
  """Means, and classes drawn from normal distributions around them."""
  random = np.random.default_rng(0)
  means = random.uniform(100, 155, count)
  return means, np.rint(random.normal(means, deviation)).astype(int).clip(0, 255)


def test_calibrated_normal_distributions():
  count, deviation = 4000, 12
  means, classes = _draws(count, deviation)
  running = _running(_normal(means, deviation), classes)
  scores, reliability = running.scores(), running.reliability()
  for percent in metrics.NOMINAL:
    share = percent / 100
    sampling = math.sqrt(share * (1 - share) / count)
    assert abs(reliability.coverage(percent) - share) < 4 * sampling
  assert scores.coverage_error < 4 * 0.5 / math.sqrt(count)
  assert scores.expected_calibration_error < 4 * math.sqrt(0.03 / count)
  for percent, width in ((50, scores.width_50), (80, scores.width_80), (95, scores.width_95)):
    expected = 2 * stats.norm.ppf(0.5 + percent / 200) * deviation / 255
    assert width == pytest.approx(expected, abs=0.5 / 255)
  # Of the normal distribution: 2 phi(0) - 1 / sqrt(pi) on average, in standard deviations.
  assert scores.crps == pytest.approx(deviation / 255 / math.sqrt(math.pi), rel=0.05)


@pytest.mark.parametrize('factor', [0.5, 2])
def test_too_narrow_or_too_wide(factor):
  """A normal distribution of the wrong width has a coverage in closed form."""
  means, classes = _draws(4000, 12)
  scores = _running(_normal(means, 12 * factor), classes).scores()

  def observed(share):
    return 2 * stats.norm.cdf(factor * stats.norm.ppf(0.5 + share / 2)) - 1

  assert scores.coverage_50 == pytest.approx(observed(0.5), abs=0.03)
  assert scores.coverage_80 == pytest.approx(observed(0.8), abs=0.03)
  assert scores.coverage_95 == pytest.approx(observed(0.95), abs=0.03)
  nominal = np.array(metrics.NOMINAL) / 100
  expected = np.abs(observed(nominal) - nominal).mean()
  assert scores.coverage_error == pytest.approx(expected, abs=0.03)


def test_expected_calibration_error():
  """Two confidences in two bins: 0.3, right in 1 of 2, and 0.9, right in 1 of 3."""
  rest = np.full(256, 1 / 256)
  p = np.stack(
    [c * _point(9) + (1 - c) * (rest - rest[9] * _point(9)) * 256 / 255 for c in (0.3, 0.9)]
  )
  running = _running(p[[0, 0, 1, 1, 1]], np.array([9, 7, 9, 8, 7]))
  assert running.scores().expected_calibration_error == pytest.approx(
    2 / 5 * abs(1 / 2 - 0.3) + 3 / 5 * abs(1 / 3 - 0.9)
  )
  reliability = running.reliability()
  assert reliability.bin_pixels == tuple(2 * (i == 4) + 3 * (i == 13) for i in range(15))
  assert reliability.bin_correct == tuple(1 * (i in (4, 13)) for i in range(15))


def test_truth_between_two_classes_is_of_the_nearer():
  predicted = _predicted(_point(9)[np.newaxis, np.newaxis], np.array([[9]]))
  for shift, correct in ((0.4, 1), (0.6, 0)):
    running = RunningScores(_KEY, columns=1)
    _add(running, predicted, np.array([[(9 + shift) / 255]], np.float32))
    assert sum(running.reliability().bin_correct) == correct


# All together.


def _tile(shape=(20, 30)):
  random = np.random.default_rng(0)
  p = special.softmax(3 * random.standard_normal((*shape, 256)), axis=-1)
  classes = random.integers(0, 256, shape)
  return _predicted(p, classes), (classes / 255).astype(np.float32)


def _in_parts(predicted, truth, parts):
  running = RunningScores(_KEY, columns=truth.shape[1])
  for part in parts:
    _add(running, {s: v[part] for s, v in predicted.items()}, truth[part], *part)
  return dataclasses.asdict(running.scores())


def test_parts_add_up():
  predicted, truth = _tile()
  expected = _in_parts(predicted, truth, [(slice(0, 20), slice(0, 30))])
  assert all(math.isfinite(value) for value in expected.values())
  assert all(type(value) in (int, float) for value in expected.values())
  found = _in_parts(predicted, truth, _tiles(truth.shape, (1, 12), (10,)))
  assert found == pytest.approx(expected, rel=1e-9)
  # In any order, but for the SSIM, which is of whole rows from the top down.
  rows = (slice(13, 20), slice(0, 1), slice(1, 13))
  found = _in_parts(predicted, truth, itertools.product(rows, (slice(10, 30), slice(0, 10))))
  del found['ssim'], expected['ssim']
  assert found == pytest.approx(expected, rel=1e-9)


def test_it_needs_what_scores_are_made_of_of_its_label():
  running = RunningScores(_KEY, columns=5)
  assert running.keys == (_KEY,)
  assert running.statistics == metrics.NEEDED


def test_nothing_has_no_scores():
  with pytest.raises(AssertionError, match='no pixels'):
    RunningScores(_KEY, columns=5).scores()


def test_infinity_and_nan_survive():
  scores = _of_pictures(np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32))
  assert scores.psnr == math.inf
  values = dataclasses.asdict(scores)
  infinite = [name for name, value in values.items() if not math.isfinite(value)]
  assert infinite == ['pearson_r', 'ssim', 'psnr']
  assert values['mae'] == 0
  stream = io.StringIO()
  csv.writer(stream).writerow(dataclasses.asdict(scores).values())
  read = [float(cell) for cell in stream.getvalue().split(',')]
  np.testing.assert_array_equal(read, list(dataclasses.asdict(scores).values()))


def test_reliability_survives_json():
  predicted, truth = _tile()
  running = RunningScores(_KEY, columns=30)
  _add(running, predicted, truth)
  reliability = running.reliability()
  values = json.loads(json.dumps(dataclasses.asdict(reliability), allow_nan=False))
  read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
  assert Reliability(**read) == reliability
  assert sum(reliability.bin_pixels) == reliability.pixels == truth.size
