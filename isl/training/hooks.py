"""Hooks of a training's session: check of the losses, log lines, checkpoints, stop on signals."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

from isl.checkpoints.checkpoint import CHECKPOINT_NAME, last_part, step_in_name
from isl.checkpoints.saving import make_saver, remove_partial
from isl.data.streams import PatchStream
from isl.models import tensorcheck
from isl.training.graph import TrainingGraph

_SECONDS_BETWEEN_LINES = 5.0
# Log lines about files that cannot be written.
SECONDS_BETWEEN_COMPLAINTS = 60.0
_HOURS_BETWEEN_KEPT = 2.0
# After a signal: before a log line says what is waited for, and before a second signal ends all.
_SECONDS_TO_STOP = 5.0


class LossGuard(tf.train.SessionRunHook):
  """Stops a training whose loss is not finite.

  This hook comes before the one that saves, so that the variables after such a step are never
  saved.
  """

  def __init__(self, graph: TrainingGraph):
    """Takes the graph whose losses it watches."""
    self._graph = graph

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for the losses and the step."""
    return tf.train.SessionRunArgs([self._graph.loss_by_head, self._graph.step])

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Checks the losses.

    Raises:
      ValueError: a head's loss is not finite; the message names the step and the heads.
    """
    by_head, step = run_values.results
    check_finite_losses(self._graph, by_head, step)


def check_finite_losses(graph: TrainingGraph, by_head: np.ndarray, step: int) -> None:
  """Checks the losses of a step.

  Args:
    graph: the training's graph, which has the heads.
    by_head: loss of each head, [head].
    step: number of the step, from 1.

  Raises:
    ValueError: a head's loss is not finite; the message names the step and the heads.
  """
  broken = [
    str(key) for key, loss in zip(graph.heads, by_head, strict=True) if not np.isfinite(loss)
  ]
  if broken:
    more = f' and {len(broken) - 3} others' if len(broken) > 3 else ''
    raise ValueError(
      f'the loss of {", ".join(broken[:3])}{more} is not finite at step {step}; the newest'
      ' checkpoint is from before; a smaller --learning_rate may help'
    )


class ProgressLog(tf.train.SessionRunHook):
  """Logs every few seconds how far a training is, its loss, its speed and its waiting for data."""

  def __init__(self, graph: TrainingGraph):
    """Takes the graph of the training."""
    self._fetches = [graph.step, graph.total_loss, graph.seconds_waiting]
    self._began: float | None = None
    self._steps = 0
    self._waited = 0.0

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for the step, the loss and the seconds for which the step waited for data."""
    return tf.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Writes a log line if one is due; the first step has one of its own."""
    step, loss, waited = run_values.results
    now = time.monotonic()
    if self._began is None:
      # The first step of a graph takes seconds, which would spoil the speed.
      logging.info('step %d: loss %.4f', step, loss)
      self._began = now
      return
    self._steps += 1
    self._waited += waited
    elapsed = now - self._began
    if elapsed >= _SECONDS_BETWEEN_LINES:
      logging.info(
        'step %d: loss %.4f, %.2f steps/s, %.1f%% of the time waiting for data',
        step,
        loss,
        self._steps / elapsed,
        100 * self._waited / elapsed,
      )
      self._began, self._steps, self._waited = now, 0, 0.0


class CheckpointSaver(tf.train.CheckpointSaverHook):
  """Saves a checkpoint at the beginning, every so many seconds, and at the end.

  A full disk does not stop the training: it goes on, the older checkpoints stay, and saving is
  tried again. Variables with which the next step's loss would not be finite are not saved.

  Attributes:
    saver: the Saver that writes the checkpoints and deletes old ones.
  """

  def __init__(
    self, directory: pathlib.Path, seconds: float, graph: TrainingGraph, patches: PatchStream
  ):
    """Adds to the graph what saving all its variables needs.

    Args:
      directory: folder to write checkpoints to.
      seconds: seconds between checkpoints.
      graph: graph of the training.
      patches: the patches that are trained on.
    """
    self._directory = directory
    self._seconds = seconds
    self._graph = graph
    self._patches = patches
    self.saver = make_saver(
      graph.variables.named_tensors(graph.optimizer),
      max_to_keep=5,
      keep_checkpoint_every_n_hours=_HOURS_BETWEEN_KEPT,
    )
    vectors = [*(part.read for part in graph.variables.parts), graph.variables.read_averages()]
    self._all_finite = tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in vectors])
    self._last_saved = -1
    self._due = 0.0
    self._complained = -SECONDS_BETWEEN_COMPLAINTS
    self._failure: str | None = None

  def begin(self) -> None:
    """Reads the list of the folder's checkpoints, so that old ones will be deleted in turn."""
    state = tf.train.get_checkpoint_state(self._directory)
    if state is not None:
      # In this folder: it may be a copy of the folder that the state file names.
      names = [last_part(path) for path in state.all_model_checkpoint_paths]
      self.saver.recover_last_checkpoints([str(self._directory / name) for name in names])
      self._last_saved = step_in_name(pathlib.Path(state.model_checkpoint_path))

  def after_create_session(self, session: Any, coord: Any) -> None:
    """Saves a checkpoint of the beginning, unless the run was resumed from one of that step."""
    step = int(session.run(self._graph.global_step))
    if step != self._last_saved:
      self._save(session, step)
    self._due = time.monotonic() + self._seconds

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for the global step."""
    return tf.train.SessionRunArgs(self._graph.global_step)

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Saves a checkpoint if one is due.

    Raises:
      ValueError: the training has diverged.
    """
    del run_values
    if time.monotonic() >= self._due:
      step = int(run_context.session.run(self._graph.global_step))
      self._check(run_context.session, step)
      self._save(run_context.session, step)

  def end(self, session: Any) -> None:
    """Saves a checkpoint of the end.

    Raises:
      OSError: the checkpoint cannot be saved.
      ValueError: the training has diverged.
    """
    step = int(session.run(self._graph.global_step))
    if step != self._last_saved:
      self._check(session, step)
      self._save(session, step)
    if self._failure is not None:
      raise OSError(f'the last checkpoint, of step {step}, could not be saved: {self._failure}')

  def _check(self, session: Any, step: int) -> None:
    """Computes the next step's losses, before the variables are saved.

    A step's loss is computed before its update, so an update that ruined the weights shows only in
    the next step.

    Raises:
      ValueError: a loss, a weight or a moving average is not finite, or a check of
        --tensorcheck_enable_checks failed.
    """
    if not session.run(self._all_finite):
      raise ValueError(
        f'a weight is not finite after step {step}; the newest checkpoint is from before; a smaller'
        ' --learning_rate may help'
      )
    batch_size = self._graph.inputs.shape.as_list()[0]
    # With shards, this is another batch than the next, which is unknown until it is read.
    batch = self._patches.batch(step * batch_size, batch_size)
    feed = dict(zip(self._graph.batch, batch, strict=True))
    try:
      by_head = session.run(self._graph.loss_by_head, feed_dict=feed)
    except tf.errors.InvalidArgumentError as e:
      raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e
    check_finite_losses(self._graph, by_head, step + 1)

  def _save(self, session: Any, step: int) -> None:
    """Saves a checkpoint; a disk that does not allow that is noted and logged, and no error."""
    prefix = self._directory / CHECKPOINT_NAME
    try:
      self.saver.save(session, str(prefix), global_step=step, write_meta_graph=False)
    except (tf.errors.OpError, OSError, ValueError) as e:
      # Raises again if a lost parameter server is to blame, and not the disk.
      session.run(self._graph.global_step)
      self._fail(f'{prefix}-{step}', step, e)
      return
    self._failure = None
    self._last_saved = step
    self._due = time.monotonic() + self._seconds
    logging.info('Saved %s-%d', prefix, step)

  def _fail(self, prefix: str, step: int, error: Exception) -> None:
    """Cleans up after a failed save, logs it if the last such line is old, plans another try."""
    remove_partial(self._directory)
    reason = ' '.join(str(error).split())
    self._failure = reason
    now = time.monotonic()
    self._due = now + min(self._seconds, SECONDS_BETWEEN_COMPLAINTS)
    if now - self._complained >= SECONDS_BETWEEN_COMPLAINTS:
      self._complained = now
      logging.error(
        'Checkpoint %s could not be saved, training goes on without: %s', prefix, reason
      )


class StopOnSignal(tf.train.SessionRunHook):
  """Ends a training in good order on Ctrl-C and SIGTERM: the step is finished, then all is saved.

  It is used as a context manager around the session. A second signal has its usual effect; where
  Python cannot handle it within 5 s, because a step waits for other machines, the process is ended.

  Attributes:
    received: name of the signal that came, SIGTERM for example; None: none came.
  """

  _SIGNALS: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)

  def __init__(self) -> None:
    """Handles no signals before the `with` block begins."""
    self.received: str | None = None
    self._previous: dict[signal.Signals, Any] = {}

  def __enter__(self) -> StopOnSignal:
    # Python's handlers wait until TensorFlow returns, the bytes in this pipe do not.
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    self._previous_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()
    self._previous = {s: signal.signal(s, self._receive) for s in self._SIGNALS}
    return self

  def __exit__(self, *_: object) -> None:
    self._restore()
    signal.set_wakeup_fd(self._previous_pipe)
    os.write(self._pipe[1], b'\0')
    self._watcher.join()
    for end in self._pipe:
      os.close(end)

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def _receive(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.received = signal.Signals(number).name
    self._restore()

  def _watch(self) -> None:
    """Logs what the first signal waits for, and ends the process some time after the second."""
    first = self._next_signal(None)
    if not first:
      return
    second = self._next_signal(_SECONDS_TO_STOP)
    if second is None:
      logging.info('Stopping after this step; a second signal stops in %d s', _SECONDS_TO_STOP)
      second = self._next_signal(None)
    if not second:
      return
    # Further signals do not help where Python does not get to handle them.
    until = time.monotonic() + _SECONDS_TO_STOP
    while (left := until - time.monotonic()) > 0:
      if self._next_signal(left) == 0:
        return
    os._exit(128 + second)

  def _next_signal(self, seconds: float | None) -> int | None:
    """Waits for a signal: its number; 0 at the training's end; None after so many seconds."""
    while select.select([self._pipe[0]], [], [], seconds)[0]:
      number = os.read(self._pipe[0], 1)[0]
      if number == 0 or number in self._SIGNALS:
        return number
    return None

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Asks the session to stop if a signal came during the step."""
    del run_values
    if self.received is not None:
      run_context.request_stop()
