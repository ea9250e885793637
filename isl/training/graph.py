"""The graph of a training step: patches in, losses, gradients, updates."""

from __future__ import annotations

import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.core.experiment import Experiment, Optimizer, Training
from isl.data.streams import PatchStream
from isl.models import losses, ops, tensorcheck, towers, training_layers
from isl.training.start import Start
from isl.training.variables import PackedVariables, read_where_it_is

_MOMENTUM = 0.875
_RATE_DECAY = 0.999
_AVERAGE_DECAY = 0.999


class TrainingGraph:
  """A training step in the current graph.

  Attributes:
    plan: the network.
    heads: the predicted images, inputs first.
    num_targets: how many of them are labels.
    variables: the model's.
    activations: each module's result, by the module's name.
    optimizer: has been applied to them.
    synchronizer: averages the gradients of all workers; None: each applies its own.
    global_step: int64 scalar variable.
    iterator: of the patches; it starts where the global step is.
    batch: the batch's tensors, as the patches' `batch` gives them.
    inputs: the batch's input, float32 [batch, row, column, z], intensities in [0, 1].
    input_mask: its mask, float32 [batch, row, column]; None: all 1.
    logits: float32 [head, pixel, class], pixels being [batch, row, column].
    classes: int32 [head, pixel], the true ones.
    masks: float32 [head, pixel].
    loss_by_head: float32 [head].
    input_loss: mean of the input heads' losses.
    target_loss: mean of the target heads'.
    total_loss: the mean of both, which is minimized.
    gradients: of the weights, for each of the variables' parts.
    seconds_waiting: for the batch, in this step.
    train: does a step.
    step: the number of the step that is done, from 1 on.
  """

  def __init__(self, experiment: Experiment, start: Start, patches: PatchStream):
    """Builds it.

    Args:
      experiment: says which loss and which optimizer.
      start: has the network.
      patches: what it is trained on.
    """
    self.plan = start.plan
    self.heads: tuple[ImageKey, ...] = start.inputs.keys + start.targets.keys
    num_inputs = len(start.inputs.keys)
    self.num_targets = len(start.targets.keys)
    devices = experiment.cluster.ps_devices if experiment.cluster else (None,)
    with tf.device(devices[0]):
      self.global_step = tf.train.get_or_create_global_step()
    self._read_batch(experiment, patches)
    self.variables = PackedVariables(start.plan, self.heads, devices)
    statistics = training_layers.BatchStatistics()
    with tf.variable_scope('', custom_getter=self.variables.custom_getter):
      features = towers.training_features(self.inputs, start.plan, statistics, self.input_mask)
      self.logits = training_layers.logits(features, self.heads, statistics)
    self.activations = statistics.activations
    self.logits = tensorcheck.finite(self.logits, 'logits')
    margin = start.plan.spec.geometry.margin
    self._lay_out_truth(margin)
    loss = losses.loss_function(experiment.loss)(self.logits, self.classes)
    self.loss_by_head = losses.masked_mean(loss, self.masks)
    of_inputs, of_targets = tf.split(self.loss_by_head, [num_inputs, len(self.heads) - num_inputs])
    self.input_loss, self.target_loss = tf.reduce_mean(of_inputs), tf.reduce_mean(of_targets)
    self.total_loss = losses.total(of_inputs, of_targets)
    parts = self.variables.parts
    self.gradients = tf.gradients(self.total_loss, [part.read for part in parts])
    self.optimizer = _make_optimizer(experiment.training, read_where_it_is(self.global_step))
    self.synchronizer = _make_synchronizer(experiment, self.optimizer)
    pairs = list(zip(self.gradients, (part.variable for part in parts), strict=True))
    follow = self._follow(statistics, start)
    if self.synchronizer is not None:
      # What applies gradients is run by the chief, in a thread that computes nothing else.
      applied = self.synchronizer.apply_gradients(pairs, global_step=self.global_step)
      self.train = tf.group(applied, follow)
      _let_end(self.synchronizer)
    else:
      with tf.control_dependencies([follow]):
        self.train = self.optimizer.apply_gradients(pairs, global_step=self.global_step)
    with tf.control_dependencies([self.train]):
      self.step = read_where_it_is(self.global_step)

  def _read_batch(self, experiment: Experiment, patches: PatchStream) -> None:
    """The batch's tensors, and how long the step waited for them."""
    sampling = experiment.sampling
    batches = patches.dataset(
      first_patch=read_where_it_is(self.global_step) * sampling.batch_size,
      batch_size=sampling.batch_size,
      num_threads=sampling.num_threads,
    )
    self.iterator = tf.data.make_initializable_iterator(batches)
    began = tf.timestamp()
    with tf.control_dependencies([began]):
      batch = self.iterator.get_next()
    with tf.control_dependencies(batch):
      arrived = tf.timestamp()
    self.seconds_waiting = arrived - began
    # Else the clock could be read after all that needs the batch.
    with tf.control_dependencies([arrived]):
      self.batch = tuple(tf.identity(tensor) for tensor in batch)
    inputs, self._target_classes, self._target_masks, *masks = self.batch
    self.input_mask = masks[0] if masks else None
    self.inputs = tensorcheck.bounded(inputs, 0, 1, 'input')

  def _lay_out_truth(self, margin: int) -> None:
    """`classes` and `masks` by head and pixel; the input heads' truth is the input's centre."""
    centre = ops.class_of(ops.crop(self.inputs, margin))
    by_head = tf.concat([centre, tf.cast(self._target_classes, tf.int32)], axis=-1)
    self.classes = tf.reshape(tf.transpose(by_head, [3, 0, 1, 2]), [len(self.heads), -1])
    batch, rows, columns, depths = centre.shape.as_list()
    masks = tf.concat([tf.ones([batch, depths]), self._target_masks], axis=-1)
    masks = tf.repeat(tf.transpose(masks), rows * columns, axis=1)
    self.masks = tf.ensure_shape(masks, [len(self.heads), batch * rows * columns])

  def _follow(self, statistics: training_layers.BatchStatistics, start: Start) -> tf.Operation:
    """Moves the averages towards what batch norm found in this batch.

    Restored averages decay by 0.999. Those that start fresh warm up: with that, a network trained
    from scratch could not be evaluated for thousands of steps.
    """
    packing = self.variables.average_packing
    step = tf.cast(read_where_it_is(self.global_step), tf.float32)
    warming_up = tf.minimum(_AVERAGE_DECAY, (1 + step) / (10 + step))
    is_fresh = packing.repeat(lambda name: float(name in start.fresh))
    decay = _AVERAGE_DECAY + tf.constant(is_fresh) * (warming_up - _AVERAGE_DECAY)
    found = packing.pack_tensors(statistics.collected)
    change = (1 - decay) * (self.variables.read_averages() - found)
    averages = self.variables.averages
    with tf.device(averages.device):
      return averages.assign_sub(change).op


def _make_synchronizer(
  experiment: Experiment, optimizer: tf.train.Optimizer
) -> tf.train.SyncReplicasOptimizer | None:
  if experiment.cluster is None or not experiment.sync_replicas:
    return None
  count = len(experiment.cluster.workers)
  return tf.train.SyncReplicasOptimizer(
    optimizer, replicas_to_aggregate=count, total_num_replicas=count
  )


def _let_end(synchronizer: tf.train.SyncReplicasOptimizer) -> None:
  """Makes it no error that a session ends while the gradients of others are waited for."""
  runner = synchronizer.get_chief_queue_runner()
  synchronizer._chief_queue_runner = tf.train.QueueRunner(
    runner.queue,
    runner.enqueue_ops,
    queue_closed_exception_types=(tf.errors.OutOfRangeError, tf.errors.CancelledError),
  )


def _make_optimizer(training: Training, global_step: tf.Tensor) -> tf.train.Optimizer:
  if training.optimizer is Optimizer.ADAM:
    return tf.train.AdamOptimizer(training.learning_rate)
  if training.optimizer is Optimizer.ADAGRAD:
    return tf.train.AdagradOptimizer(training.learning_rate)
  rate = tf.train.exponential_decay(
    training.learning_rate, global_step, training.learning_decay_steps, _RATE_DECAY
  )
  return tf.train.MomentumOptimizer(rate, _MOMENTUM)
