"""What happens between the steps of a training: log lines, checkpoints, stopping."""

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

from isl.checkpoints.checkpoint import last_part, step_in_name
from isl.checkpoints.saving import make_saver, remove_partial
from isl.data.streams import PatchStream
from isl.models import tensorcheck
from isl.training.graph import TrainingGraph

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_COMPLAINTS = 60.0
_HOURS_BETWEEN_KEPT = 2.0
# After a signal, before it is said what is waited for.
_SECONDS_TO_STOP = 5.0
CHECKPOINT_NAME = 'model.ckpt'


class LossGuard(tf.train.SessionRunHook):
  """Stops a training whose loss is not finite.

  It comes before the hook that saves, so that what such a step leaves is never saved.
  """

  def __init__(self, graph: TrainingGraph):
    """Watches the graph's losses."""
    self._graph = graph

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for them."""
    return tf.train.SessionRunArgs([self._graph.loss_by_head, self._graph.step])

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Looks at them.

    Raises:
      ValueError: naming the step and the heads.
    """
    by_head, step = run_values.results
    check_finite_losses(self._graph, by_head, step)


def check_finite_losses(graph: TrainingGraph, by_head: np.ndarray, step: int) -> None:
  """Looks at the losses of a step.

  Raises:
    ValueError: one is not finite.
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
  """Says every few seconds how far a training is."""

  def __init__(self, graph: TrainingGraph):
    """Watches the graph."""
    self._fetches = [graph.step, graph.total_loss, graph.seconds_waiting]
    self._began: float | None = None
    self._steps = 0
    self._waited = 0.0

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for step, loss and the time for which the step waited for data."""
    return tf.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Writes a line where it is time to, and one for the first step."""
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
  """Saves every so many seconds, at the beginning and at the end.

  A disk that is full does not stop the training: it goes on, the older checkpoints stay, and
  saving is tried again. What would have no finite loss in the next step is not saved.
  """

  def __init__(
    self, directory: pathlib.Path, seconds: float, graph: TrainingGraph, patches: PatchStream
  ):
    """Prepares for saving all variables of the graph.

    Args:
      directory: where checkpoints go.
      seconds: between them.
      graph: of the training.
      patches: what it is trained on.
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
    self._complained = -_SECONDS_BETWEEN_COMPLAINTS
    self._failure: str | None = None

  def begin(self) -> None:
    """Takes up the list of the folder's checkpoints, so that old ones go on being deleted."""
    state = tf.train.get_checkpoint_state(self._directory)
    if state is not None:
      # Those of this folder: it may be a copy of one that the state file names.
      names = [last_part(path) for path in state.all_model_checkpoint_paths]
      self.saver.recover_last_checkpoints([str(self._directory / name) for name in names])
      self._last_saved = step_in_name(pathlib.Path(state.model_checkpoint_path))

  def after_create_session(self, session: Any, coord: Any) -> None:
    """Saves the beginning, unless this is a resumed run."""
    step = int(session.run(self._graph.global_step))
    if step != self._last_saved:
      self._save(session, step)
    self._due = time.monotonic() + self._seconds

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks for the step."""
    return tf.train.SessionRunArgs(self._graph.global_step)

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Saves where it is time to."""
    del run_values
    if time.monotonic() >= self._due:
      step = int(run_context.session.run(self._graph.global_step))
      self._check(run_context.session, step)
      self._save(run_context.session, step)

  def end(self, session: Any) -> None:
    """Saves the end.

    Raises:
      OSError: it cannot.
      ValueError: the training has diverged.
    """
    step = int(session.run(self._graph.global_step))
    if step != self._last_saved:
      self._check(session, step)
      self._save(session, step)
    if self._failure is not None:
      raise OSError(f'the last checkpoint, of step {step}, could not be saved: {self._failure}')

  def _check(self, session: Any, step: int) -> None:
    """Looks what the next step's losses will be.

    A step's loss is that before its update, so an update that ruined the weights shows only now.

    Raises:
      ValueError: one is not finite, or a weight is not.
    """
    if not session.run(self._all_finite):
      raise ValueError(
        f'a weight is not finite after step {step}; the newest checkpoint is from before; a smaller'
        ' --learning_rate may help'
      )
    batch_size = self._graph.inputs.shape.as_list()[0]
    # Of shards, it is another batch than the next: that cannot be known before it is read.
    batch = self._patches.batch(step * batch_size, batch_size)
    feed = dict(zip(self._graph.batch, batch, strict=True))
    try:
      by_head = session.run(self._graph.loss_by_head, feed_dict=feed)
    except tf.errors.InvalidArgumentError as e:
      raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e
    check_finite_losses(self._graph, by_head, step + 1)

  def _save(self, session: Any, step: int) -> None:
    """Tries to."""
    prefix = self._directory / CHECKPOINT_NAME
    try:
      self.saver.save(session, str(prefix), global_step=step, write_meta_graph=False)
    except (tf.errors.OpError, OSError, ValueError) as e:
      # Raises what it does where not the disk is to blame, but a parameter server that was lost.
      session.run(self._graph.global_step)
      self._fail(f'{prefix}-{step}', step, e)
      return
    self._failure = None
    self._last_saved = step
    self._due = time.monotonic() + self._seconds
    logging.info('Saved %s-%d', prefix, step)

  def _fail(self, prefix: str, step: int, error: Exception) -> None:
    """Cleans up, and complains if the last time is long ago."""
    remove_partial(self._directory)
    reason = ' '.join(str(error).split())
    self._failure = reason
    now = time.monotonic()
    self._due = now + min(self._seconds, _SECONDS_BETWEEN_COMPLAINTS)
    if now - self._complained >= _SECONDS_BETWEEN_COMPLAINTS:
      self._complained = now
      logging.error(
        'Checkpoint %s could not be saved, training goes on without: %s', prefix, reason
      )


class StopOnSignal(tf.train.SessionRunHook):
  """Ends a training in good order on Ctrl-C and SIGTERM: the step is finished, then all is saved.

  Used as a context manager around the session. A second signal does what it does elsewhere; where a
  step waits for other machines, it ends the process, which Python alone could not.
  """

  _SIGNALS: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)

  def __init__(self) -> None:
    """Takes no signals yet."""
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
    """Says what a signal is waiting for, and lets a second one through."""
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
    """A signal's number; 0 at the end of the training, None after so many seconds."""
    while select.select([self._pipe[0]], [], [], seconds)[0]:
      number = os.read(self._pipe[0], 1)[0]
      if number == 0 or number in self._SIGNALS:
        return number
    return None

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Stops after the step during which a signal came."""
    del run_values
    if self.received is not None:
      run_context.request_stop()
