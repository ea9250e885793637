"""How far predicted distributions are from the true classes, as graph ops.

Both losses are 0 for a distribution that has all its weight at the true class. The leading
dimensions are free: [head, pixel] in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as tf

from isl.core.experiment import Loss
from isl.core.statistic import NUM_CLASSES


def cross_entropy(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
  """Computes -ln p[c] / ln K with p = softmax(logits) and K = 256: 1 for a uniform distribution.

  Args:
    logits: float32 [.., class].
    classes: int32 [..], the true class c.

  Returns:
    The loss of each pixel, float32 [..].
  """
  # From the logits: where p[c] underflows, the loss and its gradient are finite all the same.
  nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
  return nats / math.log(NUM_CLASSES)


def ranked_probability_score(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
  """Computes sum over k of (P[k] - H[k])^2 / (K - 1), with the true class c and K = 256.

  P is the cumulative sum of p = softmax(logits); H[k] is 0 for k < c and 1 for k >= c. Unlike cross
  entropy, the score tells how far the weight is from c: it is 1 if all weight is at one end and c
  at the other. (Epstein, A scoring system for probability forecasts of ranked categories, J. Appl.
  Meteorol. 1969.)

  Args:
    logits: float32 [.., class].
    classes: int32 [..], the true class c.

  Returns:
    The score of each pixel, float32 [..].
  """
  cumulative = tf.cumsum(tf.nn.softmax(logits), axis=-1)
  step = tf.cast(tf.range(NUM_CLASSES) >= classes[..., tf.newaxis], tf.float32)
  return tf.reduce_sum(tf.math.squared_difference(cumulative, step), axis=-1) / (NUM_CLASSES - 1)


_FUNCTIONS = {
  Loss.CROSS_ENTROPY: cross_entropy,
  Loss.RANKED_PROBABILITY_SCORE: ranked_probability_score,
}


def loss_function(loss: Loss) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """The function that computes a loss: (logits [.., class], classes [..]) -> float32 [..]."""
  return _FUNCTIONS[loss]


def masked_mean(loss: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
  """Computes sum(mask * loss) / #(mask != 0) for each head; 0 where its mask is 0 everywhere.

  The number of pixels divides, not the sum of the mask: a pixel whose mask is 0.5 counts half.

  Args:
    loss: the loss of each pixel, float32 [head, ..].
    mask: the pixels' weights, float32 of the same shape, or of one that broadcasts to it when ones
      are appended: [head], [head, patch], [head, 1, pixel].

  Returns:
    Each head's loss, float32 [head].
  """
  while mask.shape.rank < loss.shape.rank:
    mask = mask[..., tf.newaxis]
  mask = tf.broadcast_to(mask, tf.shape(loss))
  axes = list(range(1, loss.shape.rank))
  count = tf.reduce_sum(tf.cast(tf.not_equal(mask, 0), tf.float32), axes)
  return tf.math.divide_no_nan(tf.reduce_sum(mask * loss, axes), count)


def total(inputs: Any, targets: Any) -> Any:
  """Computes 0.5 * inputs + 0.5 * targets, which training minimizes.

  Args:
    inputs: the mean of the input heads' losses, a scalar tensor or a number.
    targets: the mean of the target heads' losses, of the same kind.

  Returns:
    The total loss, of that kind.
  """
  return 0.5 * inputs + 0.5 * targets
