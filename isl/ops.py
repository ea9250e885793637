"""Crops, patches <-> images, and the statistics of a predicted distribution, as graph ops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow.compat.v1 as tf

from isl import losses
from isl.experiment import NUM_CLASSES, Statistic

# The median's search looks at groups of this many classes first.
_GROUP = math.isqrt(NUM_CLASSES)


def crop(net: tf.Tensor, margin: int) -> tf.Tensor:
  """Cuts `margin` pixels off each side of `[batch, row, column, depth]`."""
  if not margin:
    return net
  rows, columns = net.shape.as_list()[1:3]
  return tf.slice(net, [0, margin, margin, 0], [-1, rows - 2 * margin, columns - 2 * margin, -1])


def images_to_patches(net: tf.Tensor, size: int) -> tf.Tensor:
  """Cuts images into the patches that tile them.

  Args:
    net: [batch, row * size, column * size, depth].
    size: side of a patch in pixels.

  Returns:
    [batch * row * column, size, size, depth], batch slowest, column fastest.
  """
  batch, rows, columns, depth = net.shape.as_list()
  net = tf.reshape(net, [batch, rows // size, size, columns // size, size, depth])
  net = tf.transpose(net, [0, 1, 3, 2, 4, 5])
  return tf.reshape(net, [-1, size, size, depth])


def _from_reciprocal(classes: tf.Tensor) -> tf.Tensor:
  # The original multiplies by the reciprocal; dividing would differ in the last bit.
  return tf.cast(classes, tf.float32) * tf.constant(1 / (NUM_CLASSES - 1), tf.float32)


def class_of(values: tf.Tensor) -> tf.Tensor:
  """The class of each intensity in [0, 1]: round(255 * value), int32."""
  return tf.cast(tf.round(values * (NUM_CLASSES - 1)), tf.int32)


def _median_class(p: tf.Tensor) -> tf.Tensor:
  """#(cumulative p < 0.5) for `p` [pixel, class], int32 [pixel].

  A cumulative sum over all classes takes three times as long as looking first at the sums of
  groups of 16 classes and then into the one group in which the sum reaches one half.
  """
  groups = tf.reshape(p, [-1, _GROUP, _GROUP])
  sums = tf.reduce_sum(groups, axis=-1)
  cumulative = tf.cumsum(sums, axis=-1)
  # Rounding may keep the last sum just below one half of a total that should be 1.
  group = tf.minimum(_count(cumulative < 0.5), _GROUP - 1)
  before = tf.gather(cumulative - sums, group, batch_dims=1)
  inside = tf.cumsum(tf.gather(groups, group, batch_dims=1), axis=-1) + before[:, tf.newaxis]
  return tf.minimum(group * _GROUP + _count(inside < 0.5), NUM_CLASSES - 1)


def _count(condition: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tf.cast(condition, tf.int32), axis=-1)


def distribution_statistics(
  logits: tf.Tensor, labels: tf.Tensor, statistics: Sequence[Statistic]
) -> list[tf.Tensor]:
  """Statistics of each pixel's distribution p = softmax(logits), class k having k / (K - 1).

  Args:
    logits: float32 [pixel, class].
    labels: int32 [pixel], the true class (any class where the truth is unknown); only
      Statistic.CROSS_ENTROPY and RANKED_PROBABILITY_SCORE read it.
    statistics: which.

  Returns:
    One float32 [pixel] for each of `statistics`: with K = 256
    MODE argmax(p) / (K - 1); MEDIAN #(cumulative p < 0.5) / (K - 1); MEAN; STANDARD_DEVIATION;
    PROBABILITY_NONZERO 1 - p[0]; ENTROPY -sum p ln(p + 1e-7) / ln K; CROSS_ENTROPY -ln p[label] /
    ln K, not clipped; RANKED_PROBABILITY_SCORE as in losses.py.
  """
  p = tf.nn.softmax(logits)
  values = _from_reciprocal(tf.range(NUM_CLASSES))
  mean = tf.linalg.matvec(p, values)

  def standard_deviation() -> tf.Tensor:
    # Around the mean, since E[x^2] - E[x]^2 would cancel for a narrow distribution.
    deviations = tf.math.squared_difference(values, mean[:, tf.newaxis])
    return tf.sqrt(tf.reduce_sum(p * deviations, axis=-1))

  def cross_entropy() -> tf.Tensor:
    # ln p[label] from the logits: p[label] itself may have underflown to 0.
    likeliest = tf.reduce_max(logits, axis=-1) - tf.log(tf.reduce_max(p, axis=-1))
    return (likeliest - tf.gather(logits, labels, batch_dims=1)) / math.log(NUM_CLASSES)

  makers = {
    Statistic.MODE: lambda: _from_reciprocal(tf.argmax(p, axis=-1, output_type=tf.int32)),
    Statistic.MEDIAN: lambda: _from_reciprocal(_median_class(p)),
    Statistic.MEAN: lambda: mean,
    Statistic.STANDARD_DEVIATION: standard_deviation,
    Statistic.PROBABILITY_NONZERO: lambda: 1 - p[:, 0],
    Statistic.ENTROPY: lambda: (
      -tf.reduce_sum(p * tf.log(p + 1e-7), axis=-1) / math.log(NUM_CLASSES)
    ),
    Statistic.CROSS_ENTROPY: cross_entropy,
    Statistic.RANKED_PROBABILITY_SCORE: lambda: losses.ranked_probability_score(logits, labels),
  }
  return [makers[statistic]() for statistic in statistics]
