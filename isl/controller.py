"""An experiment's graph: from input and labels to predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from isl import ops, tensorcheck
from isl.checkpoints import Checkpoint
from isl.experiment import NUM_CLASSES, ImageKey, Statistic
from isl.models import model_util, towers
from isl.models.plan import NetworkPlan


class Labeler:
  """A network with a checkpoint's weights that predicts images from crops of one size.

  Only the heads asked for are computed, one after the other: the logits of one are all that exist
  at a time.
  """

  def __init__(
    self,
    plan: NetworkPlan,
    checkpoint: Checkpoint,
    *,
    heads: Sequence[ImageKey],
    statistics: Sequence[Statistic],
    batch: int,
    blocks: tuple[int, int],
  ):
    """Builds the graph in which the checkpoint's values are constants, and starts a session.

    Args:
      plan: the network.
      checkpoint: fits the plan.
      heads: keys of the images to predict.
      statistics: what to compute of each pixel's distribution.
      batch: crops computed at once.
      blocks: outputs in a crop, in rows and columns: 1 x 1 for single patches.

    Raises:
      ValueError: the checkpoint is damaged.
    """
    geometry = plan.spec.geometry
    self.heads = tuple(heads)
    self.statistics = tuple(statistics)
    self.batch = batch
    self.blocks = blocks
    rows, columns = (geometry.input_size(n) for n in blocks)
    out_rows, out_columns = (n * geometry.output for n in blocks)
    with tf.Graph().as_default() as graph:
      self._inputs = tf.placeholder(tf.float32, [batch, rows, columns, plan.input_depth])
      self._labels = tf.placeholder(tf.uint8, [len(heads), batch, out_rows, out_columns])
      with tf.variable_scope('', custom_getter=checkpoint.custom_getter):
        inputs = tensorcheck.bounded(self._inputs, 0, 1, 'input')
        features = tensorcheck.finite(towers.features(inputs, plan), 'features')
        shape = [batch, out_rows, out_columns, plan.output_depth]
        tensorcheck.shaped(features, shape, 'features')
        variables = [model_util.head_variables(plan.output_depth, key) for key in heads]
      stacked = model_util.HeadVariables(*(tf.stack(v) for v in zip(*variables, strict=True)))

      @tf.autograph.experimental.do_not_convert
      def predict(head_and_labels: tuple[model_util.HeadVariables, tf.Tensor]) -> tf.Tensor:
        head, labels = head_and_labels
        logits = tf.reshape(model_util.head_logits(features, head), [-1, NUM_CLASSES])
        labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        computed = ops.distribution_statistics(logits, labels, statistics)
        result = tf.reshape(tf.stack(computed), [len(computed), batch, out_rows, out_columns])
        return tensorcheck.finite(result, 'statistics')

      self._outputs = tf.map_fn(
        predict, (stacked, self._labels), fn_output_signature=tf.float32, parallel_iterations=1
      )
    # One operation after the other, on all cores: two at a time were slower.
    config = tf.ConfigProto(inter_op_parallelism_threads=1)
    # Grappler's passes took 1.5 s before the first block and gained nothing measurable after it.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    self._session = tf.Session(graph=graph, config=config)

  def __call__(self, inputs: np.ndarray, labels: np.ndarray) -> dict[Statistic, np.ndarray]:
    """Predicts the images of a batch of crops.

    Args:
      inputs: float32 [batch, row, column, z, channel, mask], intensities in [0, 1].
      labels: uint8 [head, batch, row, column], the true classes (0 where unknown).

    Returns:
      For each statistic float32 [head, batch, row, column].

    Raises:
      ValueError: the machine lacks the memory, or a check of --tensorcheck_enable_checks failed.
    """
    inputs = inputs.reshape([*inputs.shape[:3], -1])
    try:
      outputs = self._session.run(self._outputs, {self._inputs: inputs, self._labels: labels})
    except tf.errors.ResourceExhaustedError as e:
      raise ValueError(
        f'too little memory for a tile of {self.blocks[0]} x {self.blocks[1]} blocks; a smaller'
        ' --infer_size needs less'
      ) from e
    except tf.errors.InvalidArgumentError as e:
      raise ValueError(f'a check failed: {tensorcheck.reason(e)}') from e
    return {statistic: outputs[:, i] for i, statistic in enumerate(self.statistics)}

  def close(self) -> None:
    """Frees the session's memory."""
    self._session.close()
