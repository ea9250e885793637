"""Checks of tensors' shapes, bounds and finiteness, off unless a program switches them on.

Checks of values cost a pass over each tensor, so they are for finding a fault, not for every day.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow.compat.v1 as tf

_enabled = False


def enable(on: bool = True) -> None:
  """Switches the checks on or off for all graphs that are built from now on."""
  global _enabled
  _enabled = on


def bounded(net: tf.Tensor, low: float, high: float, name: str) -> tf.Tensor:
  """Returns `net` with a check that it is finite and in [low, high].

  Where it is not, the graph's run fails with tf.errors.InvalidArgumentError, which gives `name`.
  """
  if not _enabled:
    return net
  message = f'{name} must be finite and in [{low}, {high}]'
  # Written so that a NaN, which compares as false, fails.
  within = tf.reduce_all((net >= low) & (net <= high))
  with tf.control_dependencies([tf.Assert(within, [message], summarize=1)]):
    return tf.identity(net)


def finite(net: tf.Tensor, name: str) -> tf.Tensor:
  """Returns `net` with a check that it has neither NaN nor infinity.

  Where it has, the graph's run fails with tf.errors.InvalidArgumentError, which gives `name`.
  """
  if not _enabled:
    return net
  return tf.debugging.check_numerics(net, f'{name} must be finite')


def reason(error: tf.errors.InvalidArgumentError) -> str:
  """Finds the failed check in a message that mostly says where TensorFlow's graph was built."""
  lines = error.message.splitlines()
  return next((line.strip() for line in lines if ' must be finite' in line), lines[0])


def shaped(net: tf.Tensor, shape: Sequence[int | None], name: str) -> tf.Tensor:
  """Returns `net` after checking its static shape.

  Args:
    net: the tensor.
    shape: the shape that it must have; None: a length that the graph does not know.
    name: what the error calls the tensor.

  Raises:
    ValueError: the checks are on, and `net` has another shape.
  """
  if _enabled and net.shape.as_list() != list(shape):
    raise ValueError(f'{name} must have the shape {list(shape)}, got {net.shape.as_list()}')
  return net
