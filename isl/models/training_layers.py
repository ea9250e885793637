"""The networks' layers for training: batch norm by the batch's statistics, cheaper gradients.

Variables and shapes are those of the layers in isl/models/model_util.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES
from isl.models.model_util import (
  EPSILON,
  activate,
  add_residual,
  convolve,
  deconvolve,
  make_biases,
  make_expand_weights,
  make_weights,
)
from isl.models.plan import ModulePlan, head_scope

# oneDNN's batch norm in training is four times slower where the depth is not a multiple of this.
_FAST_DEPTH = 8

# Gradients of at least this many elements are compiled, which takes a tenth of a second.
_WORTH_COMPILING = 1 << 18


class BatchStatistics:
  """Batch norm in training: normalizes by the batch's own statistics, and collects these.

  Attributes:
    collected: by the name of a moving average's variable, the statistic of this batch: the mean, or
      the unbiased estimate of the variance; [depth] each.
    activations: by the name of a module, its result, [batch, row, column, depth].
  """

  def __init__(self) -> None:
    """Starts without collected statistics or activations."""
    self.collected: dict[str, tf.Tensor] = {}
    self.activations: dict[str, tf.Tensor] = {}

  def normalize(self, *parts: tf.Tensor, depths: Sequence[int]) -> list[tf.Tensor]:
    """Normalizes the concatenation of the parts along depth, without making it.

    The scale and the offset are variables of the current scope.

    Args:
      *parts: [batch, row, column, depth or more]; features beyond the depth are 0, and stay so.
      depths: the depth of each part.

    Returns:
      The parts, normalized, each of its own shape.
    """
    with tf.variable_scope('BatchNorm') as scope:
      gammas, betas = (
        _split_depth(tf.get_variable(name, [sum(depths)]), parts, depths)
        for name in ('gamma', 'beta')
      )
    normalized = [
      tf.nn.fused_batch_norm(part, gamma, beta, epsilon=EPSILON)
      for part, gamma, beta in zip(parts, gammas, betas, strict=True)
    ]
    for i, name in ((1, 'moving_mean'), (2, 'moving_variance')):
      found = [n[i][:depth] for n, depth in zip(normalized, depths, strict=True)]
      self.collected[f'{scope.name}/{name}'] = tf.concat(found, 0)
    return [n[0] for n in normalized]


def _split_depth(
  vector: tf.Tensor, parts: Sequence[tf.Tensor], depths: Sequence[int], axis: int = 0
) -> list[tf.Tensor]:
  """Splits along an axis by the parts' depths; zeros stand for features beyond a part's depth."""
  pieces = tf.split(vector, depths, axis) if len(depths) > 1 else [vector]
  return [
    _pad_end(piece, axis, part.shape.as_list()[-1] - depth)
    for piece, part, depth in zip(pieces, parts, depths, strict=True)
  ]


def _pad_end(net: tf.Tensor, axis: int, count: int) -> tf.Tensor:
  """Appends `count` zeros along an axis."""
  if not count:
    return net
  shape = net.shape.as_list()
  shape[axis] = count
  # Not by tf.pad: TensorFlow's oneDNN pass aborts the process where tf.pad makes a convolution's
  # weights and no gradient reads them, too.
  return tf.concat([net, tf.zeros(shape)], axis)


def _activate(*parts: tf.Tensor) -> tf.Tensor:
  """Computes `model_util.activate` with a gradient that needs only its result, in one pass over it.

  The gradient that TensorFlow derives takes six passes, and keeps each part's relu and tanh, too.
  """
  if sum(part.shape.num_elements() for part in parts) < _WORTH_COMPILING:
    return activate(*parts)

  @tf.custom_gradient
  def cheaper(*parts: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
    activations = activate(*parts)
    depths = tuple(part.shape.as_list()[-1] for part in parts)
    return activations, lambda gradient: _activations_gradient(activations, gradient, depths)

  return cheaper(*parts)


@tf.function(jit_compile=True)
def _activations_gradient(
  activations: tf.Tensor, gradient: tf.Tensor, depths: tuple[int, ...]
) -> list[tf.Tensor]:
  """The gradient of `activate` for each part: d relu(x) = [relu(x) > 0], d tanh = 1 - tanh(x)^2."""
  relus, tanhs = (tf.split(half, depths, -1) for half in tf.split(activations, 2, -1))
  of_relus, of_tanhs = (tf.split(half, depths, -1) for half in tf.split(gradient, 2, -1))
  return [
    tf.where(relu > 0, of_relu, tf.zeros_like(of_relu)) + of_tanh * (1 - tanh * tanh)
    for relu, tanh, of_relu, of_tanh in zip(relus, tanhs, of_relus, of_tanhs, strict=True)
  ]


def projection(net: tf.Tensor, depth: int, mask: tf.Tensor | None = None) -> tf.Tensor:
  """Computes `model_util.projection` of intensities and one mask for all images.

  Since the mask is the same for all images, its weights can be summed first, so that half of the
  input need not be made.

  Args:
    net: intensities in [0, 1], [batch, row, column, image].
    depth: number of features to make.
    mask: the mask, [batch, row, column]; None: it is 1 everywhere, so that its weights only add to
      the bias.

  Returns:
    [batch, row, column, depth].
  """
  num_images = net.shape.as_list()[-1]
  with tf.variable_scope('Conv'):
    weights = tf.reshape(make_weights(1, 1, 2 * num_images, depth), [num_images, 2, depth])
    of_mask, biases = tf.reduce_sum(weights[:, 1], axis=0), make_biases(depth)
    if mask is None:
      return tf.nn.bias_add(_multiply(net, weights[:, 0]), biases + of_mask)
    net = tf.concat([net, mask[..., tf.newaxis]], axis=-1)
    read = tf.concat([weights[:, 0], of_mask[tf.newaxis]], axis=0)
    return tf.nn.bias_add(_multiply(net, read), biases)


def module(net: tf.Tensor, plan: ModulePlan, statistics: BatchStatistics) -> tf.Tensor:
  """Computes `model_util.module` with batch norm by the batch's own statistics.

  Zeros are appended to the expanded map, to a depth at which batch norm is fast; weights of zero
  make them, and weights of zero read them.

  Args:
    net: [batch, row, column, plan.input_depth].
    plan: the module's names, depths and sizes.
    statistics: collects the batch's statistics, and the module's result.

  Returns:
    [batch, row, column, plan.output_depth].
  """
  with tf.variable_scope(plan.name):
    with tf.variable_scope('expand_rv2'):
      activations = _activate(*statistics.normalize(net, depths=[plan.input_depth]))
      expand, made_axis = (deconvolve, 2) if plan.is_deconv else (convolve, 3)
      weights = _pad_end(make_expand_weights(plan), made_axis, -plan.expand_depth % _FAST_DEPTH)
      joined = [expand(activations, weights, plan.stride)]
    depths = [plan.expand_depth]
    if not plan.is_deconv:
      joined.append(tf.nn.max_pool2d(net, plan.kernel, plan.stride, 'VALID'))
      depths.append(plan.input_depth)
    with tf.variable_scope('reduce_rv2'):
      activations = _activate(*statistics.normalize(*joined, depths=depths))
      with tf.variable_scope('Conv'):
        weights = make_weights(1, 1, 2 * plan.joined_depth, plan.reduce_depth)
    # The rows of weights that read relu, then those that read tanh, each split by part.
    rows = tf.reshape(weights, [2, plan.joined_depth, plan.reduce_depth])
    rows = tf.concat(_split_depth(rows, joined, depths, axis=1), axis=1)
    reduced = _multiply(activations, tf.reshape(rows, [-1, plan.reduce_depth]))
    result = add_residual(net, reduced, plan)
    statistics.activations[plan.name] = result
    return result


def _multiply(net: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
  """Convolves by 1x1 with weights [depth, made depth], as a product, whose gradient is faster."""
  *size, depth = net.shape.as_list()
  made = tf.matmul(tf.reshape(net, [-1, depth]), weights)
  return tf.reshape(made, [*size, weights.shape.as_list()[-1]])


def logits(net: tf.Tensor, keys: Sequence[ImageKey], statistics: BatchStatistics) -> tf.Tensor:
  """Computes the logits of all heads in training.

  All heads read the same features, so the batch's statistics are the same for all; only scale and
  offset differ.

  Args:
    net: the features, [batch, row, column, depth].
    keys: keys of the images that the heads predict, one for each head.
    statistics: collects the batch's statistics.

  Returns:
    [head, batch * row * column, class].
  """
  depth = net.shape.as_list()[-1]
  normalized, mean, variance, *_ = tf.nn.fused_batch_norm(
    net, tf.ones([depth]), tf.zeros([depth]), epsilon=EPSILON
  )
  variables = []
  for key in keys:
    with tf.variable_scope(head_scope(key)):
      with tf.variable_scope('BatchNorm') as scope:
        scale_and_offset = [tf.get_variable(name, [depth]) for name in ('gamma', 'beta')]
      with tf.variable_scope('Conv'):
        weights = tf.reshape(make_weights(1, 1, 2 * depth, NUM_CLASSES), [2 * depth, NUM_CLASSES])
        variables.append((*scale_and_offset, weights, make_biases(NUM_CLASSES)))
    statistics.collected[f'{scope.name}/moving_mean'] = mean
    statistics.collected[f'{scope.name}/moving_variance'] = variance
  gammas, betas, weights, biases = (tf.stack(v) for v in zip(*variables, strict=True))
  pixels = tf.reshape(normalized, [1, -1, depth])
  activations = activate(pixels * gammas[:, tf.newaxis] + betas[:, tf.newaxis])
  return tf.matmul(activations, weights) + biases[:, tf.newaxis]
