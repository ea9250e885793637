"""--calibrate: fits a temperature for each label, on fields of view that show it.

They must be fields that neither the training saw nor a report is made of.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from isl.checkpoints.checkpoint import Checkpoint
from isl.checkpoints.training_record import check_stretch_targets
from isl.core.channels import ImageKey, StackSpec
from isl.core.experiment import Experiment
from isl.core.statistic import AnyStatistic, Statistic
from isl.data import data_provider, field_reading
from isl.data.data_provider import TruthReader
from isl.images import finding
from isl.images.fields_of_view import FieldFiles
from isl.inference import calibration, field_labeling
from isl.system import files

# Below this float32 has 0, of which there is no logarithm.
_LEAST = np.finfo(np.float32).tiny


def run(experiment: Experiment, checkpoint: Checkpoint) -> None:
  """Fits the temperatures and writes them beside the checkpoint.

  Raises:
    ValueError: checkpoint or images are missing, damaged or do not fit, or show no label.
    OSError: a file cannot be read or written.
  """
  path = checkpoint.prefix.with_name(calibration.NAME)
  files.check_writable(path)
  found = field_reading.fields_of(experiment)
  inference = dataclasses.replace(experiment.inference, panels=())
  plan = field_labeling.make_network_plan(experiment, checkpoint)
  labeler = field_labeling.FieldLabeler(checkpoint, plan, inference)
  description = labeler.description
  check_stretch_targets(experiment.stretch_targets, labeler.targets)
  samples: dict[str, calibration.PixelSample] = collections.defaultdict(calibration.PixelSample)
  inputs = {}
  try:
    for number, (title, field) in enumerate(field_reading.numbered(found)):
      logging.info('%s: %s', title.capitalize(), field.name)
      field_of_view = field_reading.read_field(
        experiment, description.inputs, description.targets, field
      )
      grid = labeler.grid(field.name, field_of_view.size)
      sampler = _Sampler(
        TruthReader(field_of_view, grid.offset, grid.output_size), labeler.targets, number, samples
      )
      wanted = field_labeling.Wanted(targets=(Statistic.DISTRIBUTION,))
      labeler.compute(field_of_view, grid, sampler, wanted, title)
      # Of the input alone: a report is of the same field of view with whatever labels.
      inputs[finding.contents_fingerprint(field.select(description.inputs.channels, ()))] = (
        field.name
      )
  finally:
    labeler.close()
  if not samples:
    raise ValueError(
      'nothing to calibrate on: the images show none of the labels'
      f' {", ".join(labeler.targets.channels)}'
    )
  result = calibration.Calibration(
    checkpoint=checkpoint.prefix.name,
    step=description.global_step,
    fingerprint=checkpoint.fingerprint(),
    folders=experiment.image_directories,
    fields=inputs,
    fits={channel: calibration.fit(sample) for channel, sample in samples.items()},
  )
  for channel, fit in result.fits.items():
    logging.info(
      '%s: temperature %.3f, negative log likelihood %.4f, was %.4f (of %d pixels)',
      channel,
      fit.temperature,
      fit.nll_after,
      fit.nll_before,
      fit.pixels,
    )
  result.save(path.parent)
  logging.info('Wrote %s', path)


def input_fingerprints(found: Sequence[FieldFiles], inputs: Sequence[str]) -> dict[str, str]:
  """Names of fields of view by fingerprints of their input, as a fit keeps them.

  Those that cannot be read are left out: they are not reported either.
  """
  result = {}
  for field in found:
    try:
      result[finding.contents_fingerprint(field.select(inputs, ()))] = field.name
    except (ValueError, OSError):
      continue
  return result


class _Sampler:
  """Takes in the distributions of a field of view's labels, and keeps some pixels of each."""

  def __init__(
    self,
    truth: TruthReader,
    targets: StackSpec,
    number: int,
    samples: Mapping[str, calibration.PixelSample],
  ):
    self._truth = truth
    self._targets = targets
    self._number = number
    self._samples = samples
    self._known = {
      key for key in targets.keys if data_provider.has_truth(truth.field_of_view, key.channel)
    }

  def true_classes(self, keys: Sequence[ImageKey], rows: slice, columns: slice) -> np.ndarray:
    """Of the labels."""
    assert tuple(keys) == self._targets.keys
    return self._truth.classes(self._targets, rows, columns)

  def add(
    self, key: ImageKey, rows: slice, columns: slice, predicted: Mapping[AnyStatistic, np.ndarray]
  ) -> None:
    """Of labels without a truth nothing is learnt."""
    if key not in self._known:
      return
    stack = StackSpec(z_values=(key.z,), channels=(key.channel,))
    log_p = np.log(np.maximum(predicted[Statistic.DISTRIBUTION], _LEAST))
    (classes,) = self._truth.classes(stack, rows, columns)
    self._samples[key.channel].add(self._number, rows, columns, log_p, classes)
