"""Finds and reads the fields of view of a run, in its folders, files, manifests or shards.

`fields_of`, `log_unused` and `read_field` are for inference, one field of view after the other;
`read_for_training` reads all fields of view for training, or for evaluating a loss.
"""

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
  """Finds the fields of view of a run's folders, or the tiles of them that its shards have.

  Raises:
    OSError: a folder is missing, or a folder or a shard cannot be read.
    ValueError: a folder has no images, a shard is missing, one of them is damaged, or two fields of
      view or tiles would have the same name.
  """
  if experiment.shards is not None:
    return shard_reading.read_tiles(experiment.shards)
  return finding.find_all(experiment.image_directories)


def numbered(fields: Sequence[FieldFiles]) -> Iterator[tuple[str, FieldFiles]]:
  """Yields each field of view, after what logs call it: 'field 1 of 3', for example."""
  for number, field in enumerate(fields, start=1):
    yield f'field {number} of {len(fields)}', field


def log_unused(
  experiment: Experiment, found: Sequence[FieldFiles], inputs: StackSpec, targets: StackSpec
) -> None:
  """Logs which images of the fields of view are neither input nor target of the network."""
  if experiment.shards is not None:
    origin = f'shards from {experiment.shards.paths[0]} on'
  else:
    origin = ', '.join(map(str, experiment.image_directories))
  png_folders.log_unused(origin, found, inputs.channels, targets.channels)


def read_field(
  experiment: Experiment, inputs: StackSpec, targets: StackSpec, field: FieldFiles
) -> FieldOfView:
  """Reads the images of a field of view that a network reads, and its labels; sets their ranges.

  Raises:
    OSError: a file cannot be read.
    ValueError: an image is missing or damaged, or has no range that it could be stretched from.
  """
  return read_selected(experiment, field.select(inputs.channels, targets.channels))


def read_selected(experiment: Experiment, field: FieldFiles) -> FieldOfView:
  """Reads all images of a field of view and sets their ranges; raises as `read_field` does."""
  return data_provider.prepared(field.read(), experiment.input_range, experiment.stretch_targets)


def read_for_training(
  directories: Iterable[str | os.PathLike[str]],
  *,
  inputs: StackSpec,
  targets: StackSpec,
  input_range: InputRange | None,
  stretch_targets: Sequence[str],
  leave_out_others: bool,
) -> tuple[tuple[FieldOfView, ...], ...]:
  """Reads all fields of view of all folders, for training or for evaluating a loss.

  Args:
    directories: the folders (or files, or manifests).
    inputs: the images that the network reads.
    targets: the labels that the network predicts.
    input_range: which part of the camera's range the input uses; None: all of it.
    stretch_targets: target channels whose range in each field of view becomes [0, 1].
    leave_out_others: whether labels that the network does not predict are left out instead of
      being an error.

  Returns:
    The fields of view of each folder, whose names begin with the folder's path. Their images are in
    memory.

  Raises:
    OSError: a folder or a file cannot be read.
    ValueError: a field of view lacks an input channel; a folder has none of the targets, or has a
      label that is not one of them; a file is damaged; or a channel that is to be stretched is in
      no field of view, or cannot be stretched.
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
  """The labels that a network predicts and that any of the fields of view has."""
  return [c for c in targets.channels if any(_is_recorded(c, field) for field in fields)]


def _other_targets(
  fields: Sequence[FieldFiles], inputs: StackSpec, targets: StackSpec
) -> list[str]:
  """The labels that a network does not predict and that any field of view has, sorted."""
  others = (field.other_targets(inputs.channels, targets.channels) for field in fields)
  return sorted(set(itertools.chain.from_iterable(others)))


def _check_has_targets(
  directory: pathlib.Path, fields: Sequence[FieldFiles], targets: StackSpec
) -> None:
  """Warns of fields of view without a target.

  Raises:
    ValueError: none of the fields of view has a target.
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
  """Decodes all images of a field of view into memory, since patches are of random places."""
  field_of_view = field.read()
  images = {key: np.asarray(image[:, :]) for key, image in field_of_view.images.items()}
  # Folders may have fields of view of the same name.
  return dataclasses.replace(field_of_view, name=str(directory / field.name), images=images)
