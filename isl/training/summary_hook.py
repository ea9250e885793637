"""Writes what TensorBoard shows of a training: losses, histograms, pictures."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.experiment import Panel
from isl.core.statistic import NUM_CLASSES
from isl.data.streams import PatchStream
from isl.models import ops
from isl.report import visualize
from isl.report.event_files import SummaryWriter
from isl.training.graph import TrainingGraph
from isl.training.hooks import SECONDS_BETWEEN_COMPLAINTS

# What the panels draw of each pixel's distribution.
_STATISTICS = visualize.Layout.STITCH.statistics


class SummaryHook(tf.train.SessionRunHook):
  """Writes summaries every so many seconds, the first after the second step.

  Tags: `total_loss`, `loss/input`, `loss/target`, `loss/{z}/{channel}`; histograms
  `logits/{z}/{channel}`, `activations/{module}`, `variables/{name}`, `gradients/{name}`; pictures
  `crops` (the crop of the batch's first patch, or, with shards, a crop of the first Example: input
  at the middle depth, and labels), `patches` (the input of all patches at the middle depth),
  `input_error_panel` and `target_error_panel` of the patches.
  """

  def __init__(
    self, directory: pathlib.Path, seconds: float, graph: TrainingGraph, patches: PatchStream
  ):
    """Adds to the graph what only summaries need.

    Args:
      directory: folder to write event files to.
      seconds: seconds between summaries.
      graph: graph of the training.
      patches: the patches that are trained on.
    """
    self._patches = patches
    self._directory = directory
    self._seconds = seconds
    self._graph = graph
    self._writer: SummaryWriter | None = None
    self._complained = -SECONDS_BETWEEN_COMPLAINTS
    # Not with the first step, which takes long enough without summaries.
    self._due = float('inf')
    self._is_due = False
    self._fetches = {
      'step': graph.step,
      'total_loss': graph.total_loss,
      'input_loss': graph.input_loss,
      'target_loss': graph.target_loss,
      'loss_by_head': graph.loss_by_head,
      'weights': [part.read for part in graph.variables.parts],
      'gradients': graph.gradients,
      'logits': graph.logits,
      'inputs': graph.inputs,
      'classes': graph.classes,
      'masks': graph.masks,
      'statistics': _statistics(graph),
      'histograms': tf.summary.merge(
        [
          # A histogram fails on values that are not finite, before the loss could be checked.
          tf.summary.histogram(
            f'activations/{module}', tf.where(tf.is_finite(tensor), tensor, tf.zeros_like(tensor))
          )
          for module, tensor in graph.activations.items()
        ]
      ),
    }

  def after_create_session(self, session: Any, coord: Any) -> None:
    """Opens an event file."""
    del coord
    # That of a session that was lost.
    self._close()
    self._writer = SummaryWriter(self._directory)
    # A resumed run does again the steps that were done since the last checkpoint.
    self._writer.start(int(session.run(self._graph.global_step)) + 1)

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs | None:
    """Asks for the summaries' values if summaries are due."""
    self._is_due = time.monotonic() >= self._due
    return tf.train.SessionRunArgs(self._fetches) if self._is_due else None

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Writes summaries if they are due; a full disk does not stop the training."""
    if self._is_due:
      try:
        self._write(run_values.results)
      except OSError as e:
        self._complain(e)
        self._close()
      self._due = time.monotonic() + self._seconds
    elif self._due == float('inf'):
      self._due = 0.0

  def end(self, session: Any) -> None:
    """Closes the event file."""
    self._close()

  def _close(self) -> None:
    """Closes the event file; the next summaries go to a new one.

    Readers would not see what is added to a file behind something that was not written whole.
    """
    writer, self._writer = self._writer, None
    try:
      if writer is not None:
        writer.close()
    except OSError as e:
      self._complain(e)

  def _complain(self, error: OSError) -> None:
    """Logs that summaries could not be written, if the last such line is old."""
    now = time.monotonic()
    if now - self._complained >= SECONDS_BETWEEN_COMPLAINTS:
      self._complained = now
      logging.error('Summaries could not be written, training goes on without: %s', error)

  def _write(self, values: dict[str, Any]) -> None:
    step = int(values['step'])
    if self._writer is None:
      self._writer = SummaryWriter(self._directory)
    writer = self._writer
    heads = self._graph.heads
    names = {key: str(key) for key in heads}
    losses = {
      'total_loss': values['total_loss'],
      'loss/input': values['input_loss'],
      'loss/target': values['target_loss'],
    }
    losses |= {f'loss/{names[k]}': v for k, v in zip(heads, values['loss_by_head'], strict=True)}
    writer.scalars(step, losses)
    writer.serialized(step, values['histograms'])
    unpacked = self._graph.variables.unpack_arrays
    writer.histograms(
      step,
      {f'logits/{names[key]}': logits for key, logits in zip(heads, values['logits'], strict=True)}
      | {f'variables/{n}': v for n, v in unpacked(values['weights']).items()}
      | {f'gradients/{n}': v for n, v in unpacked(values['gradients']).items()},
    )
    middle = values['inputs'].shape[-1] // 2
    # The step is the number of steps done, this one included.
    first_patch = (step - 1) * len(values['inputs'])
    writer.image(step, 'crops', visualize.grey_boxes(self._patches.crop_images(first_patch)))
    writer.image(step, 'patches', visualize.grey_boxes(values['inputs'][..., middle]))
    num_inputs = len(heads) - self._graph.num_targets
    for panel, rows in (
      (Panel.INPUT, slice(0, num_inputs)),
      (Panel.TARGET, slice(num_inputs, None)),
    ):
      writer.image(step, visualize.panel_tag(panel), self._panel(values, rows))

  def _panel(self, values: dict[str, Any], rows: slice) -> np.ndarray:
    """The error panel of the batch, of the heads `rows`: uint16 RGB [row, column, 3]."""
    batch, side, *_ = values['inputs'].shape
    output = side - 2 * self._graph.plan.spec.geometry.margin

    def by_patch(array: np.ndarray) -> np.ndarray:
      return array[rows].reshape([-1, batch, output, output]).astype(np.float32)

    computed = zip(_STATISTICS, np.moveaxis(values['statistics'], 1, 0), strict=True)
    return visualize.patch_panel(
      statistics={statistic: by_patch(array) for statistic, array in computed},
      truth=by_patch(values['classes']) / (NUM_CLASSES - 1),
      mask=by_patch(values['masks']),
    )


def _statistics(graph: TrainingGraph) -> tf.Tensor:
  """Computes the statistics of each pixel's distribution, one head at a time.

  Returns:
    float32 [head, statistic, pixel], statistics in the order of `_STATISTICS`.
  """

  @tf.autograph.experimental.do_not_convert
  def of_head(logits_and_classes: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    logits, classes = logits_and_classes
    return tf.stack(ops.distribution_statistics(logits, classes, _STATISTICS))

  return tf.map_fn(
    of_head,
    (graph.logits, graph.classes),
    fn_output_signature=tf.float32,
    parallel_iterations=1,
  )
