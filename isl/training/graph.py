"""The graph of a training step: from patches to losses, gradients and updates of the variables."""

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
    plan: plan of the network.
    heads: keys of the predicted images, inputs first.
    num_targets: number of heads that predict labels.
    variables: the network's variables.
    activations: each module's result, by the module's name: [batch, row, column, depth].
    optimizer: the optimizer, which has been applied to the weights.
    synchronizer: averages the gradients of all workers; None: each worker applies its own.
    global_step: number of steps done, an int64 scalar variable.
    iterator: iterator over the batches of patches; it starts at the global step's batch.
    batch: tensors of the batch, as the patches' `batch` gives them.
    inputs: input of the batch, float32 [batch, row, column, image], intensities in [0, 1].
    input_mask: mask of the input, float32 [batch, row, column]; None: it is 1 everywhere.
    logits: predicted logits, float32 [head, pixel, class]; pixels are in the order [batch, row,
      column].
    classes: true classes, int32 [head, pixel].
    masks: weights of the pixels in the loss, float32 [head, pixel].
    loss_by_head: each head's loss, float32 [head].
    input_loss: mean of the input heads' losses.
    target_loss: mean of the target heads' losses.
    total_loss: mean of `input_loss` and `target_loss`, which is minimized.
    gradients: gradients of the weights, one vector for each of the variables' parts.
    seconds_waiting: seconds for which the step waited for its batch.
    train: operation that does a step.
    step: number of the step that was done, from 1, an int64 scalar tensor.
  """

  def __init__(self, experiment: Experiment, start: Start, patches: PatchStream):
    """Builds the step in the current graph.

    Args:
      experiment: the run, with its loss, optimizer and cluster.
      start: the network, and which variables start fresh.
      patches: the patches to train on.
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
    self.total_loss = losses.total(self.input_loss, self.target_loss)
    parts = self.variables.parts
    self.gradients = tf.gradients(self.total_loss, [part.read for part in parts])
    self.optimizer = _make_optimizer(experiment.training, read_where_it_is(self.global_step))
    self.synchronizer = _make_synchronizer(experiment, self.optimizer)
    pairs = list(zip(self.gradients, (part.variable for part in parts), strict=True))
    follow = self._follow(statistics, start)
    if self.synchronizer is not None:
      # The chief applies gradients in a thread that computes nothing else: `follow` goes beside it.
      applied = self.synchronizer.apply_gradients(pairs, global_step=self.global_step)
      self.train = tf.group(applied, follow)
      _let_end(self.synchronizer)
    else:
      with tf.control_dependencies([follow]):
        self.train = self.optimizer.apply_gradients(pairs, global_step=self.global_step)
    with tf.control_dependencies([self.train]):
      self.step = read_where_it_is(self.global_step)

  def _read_batch(self, experiment: Experiment, patches: PatchStream) -> None:
    """Makes the batch's tensors, and measures how long a step waits for them."""
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
    # Otherwise, the clock could be read after all that needs the batch.
    with tf.control_dependencies([arrived]):
      self.batch = tuple(tf.identity(tensor) for tensor in batch)
    inputs, self._target_classes, self._target_masks, *masks = self.batch
    self.input_mask = masks[0] if masks else None
    self.inputs = tensorcheck.bounded(inputs, 0, 1, 'input')

  def _lay_out_truth(self, margin: int) -> None:
    """Makes `classes` and `masks`; the truth of the input heads is the input's centre.

    Args:
      margin: pixels by which the output is smaller than the input on each side.
    """
    centre = ops.class_of(ops.crop(self.inputs, margin))
    by_head = tf.concat([centre, tf.cast(self._target_classes, tf.int32)], axis=-1)
    self.classes = tf.reshape(tf.transpose(by_head, [3, 0, 1, 2]), [len(self.heads), -1])
    batch, rows, columns, depths = centre.shape.as_list()
    masks = tf.concat([tf.ones([batch, depths]), self._target_masks], axis=-1)
    masks = tf.repeat(tf.transpose(masks), rows * columns, axis=1)
    self.masks = tf.ensure_shape(masks, [len(self.heads), batch * rows * columns])

  def _follow(self, statistics: training_layers.BatchStatistics, start: Start) -> tf.Operation:
    """Moves the moving averages towards the statistics that batch norm found in this batch.

    Each becomes decay * average + (1 - decay) * statistic. For restored averages, decay is 0.999.
    Those that start fresh warm up with decay min(0.999, (1 + step) / (10 + step)): otherwise, a
    network trained from scratch could not be evaluated for thousands of steps.
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
  """Lets a session end without an error while the chief waits for other workers' gradients."""
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
