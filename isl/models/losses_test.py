"""Tests of losses.py: formulas on small distributions."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.experiment import Loss
from isl.models import losses

_K = 256


def _value(make, *arrays):
  """Runs a function of tensors on arrays."""
  with tf.Graph().as_default(), tf.Session() as session:
    return session.run(make(*(tf.constant(array) for array in arrays)))


def _logits(*distributions):
  """The logits of distributions given as {class: probability}: float32 [distribution, class]."""
  logits = np.full((len(distributions), _K), -1e4, np.float32)
  for row, distribution in zip(logits, distributions, strict=True):
    for k, p in distribution.items():
      row[k] = np.log(p)
  return logits


def _random(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 3, (*shape, _K)).astype(np.float32), rng.integers(0, _K, shape, np.int32)


def _softmax(logits):
  p = np.exp(logits.astype(float) - logits.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('loss', Loss)
def test_perfect_is_0(loss):
  classes = np.array([0, 17, 255], np.int32)
  logits = _logits(*({c: 1.0} for c in classes))
  found = _value(losses.loss_function(loss), logits, classes)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_cross_entropy_of_the_uniform_distribution_is_1():
  classes = np.array([0, 100, 255], np.int32)
  found = _value(losses.cross_entropy, np.full((3, _K), 2.5, np.float32), classes)
  np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_cross_entropy_is_its_formula():
  logits = _logits({3: 0.25, 8: 0.75}, {3: 0.25, 8: 0.75})
  found = _value(losses.cross_entropy, logits, np.array([3, 8], np.int32))
  np.testing.assert_allclose(found, -np.log([0.25, 0.75]) / np.log(_K), rtol=1e-6)


def test_ranked_probability_score_is_its_formula():
  # Between its two classes the cumulative is 0.25, apart from the step by that or by 0.75.
  logits = _logits(*[{3: 0.25, 8: 0.75}] * 4)
  found = _value(losses.ranked_probability_score, logits, np.array([3, 8, 5, 9], np.int32))
  five = 5 / 255
  expected = [
    five * 0.75**2,
    five * 0.25**2,
    (2 * 0.25**2 + 3 * 0.75**2) / 255,
    five * 0.25**2 + 1 / 255,
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(('weight', 'true'), [(0, 255), (255, 0)])
def test_ranked_probability_score_is_1_at_the_other_end(weight, true):
  found = _value(
    losses.ranked_probability_score, _logits({weight: 1.0}), np.array([true], np.int32)
  )
  np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_ranked_probability_score_grows_with_the_distance():
  classes = np.arange(100, 200, 10, dtype=np.int32)
  logits = _logits(*[{100: 1.0}] * len(classes))
  found = _value(losses.ranked_probability_score, logits, classes)
  np.testing.assert_allclose(found, (classes - 100) / 255, atol=1e-6)


@pytest.mark.parametrize('loss', Loss)
@pytest.mark.parametrize('shape', [(7,), (2, 3), (2, 1, 3, 2)])
def test_leading_dimensions_are_free(loss, shape):
  logits, classes = _random(*shape)
  p = _softmax(logits)
  if loss is Loss.CROSS_ENTROPY:
    expected = -np.log(np.take_along_axis(p, classes[..., None], -1)[..., 0]) / np.log(_K)
  else:
    step = np.arange(_K) >= classes[..., None]
    expected = ((np.cumsum(p, -1) - step) ** 2).sum(-1) / 255
  found = _value(losses.loss_function(loss), logits, classes)
  assert found.shape == shape
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('loss', Loss)
def test_gradient_is_finite_where_the_true_classs_probability_underflows(loss):
  logits = np.zeros((2, _K), np.float32)
  logits[0, 7] = 1e4
  logits[1] -= 1e4
  classes = np.array([200, 3], np.int32)

  def value_and_gradient(x, c):
    value = losses.loss_function(loss)(x, c)
    return value, tf.gradients(value, x)[0]

  value, gradient = _value(value_and_gradient, logits, classes)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()
  if loss is Loss.CROSS_ENTROPY:
    assert value[0] == pytest.approx(1e4 / np.log(_K))
    assert gradient[0, 200] == pytest.approx(-1 / np.log(_K))


@pytest.mark.parametrize('loss', Loss)
def test_gradient_is_the_derivative(loss):
  logits, classes = _random(1)
  direction = np.random.default_rng(1).normal(0, 1, logits.shape).astype(np.float32)

  def made(x, c):
    function = losses.loss_function(loss)
    step = 0.05
    difference = function(x + step * direction, c) - function(x - step * direction, c)
    along = tf.reduce_sum(tf.gradients(function(x, c), x)[0] * direction)
    return along, difference[0] / (2 * step)

  along, difference = _value(made, logits, classes)
  assert along == pytest.approx(difference, rel=0.02)


def test_masked_mean_divides_by_the_pixels_whose_mask_is_not_0():
  loss = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], np.float32)
  mask = np.array([[1, 1, 1, 1], [0, 0.5, 1, 0], [0, 0, 0, 0]], np.float32)
  found = _value(losses.masked_mean, loss, mask)
  np.testing.assert_allclose(found, [2.5, (0.5 * 2 + 3) / 2, 0], rtol=1e-6)


@pytest.mark.parametrize('shape', [(2,), (2, 3), (2, 1, 5), (2, 3, 1), (1, 3, 5), (2, 3, 5)])
def test_masked_mean_broadcasts(shape):
  rng = np.random.default_rng(0)
  loss = rng.random((2, 3, 5), np.float32)
  mask = rng.integers(0, 3, shape).astype(np.float32) / 2
  mask.flat[0] = 1
  whole = np.broadcast_to(mask.reshape(shape + (1,) * (3 - len(shape))), loss.shape)
  counts = (whole != 0).sum((1, 2))
  expected = np.where(counts, (whole * loss).sum((1, 2)) / np.maximum(counts, 1), 0)
  np.testing.assert_allclose(_value(losses.masked_mean, loss, mask), expected, rtol=1e-5)


def test_masked_mean_without_pixels_has_the_gradient_0():
  def gradient(loss, mask):
    return tf.gradients(losses.masked_mean(loss, mask), loss)[0]

  found = _value(gradient, np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
  np.testing.assert_array_equal(found, 0)


def test_total_weighs_inputs_and_targets_alike():
  inputs, targets = np.arange(26, dtype=np.float32), np.arange(9, dtype=np.float32)
  assert losses.total(inputs.mean(), targets.mean()) == pytest.approx(0.5 * 12.5 + 0.5 * 4)
