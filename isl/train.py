"""TRAIN: fits a network to fields of view.

Reads folders of images with labels, or shards of them, starts from a checkpoint or from random
weights, and writes

    BASE/train/
      model.ckpt-*  checkpoint     checkpoints, and which is the newest
      events.out.tfevents.*        for TensorBoard
      channels.json                what the network reads and predicts
      run.json                     flags, versions, what was restored

Started again with the same BASE, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import pathlib
import platform
import secrets
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl import (
  channels_file,
  cluster_session,
  data_provider,
  files,
  packed_variables,
  restoration,
  shard_patches,
  tensorcheck,
  training_data,
  training_fields,
  training_hooks,
  training_record,
)
from isl.experiment import Experiment
from isl.first_values import Initializer
from isl.restoration import Start
from isl.training_graph import PatchStream, TrainingGraph
from isl.training_summaries import SummaryHook


def run(experiment: Experiment) -> None:
  """Trains until `number_of_steps`, or until it is stopped.

  Raises:
    ValueError: an image or a checkpoint is missing, damaged or does not fit; the loss is not
      finite.
    OSError: a file cannot be read or written.
  """
  writes = experiment.cluster is None or experiment.cluster.is_chief
  with training_hooks.StopOnSignal() as stop, contextlib.ExitStack() as stack:
    folder = experiment.train_directory
    _check_name(folder)
    is_new = not folder.is_dir()
    # Before looking what is there; a folder is only made when there is something to train.
    if writes and not is_new:
      _hold(folder, stack)
      packed_variables.complete_state_file(folder)
    start = restoration.find_start(experiment)
    if _is_done(experiment, start):
      if experiment.cluster is not None:
        cluster_session.say_goodbye(experiment.cluster, lambda: stop.received is not None)
      return
    # Before the images are read, which may take minutes.
    cluster = experiment.cluster
    server = cluster_session.make_server(cluster) if cluster else None
    seed = _seed(experiment)
    patches = make_patches(experiment, start, seed)
    if _is_stopped(stop):
      return
    if writes:
      files.check_writable(folder / 'checkpoint.test')
      if is_new:
        _hold(folder, stack)
      packed_variables.remove_partial(folder)
    with tf.Graph().as_default(), tf.device(cluster.device if cluster else None):
      training = _Training(experiment, start, patches, seed, stop)
      training.run(server)


def _seed(experiment: Experiment) -> int:
  """Decides all that is random in this process: workers draw different crops."""
  seed = experiment.random_seed
  if seed is None:
    return secrets.randbits(32)
  if experiment.cluster is None or experiment.cluster.is_chief:
    return seed
  drawn = np.random.SeedSequence([seed, experiment.cluster.worker_number])
  return int(drawn.generate_state(1)[0])


def _check_name(folder: pathlib.Path) -> None:
  """TensorFlow's Saver deletes old checkpoints by patterns, which could be another training's.

  Raises:
    ValueError: the folder's name is a pattern.
  """
  if glob.escape(str(folder)) != str(folder):
    raise ValueError(
      f'--base_directory must have none of * ? [ in its path for --mode TRAIN, got'
      f' {str(folder.parent)!r}'
    )


def _hold(folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
  """Keeps other trainings out of BASE/train, as long as the stack lasts.

  Raises:
    ValueError: one is there already.
  """
  try:
    stack.enter_context(files.held(folder))
  except BlockingIOError as e:
    raise ValueError(
      f'another TRAIN is at work in {folder}: stop it first, or give another --base_directory'
    ) from e


def make_patches(experiment: Experiment, start: Start, seed: int) -> PatchStream:
  """What is trained on.

  Raises:
    ValueError: an image is missing, damaged, or too small.
    OSError: a file cannot be read.
  """
  if experiment.shards is not None:
    return shard_patches.ShardPatches(
      experiment.shards,
      shard_patches.Preparation(
        input_range=experiment.input_range,
        stretch_targets=experiment.stretch_targets,
        leave_out_others=start.leaves_out_others,
        wanted_targets=experiment.target_channels or (),
      ),
      sampling=experiment.sampling,
      geometry=start.plan.spec.geometry,
      inputs=start.inputs,
      targets=start.targets,
      seed=seed,
      augment=True,
      corruption=experiment.corruption,
    )
  folders = training_fields.read_fields(
    experiment.image_directories,
    inputs=start.inputs,
    targets=start.targets,
    input_range=experiment.input_range,
    stretch_targets=experiment.stretch_targets,
    leave_out_others=start.leaves_out_others,
  )
  every = [image_set for fields in folders for image_set in fields]
  # Asked for by name, one that is nowhere may be misspelt.
  for channel in experiment.target_channels or ():
    if not any(data_provider.has_truth(image_set, channel) for image_set in every):
      logging.warning('No field of view has an image of %s: its head will learn nothing', channel)
  return training_data.Patches(
    folders,
    sampling=experiment.sampling,
    geometry=start.plan.spec.geometry,
    inputs=start.inputs,
    targets=start.targets,
    seed=seed,
    augment=True,
    corruption=experiment.corruption,
  )


def make_session(
  experiment: Experiment, start: Start, seed: int
) -> tuple[TrainingGraph, tf.Session]:
  """A training at its start, without its hooks, for those who do the steps themselves."""
  with tf.Graph().as_default() as tf_graph:
    graph = TrainingGraph(experiment, start, make_patches(experiment, start, seed))
    initialize = Initializer(graph, lambda: start, seed)
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


class _Training:
  """A training in the current graph: its hooks, its session, its steps."""

  def __init__(
    self,
    experiment: Experiment,
    start: Start,
    patches: PatchStream,
    seed: int,
    stop: training_hooks.StopOnSignal,
  ):
    self._experiment = experiment
    self._start = start
    self._patches = patches
    self._seed = seed
    self._stop = stop
    self._graph = TrainingGraph(experiment, start, patches)
    self._starts = 0

  def _start_now(self) -> Start:
    """Where variables start from: where they are lost later, the newest checkpoint."""
    self._starts += 1
    if self._starts == 1:
      return self._start
    packed_variables.complete_state_file(self._experiment.train_directory)
    return restoration.find_start(self._experiment)

  def run(self, server: tf.train.Server | None) -> None:
    """Trains to the end.

    Args:
      server: this process's, of a cluster.
    """
    stop, cluster = self._stop, self._experiment.cluster
    initializer = Initializer(self._graph, self._start_now, self._seed)
    hooks = self._hooks()
    savers = [h.saver for h in hooks if isinstance(h, training_hooks.CheckpointSaver)]
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
    if _is_stopped(stop):
      return
    if savers:
      self._write_what_it_is()
    creator: tf.train.SessionCreator
    if cluster is None or server is None:
      creator = tf.train.ChiefSessionCreator(scaffold, config=cluster_session.session_config(None))
    else:
      creator = cluster_session.SessionCreator(
        cluster, server, scaffold, lambda: stop.received is not None
      )
    # A signal may come before there is a session.
    with (
      contextlib.suppress(cluster_session.StoppedError),
      # The thread that applies the gradients of all workers waits for more until the session ends.
      tf.train.MonitoredSession(creator, hooks, stop_grace_period_secs=1) as session,
    ):
      while not session.should_stop() and stop.received is None:
        _do_step(session, self._graph, self._patches)
    _is_stopped(stop)

  def _hooks(self) -> list[tf.train.SessionRunHook]:
    """What happens between the steps."""
    training, folder = self._experiment.training, self._experiment.train_directory
    graph, patches, cluster = self._graph, self._patches, self._experiment.cluster
    # The first looks at losses before another may see what a diverged step leaves.
    hooks = [training_hooks.LossGuard(graph), training_hooks.ProgressLog(graph)]
    if cluster is None or cluster.is_chief:
      hooks += [
        SummaryHook(folder, training.save_summaries_secs, graph, patches),
        training_hooks.CheckpointSaver(folder, training.save_interval_secs, graph, patches),
      ]
    hooks.append(self._stop)
    if training.number_of_steps is not None:
      hooks.append(tf.train.StopAtStepHook(last_step=training.number_of_steps))
    if cluster is not None:
      if graph.synchronizer is not None:
        # Without tokens at the beginning, of which one worker could make steps alone.
        hooks.append(graph.synchronizer.make_session_run_hook(cluster.is_chief, num_tokens=0))
      # The last, since its end is the servers'.
      hooks.append(cluster_session.AttendanceHook(cluster))
    return hooks

  def _write_what_it_is(self) -> None:
    """channels.json and run.json."""
    channels = channels_file.Channels(
      inputs=self._start.inputs.channels, targets=self._start.targets.channels
    )
    channels_file.write(self._experiment.train_directory, channels)
    _write_record(self._experiment, self._start, self._seed)


def _is_stopped(stop: training_hooks.StopOnSignal) -> bool:
  """Whether a signal came, which is logged."""
  if stop.received is not None:
    logging.info('Stopped by %s', stop.received)
  return stop.received is not None


def _do_step(
  session: tf.train.MonitoredSession, graph: TrainingGraph, patches: PatchStream
) -> None:
  """Does a step.

  Raises:
    ValueError: the machine lacks the memory, a check of --tensorcheck_enable_checks failed, or the
      patches could not be read.
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
