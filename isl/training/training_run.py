"""The steps of a training: its hooks, its session, and how it ends."""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl.checkpoints import channels_file, training_record
from isl.checkpoints.checkpoint import find_newest, step_in_name
from isl.core.experiment import Experiment
from isl.models import tensorcheck
from isl.training import cluster_session
from isl.training.first_values import Initializer
from isl.training.graph import PatchStream, TrainingGraph
from isl.training.hooks import CheckpointSaver, LossGuard, ProgressLog, StopOnSignal
from isl.training.start import Start, find_start
from isl.training.summary_hook import SummaryHook
from isl.training.variables import complete_state_file


class TrainingRun:
  """A training in the current graph: its hooks, its session, its steps.

  Args:
    experiment: the run.
    start: where it starts from.
    patches: what is trained on.
    seed: of what is random.
    stop: knows of signals.
  """

  def __init__(
    self,
    experiment: Experiment,
    start: Start,
    patches: PatchStream,
    seed: int,
    stop: StopOnSignal,
  ):
    self._experiment = experiment
    self._start = start
    self._patches = patches
    self._seed = seed
    self._stop = stop
    self._graph = TrainingGraph(experiment, start, patches)
    self._starts = 0
    self._attendance: cluster_session.Attendance | None = None

  def _start_now(self) -> Start:
    """Where variables start from: where they are lost later, the newest checkpoint."""
    self._starts += 1
    if self._starts == 1:
      return self._start
    complete_state_file(self._experiment.train_directory)
    return find_start(self._experiment)

  def run(self, server: tf.train.Server | None) -> bool:
    """Trains to the end; returns False where it was stopped before the first step.

    Args:
      server: this process's, of a cluster.

    Raises:
      ValueError: as `_do_step`, or a parameter server was lost at the end.
      OSError: a file cannot be read or written.
    """
    stop, cluster = self._stop, self._experiment.cluster
    initializer = Initializer(self._graph, self._start_now, self._seed)
    hooks = self._hooks()
    savers = [h.saver for h in hooks if isinstance(h, CheckpointSaver)]
    local, ready = [self._graph.iterator.initializer], None
    if self._graph.synchronizer is not None:
      local.append(self._graph.synchronizer.local_step_init_op)
      ready = self._graph.synchronizer.ready_for_local_init_op
    scaffold = tf.train.Scaffold(
      init_op=tf.no_op(),
      init_fn=initializer,
      ready_for_local_init_op=ready,
      local_init_op=tf.group(*local),
      saver=savers[0] if savers else None,
    )
    # What is written from here on binds later starts to these flags.
    if is_stopped(stop):
      return False
    if savers:
      self._write_what_it_is()
    creator: tf.train.SessionCreator
    if cluster is None or server is None:
      creator = tf.train.ChiefSessionCreator(scaffold, config=cluster_session.session_config(None))
    else:
      creator = cluster_session.SessionCreator(cluster, server, scaffold, self._gives_up)
    try:
      # The thread that applies the gradients of all workers waits for more until the session ends.
      with tf.train.MonitoredSession(creator, hooks, stop_grace_period_secs=1) as session:
        while not session.should_stop() and stop.received is None:
          _do_step(session, self._graph, self._patches, lambda: self._is_chief_done(server))
    except cluster_session.StoppedError:
      # Before there was a session.
      if not is_stopped(stop):
        logging.info('The chief is done')
      return False
    except cluster_session.LOST as e:
      if cluster is None:
        raise
      raise ValueError(
        'a parameter server was lost while this process ended; start the training again, with all'
        ' its servers'
      ) from e
    is_stopped(stop)
    return True

  def _gives_up(self) -> bool:
    """Whether a session need not be waited for any more."""
    cluster, last = self._experiment.cluster, self._experiment.training.number_of_steps
    if self._stop.received is not None:
      return True
    if last is None or cluster is None or cluster.is_chief:
      return False
    # The others may have ended while this worker was away.
    with contextlib.suppress(ValueError, OSError):
      newest = find_newest(self._experiment.train_directory)
      return step_in_name(newest) >= last
    return False

  def _is_chief_done(self, server: tf.train.Server | None) -> bool:
    """Whether the training ended in good order, asked after a session of it did."""
    cluster = self._experiment.cluster
    if cluster is None or server is None or self._attendance is None:
      return True
    with (
      contextlib.suppress(*cluster_session.LOST),
      tf.Session(server.target, config=cluster_session.session_config(cluster)) as session,
    ):
      return bool(session.run(self._attendance.chief_is_done))
    return False

  def _hooks(self) -> list[tf.train.SessionRunHook]:
    """What happens between the steps."""
    training, folder = self._experiment.training, self._experiment.train_directory
    graph, patches, cluster = self._graph, self._patches, self._experiment.cluster
    # The first looks at losses before another may see what a diverged step leaves.
    hooks = [LossGuard(graph), ProgressLog(graph)]
    if cluster is None or cluster.is_chief:
      hooks += [
        SummaryHook(folder, training.save_summaries_secs, graph, patches),
        CheckpointSaver(folder, training.save_interval_secs, graph, patches),
      ]
    hooks.append(self._stop)
    # Synchronous workers end when the chief does: it may be lost while it saves, and needs them.
    ends = graph.synchronizer is None or (cluster is not None and cluster.is_chief)
    if training.number_of_steps is not None and ends:
      hooks.append(tf.train.StopAtStepHook(last_step=training.number_of_steps))
    if cluster is not None:
      if graph.synchronizer is not None:
        # Without tokens at the beginning, of which one worker could make steps alone.
        hooks.append(graph.synchronizer.make_session_run_hook(cluster.is_chief, num_tokens=0))
      # The last, since its end is the servers'.
      self._attendance = cluster_session.Attendance(cluster)
      hooks.append(cluster_session.AttendanceHook(cluster, self._attendance))
    return hooks

  def _write_what_it_is(self) -> None:
    """channels.json and run.json."""
    channels = channels_file.Channels(
      inputs=self._start.inputs.channels, targets=self._start.targets.channels
    )
    channels_file.write(self._experiment.train_directory, channels)
    _write_record(self._experiment, self._start, self._seed)


def is_stopped(stop: StopOnSignal) -> bool:
  """Whether a signal came, which is logged."""
  if stop.received is not None:
    logging.info('Stopped by %s', stop.received)
  return stop.received is not None


def _do_step(
  session: tf.train.MonitoredSession,
  graph: TrainingGraph,
  patches: PatchStream,
  is_chief_done: Callable[[], bool],
) -> None:
  """Does a step.

  Args:
    session: of the training.
    graph: likewise.
    patches: what is trained on.
    is_chief_done: whether a synchronous training whose queue is closed ended in good order.

  Raises:
    ValueError: the machine lacks the memory, a check of --tensorcheck_enable_checks failed, the
      patches could not be read, or a synchronous training was broken off.
    OSError: a shard could not be read.
  """
  try:
    session.run(graph.train)
  except tf.errors.OpError as e:
    if patches.failure is not None:
      raise patches.failure from e
    if isinstance(e, tf.errors.ResourceExhaustedError):
      raise ValueError(
        'too little memory for a step; a smaller --preprocess_batch_size needs less'
      ) from e
    if isinstance(e, tf.errors.InvalidArgumentError):
      raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e
    if isinstance(e, tf.errors.OutOfRangeError) and not is_chief_done():
      raise ValueError(
        'the synchronous training was broken off, by a chief that failed or one of several'
        ' parameter servers that was lost; start it again, with all its servers'
      ) from e
    raise


def _write_record(experiment: Experiment, start: Start, seed: int) -> None:
  """run.json: how the training began, and when it was started again."""
  folder = experiment.train_directory
  now: dict[str, Any] = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'global_step': 0,
    'random_seed': seed,
    'versions': {
      'python': platform.python_version(),
      'isl': isl.__version__,
      'tensorflow': tf.__version__,
      'numpy': np.__version__,
    },
  }
  record: dict[str, Any] = {}
  if start.resumes:
    assert start.checkpoint is not None
    now['global_step'] = start.checkpoint.describe().global_step
    record = training_record.read_record(folder)
    now['changed_flags'] = training_record.changed_flags(experiment, record)
  else:
    record = {
      'restored_from': str(start.checkpoint.prefix.absolute()) if start.checkpoint else None,
      'fresh': dict(start.fresh),
      'flags': dict(experiment.flags),
    }
  record['starts'] = [*record.get('starts', []), now]
  training_record.write_record(folder, record)
