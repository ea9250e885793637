"""EVAL_TRAIN and EVAL_EVAL with LOSS, STITCH or JITTER_STITCH: evaluates checkpoints.

Whenever a new checkpoint appears, its losses or its error panels go to TensorBoard's event files in

    BASE/{eval_eval,eval_train}_{loss_CROSS_ENTROPY,stitch,..}/

EVAL_EVAL with LOSS also keeps the checkpoint with the lowest total loss in BASE/best. All that is
random is the same for each checkpoint, so that these can be compared.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from absl import logging

from isl.checkpoints import watching
from isl.checkpoints.checkpoint import Checkpoint, Description
from isl.checkpoints.training_record import check_stretch_targets, check_stretched_as_trained
from isl.core.channels import TRANSMISSION, ImageKey, StackSpec
from isl.core.experiment import Corruption, Experiment, Geometry, Loss, Metric, Mode, Panel
from isl.core.statistic import Statistic
from isl.data import augment, data_provider, field_reading, shard_patches, shard_reading, streams
from isl.data.data_provider import TruthReader
from isl.evaluation import best_checkpoint
from isl.images import finding
from isl.images.fields_of_view import FieldFiles, FieldOfView
from isl.inference import field_labeling
from isl.inference.controller import HeadGroup, Labeler
from isl.inference.error_panels import ErrorPanel
from isl.inference.prediction_files import PredictionStore
from isl.models import losses
from isl.models.plan import NetworkPlan
from isl.report import visualize
from isl.report.event_files import SummaryWriter
from isl.system import files
from isl.system.progress import Progress

# Number of patches computed together.
_BATCH = 4
_STATISTICS = {
  Loss.CROSS_ENTROPY: Statistic.CROSS_ENTROPY,
  Loss.RANKED_PROBABILITY_SCORE: Statistic.RANKED_PROBABILITY_SCORE,
}
_NO_CORRUPTION = Corruption(multiplier_std=0, offset_std=0, noise_std=0)


def run(experiment: Experiment) -> None:
  """Evaluates every new checkpoint, or with --eval_once the newest alone.

  Raises:
    ValueError: the checkpoint or an image is missing, damaged or does not fit.
    OSError: a file cannot be read or written.
  """
  evaluator = (_Losses if experiment.metric is Metric.LOSS else _Panels)(experiment)
  for checkpoint in watching.new_checkpoints(
    experiment.checkpoint_directory,
    experiment.evaluation,
    is_base=experiment.restore_directory is None,
  ):
    check_stretched_as_trained(experiment)
    description = checkpoint.describe()
    logging.info('Checkpoint %s, step %d', checkpoint.prefix, description.global_step)
    evaluator.evaluate(checkpoint)
    logging.info('Wrote step %d to %s', description.global_step, experiment.evaluation_directory)


class _Evaluator(abc.ABC):
  """Computes something of each checkpoint and writes it to an event file."""

  def __init__(self, experiment: Experiment):
    """Checks what can be checked before there is a checkpoint, which may take long."""
    self._experiment = experiment
    files.check_writable(experiment.evaluation_directory / 'events')
    self._opened_writer: SummaryWriter | None = None

  @property
  def _seed(self) -> int:
    return self._experiment.random_seed or 0

  @property
  def _writer(self) -> SummaryWriter:
    """The writer of the event file, which is made when there is something to write."""
    if self._opened_writer is None:
      self._opened_writer = SummaryWriter(self._experiment.evaluation_directory)
    return self._opened_writer

  @abc.abstractmethod
  def evaluate(self, checkpoint: Checkpoint) -> None:
    """Evaluates a checkpoint and writes the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HeadLosses:
  """The losses of a checkpoint.

  Attributes:
    inputs: the loss of each input head, by its image's key.
    targets: the loss of each target head, by its image's key.
  """

  inputs: dict[ImageKey, float]
  targets: dict[ImageKey, float]

  def scalars(self) -> dict[str, float]:
    """The losses and their means by TensorBoard's tag, the total first."""
    input_mean, target_mean = (
      float(np.mean(list(of_heads.values()))) for of_heads in (self.inputs, self.targets)
    )
    return {
      'total_loss': losses.total(input_mean, target_mean),
      'loss/input': input_mean,
      'loss/target': target_mean,
      **{f'loss/{key}': loss for key, loss in (self.inputs | self.targets).items()},
    }


class _Losses(_Evaluator):
  """Evaluates LOSS: every head's loss on random patches, not flipped, turned or corrupted."""

  def __init__(self, experiment: Experiment):
    super().__init__(experiment)
    for folder in experiment.image_directories:
      finding.find_fields(folder)
    if experiment.shards is not None:
      shard_reading.Shards(experiment.shards)
    self._stream: streams.PatchStream | None = None
    self._stream_for: tuple[Geometry, StackSpec, StackSpec] | None = None
    self._best: best_checkpoint.BestCheckpoint | None = None
    # Only the best checkpoint of BASE's own training is kept.
    is_own = experiment.checkpoint_directory.resolve() == experiment.train_directory.resolve()
    if experiment.mode is Mode.EVAL_EVAL and is_own:
      folder = experiment.base_directory / 'best'
      self._best = best_checkpoint.BestCheckpoint(folder, dict(experiment.flags))

  def _settings(self, description: Description) -> dict[str, object]:
    """The settings of the loss, by flags' names: losses with other settings cannot be compared."""
    # These two are left out where they have their usual value, since older records lack them.
    settings: dict[str, object] = {}
    if description.inputs.channels != (TRANSMISSION,):
      settings['input_channels'] = list(description.inputs.channels)
    if self._experiment.input_range is not None:
      settings['input_range'] = dict(self._experiment.flags)['input_range']
    return settings | {
      'model': description.model,
      'num_z_values': len(description.inputs.z_values),
      'target_channels': list(description.targets.channels),
      'loss': self._experiment.loss.value,
      **self._dataset_settings(),
      'stretch_targets': list(self._experiment.stretch_targets),
      'metric_num_examples': self._experiment.evaluation.num_examples,
      'loss_crop_size': self._experiment.sampling.crop_size,
      'loss_patch_stride': self._experiment.sampling.patch_stride,
      'random_seed': self._seed,
    }

  def _dataset_settings(self) -> dict[str, object]:
    """The settings that decide which patches are drawn, by flags' names."""
    shards = self._experiment.shards
    if shards is None:
      folders = self._experiment.image_directories
      return {'dataset_eval_directory': [str(folder.absolute()) for folder in folders]}
    return {
      'dataset_pattern': [str(path.absolute()) for path in shards.paths[:1]],
      'dataset_num_shards': len(shards.paths),
      'data_batch_num_threads': shards.num_threads,
      'data_batch_capacity': shards.capacity,
    }

  def evaluate(self, checkpoint: Checkpoint) -> None:
    """Computes and writes the losses; keeps a copy of the checkpoint if its loss is the lowest."""
    description = checkpoint.describe()
    step = description.global_step
    with best_checkpoint.opened(checkpoint.prefix) as contents:
      scalars = self._compute(checkpoint).scalars()
      for tag, value in scalars.items():
        logging.info('Step %d: %s %.6f', step, tag, value)
      self._writer.scalars(step, scalars)
      if self._best is None:
        return
      if contents is None:
        logging.warning('%s is deleted, and so not kept', checkpoint.prefix)
      elif self._best.offer(
        checkpoint.prefix, contents, step, scalars['total_loss'], self._settings(description)
      ):
        logging.info('Lowest loss so far: kept in %s', self._experiment.base_directory / 'best')

  def _compute(self, checkpoint: Checkpoint) -> _HeadLosses:
    description = checkpoint.describe()
    plan = field_labeling.make_network_plan(self._experiment, checkpoint)
    check_stretch_targets(self._experiment.stretch_targets, description.targets)
    patches = self._patches(plan, description.inputs, description.targets)
    labeler = Labeler(
      plan,
      checkpoint,
      groups=[HeadGroup(heads=description.heads, statistics=(_STATISTICS[self._experiment.loss],))],
      batch=_BATCH,
      blocks=(1, 1),
    )
    try:
      means = self._means(patches, labeler, plan.spec.geometry)
    finally:
      labeler.close()
    by_head = dict(zip(description.heads, map(float, means), strict=True))
    return _HeadLosses(
      inputs={key: by_head[key] for key in description.inputs.keys},
      targets={key: by_head[key] for key in description.targets.keys},
    )

  def _patches(
    self, plan: NetworkPlan, inputs: StackSpec, targets: StackSpec
  ) -> streams.PatchStream:
    """The patches for a network: the last checkpoint's, if its network reads the same images.

    Of shards, the stream is a new one for each checkpoint: it takes note of what it has read.
    """
    geometry = plan.spec.geometry
    is_kept = self._experiment.shards is None and self._stream_for == (geometry, inputs, targets)
    if self._stream is None or not is_kept:
      sampling = dataclasses.replace(
        # The losses of all patches are averaged, so their order does not matter.
        self._experiment.sampling,
        output_size=geometry.output,
        capacity=1,
      )
      experiment = dataclasses.replace(
        self._experiment, sampling=sampling, corruption=_NO_CORRUPTION
      )
      self._stream = streams.make_patches(
        experiment, inputs, targets, geometry, self._seed, augment=False, leave_out_others=True
      )
      self._stream_for = geometry, inputs, targets
    return self._stream

  def _means(
    self,
    patches: streams.PatchStream,
    labeler: Labeler,
    geometry: Geometry,
  ) -> np.ndarray:
    """Computes each head's loss, [head], over all patches' pixels; see isl/models/losses.py."""
    num_inputs, num_targets = patches.input_shape[-1], patches.target_shape[-1]
    sums, counts = np.zeros((2, num_inputs + num_targets))
    num_examples = self._experiment.evaluation.num_examples
    with Progress('loss', num_examples, 'example') as progress:
      for inputs, target_classes, target_masks, *input_masks in _batches(patches, num_examples):
        classes = _classes(inputs, target_classes, geometry)
        masks = np.ones_like(inputs)
        if input_masks:
          masks *= input_masks[0][..., np.newaxis]
        (outputs,) = labeler(np.stack([inputs, masks], axis=-1), [classes])
        (loss,) = outputs.values()
        count = min(_BATCH, num_examples - progress.done)
        for i, target_mask in enumerate(target_masks[:count]):
          mask = np.concatenate([np.ones(num_inputs), target_mask])
          sums += mask * loss[:, i].sum(axis=(1, 2), dtype=np.float64)
          counts += (mask != 0) * loss[0, i].size
        progress.add(count)
    return sums / np.maximum(counts, 1)


def _batches(patches: streams.PatchStream, num_examples: int) -> Iterator[tuple[np.ndarray, ...]]:
  """Yields whole batches, as the network takes them; the last may have patches too many."""
  if isinstance(patches, shard_patches.ShardPatches):
    yield from patches.batches(_BATCH, math.ceil(num_examples / _BATCH))
    return
  for first in range(0, num_examples, _BATCH):
    count = min(_BATCH, num_examples - first)
    # The patches that fill up a batch are not read: they repeat its last.
    filled = [*range(count), *[count - 1] * (_BATCH - count)]
    yield tuple(array[filled] for array in patches.batch(first, count))


def _classes(inputs: np.ndarray, target_classes: np.ndarray, geometry: Geometry) -> np.ndarray:
  """True classes of the input heads, then of the labels: uint8 [head, batch, row, column]."""
  centre = slice(geometry.margin, geometry.margin + geometry.output)
  of_inputs = data_provider.classes_of(inputs[:, centre, centre])
  return np.moveaxis(np.concatenate([of_inputs, target_classes], axis=-1), -1, 0)


class _Panels(_Evaluator):
  """Evaluates STITCH and JITTER_STITCH: error panels of each field of view's top left crop."""

  def __init__(self, experiment: Experiment):
    super().__init__(experiment)
    if not experiment.inference.panels:
      raise ValueError(
        f'--infer_panels must name a panel for --metric {experiment.metric.name}:'
        f' {" or ".join(panel.name for panel in Panel)}; got none'
      )
    self._fields = field_reading.fields_of(experiment)

  def evaluate(self, checkpoint: Checkpoint) -> None:
    """Draws and writes the error panels of all fields of view."""
    labeler = field_labeling.FieldLabeler(
      checkpoint,
      field_labeling.make_network_plan(self._experiment, checkpoint),
      self._experiment.inference,
    )
    step = labeler.description.global_step
    try:
      for number, (title, field) in enumerate(field_reading.numbered(self._fields)):
        logging.info('%s: %s', title.capitalize(), field.name)
        field_of_view = self._read(field, labeler.description, number)
        panels = self._make_panels(labeler, field_of_view)
        labeler.compute(field_of_view, panels, title)
        for panel in panels:
          tag = visualize.panel_tag(panel.panel)
          if len(self._fields) > 1:
            tag += f'/{field.name or "unnamed"}'
          self._writer.image(step, tag, panel.picture())
    finally:
      labeler.close()

  def _make_panels(
    self, labeler: field_labeling.FieldLabeler, field_of_view: FieldOfView
  ) -> list[ErrorPanel]:
    grid = labeler.grid(field_of_view.name, field_of_view.size)
    truth = TruthReader(field_of_view, grid.offset, grid.output_size)
    store = PredictionStore(grid.output_size)
    layout = visualize.Layout.STITCH
    return [
      ErrorPanel(panel, labeler.stack(panel), layout, truth, store)
      for panel in self._experiment.inference.panels
    ]

  def _read(self, field: FieldFiles, description: Description, number: int) -> FieldOfView:
    """Reads a field of view; for JITTER_STITCH its crop, changed at random.

    Args:
      field: the field of view.
      description: the checkpoint's network.
      number: the field of view's number, from 0, which is a part of the seed.
    """
    field_of_view = field_reading.read_field(
      self._experiment, description.inputs, description.targets, field
    )
    if self._experiment.metric is not Metric.JITTER_STITCH:
      return field_of_view
    rng = np.random.default_rng([self._seed, number])
    size = self._experiment.inference.crop_size
    return augment.jitter(field_of_view, size, self._experiment.corruption, rng)
