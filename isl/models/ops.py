"""Graph ops: crops, patches of images, classes, and statistics of predicted distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from isl.core.statistic import NUM_CLASSES, AnyStatistic, Quantile, Statistic
from isl.models import losses

# The search for a quantile looks at groups of this many classes first.
_GROUP = math.isqrt(NUM_CLASSES)


def shape_of(net: tf.Tensor) -> list[Any]:
  """A tensor's shape as a list: numbers where the graph knows them, else scalar tensors."""
  known = net.shape.as_list()
  if None not in known:
    return known
  actual = tf.shape(net)
  return [actual[i] if n is None else n for i, n in enumerate(known)]


def crop(net: tf.Tensor, margin: int) -> tf.Tensor:
  """Cuts `margin` pixels off each side of `[batch, row, column, depth]`."""
  if not margin:
    return net
  if None in net.shape.as_list():
    return net[:, margin:-margin, margin:-margin]
  rows, columns = net.shape.as_list()[1:3]
  return tf.slice(net, [0, margin, margin, 0], [-1, rows - 2 * margin, columns - 2 * margin, -1])


def images_to_patches(net: tf.Tensor, size: int) -> tf.Tensor:
  """Cuts images into the square patches that tile them.

  Args:
    net: [batch, row * size, column * size, depth].
    size: side of a patch, in pixels.

  Returns:
    [batch * row * column, size, size, depth], batch slowest, column fastest.
  """
  batch, rows, columns, depth = shape_of(net)
  net = tf.reshape(net, [batch, rows // size, size, columns // size, size, depth])
  net = tf.transpose(net, [0, 1, 3, 2, 4, 5])
  return tf.reshape(net, [-1, size, size, depth])


def _from_reciprocal(classes: tf.Tensor) -> tf.Tensor:
  # The original multiplies by the reciprocal; dividing would differ in the last bit.
  return tf.cast(classes, tf.float32) * tf.constant(1 / (NUM_CLASSES - 1), tf.float32)


def class_of(values: tf.Tensor) -> tf.Tensor:
  """Gives the class of each intensity in [0, 1]: round(255 * value), int32 of the same shape."""
  return tf.cast(tf.round(values * (NUM_CLASSES - 1)), tf.int32)


class _Cumulative:
  """Looks up cumulative sums of probabilities `p` [pixel, class], as far as they are needed.

  A cumulative sum over all classes takes three times as long as looking first at the sums of
  groups of 16 classes and then into the one group that matters.
  """

  def __init__(self, p: tf.Tensor):
    self._groups = tf.reshape(p, [-1, _GROUP, _GROUP])
    sums = tf.reduce_sum(self._groups, axis=-1)
    self._up_to = tf.cumsum(sums, axis=-1)
    self._before = self._up_to - sums

  def quantile_class(self, share: float) -> tf.Tensor:
    """The class #(cumulative p < share) of each pixel, int32 [pixel]."""
    # Rounding may keep the last sum just below a share of a total that should be 1.
    group = tf.minimum(_count(self._up_to < share), _GROUP - 1)
    inside = self._inside(group)
    return tf.minimum(group * _GROUP + _count(inside < share), NUM_CLASSES - 1)

  def at(self, classes: tf.Tensor) -> tf.Tensor:
    """Each pixel's sum of p up to and with a class, float32 [pixel].

    Args:
      classes: the class of each pixel, int32 [pixel].
    """
    return tf.gather(self._inside(classes // _GROUP), classes % _GROUP, batch_dims=1)

  def _inside(self, group: tf.Tensor) -> tf.Tensor:
    """Each pixel's cumulative sums at the classes of one of its groups, float32 [pixel, 16]."""
    before = tf.gather(self._before, group, batch_dims=1)
    return tf.cumsum(tf.gather(self._groups, group, batch_dims=1), axis=-1) + before[:, tf.newaxis]


def _count(condition: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tf.cast(condition, tf.int32), axis=-1)


def distribution_statistics(
  logits: tf.Tensor, classes: tf.Tensor, statistics: Sequence[AnyStatistic]
) -> list[tf.Tensor]:
  """Computes statistics of each pixel's distribution p = softmax(logits).

  Class k of K = 256 stands for the intensity k / (K - 1).

  Args:
    logits: float32 [pixel, class].
    classes: int32 [pixel], the true class c (any class where the truth is unknown); only
      Statistic.CROSS_ENTROPY, RANKED_PROBABILITY_SCORE, PROBABILITY_BELOW and PROBABILITY_UP_TO
      read it.
    statistics: the statistics to compute: any but DISTRIBUTION, which is p itself.

  Returns:
    One float32 [pixel] for each of `statistics`:
    MODE argmax(p) / (K - 1); QUANTILE_q #(cumulative p < q / 100) / (K - 1), MEDIAN being
    QUANTILE_50; MEAN; STANDARD_DEVIATION; PROBABILITY_NONZERO 1 - p[0]; ENTROPY
    -sum p ln(p + 1e-7) / ln K; CROSS_ENTROPY -ln p[c] / ln K, not clipped;
    RANKED_PROBABILITY_SCORE as in isl/models/losses.py; PROBABILITY_BELOW and PROBABILITY_UP_TO the
    sums of p over classes below c, and below or equal to it; MODE_PROBABILITY max p.
  """
  p = tf.nn.softmax(logits)
  values = _from_reciprocal(tf.range(NUM_CLASSES))
  mean = tf.linalg.matvec(p, values)
  cumulative = _Cumulative(p)

  def standard_deviation() -> tf.Tensor:
    # Around the mean, since E[x^2] - E[x]^2 would cancel for a narrow distribution.
    deviations = tf.math.squared_difference(values, mean[:, tf.newaxis])
    return tf.sqrt(tf.reduce_sum(p * deviations, axis=-1))

  def cross_entropy() -> tf.Tensor:
    # ln p[c] from the logits: p[c] itself may have underflown to 0.
    likeliest = tf.reduce_max(logits, axis=-1) - tf.log(tf.reduce_max(p, axis=-1))
    return (likeliest - tf.gather(logits, classes, batch_dims=1)) / math.log(NUM_CLASSES)

  makers = {
    Statistic.MODE: lambda: _from_reciprocal(tf.argmax(p, axis=-1, output_type=tf.int32)),
    Statistic.MEDIAN: lambda: _from_reciprocal(cumulative.quantile_class(0.5)),
    Statistic.MEAN: lambda: mean,
    Statistic.STANDARD_DEVIATION: standard_deviation,
    Statistic.PROBABILITY_NONZERO: lambda: 1 - p[:, 0],
    Statistic.ENTROPY: lambda: (
      -tf.reduce_sum(p * tf.log(p + 1e-7), axis=-1) / math.log(NUM_CLASSES)
    ),
    Statistic.CROSS_ENTROPY: cross_entropy,
    Statistic.RANKED_PROBABILITY_SCORE: lambda: losses.ranked_probability_score(logits, classes),
    # Rounding may make the difference slightly negative.
    Statistic.PROBABILITY_BELOW: lambda: tf.nn.relu(
      cumulative.at(classes) - tf.gather(p, classes, batch_dims=1)
    ),
    Statistic.PROBABILITY_UP_TO: lambda: cumulative.at(classes),
    Statistic.MODE_PROBABILITY: lambda: tf.reduce_max(p, axis=-1),
  }
  return [
    _from_reciprocal(cumulative.quantile_class(statistic.percent / 100))
    if isinstance(statistic, Quantile)
    else makers[statistic]()
    for statistic in statistics
  ]
