"""The layers of the multiscale networks for prediction: batch norm, convolutions, module, head.

A feature map is `[batch, row, column, depth]`; every convolution is VALID. Variables are made by
`tf.get_variable` in scopes that give them the names of the original's checkpoints. A graph for one
checkpoint may replace them by its values, with a custom getter.

Batch norm and activation come before the convolution (He et al., Identity Mappings in Deep Residual
Networks, 2016); the activation is [relu, tanh], side by side along depth.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES
from isl.models.ops import crop, shape_of
from isl.models.plan import ModulePlan, head_scope

# Added to batch norm's variances.
EPSILON = 0.001


class BatchNorm(NamedTuple):
  """The variables of a batch norm, each [depth]."""

  gamma: tf.Tensor
  beta: tf.Tensor
  moving_mean: tf.Tensor
  moving_variance: tf.Tensor

  def normalize(self, net: tf.Tensor) -> tf.Tensor:
    """Computes gamma * (net - moving_mean) / sqrt(moving_variance + EPSILON) + beta.

    Args:
      net: [batch, row, column, depth].
    """
    return tf.nn.fused_batch_norm(net, *self, epsilon=EPSILON, is_training=False)[0]

  def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives (scale, offset), each [depth], such that `normalize` is scale * net + offset."""
    scale = self.gamma * tf.math.rsqrt(self.moving_variance + EPSILON)
    return scale, self.beta - self.moving_mean * scale

  def split(self, depth: int) -> tuple[BatchNorm, BatchNorm]:
    """Splits this into two batch norms: of the first `depth` features, and of the rest."""
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


def make_weights(*shape: int) -> tf.Tensor:
  """Makes the variable of the current scope's convolution weights, of this shape."""
  return tf.get_variable('weights', shape, initializer=tf.glorot_uniform_initializer())


def make_biases(depth: int) -> tf.Tensor:
  """Makes the variable of the current scope's convolution biases, [depth]."""
  return tf.get_variable('biases', [depth], initializer=tf.zeros_initializer())


def activate(*parts: tf.Tensor) -> tf.Tensor:
  """Gives [relu, tanh] of the parts' concatenation along depth, without making that first."""
  return tf.concat([tf.nn.relu(p) for p in parts] + [tf.tanh(p) for p in parts], axis=-1)


def convolve(net: tf.Tensor, weights: tf.Tensor, stride: int = 1) -> tf.Tensor:
  """Convolves without bias, by weights [row, column, read depth, made depth]."""
  return tf.nn.conv2d(net, weights, strides=stride, padding='VALID')


def projection(net: tf.Tensor, depth: int) -> tf.Tensor:
  """Convolves by 1x1 to `depth` features, with bias and without activation."""
  with tf.variable_scope('Conv'):
    weights = make_weights(1, 1, net.shape.as_list()[-1], depth)
    return tf.nn.bias_add(convolve(net, weights), make_biases(depth))


def with_masks(net: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
  """Puts a mask behind each image.

  Args:
    net: intensities in [0, 1], [batch, row, column, image].
    mask: the mask of all images, [batch, row, column]; None: it is 1 everywhere.

  Returns:
    [batch, row, column, 2 * image], images and masks in turn.
  """
  *size, num_images = shape_of(net)
  masks = tf.ones_like(net)
  if mask is not None:
    masks *= mask[..., tf.newaxis]
  return tf.reshape(tf.stack([net, masks], axis=-1), [*size, 2 * num_images])


def make_expand_weights(plan: ModulePlan) -> tf.Tensor:
  """Makes the weights of a module's expanding convolution or deconvolution."""
  kernel, read, made = plan.kernel, 2 * plan.input_depth, plan.expand_depth
  with tf.variable_scope('Conv2d_transpose' if plan.is_deconv else 'Conv'):
    return make_weights(kernel, kernel, *((made, read) if plan.is_deconv else (read, made)))


def deconvolve(net: tf.Tensor, weights: tf.Tensor, stride: int) -> tf.Tensor:
  """Convolves transposed, without bias, by weights [row, column, made depth, read depth]."""
  kernel, _, depth, _ = weights.shape.as_list()
  batch, rows, columns, _ = shape_of(net)
  shape = [batch, (rows - 1) * stride + kernel, (columns - 1) * stride + kernel, depth]
  made = tf.nn.conv2d_transpose(net, weights, shape, strides=stride, padding='VALID')
  return tf.ensure_shape(made, [None, None, None, depth]) if None in made.shape[1:] else made


def module(net: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """Computes a module: an expanding convolution, a reducing one, and a residual path around both.

  A max pool of the raw input (same kernel and stride) goes beside the expanding convolution, unless
  that is a deconvolution. The part of the second batch norm that normalizes the expanding
  convolution's result is folded into that convolution, since nothing else reads its result: this
  saves two passes over the largest map.

  Args:
    net: [batch, row, column, plan.input_depth].
    plan: the module's names, depths and sizes.

  Returns:
    [batch, row, column, plan.output_depth].
  """
  with tf.variable_scope(plan.name):
    with tf.variable_scope('expand_rv2'):
      activations = activate(_batch_norm(plan.input_depth).normalize(net))
      expand_weights = make_expand_weights(plan)
    with tf.variable_scope('reduce_rv2'):
      joined_norm = _batch_norm(plan.joined_depth)
      with tf.variable_scope('Conv'):
        reduce_weights = make_weights(1, 1, 2 * plan.joined_depth, plan.reduce_depth)
    if plan.is_deconv:
      scale, offset = joined_norm.affine()
      expanded = deconvolve(activations, expand_weights * scale[:, tf.newaxis], plan.stride)
      joined = [tf.nn.bias_add(expanded, offset)]
    else:
      convolved_norm, pooled_norm = joined_norm.split(plan.expand_depth)
      scale, offset = convolved_norm.affine()
      expanded = convolve(activations, expand_weights * scale, plan.stride)
      pooled = tf.nn.max_pool2d(net, plan.kernel, plan.stride, 'VALID')
      joined = [tf.nn.bias_add(expanded, offset), pooled_norm.normalize(pooled)]
    reduced = convolve(activate(*joined), reduce_weights)
    return add_residual(net, reduced, plan)


def add_residual(net: tf.Tensor, reduced: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """Adds a module's residual path, made from its input `net`, to its convolutions' result.

  Args:
    net: the module's input, [batch, row, column, plan.input_depth].
    reduced: the reducing convolution's result, [batch, row, column, plan.reduce_depth].
    plan: the module's names, depths and sizes.

  Returns:
    The module's result, [batch, row, column, plan.output_depth].
  """
  path = _deconvolved_path if plan.is_deconv else _convolved_path
  return crop(path(net, reduced, plan), plan.crop)


def _convolved_path(net: tf.Tensor, reduced: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """Sums both paths of a convolution; zeros stand for features that the residual path lacks."""
  net = crop(net, 1)
  if plan.stride == 2:
    net = tf.nn.avg_pool2d(net, 2, 2, 'VALID')
  lacking = plan.reduce_depth - plan.input_depth
  if lacking:
    net = tf.pad(net, [[0, 0], [0, 0], [0, 0], [0, lacking]])
  return net + reduced


def _deconvolved_path(net: tf.Tensor, reduced: tf.Tensor, plan: ModulePlan) -> tf.Tensor:
  """Sums both paths of a deconvolution, in the features that both have."""
  _, rows, columns, _ = shape_of(net)
  net = tf.raw_ops.ResizeNearestNeighbor(
    images=net[..., : plan.output_depth], size=[plan.stride * rows, plan.stride * columns]
  )
  border = (plan.kernel - plan.stride) // 2
  if border:
    net = tf.pad(net, [[0, 0], [border, border], [border, border], [0, 0]], mode='SYMMETRIC')
  return net + reduced[..., : plan.output_depth]


class HeadVariables(NamedTuple):
  """The variables of one head (or, stacked, of several), which makes logits of features."""

  gamma: tf.Tensor
  beta: tf.Tensor
  moving_mean: tf.Tensor
  moving_variance: tf.Tensor
  weights: tf.Tensor
  biases: tf.Tensor


def head_variables(depth: int, key: ImageKey) -> HeadVariables:
  """Makes the variables of the head that predicts the image `key` from `depth` features."""
  with tf.variable_scope(head_scope(key)):
    norm = _batch_norm(depth)
    with tf.variable_scope('Conv'):
      return HeadVariables(
        *norm, make_weights(1, 1, 2 * depth, NUM_CLASSES), make_biases(NUM_CLASSES)
      )


def head_logits(net: tf.Tensor, head: HeadVariables) -> tf.Tensor:
  """Computes a head's logits, [batch, row, column, class], of features [.., depth]."""
  *norm, weights, biases = head
  activations = activate(BatchNorm(*norm).normalize(net))
  return tf.nn.bias_add(convolve(activations, weights), biases)
