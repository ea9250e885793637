"""What this machine can do, measured beside what a benchmark measures."""

from __future__ import annotations

import time
from collections.abc import Callable

import tensorflow.compat.v1 as tf


def seconds(work: Callable[[], object]) -> float:
  """How long `work` takes."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


class MatrixProduct:
  """A large float32 matrix product, for its speed: what the cores can do at best."""

  def __init__(self, size: int = 4096):
    """Makes matrices of this side, and warms up."""
    self._flop = 2 * size**3
    with tf.Graph().as_default():
      matrix = tf.get_variable('matrix', initializer=tf.random_normal([size, size]))
      self._product = tf.matmul(matrix, matrix).op
      self._session = tf.Session()
      self._session.run(tf.global_variables_initializer())
    self.flop_per_second()

  def flop_per_second(self) -> float:
    """Of one product, now."""
    return self._flop / seconds(lambda: self._session.run(self._product))

  def best_flop_per_second(self, repeats: int = 3) -> float:
    """The best of some."""
    return max(self.flop_per_second() for _ in range(repeats))
