"""What is trained on and evaluated: patches of images, or of TFRecord shards."""

from __future__ import annotations

from absl import logging

from isl.core.experiment import Experiment
from isl.data import data_provider, field_reading, shard_patches
from isl.data.patches import Patches
from isl.data.shard_patches import ShardPatches
from isl.training.start import Start

# What is trained on: it comes from images, or from shards.
PatchStream = Patches | ShardPatches


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
  folders = field_reading.read_fields(
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
