"""--calibrate: fits a temperature for each label, on fields of view that show it.

These must be fields of view that neither the training has seen nor a report is made of.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from isl.checkpoints.checkpoint import Checkpoint
from isl.checkpoints.training_record import check_stretch_targets
from isl.core.channels import ImageKey
from isl.core.experiment import Experiment
from isl.core.parts import Part
from isl.core.statistic import Statistic
from isl.data import data_provider, field_reading
from isl.images import finding
from isl.images.fields_of_view import FieldFiles
from isl.inference import calibration, field_labeling
from isl.system import files

# The least probability whose logarithm is taken: below it float32 has only 0, which has none.
_LEAST = np.finfo(np.float32).tiny


def run(experiment: Experiment, checkpoint: Checkpoint) -> None:
  """Fits the temperatures and writes them beside the checkpoint.

  Raises:
    ValueError: the images are missing, damaged, do not fit the checkpoint, or show no label.
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
      sampler = _Sampler(labeler.targets.keys, number, samples)
      labeler.compute(field_of_view, [sampler], title)
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
  """The names of fields of view by fingerprints of their input, as a Calibration has them.

  Fields of view that cannot be read are left out: nothing is reported of them either.
  """
  result = {}
  for field in found:
    try:
      result[finding.contents_fingerprint(field.select(inputs, ()))] = field.name
    except (ValueError, OSError):
      continue
  return result


class _Sampler:
  """A sink that keeps some pixels of each label of a field of view whose truth is known."""

  statistics = (Statistic.DISTRIBUTION,)

  def __init__(
    self,
    keys: tuple[ImageKey, ...],
    number: int,
    samples: Mapping[str, calibration.PixelSample],
  ):
    """Takes the samples that pixels are added to; adds none yet.

    Args:
      keys: keys of the labels.
      number: number of the field of view, from 0.
      samples: by the label's channel, the sample that all fields of view share.
    """
    self.keys = keys
    self._number = number
    self._samples = samples

  def add(self, part: Part) -> None:
    """Adds a part's pixels to its label's sample, unless the truth is unknown."""
    if part.truth is None:
      return
    log_p = np.log(np.maximum(part.predicted[Statistic.DISTRIBUTION], _LEAST))
    classes = data_provider.classes_of(part.truth)
    self._samples[part.key.channel].add(self._number, part.rows, part.columns, log_p, classes)
