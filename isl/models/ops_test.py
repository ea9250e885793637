"""Tests of ops.py, against NumPy in float64."""

import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.statistic import NUM_CLASSES, AnyStatistic, Quantile, Statistic, is_class
from isl.models import ops

_LAST = NUM_CLASSES - 1
_QUANTILES = tuple(map(Quantile, (0.5, 2.5, 25, 50, 75, 97.5, 99.9)))
_STATISTICS: tuple[AnyStatistic, ...] = (
  *(s for s in Statistic if s is not Statistic.DISTRIBUTION),
  *_QUANTILES,
)


def _run(make, *arrays):
  """Runs the tensors that `make` builds of the arrays as constants."""
  with tf.Graph().as_default(), tf.Session() as session:
    return session.run(make(*map(tf.constant, arrays)))


def _statistics(logits, labels=None) -> dict[AnyStatistic, np.ndarray]:
  labels = np.zeros(len(logits), np.int32) if labels is None else np.asarray(labels, np.int32)
  values = _run(
    lambda scores, truth: ops.distribution_statistics(scores, truth, _STATISTICS),
    np.asarray(logits, np.float32),
    labels,
  )
  return dict(zip(_STATISTICS, values, strict=True))


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _expected(logits, labels) -> dict[AnyStatistic, np.ndarray]:
  log_p = _log_softmax(logits)
  p = np.exp(log_p)
  values = np.arange(NUM_CLASSES) / _LAST
  mean = p @ values
  cross_entropy = -log_p[np.arange(len(p)), labels] / math.log(NUM_CLASSES)
  classes = np.arange(NUM_CLASSES)
  labels = np.asarray(labels)[:, np.newaxis]
  step = classes >= labels
  quantiles: dict[AnyStatistic, np.ndarray] = {
    q: (p.cumsum(axis=-1) < q.percent / 100).sum(axis=-1) / _LAST for q in _QUANTILES
  }
  return quantiles | {
    Statistic.MODE: p.argmax(axis=-1) / _LAST,
    # Rounding may make the last sum a little less than 1, but never less than one half.
    Statistic.MEDIAN: (p.cumsum(axis=-1) < 0.5).sum(axis=-1) / _LAST,
    Statistic.MEAN: mean,
    Statistic.STANDARD_DEVIATION: np.sqrt((p * (values - mean[:, np.newaxis]) ** 2).sum(axis=-1)),
    Statistic.PROBABILITY_NONZERO: 1 - p[:, 0],
    Statistic.ENTROPY: -(p * np.log(p + 1e-7)).sum(axis=-1) / math.log(NUM_CLASSES),
    Statistic.CROSS_ENTROPY: cross_entropy,
    Statistic.RANKED_PROBABILITY_SCORE: ((p.cumsum(axis=-1) - step) ** 2).sum(axis=-1) / _LAST,
    Statistic.PROBABILITY_BELOW: (p * (classes < labels)).sum(axis=-1),
    Statistic.PROBABILITY_UP_TO: (p * (classes <= labels)).sum(axis=-1),
    Statistic.MODE_PROBABILITY: p.max(axis=-1),
  }


def _random(scale, seed=0, pixels=500):
  rng = np.random.default_rng(seed)
  # Multiples of 1/64, exact in float32: no tie that one rounding sees and the other does not.
  logits = np.round(rng.normal(0, scale, (pixels, NUM_CLASSES)) * 64) / 64
  return logits, rng.integers(0, NUM_CLASSES, pixels)


def _smooth():
  """A peak of any width at any class, as a trained network gives."""
  rng = np.random.default_rng(1)
  center = rng.uniform(-5, _LAST + 5, (500, 1))
  width = np.exp(rng.uniform(-1, 5, (500, 1)))
  return -0.5 * ((np.arange(NUM_CLASSES) - center) / width) ** 2, rng.integers(0, NUM_CLASSES, 500)


def _extreme():
  rng = np.random.default_rng(2)
  logits = rng.choice([-200.0, 0.0, 200.0], (300, NUM_CLASSES), p=[0.6, 0.39, 0.01])
  return logits + _random(1, pixels=300)[0], rng.integers(0, NUM_CLASSES, 300)


@pytest.mark.parametrize(
  ('logits', 'labels'),
  [_random(0.1), _random(1), _random(10), _smooth(), _extreme()],
  ids=['nearly uniform', 'random', 'peaked', 'smooth', 'extreme'],
)
def test_statistics_are_the_formulas(logits, labels):
  found, expected = _statistics(logits, labels), _expected(logits.astype(np.float32), labels)
  for statistic, values in found.items():
    assert np.isfinite(values).all(), statistic
    if is_class(statistic):
      # Sums that are the share but for rounding.
      equal = np.abs(values - expected[statistic]) < 1e-6
      assert equal.mean() >= 0.998, statistic
    else:
      np.testing.assert_allclose(
        values, expected[statistic], rtol=1e-5, atol=1e-5, err_msg=statistic
      )


@pytest.mark.parametrize('k', [0, 1, 15, 16, 17, 128, 254, 255])
@pytest.mark.parametrize('height', [30, 200])
def test_mass_at_one_class(k, height):
  """exp(-30) * 255 is below float32's resolution of 1, exp(-200) is 0."""
  found = _statistics([height * (np.arange(NUM_CLASSES) == k)], [k])
  for statistic in (Statistic.MODE, Statistic.MEDIAN, Statistic.MEAN):
    np.testing.assert_allclose(found[statistic], k / _LAST, atol=1e-6)
  np.testing.assert_allclose(found[Statistic.STANDARD_DEVIATION], 0, atol=1e-5)
  np.testing.assert_allclose(found[Statistic.ENTROPY], 0, atol=1e-5)
  np.testing.assert_allclose(found[Statistic.CROSS_ENTROPY], 0, atol=1e-6)
  np.testing.assert_allclose(found[Statistic.PROBABILITY_NONZERO], float(k != 0), atol=1e-6)


@pytest.mark.parametrize('level', [-200, 0, 200])
def test_uniform_distribution(level):
  found = _statistics([np.full(NUM_CLASSES, level)], [77])
  assert found[Statistic.MODE] == 0
  # The first 127 sums are below one half; the 128th is one half.
  np.testing.assert_allclose(found[Statistic.MEDIAN], 127 / _LAST, atol=1e-7)
  np.testing.assert_allclose(found[Statistic.MEAN], 1 / 2, atol=1e-6)
  # The variance of 0..n-1 is (n^2 - 1) / 12.
  deviation = math.sqrt((NUM_CLASSES**2 - 1) / 12) / _LAST
  np.testing.assert_allclose(found[Statistic.STANDARD_DEVIATION], deviation, rtol=1e-5)
  np.testing.assert_allclose(found[Statistic.PROBABILITY_NONZERO], 255 / 256, rtol=1e-6)
  np.testing.assert_allclose(found[Statistic.ENTROPY], 1, atol=1e-5)
  np.testing.assert_allclose(found[Statistic.CROSS_ENTROPY], 1, atol=1e-6)


@pytest.mark.parametrize(
  ('low', 'high'), [(0, 1), (0, 255), (0, 15), (15, 16), (16, 31), (100, 200), (254, 255)]
)
def test_median_of_two_equal_masses_is_the_lower(low, high):
  """At the lower class the sum is one half, which is not below it."""
  found = _statistics([200 * np.isin(np.arange(NUM_CLASSES), [low, high])])
  np.testing.assert_allclose(found[Statistic.MEDIAN], low / _LAST, atol=1e-7)
  np.testing.assert_allclose(found[Statistic.MODE], low / _LAST, atol=1e-7)
  np.testing.assert_allclose(found[Statistic.MEAN], (low + high) / 2 / _LAST, rtol=1e-5)


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0, 255), (15, 16), (31, 32), (254, 255)])
def test_median_is_where_the_larger_mass_is(low, high):
  logits = np.full((2, NUM_CLASSES), -200.0)
  logits[:, [low, high]] = [[0, 0.001], [0.001, 0]]
  found = _statistics(logits)
  np.testing.assert_allclose(found[Statistic.MEDIAN], [high / _LAST, low / _LAST], atol=1e-7)


def test_median_of_any_two_masses():
  """Everywhere where the search passes from one group of classes to the next."""
  rng = np.random.default_rng(0)
  logits = np.full((2000, NUM_CLASSES), -200.0)
  first, second = rng.integers(0, NUM_CLASSES, (2, 2000))
  logits[np.arange(2000), first] = 1
  logits[np.arange(2000), second] = 0
  np.testing.assert_allclose(_statistics(logits)[Statistic.MEDIAN], first / _LAST, atol=1e-7)


def test_quantile_50_is_the_median():
  found = _statistics(_smooth()[0])
  np.testing.assert_array_equal(found[Quantile(50)], found[Statistic.MEDIAN])


def test_quantiles_rise_with_their_percentage():
  found = _statistics(_random(3)[0])
  values = np.stack([found[q] for q in _QUANTILES])
  assert (np.diff(values, axis=0) >= 0).all()


def test_statistics_are_within_their_bounds():
  """All that is written as a picture is in [0, 1]; entropy may be below 0 by its 1e-7."""
  for logits, _ in (_random(1), _random(100), _smooth(), _extreme()):
    for statistic, values in _statistics(logits).items():
      if statistic is not Statistic.CROSS_ENTROPY:
        assert values.min() >= -1e-6, statistic
        assert values.max() <= 1 + 1e-6, statistic


def test_equally_likely_modes_give_the_first():
  logits = np.zeros((1, NUM_CLASSES))
  logits[0, [7, 9]] = 3
  np.testing.assert_allclose(_statistics(logits)[Statistic.MODE], 7 / _LAST, atol=1e-7)


def test_standard_deviation_of_a_narrow_distribution_does_not_cancel():
  """Two classes with 1 - q and q: sqrt(q (1 - q)) / 255, at the upper end of the range."""
  gap = 12.0
  logits = np.full((1, NUM_CLASSES), -200.0)
  logits[0, 254:] = [-gap, 0]
  q = 1 / (1 + math.exp(gap))
  found = _statistics(logits)[Statistic.STANDARD_DEVIATION]
  np.testing.assert_allclose(found, math.sqrt(q * (1 - q)) / _LAST, rtol=1e-2)


@pytest.mark.parametrize('gap', [50, 100, 104, 200, 1000])
def test_cross_entropy_where_the_probability_underflows(gap):
  """exp(-104) is 0 in float32."""
  found = _statistics([-gap * (np.arange(NUM_CLASSES) == 3)], [3])[Statistic.CROSS_ENTROPY]
  expected = (gap + math.log(NUM_CLASSES - 1)) / math.log(NUM_CLASSES)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_the_statistics_asked_for_in_their_order():
  logits, labels = _random(1, pixels=5)
  chosen = [Statistic.ENTROPY, Statistic.MODE, Statistic.CROSS_ENTROPY]
  whole = _statistics(logits, labels)
  found = _run(
    lambda scores, truth: ops.distribution_statistics(scores, truth, chosen),
    logits.astype(np.float32),
    labels.astype(np.int32),
  )
  np.testing.assert_array_equal(found, [whole[statistic] for statistic in chosen])


def test_every_class_is_its_own_values():
  values = (np.arange(NUM_CLASSES) / _LAST).astype(np.float32)
  np.testing.assert_array_equal(_run(ops.class_of, values), np.arange(NUM_CLASSES))


def test_values_between_classes_are_rounded():
  values = np.array([0.49, 0.51, 1.49, 254.49, 254.51]) / _LAST
  np.testing.assert_array_equal(_run(ops.class_of, values.astype(np.float32)), [0, 1, 1, 254, 255])


@pytest.mark.parametrize('margin', [0, 1, 2])
def test_crop(margin):
  net = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)
  found = _run(lambda t: ops.crop(t, margin), net)
  np.testing.assert_array_equal(found, net[:, margin : 5 - margin, margin : 7 - margin])


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize('size', [1, 4])
def test_patches_tile_the_images(rows, columns, size):
  net = np.random.default_rng(0).random((2, rows * size, columns * size, 3), np.float32)
  patches = _run(lambda t: ops.images_to_patches(t, size), net)
  assert patches.shape == (2 * rows * columns, size, size, 3)
  for i, (image, row, column) in enumerate(np.ndindex(2, rows, columns)):
    window = net[image, row * size : (row + 1) * size, column * size : (column + 1) * size]
    np.testing.assert_array_equal(patches[i], window)


def test_patches_of_patches_are_the_smaller_patches():
  """Cutting in two steps gives all that cutting at once gives."""
  net = np.random.default_rng(0).random((1, 8, 12, 1), np.float32)
  once = _run(lambda t: ops.images_to_patches(t, 2), net)
  twice = _run(lambda t: ops.images_to_patches(ops.images_to_patches(t, 4), 2), net)
  np.testing.assert_array_equal(np.sort(once.ravel()), np.sort(twice.ravel()))
  assert {p.tobytes() for p in once} == {p.tobytes() for p in twice}
