"""The graph that predicts images from crops, with a checkpoint's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import ImageKey
from isl.core.statistic import NUM_CLASSES, AnyStatistic, Statistic
from isl.models import model_util, ops, tensorcheck, towers
from isl.models.plan import NetworkPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadGroup:
  """Heads of which the same statistics are computed.

  Attributes:
    heads: keys of the images that the heads predict, at least one.
    statistics: statistics to compute of each pixel's distribution.
    temperatures: the temperature of each head, which divides its logits; None: all are 1.
  """

  heads: tuple[ImageKey, ...]
  statistics: tuple[AnyStatistic, ...]
  temperatures: tuple[float, ...] | None = None


class Labeler:
  """A network with a checkpoint's weights that predicts images from crops of one size.

  Only the heads asked for are computed, one after the other, so that one head's logits are in
  memory at a time.

  Attributes:
    groups: the groups of heads that are computed, without empty ones.
    batch: number of crops that are computed at once.
    blocks: number of blocks in a crop, in rows and columns.
  """

  def __init__(
    self,
    plan: NetworkPlan,
    checkpoint: Checkpoint,
    *,
    groups: Sequence[HeadGroup],
    batch: int,
    blocks: tuple[int, int],
  ):
    """Builds the graph in which the checkpoint's values are constants, and starts a session.

    Args:
      plan: plan of the network.
      checkpoint: checkpoint of the network; it fits the plan.
      groups: the images to predict, and their statistics.
      batch: number of crops that are computed at once.
      blocks: number of blocks in a crop, in rows and columns: (1, 1) for single patches.

    Raises:
      ValueError: the checkpoint is damaged.
    """
    geometry = plan.spec.geometry
    self.groups = tuple(groups)
    self.batch = batch
    self.blocks = blocks
    rows, columns = (geometry.input_size(n) for n in blocks)
    self._output_shape = [batch, *(n * geometry.output for n in blocks)]
    with tf.Graph().as_default() as graph:
      self._inputs = tf.placeholder(tf.float32, [batch, rows, columns, plan.input_depth])
      with tf.variable_scope('', custom_getter=checkpoint.custom_getter):
        inputs = tensorcheck.bounded(self._inputs, 0, 1, 'input')
        features = tensorcheck.finite(towers.features(inputs, plan), 'features')
        tensorcheck.shaped(features, [*self._output_shape, plan.output_depth], 'features')
        self._true_classes = [self._make_true_classes(group) for group in self.groups]
        self._outputs = [
          self._make_outputs(features, group, true_classes)
          for group, true_classes in zip(self.groups, self._true_classes, strict=True)
        ]
    # One operation after the other, on all cores: two at a time were slower.
    config = tf.ConfigProto(inter_op_parallelism_threads=1)
    # Grappler's passes took 1.5 s before the first block and gained nothing measurable after it.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    self._session = tf.Session(graph=graph, config=config)

  def _make_true_classes(self, group: HeadGroup) -> tf.Tensor:
    return tf.placeholder(tf.uint8, [len(group.heads), *self._output_shape])

  def _make_outputs(
    self, features: tf.Tensor, group: HeadGroup, true_classes: tf.Tensor
  ) -> dict[AnyStatistic, tf.Tensor]:
    """Makes a group's statistics, by statistic.

    Args:
      features: the features that the heads read, [batch, row, column, depth].
      group: the heads and statistics.
      true_classes: true classes, uint8 [head, batch, row, column].

    Returns:
      float32 [head, batch, row, column] each; DISTRIBUTION has a further axis, class.
    """
    depth = features.shape.as_list()[-1]
    variables = [model_util.head_variables(depth, key) for key in group.heads]
    stacked = model_util.HeadVariables(*(tf.stack(v) for v in zip(*variables, strict=True)))
    temperatures = tf.constant(group.temperatures or [1.0] * len(group.heads), tf.float32)
    pictures = [s for s in group.statistics if s is not Statistic.DISTRIBUTION]

    @tf.autograph.experimental.do_not_convert
    def predict(
      of_head: tuple[model_util.HeadVariables, tf.Tensor, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
      head, true, temperature = of_head
      logits = tf.reshape(model_util.head_logits(features, head), [-1, NUM_CLASSES])
      if group.temperatures:
        logits /= temperature
      true = tf.cast(tf.reshape(true, [-1]), tf.int32)
      computed = ops.distribution_statistics(logits, true, pictures)
      result = {}
      if computed:
        shape = [len(computed), *self._output_shape]
        result['pictures'] = tensorcheck.finite(tf.reshape(tf.stack(computed), shape), 'statistics')
      if Statistic.DISTRIBUTION in group.statistics:
        shape = [*self._output_shape, NUM_CLASSES]
        result['distribution'] = tf.reshape(tf.nn.softmax(logits), shape)
      return result

    wanted = {'pictures': bool(pictures), 'distribution': len(pictures) < len(group.statistics)}
    outputs = tf.map_fn(
      predict,
      (stacked, true_classes, temperatures),
      fn_output_signature={name: tf.float32 for name, is_wanted in wanted.items() if is_wanted},
      parallel_iterations=1,
    )
    result: dict[AnyStatistic, tf.Tensor] = {
      statistic: outputs['pictures'][:, i] for i, statistic in enumerate(pictures)
    }
    if Statistic.DISTRIBUTION in group.statistics:
      result[Statistic.DISTRIBUTION] = outputs['distribution']
    return {statistic: result[statistic] for statistic in group.statistics}

  def __call__(
    self, inputs: np.ndarray, true_classes: Sequence[np.ndarray]
  ) -> list[dict[AnyStatistic, np.ndarray]]:
    """Predicts the images of a batch of crops.

    Args:
      inputs: float32 [batch, row, column, z, channel, mask], intensities in [0, 1].
      true_classes: true classes for each group, uint8 [head, batch, row, column]; 0 where unknown.

    Returns:
      For each group, by statistic, float32 [head, batch, row, column]; DISTRIBUTION has a further
      axis, class.

    Raises:
      ValueError: the machine lacks the memory, or a check of --tensorcheck_enable_checks failed.
    """
    inputs = inputs.reshape([*inputs.shape[:3], -1])
    feed = {self._inputs: inputs, **dict(zip(self._true_classes, true_classes, strict=True))}
    try:
      outputs: list[dict[AnyStatistic, np.ndarray]] = self._session.run(self._outputs, feed)
    except tf.errors.ResourceExhaustedError as e:
      raise ValueError(
        f'too little memory for a tile of {self.blocks[0]} x {self.blocks[1]} blocks; a smaller'
        ' --infer_size needs less'
      ) from e
    except tf.errors.InvalidArgumentError as e:
      raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e
    return outputs

  def close(self) -> None:
    """Frees the session's memory."""
    self._session.close()
