"""What TensorBoard shows of a training."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import tensorflow.compat.v1 as tf

from isl.restoration import Start
from isl.summaries import SummaryWriter
from isl.training_graph import TrainingGraph


class SummaryHook(tf.train.SessionRunHook):
  """Writes summaries every so many seconds."""

  def __init__(self, directory: pathlib.Path, seconds: float, graph: TrainingGraph, start: Start):
    self._directory = directory
    self._seconds = seconds
    self._graph = graph
    self._start = start
    self._due = 0.0
    self._steps = 0
    for tensor in tf.get_collection(tf.GraphKeys.ACTIVATIONS):
      tf.summary.histogram('activations/' + tensor.op.name.rsplit('/', 1)[0], tensor)
    self._merged = tf.summary.merge_all()

  def begin(self):
    self._writer = SummaryWriter(self._directory)

  def before_run(self, run_context: Any):
    self._now = time.monotonic() >= self._due and self._steps > 0
    self._steps += 1
    if not self._now:
      return None
    g = self._graph
    return tf.train.SessionRunArgs(dict(step=g.step, total=g.total_loss, inp=g.input_loss, tgt=g.target_loss, heads=g.loss_by_head, weights=g.variables.read_weights, grads=g.gradients))

  def after_run(self, run_context: Any, run_values: Any):
    if not self._now: return
    r = run_values.results
    self._due = time.monotonic() + self._seconds
    vals={'total_loss': r['total'], 'loss/input': r['inp'], 'loss/target': r['tgt']}
    vals |= {f'loss/{k}': v for k, v in zip(self._graph.heads, r['heads'])}
    self._writer.scalars(r['step'], vals)
