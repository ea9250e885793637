"""The fields of view of a run: all that its folders, files, manifests or shards have."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from isl.checkpoints.checkpoint import Description
from isl.core.experiment import Experiment
from isl.data import data_provider, shard_reading
from isl.images import fields_of_view, finding, png_folders


def find_fields(experiment: Experiment) -> list[fields_of_view.ImageFiles]:
  """The fields of view that a run reads, or in shards, tiles of them.

  Raises:
    OSError: a folder or a shard is missing, or cannot be read.
    ValueError: there are no images in one, or it is damaged, or a name would not be the only one.
  """
  if experiment.shards is not None:
    return shard_reading.find_fields(experiment.shards)
  return find_in(experiment.image_directories)


def find_in(directories: Iterable[pathlib.Path]) -> list[fields_of_view.ImageFiles]:
  """The fields of view of all folders, files and manifests.

  Those of one name in several of them have the folder's name in theirs, as `folder-NAME`: results
  are named by them.

  Raises:
    OSError: a folder is missing.
    ValueError: there are no images in one, or a field of view is in two folders of one name.
  """
  found = [(folder, field) for folder in directories for field in finding.find_fields(folder)]
  counts = collections.Counter(field.name for _, field in found)
  fields: dict[str, fields_of_view.ImageFiles] = {}
  for folder, field in found:
    name = field.name
    if counts[name] > 1:
      name = ','.join(filter(None, (name, f'folder-{folder.resolve().name}')))
    if name in fields:
      raise ValueError(
        f'field of view {field.name!r} is in several folders named {folder.resolve().name!r}; their'
        ' results would have the same names'
      )
    fields[name] = dataclasses.replace(field, name=name)
  return list(fields.values())


def numbered(
  fields: Sequence[fields_of_view.ImageFiles],
) -> Iterator[tuple[str, fields_of_view.ImageFiles]]:
  """Each field of view after what logs call it: field 1 of 3."""
  for number, field in enumerate(fields, start=1):
    yield f'field {number} of {len(fields)}', field


def log_unused(
  experiment: Experiment, found: Sequence[fields_of_view.ImageFiles], held: Description
) -> None:
  """Says which images of the fields of view a checkpoint's network does not read."""
  if experiment.shards is not None:
    origin = f'shards from {experiment.shards.paths[0]} on'
  else:
    origin = ', '.join(map(str, experiment.image_directories))
  png_folders.log_unused(origin, found, held.inputs.channels, held.targets.channels)


def read_field(
  experiment: Experiment, held: Description, field: fields_of_view.ImageFiles
) -> fields_of_view.ImageSet:
  """Decodes what a network reads of a field of view, and its labels, and sets their ranges.

  Raises:
    OSError: a file cannot be read.
    ValueError: an image is missing or damaged, or has no range that it could be stretched from.
  """
  return read_selected(experiment, field.select(held.inputs.channels, held.targets.channels))


def read_selected(
  experiment: Experiment, field: fields_of_view.ImageFiles
) -> fields_of_view.ImageSet:
  """Like `read_field`, of a field of view that has nothing but that."""
  return data_provider.prepared(field.read(), experiment.input_range, experiment.stretch_targets)
