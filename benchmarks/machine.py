"""Measures what this machine can do, for benchmarks to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable

import tensorflow.compat.v1 as tf


def seconds(work: Callable[[], object]) -> float:
  """Measures how long `work` takes, in seconds."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


# Side of the matrices: large enough that the product's speed is all that the cores can do.
SIDE = 4096


class MatrixProduct:
  """A large float32 matrix product, whose speed is the best that the cores can do."""

  def __init__(self, size: int):
    """Makes square matrices of side `size`, and computes a first product."""
    self._flop = 2 * size**3
    with tf.Graph().as_default():
      matrix = tf.get_variable('matrix', initializer=tf.random_normal([size, size]))
      self._product = tf.matmul(matrix, matrix).op
      self._session = tf.Session()
      self._session.run(tf.global_variables_initializer())
    self.flop_per_second()

  def flop_per_second(self) -> float:
    """Measures the speed of one product, in FLOP per second."""
    return self._flop / seconds(lambda: self._session.run(self._product))

  def best_flop_per_second(self, repeats: int = 3) -> float:
    """Measures the best speed of `repeats` products, in FLOP per second."""
    return max(self.flop_per_second() for _ in range(repeats))
