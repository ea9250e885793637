"""Tests of the whole network in training: it is that of inference, and windows are of one phase."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import input_stack, target_stack
from isl.models import model_util, towers, training_layers
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan, variable_shapes

_NUM_Z_VALUES = 2


@dataclasses.dataclass(frozen=True)
class _Network:
  """A small network with random values for its variables, by name."""

  plan: NetworkPlan
  values: dict[str, np.ndarray]

  def custom_getter(self, getter, name, **kwargs):
    del getter, kwargs
    return tf.constant(self.values[name])

  def placeholder(self, batch, output):
    """For the intensities that windows of so many outputs read."""
    side = self.plan.spec.geometry.patch - self.plan.spec.geometry.output + output
    return tf.placeholder(tf.float32, [batch, side, side, _NUM_Z_VALUES])


def _heads():
  return (*input_stack(_NUM_Z_VALUES).keys[-1:], *target_stack().keys[:1])


@pytest.fixture(scope='module', params=[('CONCORDANCE', 5), ('FOVEA', 3)], ids=lambda p: p[0])
def network(request):
  model, base_depth = request.param
  plan = make_plan(NETWORKS[model], base_depth, _NUM_Z_VALUES)
  rng = np.random.default_rng(0)
  values = {}
  for name, shape in variable_shapes(plan, _heads()):
    kind = name.rsplit('/', 1)[-1]
    mean = {'gamma': 1, 'moving_variance': 1}.get(kind, 0)
    # About what keeps activations as large from layer to layer.
    deviation = np.sqrt(0.7 / np.prod(shape[:-1])) if kind == 'weights' else 0.1
    values[name] = rng.normal(mean, deviation, shape).astype(np.float32)
  return _Network(plan, values)


class _CountingStatistics(training_layers.BatchStatistics):
  """Remembers of how many pixels the statistics are."""

  def __init__(self) -> None:
    super().__init__()
    self.counts: dict[str, int] = {}

  def normalize(self, *parts, depths):
    scope = f'{tf.get_variable_scope().name}/BatchNorm/'
    (self.counts[scope],) = {int(np.prod(part.shape.as_list()[:3])) for part in parts}
    return super().normalize(*parts, depths=depths)


class _FixedStatistics(training_layers.BatchStatistics):
  """Batch norm by the moving averages, as in inference: patches do not influence each other."""

  def normalize(self, *parts, depths):
    with tf.variable_scope('BatchNorm'):
      variables = [
        tf.split(tf.get_variable(name, [sum(depths)]), depths)
        for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')
      ]
    normalized = []
    for part, depth, pieces in zip(parts, depths, zip(*variables, strict=True), strict=True):
      norm = model_util.BatchNorm(*pieces).normalize(part[..., :depth])
      normalized.append(
        tf.pad(norm, [[0, 0], [0, 0], [0, 0], [0, part.shape.as_list()[-1] - depth]])
      )
    return normalized


def _run(tensors, placeholder):
  """Of random intensities."""
  net = np.random.default_rng(3).random(placeholder.shape.as_list(), np.float32)
  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with tf.Session(config=config) as session:
    return session.run(tensors, {placeholder: net})


def test_inference_with_the_batchs_statistics_is_the_same(network):
  """As if the moving averages had long followed this batch; they take the unbiased variance."""
  statistics = _CountingStatistics()
  with tf.Graph().as_default():
    net = network.placeholder(batch=2, output=8)
    with tf.variable_scope('', custom_getter=network.custom_getter):
      features = towers.training_features(net, network.plan, statistics)
      logits = training_layers.logits(features, _heads(), statistics)
    for key in _heads():
      statistics.counts[f'head/{key}/residual_v2_conv/BatchNorm/'] = 2 * 8 * 8

    def getter(getter, name, **kwargs):
      if name not in statistics.collected:
        return network.custom_getter(getter, name, **kwargs)
      found = statistics.collected[name]
      scope, _, kind = name.rpartition('/')
      count = statistics.counts[f'{scope}/']
      return found * ((count - 1) / count) if kind == 'moving_variance' else found

    with tf.variable_scope('', custom_getter=getter):
      expected = towers.features(model_util.with_masks(net), network.plan)
      expected_logits = tf.stack(
        [
          model_util.head_logits(
            features, model_util.head_variables(network.plan.output_depth, key)
          )
          for key in _heads()
        ]
      )
    expected_logits = tf.reshape(expected_logits, logits.shape)
    pairs = _run([(features, expected), (logits, expected_logits)], net)
  averages = {name for name in network.values if '/moving_' in name}
  assert statistics.collected.keys() == averages
  for name, tensor in statistics.collected.items():
    assert tensor.shape.as_list() == list(network.values[name].shape), name
  assert statistics.activations.keys() == {module.name for module in network.plan.modules()}
  for found, expected in pairs:
    assert found.std() > 0.1
    # A hundred layers one after the other, some of which divide by small deviations.
    np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max())


def test_window_holds_every_second_patchs_outputs(network):
  """Its blocks 16 pixels apart are what patches give there, where no patch changes another."""
  output, starts = 40, (0, 16, 32)
  side = network.plan.spec.geometry.patch
  with (
    tf.Graph().as_default(),
    tf.variable_scope('', custom_getter=network.custom_getter),
  ):
    window = network.placeholder(batch=1, output=output)
    found = towers.training_features(window, network.plan, _FixedStatistics())
    patches = [window[0, r : r + side, c : c + side] for r in starts for c in starts]
    expected = towers.features(model_util.with_masks(tf.stack(patches)), network.plan)
    assert found.shape.as_list() == [1, output, output, network.plan.output_depth]
    found, expected = _run([found, expected], window)
  blocks = [found[0, r : r + 8, c : c + 8] for r in starts for c in starts]
  assert np.ptp(expected, axis=0).max() > 0.1
  np.testing.assert_allclose(blocks, expected, atol=2e-5 * np.abs(expected).max())
