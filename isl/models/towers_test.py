"""Tests of towers.py: one definition for single patches and for dense crops."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Geometry
from isl.core.statistic import PICTURE_STATISTICS, Statistic
from isl.inference.controller import HeadGroup, Labeler
from isl.models import model_util, towers, training_layers
from isl.models.concordance import CONCORDANCE
from isl.models.fovea import FOVEA
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan, variable_shapes
from isl.programs import random_checkpoint

# Of these, neighbouring classes may be equally likely but for rounding.
_BY_EQUAL_PIXELS = (Statistic.MODE, Statistic.MEDIAN)

# As they are; a fixture may have changed those in NETWORKS.
_SPECS = {spec.name: spec for spec in (CONCORDANCE, FOVEA)}

# Blocks in rows and columns: an odd and an even number of them, and an even and an odd one. In the
# former, the latter begin at odd and even blocks; networks tell no more apart.
_WHOLE = (3, 4)
_JOINING = (2, 3)
_NUM_Z_VALUES = 2


def _short(spec, scales=5):
  """All scales, but one recursion of each: half as many modules. The sizes follow from the end."""
  in_scale = 2 if spec.in_scale else 0
  # The smallest that all upscalings can give.
  merged = {'CONCORDANCE': 20, 'FOVEA': 16}[spec.name]
  crops = []
  for scale in range(scales):
    size = merged
    for _ in range(scale):
      size = (size + in_scale + 2 * spec.deconv_crop - spec.deconv_kernel) // 2 + 1
    size += 2
    for _ in range(scale):
      size = 2 * (size + in_scale) + 2
    crops.append(size)
  return dataclasses.replace(
    spec,
    geometry=Geometry(patch=crops[-1], output=8),
    crops=tuple(crops),
    lower_recursions=(1,) * len(crops),
    upper_recursions=(merged - 8) // 2,
  )


class _Network:
  """A random network, and what it predicts patch by patch of a random image of _WHOLE blocks."""

  def __init__(self, folder, model, base_depth, num_z_values):
    prefix = random_checkpoint.write_random_checkpoint(
      folder, model=model, base_depth=base_depth, num_z_values=num_z_values
    )
    self.checkpoint = Checkpoint(prefix)
    self.plan = make_plan(NETWORKS[model], base_depth, num_z_values)
    self.heads = (input_stack(num_z_values).keys[-1], *target_stack().keys[:1])
    self.geometry = self.plan.spec.geometry
    rows, columns = (self.geometry.input_size(n) for n in _WHOLE)
    rng = np.random.default_rng(base_depth)
    self.image = np.ones((rows, columns, num_z_values, 1, 2), np.float32)
    self.image[..., 0] = rng.random((rows, columns, num_z_values, 1))
    starts = np.ndindex(*_WHOLE)
    patches = self.labeled([self.crop(start, (1, 1)) for start in starts], (1, 1))
    side = self.geometry.output
    self.expected = {
      statistic: values.reshape(len(self.heads), *_WHOLE, side, side)
      .swapaxes(2, 3)
      .reshape(len(self.heads), _WHOLE[0] * side, _WHOLE[1] * side)
      for statistic, values in patches.items()
    }

  def crop(self, start, blocks):
    """The crop that so many blocks, from the block `start` on, are computed from."""
    first = [self.geometry.output * block for block in start]
    rows, columns = (
      slice(pixel, pixel + self.geometry.input_size(n))
      for pixel, n in zip(first, blocks, strict=True)
    )
    return self.image[rows, columns]

  def labeled(self, crops, blocks):
    """The statistics [head, batch, row, column] of crops of so many blocks."""
    labeler = Labeler(
      self.plan,
      self.checkpoint,
      groups=[HeadGroup(heads=self.heads, statistics=PICTURE_STATISTICS)],
      batch=len(crops),
      blocks=blocks,
    )
    side = self.geometry.output
    labels = np.zeros((len(self.heads), len(crops), blocks[0] * side, blocks[1] * side), np.uint8)
    try:
      return labeler(np.stack(crops), [labels])[0]
    finally:
      labeler.close()

  def assert_agree(self, starts, blocks):
    """Asserts that crops of so many blocks give what their patches give."""
    found = self.labeled([self.crop(start, blocks) for start in starts], blocks)
    side = self.geometry.output
    for i, start in enumerate(starts):
      rows, columns = (
        slice(side * first, side * (first + n)) for first, n in zip(start, blocks, strict=True)
      )
      for statistic, values in found.items():
        expected = self.expected[statistic][:, rows, columns]
        if statistic in _BY_EQUAL_PIXELS:
          assert np.mean(values[:, i] == expected) >= 0.999, statistic
        else:
          assert np.abs(values[:, i] - expected).max() < 1e-5, statistic


@pytest.fixture(
  scope='module',
  params=[
    ('CONCORDANCE', 5, 2, _short),
    ('FOVEA', 9, 3, _short),
    pytest.param(('CONCORDANCE', 5, 2, None), marks=pytest.mark.soak),
    pytest.param(('FOVEA', 9, 3, None), marks=pytest.mark.soak),
    pytest.param(('CONCORDANCE', 12, 1, None), marks=pytest.mark.soak),
    pytest.param(('FOVEA', 1, 1, None), marks=pytest.mark.soak),
  ],
  ids=lambda param: '-'.join(map(str, param[:3])) + '-short' * (param[3] is not None),
)
def network(request, tmp_path_factory):
  model, base_depth, num_z_values, change = request.param
  with pytest.MonkeyPatch.context() as monkeypatch:
    if change:
      monkeypatch.setitem(NETWORKS, model, change(_SPECS[model]))
    yield _Network(tmp_path_factory.mktemp('checkpoint'), model, base_depth, num_z_values)


def test_random_network_varies(network):
  """Otherwise the tests below would show nothing."""
  for statistic in (Statistic.MEAN, Statistic.STANDARD_DEVIATION, Statistic.ENTROPY):
    assert network.expected[statistic].std(axis=(1, 2)).min() > 1e-3, statistic


@pytest.mark.parametrize('blocks', [pytest.param((3, 1), marks=pytest.mark.soak), (1, 4), _WHOLE])
def test_dense_is_patch_by_patch(network, blocks):
  """Crops have odd and even numbers of blocks in each direction, and start anywhere."""
  last = tuple(n - m for n, m in zip(_WHOLE, blocks, strict=True))
  network.assert_agree([(0, 0), last], blocks)


def test_crops_join_at_every_border(network):
  """A crop from any block on gives what the whole gives there."""
  counts = (n - m + 1 for n, m in zip(_WHOLE, _JOINING, strict=True))
  network.assert_agree(list(itertools.product(*map(range, counts))), _JOINING)


def test_single_patch_is_the_modules_one_after_the_other(network):
  """And the graph has the variables that the plan lists, of which plan_test.py shows the names."""
  plan, checkpoint = network.plan, network.checkpoint
  size = plan.spec.geometry.patch
  patch = np.random.default_rng(0).random((1, size, size, plan.input_depth), np.float32)
  heads = checkpoint.describe().heads
  asked_for = []

  def getter(getter, name, shape, **kwargs):
    asked_for.append((name, tuple(shape)))
    return checkpoint.custom_getter(getter, name, shape=shape, **kwargs)

  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with (
    tf.Graph().as_default(),
    tf.Session(config=config) as session,
    tf.variable_scope('', custom_getter=getter),
  ):
    net = tf.constant(patch)
    found = towers.features(net, plan)
    for key in heads:
      model_util.head_variables(plan.output_depth, key)
    assert sorted(asked_for) == sorted(variable_shapes(plan, heads))
    if plan.spec.name == 'CONCORDANCE':
      net = model_util.projection(net, 16)
    ends = []
    for crop, modules in zip(plan.spec.crops, plan.towers, strict=True):
      margin = (size - crop) // 2
      end = net[:, margin : margin + crop, margin : margin + crop]
      for module in modules:
        end = model_util.module(end, module)
      ends.append(end)
    expected = tf.concat(ends, axis=-1)
    for module in plan.upper:
      expected = model_util.module(expected, module)
    found, expected = session.run([found, expected])
  np.testing.assert_allclose(found, expected, atol=1e-4)


@dataclasses.dataclass(frozen=True)
class _TrainingNetwork:
  """A small training_network with random values for its variables, by name."""

  plan: NetworkPlan
  values: dict[str, np.ndarray]

  def custom_getter(self, getter, name, **kwargs):
    del getter, kwargs
    return tf.constant(self.values[name])

  def placeholder(self, batch, output):
    """Makes a placeholder for the intensities that windows of so many outputs read."""
    side = self.plan.spec.geometry.patch - self.plan.spec.geometry.output + output
    return tf.placeholder(tf.float32, [batch, side, side, _NUM_Z_VALUES])


def _heads():
  return (*input_stack(_NUM_Z_VALUES).keys[-1:], *target_stack().keys[:1])


@pytest.fixture(
  scope='module',
  params=[
    # All scales once, with the other network's layers.
    ('CONCORDANCE', 5, functools.partial(_short, scales=3)),
    ('FOVEA', 4, _short),
    pytest.param(('CONCORDANCE', 5, None), marks=pytest.mark.soak),
    pytest.param(('FOVEA', 3, None), marks=pytest.mark.soak),
  ],
  ids=lambda param: param[0] + '-short' * (param[2] is not None),
)
def training_network(request):
  model, base_depth, change = request.param
  spec = _SPECS[model]
  plan = make_plan(change(spec) if change else spec, base_depth, _NUM_Z_VALUES)
  rng = np.random.default_rng(0)
  values = {}
  for name, shape in variable_shapes(plan, _heads()):
    kind = name.rsplit('/', 1)[-1]
    mean = {'gamma': 1, 'moving_variance': 1}.get(kind, 0)
    # About what keeps activations as large from layer to layer.
    deviation = np.sqrt(0.7 / np.prod(shape[:-1])) if kind == 'weights' else 0.1
    values[name] = rng.normal(mean, deviation, shape).astype(np.float32)
  return _TrainingNetwork(plan, values)


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
  """Runs tensors with random intensities as the input."""
  net = np.random.default_rng(3).random(placeholder.shape.as_list(), np.float32)
  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with tf.Session(config=config) as session:
    return session.run(tensors, {placeholder: net})


def test_inference_with_the_batchs_statistics_is_the_same(training_network):
  """Averages that have followed one batch for long give what the batch's statistics give.

  They take the unbiased variance.
  """
  statistics = _CountingStatistics()
  with tf.Graph().as_default():
    net = training_network.placeholder(batch=2, output=8)
    with tf.variable_scope('', custom_getter=training_network.custom_getter):
      features = towers.training_features(net, training_network.plan, statistics)
      logits = training_layers.logits(features, _heads(), statistics)
    for key in _heads():
      statistics.counts[f'head/{key}/residual_v2_conv/BatchNorm/'] = 2 * 8 * 8

    def getter(getter, name, **kwargs):
      if name not in statistics.collected:
        return training_network.custom_getter(getter, name, **kwargs)
      found = statistics.collected[name]
      scope, _, kind = name.rpartition('/')
      count = statistics.counts[f'{scope}/']
      return found * ((count - 1) / count) if kind == 'moving_variance' else found

    with tf.variable_scope('', custom_getter=getter):
      expected = towers.features(model_util.with_masks(net), training_network.plan)
      expected_logits = tf.stack(
        [
          model_util.head_logits(
            features, model_util.head_variables(training_network.plan.output_depth, key)
          )
          for key in _heads()
        ]
      )
    expected_logits = tf.reshape(expected_logits, logits.shape)
    pairs = _run([(features, expected), (logits, expected_logits)], net)
  averages = {name for name in training_network.values if '/moving_' in name}
  assert statistics.collected.keys() == averages
  for name, tensor in statistics.collected.items():
    assert tensor.shape.as_list() == list(training_network.values[name].shape), name
  assert statistics.activations.keys() == {
    module.name for module in training_network.plan.modules()
  }
  for found, expected in pairs:
    assert found.std() > 0.1
    # A hundred layers one after the other, some of which divide by small deviations.
    np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max())


def test_window_holds_every_second_patchs_outputs(training_network):
  """A window's blocks 16 pixels apart are what patches there give by themselves."""
  output, starts = 40, (0, 16, 32)
  side = training_network.plan.spec.geometry.patch
  with (
    tf.Graph().as_default(),
    tf.variable_scope('', custom_getter=training_network.custom_getter),
  ):
    window = training_network.placeholder(batch=1, output=output)
    found = towers.training_features(window, training_network.plan, _FixedStatistics())
    patches = [window[0, r : r + side, c : c + side] for r in starts for c in starts]
    expected = towers.features(model_util.with_masks(tf.stack(patches)), training_network.plan)
    assert found.shape.as_list() == [1, output, output, training_network.plan.output_depth]
    found, expected = _run([found, expected], window)
  blocks = [found[0, r : r + 8, c : c + 8] for r in starts for c in starts]
  assert np.ptp(expected, axis=0).max() > 0.1
  np.testing.assert_allclose(blocks, expected, atol=2e-5 * np.abs(expected).max())
