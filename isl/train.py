"""TRAIN: fits a network to fields of view.

Reads folders of images with labels, starts from a checkpoint or from random weights, and writes

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
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

import isl
from isl import (
  channels_file,
  data_provider,
  files,
  packed_variables,
  restoration,
  tensorcheck,
  training_data,
  training_fields,
  training_hooks,
  training_record,
)
from isl.experiment import Experiment
from isl.restoration import Start
from isl.training_graph import TrainingGraph
from isl.training_summaries import SummaryHook


def run(experiment: Experiment) -> None:
  """Trains until `number_of_steps`, or until it is stopped.

  Raises:
    ValueError: an image or a checkpoint is missing, damaged or does not fit; the loss is not
      finite.
    OSError: a file cannot be read or written.
  """
  with training_hooks.StopOnSignal() as stop, contextlib.ExitStack() as stack:
    folder = experiment.train_directory
    _check_name(folder)
    is_new = not folder.is_dir()
    # Before looking what is there; a folder is only made when there is something to train.
    if not is_new:
      _hold(folder, stack)
      packed_variables.complete_state_file(folder)
    start = restoration.find_start(experiment)
    if _is_done(experiment, start):
      return
    seed = experiment.random_seed
    if seed is None:
      seed = secrets.randbits(32)
    patches = make_patches(experiment, start, seed)
    if _is_stopped(stop):
      return
    files.check_writable(folder / 'checkpoint.test')
    if is_new:
      _hold(folder, stack)
    packed_variables.remove_partial(folder)
    with tf.Graph().as_default():
      _train(experiment, start, patches, seed, stop)


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


def make_patches(experiment: Experiment, start: Start, seed: int) -> training_data.Patches:
  """What is trained on.

  Raises:
    ValueError: an image is missing, damaged, or too small.
    OSError: a file cannot be read.
  """
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
    initialize = _initializer(graph, start, seed)
    initialize_all = tf.global_variables_initializer()
    session = tf.Session(graph=tf_graph, config=_session_config())
    session.run(initialize_all)
    initialize(tf.train.Scaffold(), session)
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


def _train(
  experiment: Experiment,
  start: Start,
  patches: training_data.Patches,
  seed: int,
  stop: training_hooks.StopOnSignal,
) -> None:
  graph = TrainingGraph(experiment, start, patches)
  training = experiment.training
  folder = experiment.train_directory
  saver = training_hooks.CheckpointSaver(folder, training.save_interval_secs, graph, patches)
  scaffold = tf.train.Scaffold(
    init_fn=_initializer(graph, start, seed),
    local_init_op=graph.iterator.initializer,
    saver=saver.saver,
  )
  hooks: list[tf.train.SessionRunHook] = [
    # First, since no other may see what a diverged step leaves.
    training_hooks.LossGuard(graph),
    training_hooks.ProgressLog(graph),
    SummaryHook(folder, training.save_summaries_secs, graph, patches),
    saver,
    stop,
  ]
  if training.number_of_steps is not None:
    hooks.append(tf.train.StopAtStepHook(last_step=training.number_of_steps))
  # What is written from here on binds later starts to these flags.
  if _is_stopped(stop):
    return
  channels_file.write(
    folder, channels_file.Channels(inputs=start.inputs.channels, targets=start.targets.channels)
  )
  _write_record(experiment, start, seed)
  with tf.train.MonitoredTrainingSession(
    scaffold=scaffold,
    hooks=hooks,
    config=_session_config(),
    save_checkpoint_secs=None,
    save_summaries_steps=None,
    save_summaries_secs=None,
    log_step_count_steps=None,
  ) as session:
    while not session.should_stop() and stop.received is None:
      _do_step(session, graph)
  _is_stopped(stop)


def _is_stopped(stop: training_hooks.StopOnSignal) -> bool:
  """Whether a signal came, which is logged."""
  if stop.received is not None:
    logging.info('Stopped by %s', stop.received)
  return stop.received is not None


def _do_step(session: tf.train.MonitoredSession, graph: TrainingGraph) -> None:
  """Does a step.

  Raises:
    ValueError: the machine lacks the memory, or a check of --tensorcheck_enable_checks failed.
  """
  try:
    session.run(graph.train)
  except tf.errors.ResourceExhaustedError as e:
    raise ValueError(
      'too little memory for a step; a smaller --preprocess_batch_size needs less'
    ) from e
  except tf.errors.InvalidArgumentError as e:
    raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e


def _session_config() -> tf.ConfigProto:
  # One operation after the other, on all cores: two at a time were not faster.
  config = tf.ConfigProto(inter_op_parallelism_threads=1)
  # Grappler's passes cost seconds of the first step and gained nothing measurable after it.
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return config


def _initializer(
  graph: TrainingGraph, start: Start, seed: int
) -> Callable[[tf.train.Scaffold, tf.Session], None]:
  """What gives the variables their first values, for a Scaffold."""
  variables = graph.variables
  # How a checkpoint calls what each packed variable holds of a model variable.
  packed = {
    variables.weights: (variables.weight_packing, '{}'),
    variables.averages: (variables.average_packing, '{}'),
  }
  scalars = []
  if start.resumes:
    for slot_name, slot in variables.slots(graph.optimizer).items():
      packed[slot] = (variables.weight_packing, f'{{}}/{slot_name}')
    scalars = [variable for variable in tf.global_variables() if variable.shape.rank == 0]
  placeholders = {
    variable: tf.placeholder(variable.dtype.base_dtype, variable.shape)
    for variable in (*packed, *scalars)
  }
  assign = tf.group(*(variable.assign(p) for variable, p in placeholders.items()))

  def initialize(scaffold: tf.train.Scaffold, session: tf.Session) -> None:
    del scaffold
    values = _FirstValues(start, seed)
    feed = {placeholders[variable]: values(variable.op.name, ()) for variable in scalars}
    for variable, (packing, pattern) in packed.items():
      arrays = {n: values(pattern.format(n), shape) for n, shape in packing.shapes.items()}
      feed[placeholders[variable]] = packing.pack(arrays)
    session.run(assign, feed)

  return initialize


class _FirstValues:
  """The values that variables start with: a checkpoint's, or fresh ones."""

  def __init__(self, start: Start, seed: int):
    self._start = start
    self._rng = np.random.default_rng(seed)

  def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of the variable that checkpoints call `name`."""
    checkpoint = self._start.checkpoint
    if checkpoint is None or (not self._start.resumes and name in self._start.fresh):
      return packed_variables.initial_value(name, shape, self._rng)
    return checkpoint.value(name)


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
