"""The layers of the multiscale networks: batch norm, module, head.

A feature map is `[batch, row, column, depth]`; every convolution is VALID. Variables are made by
`tf.get_variable` in scopes that give them the names of the original's checkpoints. Whoever builds a
graph for one checkpoint may have them replaced by its values, with a custom getter.

Batch norm and activation come before the convolution (He et al., Identity Mappings in Deep Residual
Networks, 2016); the activation is [relu, tanh], side by side along depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow.compat.v1 as tf

from isl.experiment import NUM_CLASSES, ImageKey
from isl.models.plan import ModulePlan, head_scope
from isl.ops import crop

_EPSILON = 0.001

# oneDNN's batch norm in training is four times slower where the depth is not a multiple of this.
_FAST_DEPTH = 8

# Elements for which a gradient is compiled, which takes a tenth of a second.
_WORTH_COMPILING = 1 << 18


class BatchNorm(NamedTuple):
  """Batch norm's variables, each [depth]."""

  gamma: tf.Tensor
  beta: tf.Tensor
  moving_mean: tf.Tensor
  moving_variance: tf.Tensor

  def normalize(self, net: tf.Tensor) -> tf.Tensor:
    """gamma * (net - moving_mean) / sqrt(moving_variance + epsilon) + beta."""
    return tf.nn.fused_batch_norm(net, *self, epsilon=_EPSILON, is_training=False)[0]

  def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
    """The same as (scale, offset), for folding it into a convolution."""
    scale = self.gamma * tf.math.rsqrt(self.moving_variance + _EPSILON)
    return scale, self.beta - self.moving_mean * scale

  def split(self, depth: int) -> tuple[BatchNorm, BatchNorm]:
    """Two batch norms: of the first `depth` channels, and of the rest."""
    sizes = [depth, self.gamma.shape.as_list()[0] - depth]
    first, rest = tf.split(tf.stack(self), sizes, axis=1)
    return BatchNorm(*tf.unstack(first)), BatchNorm(*tf.unstack(rest))


def _batch_norm(depth: int) -> BatchNorm:
  with tf.variable_scope('BatchNorm'):
    return BatchNorm(
      gamma=tf.get_variable('gamma', [depth], initializer=tf.ones_initializer()),
      beta=tf.get_variable('beta', [depth], initializer=tf.zeros_initializer()),
      moving_mean=tf.get_variable(
        'moving_mean', [depth], initializer=tf.zeros_initializer(), trainable=False
      ),
      moving_variance=tf.get_variable(
        'moving_variance', [depth], initializer=tf.ones_initializer(), trainable=False
      ),
    )


class BatchStatistics:
  """Batch norm in training: normalizes by the batch's own statistics, and collects these.

  Attributes:
    collected: for each moving average, by its variable's name, what this batch has to say: the
      mean, or the unbiased estimate of the variance; [depth] each.
    activations: each module's result, by the module's name.
  """

  def __init__(self) -> None:
    """Nothing is collected yet."""
    self.collected: dict[str, tf.Tensor] = {}
    self.activations: dict[str, tf.Tensor] = {}

  def normalize(self, *parts: tf.Tensor, depths: Sequence[int]) -> list[tf.Tensor]:
    """Normalizes the concatenation of the parts along depth, without making it.

    The scale and the offset are variables of the current scope.

    Args:
      *parts: [batch, row, column, depth or more]; what is beyond the depth is 0, and stays so.
      depths: the parts' depths.
    """
    with tf.variable_scope('BatchNorm') as scope:
      gammas, betas = (
        _split_depth(tf.get_variable(name, [sum(depths)]), parts, depths)
        for name in ('gamma', 'beta')
      )
    normalized = [
      tf.nn.fused_batch_norm(part, gamma, beta, epsilon=_EPSILON)
      for part, gamma, beta in zip(parts, gammas, betas, strict=True)
    ]
    for i, name in ((1, 'moving_mean'), (2, 'moving_variance')):
      found = [n[i][:depth] for n, depth in zip(normalized, depths, strict=True)]
      self.collected[f'{scope.name}/{name}'] = tf.concat(found, 0)
    return [n[0] for n in normalized]


def _split_depth(
  vector: tf.Tensor, parts: Sequence[tf.Tensor], depths: Sequence[int], axis: int = 0
) -> list[tf.Tensor]:
  """Splits along an axis by the parts' depths; zeros fill what a part has more."""
  pieces = tf.split(vector, depths, axis) if len(depths) > 1 else [vector]
  return [
    _pad_end(piece, axis, part.shape.as_list()[-1] - depth)
    for piece, part, depth in zip(pieces, parts, depths, strict=True)
  ]


def _pad_end(net: tf.Tensor, axis: int, count: int) -> tf.Tensor:
  """Appends zeros along an axis."""
  if not count:
    return net
  shape = net.shape.as_list()
  shape[axis] = count
  # Not by tf.pad: TensorFlow's oneDNN pass aborts the process where that makes a convolution's
  # weights, and no gradient reads them, too.
  return tf.concat([net, tf.zeros(shape)], axis)


def _weights(*shape: int) -> tf.Tensor:
  return tf.get_variable('weights', shape, initializer=tf.glorot_uniform_initializer())


def _biases(depth: int) -> tf.Tensor:
  return tf.get_variable('biases', [depth], initializer=tf.zeros_initializer())


def _activations(*parts: tf.Tensor) -> tf.Tensor:
  """[relu, tanh] of the parts' concatenation, without making that first."""
  return tf.concat([tf.nn.relu(p) for p in parts] + [tf.tanh(p) for p in parts], axis=-1)


def _trained_activations(*parts: tf.Tensor) -> tf.Tensor:
  """`_activations` with a gradient that keeps its result alone, and takes one pass over it.

  What TensorFlow would derive takes six passes, and keeps each part's relu and tanh as well.
  """
  if sum(part.shape.num_elements() for part in parts) < _WORTH_COMPILING:
    return _activations(*parts)

  @tf.custom_gradient
  def activate(*parts: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
    activations = _activations(*parts)
    depths = tuple(part.shape.as_list()[-1] for part in parts)
    return activations, lambda gradient: _activations_gradient(activations, gradient, depths)

  return activate(*parts)


@tf.function(jit_compile=True)
def _activations_gradient(
  activations: tf.Tensor, gradient: tf.Tensor, depths: tuple[int, ...]
) -> list[tf.Tensor]:
  """d relu(x) = [relu(x) > 0], d tanh(x) = 1 - tanh(x)^2, for each part."""
  relus, tanhs = (tf.split(half, depths, -1) for half in tf.split(activations, 2, -1))
  of_relus, of_tanhs = (tf.split(half, depths, -1) for half in tf.split(gradient, 2, -1))
  return [
    tf.where(relu > 0, of_relu, tf.zeros_like(of_relu)) + of_tanh * (1 - tanh * tanh)
    for relu, tanh, of_relu, of_tanh in zip(relus, tanhs, of_relus, of_tanhs, strict=True)
  ]


def _convolve(net: tf.Tensor, weights: tf.Tensor, stride: int = 1) -> tf.Tensor:
  return tf.nn.conv2d(net, weights, strides=stride, padding='VALID')


def projection(net: tf.Tensor, depth: int) -> tf.Tensor:
  """A 1x1 convolution to `depth` features, with bias and no activation."""
  with tf.variable_scope('Conv'):
    weights = _weights(1, 1, net.shape.as_list()[-1], depth)
    return tf.nn.bias_add(_convolve(net, weights), _biases(depth))


def training_projection(net: tf.Tensor, depth: int) -> tf.Tensor:
  """`projection` of intensities [batch, row, column, z] whose masks are all 1.

  The weights that read masks then only add to the bias: half the input need not be made.
  """
  num_z_values = net.shape.as_list()[-1]
  with tf.variable_scope('Conv'):
    weights = tf.reshape(_weights(1, 1, 2 * num_z_values, depth), [num_z_values, 2, depth])
    biases = _biases(depth) + tf.reduce_sum(weights[:, 1], axis=0)
    return tf.nn.bias_add(_multiply(net, weights[:, 0]), biases)


def with_masks(net: tf.Tensor) -> tf.Tensor:
  """[batch, row, column, 2 * z] from intensities [batch, row, column, z] whose masks are all 1."""
  *size, num_z_values = net.shape.as_list()
  return tf.reshape(tf.stack([net, tf.ones_like(net)], axis=-1), [*size, 2 * num_z_values])


def _expand_weights(plan: ModulePlan) -> tf.Tensor:
  kernel, read, made = plan.kernel, 2 * plan.input_depth, plan.expand_depth
  with tf.variable_scope('Conv2d_transpose' if plan.is_deconv else 'Conv'):
    return _weights(kernel, kernel, *((made, read) if plan.is_deconv else (read, made)))


def _deconvolve(net: tf.Tensor, weights: tf.Tensor, stride: int) -> tf.Tensor:
  kernel, _, depth, _ = weights.shape.as_list()
  batch, rows, columns, _ = net.shape.as_list()
  shape = [batch, (rows - 1) * stride + kernel, (columns - 1) * stride + kernel, depth]
  return tf.nn.conv2d_transpose(net, weights, shape, strides=stride, padding='VALID')


def module(net: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """One module: an expanding convolution, a reducing one, and the residual path around both.

  With a max pool of the raw input (same kernel and stride) beside the expanding convolution, unless
  that is a deconvolution. The second batch norm of the convolved channels is folded into the
  convolution, whose result nothing else reads: two passes over the largest map less.

  Args:
    net: [batch, row, column, plan.input_depth].
    plan: names, depths and sizes.

  Returns:
    [batch, row, column, plan.output_depth].
  """
  with tf.variable_scope(plan.name):
    with tf.variable_scope('expand_rv2'):
      activations = _activations(_batch_norm(plan.input_depth).normalize(net))
      expand_weights = _expand_weights(plan)
    with tf.variable_scope('reduce_rv2'):
      joined_norm = _batch_norm(plan.joined_depth)
      with tf.variable_scope('Conv'):
        reduce_weights = _weights(1, 1, 2 * plan.joined_depth, plan.reduce_depth)
    if plan.is_deconv:
      scale, offset = joined_norm.affine()
      expanded = _deconvolve(activations, expand_weights * scale[:, tf.newaxis], plan.stride)
      joined = [tf.nn.bias_add(expanded, offset)]
    else:
      convolved_norm, pooled_norm = joined_norm.split(plan.expand_depth)
      scale, offset = convolved_norm.affine()
      expanded = _convolve(activations, expand_weights * scale, plan.stride)
      pooled = tf.nn.max_pool2d(net, plan.kernel, plan.stride, 'VALID')
      joined = [tf.nn.bias_add(expanded, offset), pooled_norm.normalize(pooled)]
    reduced = _convolve(_activations(*joined), reduce_weights)
    path = _deconvolved_path if plan.is_deconv else _convolved_path
    return crop(path(net, reduced, plan), plan.crop)


def training_module(net: tf.Tensor, plan: ModulePlan, statistics: BatchStatistics) -> tf.Tensor:
  """`module` with batch norm by the batch's own statistics.

  The expanded map has zeros appended to a depth at which batch norm is fast; weights of zero make
  them, and read them.

  Args:
    net: [batch, row, column, plan.input_depth].
    plan: names, depths and sizes.
    statistics: collects the batch's.

  Returns:
    [batch, row, column, plan.output_depth].
  """
  with tf.variable_scope(plan.name):
    with tf.variable_scope('expand_rv2'):
      activations = _trained_activations(*statistics.normalize(net, depths=[plan.input_depth]))
      convolve, made_axis = (_deconvolve, 2) if plan.is_deconv else (_convolve, 3)
      weights = _pad_end(_expand_weights(plan), made_axis, -plan.expand_depth % _FAST_DEPTH)
      joined = [convolve(activations, weights, plan.stride)]
    depths = [plan.expand_depth]
    if not plan.is_deconv:
      joined.append(tf.nn.max_pool2d(net, plan.kernel, plan.stride, 'VALID'))
      depths.append(plan.input_depth)
    with tf.variable_scope('reduce_rv2'):
      activations = _trained_activations(*statistics.normalize(*joined, depths=depths))
      with tf.variable_scope('Conv'):
        weights = _weights(1, 1, 2 * plan.joined_depth, plan.reduce_depth)
    # The rows that read relu, and those that read tanh, both by part.
    rows = tf.reshape(weights, [2, plan.joined_depth, plan.reduce_depth])
    rows = tf.concat(_split_depth(rows, joined, depths, axis=1), axis=1)
    reduced = _multiply(activations, tf.reshape(rows, [-1, plan.reduce_depth]))
    path = _deconvolved_path if plan.is_deconv else _convolved_path
    result = crop(path(net, reduced, plan), plan.crop)
    statistics.activations[plan.name] = result
    return result


def _multiply(net: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
  """A 1x1 convolution with weights [depth, made depth]; as a product its gradient is faster."""
  *size, depth = net.shape.as_list()
  made = tf.matmul(tf.reshape(net, [-1, depth]), weights)
  return tf.reshape(made, [*size, weights.shape.as_list()[-1]])


def _convolved_path(net: tf.Tensor, reduced: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """The sum of both paths; zeros stand for the channels that the residual lacks."""
  net = crop(net, 1)
  if plan.stride == 2:
    net = tf.nn.avg_pool2d(net, 2, 2, 'VALID')
  lacking = plan.reduce_depth - plan.input_depth
  if lacking:
    net = tf.pad(net, [[0, 0], [0, 0], [0, 0], [0, lacking]])
  return net + reduced


def _deconvolved_path(net: tf.Tensor, reduced: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """The sum of the channels that both paths have."""
  rows, columns = net.shape.as_list()[1:3]
  net = tf.raw_ops.ResizeNearestNeighbor(
    images=net[..., : plan.output_depth], size=[plan.stride * rows, plan.stride * columns]
  )
  border = (plan.kernel - plan.stride) // 2
  if border:
    net = tf.pad(net, [[0, 0], [border, border], [border, border], [0, 0]], mode='SYMMETRIC')
  return net + reduced[..., : plan.output_depth]


class HeadVariables(NamedTuple):
  """What makes logits of the network's features, for one head (or, stacked, for several)."""

  gamma: tf.Tensor
  beta: tf.Tensor
  moving_mean: tf.Tensor
  moving_variance: tf.Tensor
  weights: tf.Tensor
  biases: tf.Tensor


def head_variables(depth: int, key: ImageKey) -> HeadVariables:
  """The variables of the head that predicts `key` from `depth` features."""
  with tf.variable_scope(head_scope(key)):
    norm = _batch_norm(depth)
    with tf.variable_scope('Conv'):
      return HeadVariables(*norm, _weights(1, 1, 2 * depth, NUM_CLASSES), _biases(NUM_CLASSES))


def training_logits(
  net: tf.Tensor, keys: Sequence[ImageKey], statistics: BatchStatistics
) -> tf.Tensor:
  """Logits of all heads in training.

  All read the same features, so all find the same statistics in a batch; what differs is scale and
  offset.

  Args:
    net: the features, [batch, row, column, depth].
    keys: the images that the heads predict.
    statistics: collects the batch's.

  Returns:
    [head, batch * row * column, class].
  """
  depth = net.shape.as_list()[-1]
  normalized, mean, variance, *_ = tf.nn.fused_batch_norm(
    net, tf.ones([depth]), tf.zeros([depth]), epsilon=_EPSILON
  )
  variables = []
  for key in keys:
    with tf.variable_scope(head_scope(key)):
      with tf.variable_scope('BatchNorm') as scope:
        scale_and_offset = [tf.get_variable(name, [depth]) for name in ('gamma', 'beta')]
      with tf.variable_scope('Conv'):
        weights = tf.reshape(_weights(1, 1, 2 * depth, NUM_CLASSES), [2 * depth, NUM_CLASSES])
        variables.append((*scale_and_offset, weights, _biases(NUM_CLASSES)))
    statistics.collected[f'{scope.name}/moving_mean'] = mean
    statistics.collected[f'{scope.name}/moving_variance'] = variance
  gammas, betas, weights, biases = (tf.stack(v) for v in zip(*variables, strict=True))
  pixels = tf.reshape(normalized, [1, -1, depth])
  activations = _activations(pixels * gammas[:, tf.newaxis] + betas[:, tf.newaxis])
  return tf.matmul(activations, weights) + biases[:, tf.newaxis]


def head_logits(net: tf.Tensor, head: HeadVariables) -> tf.Tensor:
  """Logits [batch, row, column, class] from features [batch, row, column, depth]."""
  *norm, weights, biases = head
  activations = _activations(BatchNorm(*norm).normalize(net))
  return tf.nn.bias_add(_convolve(activations, weights), biases)
