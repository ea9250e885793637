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
import glob
import pathlib
import secrets

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.experiment import Experiment
from isl.data import data_provider, shard_patches, training_fields
from isl.data.patches import Patches
from isl.system import files
from isl.training import cluster_session
from isl.training.first_values import Initializer
from isl.training.graph import PatchStream, TrainingGraph
from isl.training.hooks import StopOnSignal
from isl.training.start import Start, find_start
from isl.training.training_run import TrainingRun, is_stopped
from isl.training.variables import complete_state_file, remove_partial


def run(experiment: Experiment) -> None:
  """Trains until `number_of_steps`, or until it is stopped.

  Raises:
    ValueError: an image or a checkpoint is missing, damaged or does not fit; the loss is not
      finite.
    OSError: a file cannot be read or written.
  """
  writes = experiment.cluster is None or experiment.cluster.is_chief
  with StopOnSignal() as stop, contextlib.ExitStack() as stack:
    folder = experiment.train_directory
    _check_name(folder)
    is_new = not folder.is_dir()
    # Before looking what is there; a folder is only made when there is something to train.
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
      # Without having begun it is done all the same, which its servers wait for.
      cluster_session.say_goodbye(cluster, server, lambda: stop.received is not None)


def _train(
  experiment: Experiment,
  start: Start,
  stop: StopOnSignal,
  server: tf.train.Server | None,
  is_new: bool,
  stack: contextlib.ExitStack,
) -> bool:
  """Trains; returns False where a signal came before the first step.

  Args:
    experiment: the run.
    start: where it starts from.
    stop: knows of signals.
    server: this process's, of a cluster.
    is_new: whether BASE/train is yet to be made.
    stack: lasts as long as the training.
  """
  folder, cluster = experiment.train_directory, experiment.cluster
  seed = _seed(experiment)
  patches = make_patches(experiment, start, seed)
  if is_stopped(stop):
    return False
  if cluster is None or cluster.is_chief:
    files.check_writable(folder / 'checkpoint.test')
    if is_new:
      _hold(folder, stack)
    remove_partial(folder)
  with tf.Graph().as_default(), tf.device(cluster.device if cluster else None):
    return TrainingRun(experiment, start, patches, seed, stop).run(server)


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
  return Patches(
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
