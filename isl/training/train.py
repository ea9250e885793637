"""TRAIN: trains a network on fields of view, in this process or as one of a cluster.

`run` is the mode itself; `make_session` is for benchmarks and tests, which do the steps themselves.
A training reads folders of images with labels, or shards of them, starts from a checkpoint or from
random weights, and writes

    BASE/train/
      model.ckpt-*  checkpoint     checkpoints, and which is the newest
      events.out.tfevents.*        for TensorBoard
      channels.json                the channels that the network reads and predicts
      run.json                     flags, versions, what was restored

Started again with the same BASE, it goes on from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

from isl.checkpoints import channels_file, training_record
from isl.checkpoints.checkpoint import find_newest, step_in_name
from isl.checkpoints.saving import complete_state_file, remove_partial
from isl.core.experiment import Experiment
from isl.core.version import versions
from isl.data import streams
from isl.data.streams import PatchStream
from isl.models import tensorcheck
from isl.system import files
from isl.training import cluster_session
from isl.training.graph import TrainingGraph
from isl.training.hooks import CheckpointSaver, LossGuard, ProgressLog, StopOnSignal
from isl.training.start import Start, find_start
from isl.training.summary_hook import SummaryHook
from isl.training.variables import Initializer


def run(experiment: Experiment) -> None:
  """Trains until the step `number_of_steps`, or until a signal stops it.

  Raises:
    ValueError: an image or a checkpoint is missing, damaged or does not fit; the loss is not
      finite; another training is at work in BASE/train; or a parameter server was lost.
    OSError: a file cannot be read or written.
  """
  writes = experiment.cluster is None or experiment.cluster.is_chief
  with StopOnSignal() as stop, contextlib.ExitStack() as stack:
    folder = experiment.train_directory
    _check_name(folder)
    is_new = not folder.is_dir()
    # The lock comes before looking what is there; a new folder is made when there are patches.
    if writes and not is_new:
      _hold(folder, stack)
      complete_state_file(folder)
    start = find_start(experiment)
    cluster = experiment.cluster
    is_done = _is_done(experiment, start)
    if is_done and (cluster is None or not cluster.is_chief):
      return
    # Before the images are read, which may take minutes.
    server = cluster_session.make_server(cluster) if cluster else None
    has_trained = not is_done and _train(experiment, start, stop, server, is_new, stack)
    if not has_trained and cluster is not None and server is not None and cluster.is_chief:
      # A chief that has not begun must still tell its servers, which wait for it, that it is done.
      cluster_session.say_goodbye(cluster, server, lambda: stop.received is not None)


def _train(
  experiment: Experiment,
  start: Start,
  stop: StopOnSignal,
  server: tf.train.Server | None,
  is_new: bool,
  stack: contextlib.ExitStack,
) -> bool:
  """Reads the patches, then trains.

  Args:
    experiment: the run.
    start: where the training starts from.
    stop: tells whether a signal came.
    server: the TensorFlow server of this process; None: it trains alone.
    is_new: whether BASE/train is yet to be made.
    stack: keeps BASE/train locked as long as the training lasts.

  Returns:
    Whether the training began; False: a signal came, or the chief was done, before the first step.
  """
  folder, cluster = experiment.train_directory, experiment.cluster
  seed = _seed(experiment)
  patches = training_patches(experiment, start, seed)
  if _is_stopped(stop):
    return False
  if cluster is None or cluster.is_chief:
    files.check_writable(folder / 'checkpoint.test')
    if is_new:
      _hold(folder, stack)
    remove_partial(folder)
  with tf.Graph().as_default(), tf.device(cluster.device if cluster else None):
    return TrainingRun(experiment, start, patches, seed, stop).run(server)


def _seed(experiment: Experiment) -> int:
  """The seed of all that is random in this process; each worker has another, for other crops."""
  seed = experiment.random_seed
  if seed is None:
    return secrets.randbits(32)
  if experiment.cluster is None or experiment.cluster.is_chief:
    return seed
  drawn = np.random.SeedSequence([seed, experiment.cluster.worker_number])
  return int(drawn.generate_state(1)[0])


def _check_name(folder: pathlib.Path) -> None:
  """Checks that a folder's path is no pattern.

  TensorFlow's Saver deletes old checkpoints by patterns: it could delete another training's.

  Raises:
    ValueError: the folder's path is a pattern.
  """
  if glob.escape(str(folder)) != str(folder):
    raise ValueError(
      f'--base_directory must have none of * ? [ in its path for --mode TRAIN, got'
      f' {str(folder.parent)!r}'
    )


def _hold(folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
  """Locks BASE/train against other trainings, as long as the stack lasts.

  Raises:
    ValueError: another training has it locked.
  """
  try:
    stack.enter_context(files.locked(folder))
  except BlockingIOError as e:
    raise ValueError(
      f'another TRAIN is at work in {folder}: stop it first, or give another --base_directory'
    ) from e


def training_patches(experiment: Experiment, start: Start, seed: int) -> streams.PatchStream:
  """Makes the stream of patches that a training draws, see `streams.make_patches`."""
  return streams.make_patches(
    experiment,
    start.inputs,
    start.targets,
    start.plan.spec.geometry,
    seed,
    augment=True,
    leave_out_others=start.leaves_out_others,
    wanted_targets=experiment.target_channels or (),
  )


def make_session(
  experiment: Experiment, start: Start, seed: int
) -> tuple[TrainingGraph, tf.Session]:
  """Makes a training's graph and a session with its first values, without hooks.

  This is for benchmarks and tests, which do the steps themselves and close the session.
  """
  with tf.Graph().as_default() as tf_graph:
    graph = TrainingGraph(experiment, start, training_patches(experiment, start, seed))
    initialize = Initializer(graph.variables, graph.optimizer, lambda: start, seed)
    session = tf.Session(graph=tf_graph, config=cluster_session.session_config(None))
    initialize(None, session)
    session.run(graph.iterator.initializer)
  return graph, session


def _is_done(experiment: Experiment, start: Start) -> bool:
  last = experiment.training.number_of_steps
  if last is None or not start.resumes or start.checkpoint is None:
    return False
  step = start.checkpoint.describe().global_step
  if step >= last:
    logging.info('Nothing to do: step %d is reached, --number_of_steps is %d', step, last)
  return step >= last


class TrainingRun:
  """A training in the current graph: its hooks, its session, its steps."""

  def __init__(
    self,
    experiment: Experiment,
    start: Start,
    patches: PatchStream,
    seed: int,
    stop: StopOnSignal,
  ):
    """Builds the training's graph.

    Args:
      experiment: the run.
      start: where the training starts from.
      patches: the patches to train on.
      seed: seed of random weights.
      stop: tells whether a signal came, and is one of the hooks.
    """
    self._experiment = experiment
    self._start = start
    self._patches = patches
    self._seed = seed
    self._stop = stop
    self._graph = TrainingGraph(experiment, start, patches)
    self._starts = 0
    self._attendance: cluster_session.Attendance | None = None

  def _start_now(self) -> Start:
    """Where variables start from: first the training's start; once lost, the newest checkpoint."""
    self._starts += 1
    if self._starts == 1:
      return self._start
    complete_state_file(self._experiment.train_directory)
    return find_start(self._experiment)

  def run(self, server: tf.train.Server | None) -> bool:
    """Trains to the end.

    Args:
      server: the TensorFlow server of this process; None: it trains alone.

    Returns:
      Whether the training began; False: a signal came, or the chief was done, before the first
      step.

    Raises:
      ValueError: the training diverged, a step failed as `_do_step` says, or a parameter server was
        lost at the end.
      OSError: a file cannot be read or written.
    """
    stop, cluster = self._stop, self._experiment.cluster
    initializer = Initializer(
      self._graph.variables, self._graph.optimizer, self._start_now, self._seed
    )
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
    # The files that are written from here on bind later starts to these flags.
    if _is_stopped(stop):
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
      # This is raised before there was a session.
      if not _is_stopped(stop):
        logging.info('The chief is done')
      return False
    except cluster_session.LOST as e:
      if cluster is None:
        raise
      raise ValueError(
        'a parameter server was lost while this process ended; start the training again, with all'
        ' its servers'
      ) from e
    _is_stopped(stop)
    return True

  def _gives_up(self) -> bool:
    """Whether to stop waiting for a session: a signal came, or the last step has been saved."""
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
    """Whether the chief has said that it is done; True for a training without a cluster."""
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
    """Makes the hooks of the training's session, in the order in which they are called."""
    training, folder = self._experiment.training, self._experiment.train_directory
    graph, patches, cluster = self._graph, self._patches, self._experiment.cluster
    # The first checks the losses, before another may use the variables after a diverged step.
    hooks = [LossGuard(graph), ProgressLog(graph)]
    if cluster is None or cluster.is_chief:
      hooks += [
        SummaryHook(folder, training.save_summaries_secs, graph, patches),
        CheckpointSaver(folder, training.save_interval_secs, graph, patches),
      ]
    hooks.append(self._stop)
    # Synchronous workers end when the chief does: were it lost while it saves, it would need them.
    ends = graph.synchronizer is None or (cluster is not None and cluster.is_chief)
    if training.number_of_steps is not None and ends:
      hooks.append(tf.train.StopAtStepHook(last_step=training.number_of_steps))
    if cluster is not None:
      if graph.synchronizer is not None:
        # No tokens at the beginning: with these, one worker could make steps alone.
        hooks.append(graph.synchronizer.make_session_run_hook(cluster.is_chief, num_tokens=0))
      # This is the last hook, since the servers end when it ends.
      self._attendance = cluster_session.Attendance(cluster)
      hooks.append(cluster_session.AttendanceHook(cluster, self._attendance))
    return hooks

  def _write_what_it_is(self) -> None:
    """Writes channels.json and run.json to BASE/train."""
    channels = channels_file.Channels(
      inputs=self._start.inputs.channels, targets=self._start.targets.channels
    )
    channels_file.write(self._experiment.train_directory, channels)
    _write_record(self._experiment, self._start, self._seed)


def _is_stopped(stop: StopOnSignal) -> bool:
  """Whether a signal came; logs it if one did."""
  if stop.received is not None:
    logging.info('Stopped by %s', stop.received)
  return stop.received is not None


def _do_step(
  session: tf.train.MonitoredSession,
  graph: TrainingGraph,
  patches: PatchStream,
  is_chief_done: Callable[[], bool],
) -> None:
  """Does a training step.

  Args:
    session: session of the training.
    graph: graph of the training.
    patches: the patches that are trained on.
    is_chief_done: tells whether the chief is done, if a synchronous training's queue is closed.

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
  """Writes run.json: how the training began, and when and with which flags it was resumed."""
  folder = experiment.train_directory
  now: dict[str, Any] = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'global_step': 0,
    'random_seed': seed,
    'versions': versions(),
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
