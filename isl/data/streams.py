"""Makes the stream of patches that a network is trained on or evaluated with: images or shards."""

from __future__ import annotations

from collections.abc import Sequence

from absl import logging

from isl.core.channels import StackSpec
from isl.core.experiment import Experiment, Geometry
from isl.data import data_provider, field_reading
from isl.data.patches import Patches, PatchSpec
from isl.data.shard_patches import Preparation, ShardPatches

# An endless stream of patches: from images, or from shards.
PatchStream = Patches | ShardPatches


def make_patches(
  experiment: Experiment,
  inputs: StackSpec,
  targets: StackSpec,
  geometry: Geometry,
  seed: int,
  *,
  augment: bool,
  leave_out_others: bool,
  wanted_targets: Sequence[str] = (),
) -> PatchStream:
  """Makes the stream of patches of an experiment's images or shards; images are read at once.

  Args:
    experiment: where the images or shards are, which range of them is used, and how patches are
      drawn.
    inputs: the images that the network reads.
    targets: the labels that the network predicts.
    geometry: sizes of the network's patches and outputs.
    seed: seed of all that is random; not negative.
    augment: whether crops are flipped, turned and corrupted.
    leave_out_others: whether labels that the network does not predict are left out instead of
      being an error.
    wanted_targets: labels of which a log line warns if no image has them.

  Raises:
    ValueError: an image or a shard is missing or damaged, or an image does not fit the network.
    OSError: a file cannot be read.
  """
  spec = PatchSpec(
    sampling=experiment.sampling,
    geometry=geometry,
    inputs=inputs,
    targets=targets,
    seed=seed,
    augment=augment,
    corruption=experiment.corruption,
  )
  if experiment.shards is not None:
    preparation = Preparation(
      input_range=experiment.input_range,
      stretch_targets=experiment.stretch_targets,
      leave_out_others=leave_out_others,
      wanted_targets=wanted_targets,
    )
    return ShardPatches(experiment.shards, preparation, spec)
  folders = field_reading.read_for_training(
    experiment.image_directories,
    inputs=inputs,
    targets=targets,
    input_range=experiment.input_range,
    stretch_targets=experiment.stretch_targets,
    leave_out_others=leave_out_others,
  )
  every = [field_of_view for fields in folders for field_of_view in fields]
  # A label that was asked for by name and is nowhere may be misspelt.
  for channel in wanted_targets:
    if not any(data_provider.has_truth(field_of_view, channel) for field_of_view in every):
      logging.warning('No field of view has an image of %s: its head will learn nothing', channel)
  return Patches(folders, spec)
