"""Tests of model_util.py, against NumPy that follows the specification's words, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES
from isl.models import model_util
from isl.models.plan import ModulePlan

_EPSILON = 0.001


class _RandomValues:
  """Stands in for variables: a random constant for each, remembered by name."""

  def __init__(self, seed: int):
    self._rng = np.random.default_rng(seed)
    self.by_name: dict[str, np.ndarray] = {}

  def __call__(self, getter, name, **kwargs):
    del getter
    assert name not in self.by_name, name
    value = self._rng.normal(0, 0.5, kwargs['shape'])
    if name.endswith('moving_variance'):
      value = 0.3 + np.abs(value)
    self.by_name[name] = value.astype(np.float32)
    return tf.constant(self.by_name[name])


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _run(tensor):
  with tf.Session(graph=tf.get_default_graph()) as session:
    return session.run(tensor)


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    yield


def _normalized(net, values, scope):
  """gamma (net - mean) / sqrt(variance + epsilon) + beta."""
  gamma, beta, mean, variance = (
    values[f'{scope}/BatchNorm/{name}'].astype(np.float64)
    for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')
  )
  return gamma * (net - mean) / np.sqrt(variance + _EPSILON) + beta


def _activated(net):
  return np.concatenate([np.maximum(net, 0), np.tanh(net)], axis=-1)


def _windowed(net, kernel, stride, function):
  """Applies `function` to each window of `net`, [row, column, depth], that lies in it whole."""
  rows, columns = ((size - kernel) // stride + 1 for size in net.shape[:2])
  starts = stride * np.argwhere(np.ones((rows, columns)))
  results = [function(net[i : i + kernel, j : j + kernel]) for i, j in starts]
  return np.array(results).reshape(rows, columns, -1)


def _convolved(net, weights, stride):
  """weights [k, k, in, out]."""
  return _windowed(net, weights.shape[0], stride, lambda w: np.tensordot(w, weights, 3))


def _deconvolved(net, weights, stride):
  """Deconvolves: each pixel adds its multiple of the kernel, weights [k, k, out, in]."""
  kernel, depth = weights.shape[0], weights.shape[2]
  rows, columns = ((size - 1) * stride + kernel for size in net.shape[:2])
  result = np.zeros((rows, columns, depth))
  for row, column in np.ndindex(*net.shape[:2]):
    i, j = row * stride, column * stride
    result[i : i + kernel, j : j + kernel] += weights @ net[row, column]
  return result


def _expected_convolution(net, values, plan):
  convolved = _convolved(
    _activated(_normalized(net, values, 'm/expand_rv2')),
    values['m/expand_rv2/Conv/weights'],
    plan.stride,
  )
  pooled = _windowed(net, plan.kernel, plan.stride, lambda w: w.max(axis=(0, 1)))
  joined = np.concatenate([convolved, pooled], axis=-1)
  weights = values['m/reduce_rv2/Conv/weights']
  reduced = _convolved(_activated(_normalized(joined, values, 'm/reduce_rv2')), weights, 1)
  residual = net[1:-1, 1:-1]
  if plan.stride == 2:
    residual = _windowed(residual, 2, 2, lambda w: w.mean(axis=(0, 1)))
  result = reduced.copy()
  result[..., : residual.shape[-1]] += residual
  return result


def _expected_deconvolution(net, values, plan):
  expanded = _deconvolved(
    _activated(_normalized(net, values, 'm/expand_rv2')),
    values['m/expand_rv2/Conv2d_transpose/weights'],
    2,
  )
  weights = values['m/reduce_rv2/Conv/weights']
  reduced = _convolved(_activated(_normalized(expanded, values, 'm/reduce_rv2')), weights, 1)
  residual = net.repeat(2, axis=0).repeat(2, axis=1)
  if plan.kernel == 4:
    # SYMMETRIC: the border's pixels once more.
    residual = np.concatenate([residual[:1], residual, residual[-1:]], axis=0)
    residual = np.concatenate([residual[:, :1], residual, residual[:, -1:]], axis=1)
  depth = min(residual.shape[-1], reduced.shape[-1])
  result = residual[..., :depth] + reduced[..., :depth]
  return result[plan.crop : len(result) - plan.crop, plan.crop : result.shape[1] - plan.crop]


def _plan(kernel, stride, input_depth, expand, reduce, *, crop=None) -> ModulePlan:
  """The nominal size and the scale are none of a module's own business."""
  return ModulePlan(
    name='m',
    kernel=kernel,
    stride=stride,
    is_deconv=crop is not None,
    crop=crop or 0,
    input_depth=input_depth,
    expand_depth=expand,
    reduce_depth=reduce,
    output_size=0,
    scale=1,
  )


def _assert_is_expected(plan, expected, *, rows, columns):
  net = _normal(2, rows, columns, plan.input_depth)
  values = _RandomValues(seed=plan.reduce_depth)
  with tf.variable_scope('', custom_getter=values):
    found = _run(model_util.module(tf.constant(net), plan))
  assert found.shape[-1] == plan.output_depth
  for image, result in zip(net.astype(np.float64), found, strict=True):
    np.testing.assert_allclose(result, expected(image, values.by_name, plan), atol=2e-5)


@pytest.mark.parametrize(
  'plan',
  [
    _plan(3, 1, 4, 6, 4),
    _plan(3, 1, 3, 3, 7),  # Zeros behind the residual's last channel.
    _plan(4, 2, 2, 5, 2),
    _plan(4, 2, 2, 6, 6),
  ],
)
@pytest.mark.parametrize(('rows', 'columns'), [(8, 6), (7, 9), (4, 5)])
def test_convolution(plan, rows, columns):
  _assert_is_expected(plan, _expected_convolution, rows=rows, columns=columns)


@pytest.mark.parametrize(
  'plan',
  [
    _plan(4, 2, 4, 6, 4, crop=2),
    _plan(4, 2, 3, 6, 5, crop=2),  # The residual is the shallower one,
    _plan(4, 2, 5, 6, 3, crop=2),  # or the convolution.
    _plan(4, 2, 4, 2, 4, crop=0),  # Uncropped, what SYMMETRIC adds is seen.
    _plan(2, 2, 4, 6, 4, crop=0),
    _plan(2, 2, 3, 6, 5, crop=0),
    _plan(2, 2, 5, 1, 3, crop=0),
  ],
)
@pytest.mark.parametrize(('rows', 'columns'), [(4, 4), (3, 5)])
def test_deconvolution(plan, rows, columns):
  _assert_is_expected(plan, _expected_deconvolution, rows=rows, columns=columns)


def _batch_norm(depth: int) -> model_util.BatchNorm:
  numbers = _normal(4, depth, seed=1)
  numbers[3] = np.abs(numbers[3])
  return model_util.BatchNorm(*(tf.constant(n) for n in numbers))


def test_batch_norm_is_the_formula():
  net, norm = _normal(2, 3, 4, 5), _batch_norm(5)
  gamma, beta, mean, variance = (v.astype(np.float64) for v in _run(list(norm)))
  expected = gamma * (net - mean) / np.sqrt(variance + _EPSILON) + beta
  np.testing.assert_allclose(_run(norm.normalize(tf.constant(net))), expected, atol=1e-5)
  scale, offset = _run(norm.affine())
  np.testing.assert_allclose(net * scale + offset, expected, atol=1e-5)


def test_batch_norm_of_no_variance():
  """Epsilon alone stands under the root."""
  constants = (tf.constant([value], tf.float32) for value in (2, 3, 5, 0))
  norm = model_util.BatchNorm(*constants)
  found = _run(norm.normalize(tf.fill([1, 1, 1, 1], 6.0)))
  np.testing.assert_allclose(found.item(), 2 * (6 - 5) / np.sqrt(0.001) + 3, rtol=1e-6)


@pytest.mark.parametrize('depth', [1, 3, 4])
def test_split_batch_norms_are_the_whole_one(depth):
  net, norm = tf.constant(_normal(2, 3, 4, 5)), _batch_norm(5)
  first, rest = norm.split(depth)
  parts = [first.normalize(net[..., :depth]), rest.normalize(net[..., depth:])]
  joined, whole = _run([tf.concat(parts, axis=-1), norm.normalize(net)])
  np.testing.assert_allclose(joined, whole, atol=1e-5)


def test_projection_is_linear():
  net, values = _normal(2, 3, 4, 5), _RandomValues(seed=0)
  with tf.variable_scope('', custom_getter=values):
    found = _run(model_util.projection(tf.constant(net), 6))
  weights, biases = values.by_name['Conv/weights'], values.by_name['Conv/biases']
  np.testing.assert_allclose(found, net @ weights[0, 0] + biases, atol=1e-5)


def test_head():
  net, values = _normal(2, 3, 4, 5), _RandomValues(seed=0)
  with tf.variable_scope('', custom_getter=values):
    head = model_util.head_variables(5, ImageKey('MAXPROJECT', 'DAPI_CONFOCAL'))
    found = _run(model_util.head_logits(tf.constant(net), head))
  scope = 'head/MAXPROJECT/DAPI_CONFOCAL/residual_v2_conv'
  activations = _activated(_normalized(net, values.by_name, scope))
  weights, biases = (values.by_name[f'{scope}/Conv/{name}'] for name in ('weights', 'biases'))
  assert found.shape == (2, 3, 4, NUM_CLASSES)
  np.testing.assert_allclose(found, activations @ weights[0, 0] + biases, atol=1e-4)


def test_new_variables_start_as_training_needs_them():
  model_util.module(tf.constant(_normal(1, 5, 5, 4)), _plan(3, 1, 4, 6, 4))
  model_util.head_variables(4, ImageKey(0.0, 'TRANSMISSION'))
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    values = {v.op.name: session.run(v) for v in tf.global_variables()}
  starts = {'gamma': 1, 'beta': 0, 'moving_mean': 0, 'moving_variance': 1, 'biases': 0}
  for name, value in values.items():
    kind = name.rsplit('/', 1)[-1]
    if kind in starts:
      np.testing.assert_array_equal(value, starts[kind], err_msg=name)
    else:
      # Xavier's uniform distribution: of what a result reads and of what a pixel adds to.
      *area, read, made = value.shape
      limit = np.sqrt(6 / (np.prod(area) * (read + made)))
      assert 0.5 * limit < np.abs(value).max() <= limit, name
  trainable = {v.op.name.rsplit('/', 1)[-1] for v in tf.trainable_variables()}
  assert trainable == {'gamma', 'beta', 'weights', 'biases'}
