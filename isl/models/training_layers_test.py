"""Tests of the layers in training: textbook formulas in double precision, and inference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.models import model_util, training_layers
from isl.models.plan import ModulePlan

_EPSILON = 0.001
_KEYS = (ImageKey(0.0, 'TRANSMISSION'), ImageKey('MAXPROJECT', 'DAPI_CONFOCAL'))
_SCOPES = tuple(f'head/{key}/residual_v2_conv' for key in _KEYS)


class _Variables:
  """Random values for whatever is asked for, the same under each name, in two precisions."""

  def __init__(self) -> None:
    self._rng = np.random.default_rng(0)
    self.single: dict[str, tf.Tensor] = {}
    self.double: dict[str, tf.Tensor] = {}

  def custom_getter(self, getter, name, shape, **kwargs):
    del getter, kwargs
    if name not in self.single:
      value = self._rng.normal(0.2, 0.5, shape).astype(np.float32)
      self.single[name] = tf.constant(value)
      self.double[name] = tf.constant(value.astype(np.float64))
    return self.single[name]


def _constants(*shape, seed=1):
  """Random numbers in single and in double precision."""
  value = np.random.default_rng(seed).normal(0.1, 1, shape).astype(np.float32)
  return tf.constant(value), tf.constant(value.astype(np.float64))


def _run(tensors):
  with tf.Session() as session:
    return session.run(tensors)


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    yield


def _plan(kernel, stride, input_depth, expand, reduce, *, crop=None) -> ModulePlan:
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


_PLANS = {
  'stride 1': _plan(3, 1, 4, 6, 4),
  'stride 1, fast depth': _plan(3, 1, 3, 16, 7),
  'stride 1, deeper than 8': _plan(3, 1, 5, 11, 6),
  'stride 2': _plan(4, 2, 3, 6, 5),
  'stride 2, fast depth': _plan(4, 2, 4, 8, 4),
  'deconvolution': _plan(2, 2, 4, 6, 3, crop=0),
  'deconvolution, deeper': _plan(2, 2, 3, 8, 5, crop=0),
  'cropped deconvolution': _plan(4, 2, 4, 6, 4, crop=2),
  'uncropped deconvolution': _plan(4, 2, 5, 9, 3, crop=0),
}


def _normalized(net, values, scope, found):
  """gamma (net - mean) / sqrt(variance + epsilon) + beta, by the batch's own statistics."""
  mean = tf.reduce_mean(net, [0, 1, 2])
  squares = tf.reduce_mean((net - mean) ** 2, [0, 1, 2])
  count = np.prod(net.shape.as_list()[:3])
  found[f'{scope}/BatchNorm/moving_mean'] = mean
  found[f'{scope}/BatchNorm/moving_variance'] = squares * count / (count - 1)
  gamma, beta = values[f'{scope}/BatchNorm/gamma'], values[f'{scope}/BatchNorm/beta']
  return gamma * (net - mean) / tf.sqrt(squares + _EPSILON) + beta


def _activated(net):
  return tf.concat([tf.nn.relu(net), tf.tanh(net)], axis=-1)


def _textbook_module(net, values, plan):
  """The specification's module, plainly: (result, what moving averages should follow)."""
  found: dict[str, tf.Tensor] = {}
  activations = _activated(_normalized(net, values, 'm/expand_rv2', found))
  if plan.is_deconv:
    batch, rows, columns, _ = net.shape.as_list()
    rows, columns = ((size - 1) * plan.stride + plan.kernel for size in (rows, columns))
    joined = tf.nn.conv2d_transpose(
      activations,
      values['m/expand_rv2/Conv2d_transpose/weights'],
      [batch, rows, columns, plan.expand_depth],
      strides=plan.stride,
      padding='VALID',
    )
    residual = tf.repeat(tf.repeat(net, plan.stride, axis=1), plan.stride, axis=2)
    if plan.kernel == 4:
      residual = tf.pad(residual, [[0, 0], [1, 1], [1, 1], [0, 0]], mode='SYMMETRIC')
  else:
    convolved = tf.nn.conv2d(
      activations, values['m/expand_rv2/Conv/weights'], strides=plan.stride, padding='VALID'
    )
    pooled = tf.nn.max_pool2d(net, plan.kernel, plan.stride, 'VALID')
    joined = tf.concat([convolved, pooled], axis=-1)
    residual = net[:, 1:-1, 1:-1]
    if plan.stride == 2:
      residual = tf.nn.avg_pool2d(residual, 2, 2, 'VALID')
  activations = _activated(_normalized(joined, values, 'm/reduce_rv2', found))
  reduced = tf.nn.conv2d(
    activations, values['m/reduce_rv2/Conv/weights'], strides=1, padding='VALID'
  )
  depths = [net.shape.as_list()[-1] for net in (residual, reduced)]
  if plan.is_deconv:
    result = residual[..., : min(depths)] + reduced[..., : min(depths)]
  else:
    residual, reduced = (
      tf.pad(net, [[0, 0], [0, 0], [0, 0], [0, max(depths) - depth]])
      for net, depth in zip((residual, reduced), depths, strict=True)
    )
    result = residual + reduced
  rows, columns = (size - plan.crop for size in result.shape.as_list()[1:3])
  return result[:, plan.crop : rows, plan.crop : columns], found


def _assert_near(found, expected, name):
  """Up to what single precision costs, seen from the largest number."""
  assert found.shape == expected.shape, name
  scale = np.abs(expected).max()
  assert scale > 0, name
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale, err_msg=name)


def _assert_same(variables, nets, results, statistics):
  """Compares single precision with double: values, gradients by a random direction, statistics.

  Args:
    variables: the variables that the results were computed from.
    nets: the inputs, in single and in double precision.
    results: the results of the layers in single precision, and of the textbook's in double.
    statistics: the statistics of both, by name.
  """
  directions = _constants(*results[0].shape.as_list(), seed=2)
  sides = []
  for values, net, result, direction, found in zip(
    (variables.single, variables.double), nets, results, directions, statistics, strict=True
  ):
    read = {'net': net, **values}
    gradients = tf.gradients(tf.reduce_sum(result * direction), list(read.values()))
    assert None not in gradients
    sides.append(
      {'result': result}
      | {f'gradient of {name}': g for name, g in zip(read, gradients, strict=True)}
      | {f'statistic {name}': tensor for name, tensor in found.items()}
    )
  found, expected = _run(sides)
  assert found.keys() == expected.keys()
  for name, value in found.items():
    _assert_near(value, expected[name], name)


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('kind', _PLANS)
def test_module_is_the_textbooks(monkeypatch, kind, compiled):
  if compiled:
    monkeypatch.setattr(training_layers, '_WORTH_COMPILING', 0)
  plan, variables, statistics = _PLANS[kind], _Variables(), training_layers.BatchStatistics()
  nets = _constants(3, 8, 6, plan.input_depth)
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    result = training_layers.module(nets[0], plan, statistics)
  expected, found = _textbook_module(nets[1], variables.double, plan)
  assert statistics.activations == {'m': result}
  _assert_same(variables, nets, (result, expected), (statistics.collected, found))


@pytest.mark.parametrize('kind', _PLANS)
def test_inference_with_the_batchs_statistics_is_the_same(kind):
  """Averages that have followed one batch for long give what the batch's statistics give.

  They take the unbiased variance.
  """
  plan, variables, statistics = _PLANS[kind], _Variables(), training_layers.BatchStatistics()
  net, _ = _constants(3, 8, 6, plan.input_depth)
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    result = training_layers.module(net, plan, statistics)
  rows, columns = (size + 2 * plan.crop for size in result.shape.as_list()[1:3])
  for scope, count in (('expand_rv2', 3 * 8 * 6), ('reduce_rv2', 3 * rows * columns)):
    for kind, share in (('moving_mean', 1), ('moving_variance', (count - 1) / count)):
      name = f'm/{scope}/BatchNorm/{kind}'
      variables.single[name] = statistics.collected[name] * share
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    expected = model_util.module(net, plan)
  found, value = _run([result, expected])
  _assert_near(found, value, 'result')


def test_logits_are_the_textbooks():
  variables, statistics = _Variables(), training_layers.BatchStatistics()
  nets = _constants(3, 4, 5, 6)
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    result = training_layers.logits(nets[0], _KEYS, statistics)
  logits, found = [], dict[str, tf.Tensor]()
  for scope in _SCOPES:
    activations = _activated(_normalized(nets[1], variables.double, scope, found))
    weights, biases = (variables.double[f'{scope}/Conv/{name}'] for name in ('weights', 'biases'))
    logits.append(tf.reshape(activations @ weights[0] + biases, [3 * 4 * 5, -1]))
  _assert_same(variables, nets, (result, tf.stack(logits)), (statistics.collected, found))


def test_projection_is_that_of_intensities_and_masks():
  net = tf.constant(np.random.default_rng(0).random((2, 3, 4, 5), np.float32))
  variables = _Variables()
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    found = training_layers.projection(net, 6)
    expected = model_util.projection(model_util.with_masks(net), 6)
  direction, _ = _constants(*expected.shape.as_list())
  assert variables.single.keys() == {'Conv/weights', 'Conv/biases'}
  read = [net, *variables.single.values()]
  pairs = [(found, expected)]
  pairs += zip(*(tf.gradients(r * direction, read) for r in pairs[0]), strict=True)
  for value, other in _run(pairs):
    _assert_near(value, other, 'projection')


def test_with_masks_is_z_slowest_and_masks_of_1():
  net = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
  found = _run(model_util.with_masks(tf.constant(net)))
  assert found.shape == (2, 3, 4, 10)
  np.testing.assert_array_equal(found[..., ::2], net)
  np.testing.assert_array_equal(found[..., 1::2], 1)


@pytest.mark.parametrize('depths', [(5,), (6, 3), (1, 8, 2)])
def test_compiled_gradient_is_tensorflows(monkeypatch, depths):
  monkeypatch.setattr(training_layers, '_WORTH_COMPILING', 0)
  parts = [tf.constant(_with_zeros(depth)) for depth in depths]
  sides = []
  for activate in (training_layers._activate, model_util.activate):
    result = activate(*parts)
    sides.append([result, *tf.gradients(tf.reduce_sum(tf.sin(2 * result)), parts)])
  compiled, expected = _run(sides)
  np.testing.assert_array_equal(compiled[0], expected[0])
  assert compiled[0].shape[-1] == 2 * sum(depths)
  for found, gradient in zip(compiled[1:], expected[1:], strict=True):
    np.testing.assert_allclose(found, gradient, atol=1e-6)


def _with_zeros(depth):
  """relu's corner is among them."""
  array = np.random.default_rng(depth).normal(0, 1, (2, 3, 4, depth)).astype(np.float32)
  array[:, 0] = 0
  return array


def test_large_maps_alone_are_compiled():
  def operations(size):
    with tf.Graph().as_default() as graph:
      net = tf.placeholder(tf.float32, [1, size, size, 1])
      tf.gradients(training_layers._activate(net), net)
      return [operation.type for operation in graph.get_operations()]

  assert not any('PartitionedCall' in kind for kind in operations(511))
  assert any('PartitionedCall' in kind for kind in operations(512))
