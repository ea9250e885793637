"""The fields of view of a run: all that its folders, files, manifests or shards have."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging

from isl.core.channels import MAXPROJECT, StackSpec
from isl.core.experiment import Experiment, InputRange
from isl.data import data_provider, shard_reading
from isl.images import finding, png_folders
from isl.images.fields_of_view import FieldFiles, FieldOfView


def fields_of(experiment: Experiment) -> list[FieldFiles]:
  """The fields of view that a run reads, or in shards, tiles of them.

  Raises:
    OSError: a folder or a shard is missing, or cannot be read.
    ValueError: there are no images in one, or it is damaged, or a name would not be the only one.
  """
  if experiment.shards is not None:
    return shard_reading.read_tiles(experiment.shards)
  return finding.find_all(experiment.image_directories)


def numbered(fields: Sequence[FieldFiles]) -> Iterator[tuple[str, FieldFiles]]:
  """Each field of view after what logs call it: field 1 of 3."""
  for number, field in enumerate(fields, start=1):
    yield f'field {number} of {len(fields)}', field


def log_unused(
  experiment: Experiment, found: Sequence[FieldFiles], inputs: StackSpec, targets: StackSpec
) -> None:
  """Says which images of the fields of view a network with these images does not read."""
  if experiment.shards is not None:
    origin = f'shards from {experiment.shards.paths[0]} on'
  else:
    origin = ', '.join(map(str, experiment.image_directories))
  png_folders.log_unused(origin, found, inputs.channels, targets.channels)


def read_field(
  experiment: Experiment, inputs: StackSpec, targets: StackSpec, field: FieldFiles
) -> FieldOfView:
  """Decodes what a network reads of a field of view, and its labels, and sets their ranges.

  Raises:
    OSError: a file cannot be read.
    ValueError: an image is missing or damaged, or has no range that it could be stretched from.
  """
  return read_selected(experiment, field.select(inputs.channels, targets.channels))


def read_selected(experiment: Experiment, field: FieldFiles) -> FieldOfView:
  """Like `read_field`, of a field of view that has nothing but that."""
  return data_provider.prepared(field.read(), experiment.input_range, experiment.stretch_targets)


def read_for_training(
  directories: Iterable[str | os.PathLike[str]],
  *,
  inputs: StackSpec,
  targets: StackSpec,
  input_range: InputRange | None,
  stretch_targets: Sequence[str],
  leave_out_others: bool = False,
) -> tuple[tuple[FieldOfView, ...], ...]:
  """Reads all fields of view of all folders, for training or for evaluating a loss.

  Args:
    directories: the folders.
    inputs: the images that the network reads.
    targets: the labels that it predicts.
    input_range: which part of the camera's range the input uses; None: all of it.
    stretch_targets: channels whose range in each field of view becomes [0, 1].
    leave_out_others: labels that are not predicted are no error.

  Returns:
    For each folder its fields of view. Their names begin with the folder.

  Raises:
    OSError: a folder or a file cannot be read.
    ValueError: a folder has no fields of view with all input channels, none of the targets, or a
      label that is not one of them; or a file is damaged, or a channel cannot be stretched, or is
      in no field of view.
  """
  found = [(pathlib.Path(d), finding.find_fields(d)) for d in directories]
  every = [field for _, fields in found for field in fields]
  selected = [
    (directory, [field.select(inputs.channels, targets.channels) for field in fields])
    for directory, fields in found
  ]
  for directory, fields in found:
    others = _other_targets(fields, inputs, targets)
    if others and leave_out_others:
      logging.info('%r: left out %s; %s', str(directory), ', '.join(others), _predicts(targets))
    elif others:
      wanted = [*_recorded(every, targets), *_other_targets(every, inputs, targets)]
      raise ValueError(
        f'{str(directory)!r} has images of {", ".join(others)} at z {MAXPROJECT}, of which the'
        f' network knows nothing; {_predicts(targets)}; give --target_channels {",".join(wanted)}'
        ' for a network of all labels that there are, or those that it predicts to leave out the'
        ' others'
      )
    _check_has_targets(directory, fields, targets)
    png_folders.log_unused(str(directory), fields, inputs.channels, (*targets.channels, *others))
  _check_stretched(every, targets, stretch_targets)
  return tuple(
    tuple(
      data_provider.prepared(_read(directory, field), input_range, stretch_targets)
      for field in fields
    )
    for directory, fields in selected
  )


def _predicts(targets: StackSpec) -> str:
  return f'the network predicts {", ".join(targets.channels)}'


def _is_recorded(channel: str, field: FieldFiles) -> bool:
  return data_provider.is_recorded(channel, field.sources)


def _recorded(fields: Sequence[FieldFiles], targets: StackSpec) -> list[str]:
  """The labels that a network predicts and any of the fields of view has."""
  return [c for c in targets.channels if any(_is_recorded(c, field) for field in fields)]


def _other_targets(
  fields: Sequence[FieldFiles], inputs: StackSpec, targets: StackSpec
) -> list[str]:
  """The labels that a network does not predict and any of the fields of view has, by name."""
  others = (field.other_targets(inputs.channels, targets.channels) for field in fields)
  return sorted(set(itertools.chain.from_iterable(others)))


def _check_has_targets(
  directory: pathlib.Path, fields: Sequence[FieldFiles], targets: StackSpec
) -> None:
  """Warns of fields of view without a target.

  Raises:
    ValueError: all are.
  """
  without = [field.name for field in fields if not _recorded([field], targets)]
  if len(without) == len(fields):
    raise ValueError(
      f'{str(directory)!r} has no target: none of its fields of view has an image of a label at z'
      f' {MAXPROJECT}; {_predicts(targets)}'
    )
  for name in without:
    logging.warning('%r: field of view %r has no target.', str(directory), name)


def _check_stretched(
  fields: Sequence[FieldFiles], targets: StackSpec, stretch_targets: Sequence[str]
) -> None:
  """Raises ValueError if a channel that is to be stretched is in none of the fields of view."""
  lacking = [c for c in stretch_targets if not any(_is_recorded(c, field) for field in fields)]
  if lacking:
    raise ValueError(
      f'--stretch_targets has {", ".join(lacking)}, of which no field of view has an image; they'
      f' have {", ".join(_recorded(fields, targets))}'
    )


def _read(directory: pathlib.Path, field: FieldFiles) -> FieldOfView:
  """Decodes all images of a field of view: patches are of random places."""
  field_of_view = field.read()
  images = {key: np.asarray(image[:, :]) for key, image in field_of_view.images.items()}
  # Folders may have fields of view of the same name.
  return dataclasses.replace(field_of_view, name=str(directory / field.name), images=images)
