"""channels.json beside a checkpoint: the channels that its network reads and predicts, in order.

    {"format": 1, "input_channels": ["TRANSMISSION"], "target_channels": ["GFP", "RFP"]}

The variables' names contain the same channels, but not the order in which somebody wants to see the
labels. A checkpoint without the file is as good as one with it: its labels come in the canonical
order.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection
from typing import Any

from isl.core.channels import TARGET_CHANNELS
from isl.system import files

NAME = 'channels.json'
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channels:
  """The channels that a network reads and predicts.

  Attributes:
    inputs: the network's input channels.
    targets: the labels that the network predicts, in the order in which they were asked for.
  """

  inputs: tuple[str, ...]
  targets: tuple[str, ...]


def read(folder: str | os.PathLike[str]) -> Channels | None:
  """Reads the channels.json of a folder.

  Args:
    folder: a folder of checkpoints.

  Returns:
    The channels; None: the folder has no such file.

  Raises:
    ValueError: the file is damaged, or is another program's.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(folder) / NAME
  try:
    contents = files.read_json(path, 'delete it, or restore it')
  except (FileNotFoundError, NotADirectoryError):
    return None
  if not isinstance(contents, dict) or contents.get('format') != _FORMAT:
    raise ValueError(
      f'{str(path)!r} is not a file of channels of this version of isl ("format": {_FORMAT});'
      ' delete it, or restore it'
    )
  return Channels(
    inputs=_names(path, contents, 'input_channels'),
    targets=_names(path, contents, 'target_channels'),
  )


def _names(path: pathlib.Path, contents: dict[str, Any], name: str) -> tuple[str, ...]:
  """Reads the list of different names called `name` from a file's contents.

  Raises:
    ValueError: there is no such list.
  """
  value = contents.get(name)
  if (
    not isinstance(value, list)
    or not value
    or not all(isinstance(channel, str) and channel for channel in value)
    or len(set(value)) < len(value)
  ):
    raise ValueError(
      f'{str(path)!r} must have a list of different names as {name!r}; delete it, or restore it'
    )
  return tuple(value)


def ordered_targets(
  prefix: pathlib.Path, inputs: Collection[str], targets: Collection[str]
) -> tuple[str, ...]:
  """Puts a checkpoint's labels in the order of its channels.json, or else in the canonical order.

  Args:
    prefix: the checkpoint's prefix.
    inputs: input channels in the names of the checkpoint's variables.
    targets: labels in the names of the checkpoint's variables.

  Raises:
    ValueError: the file is damaged, or is of other channels.
    OSError: the file cannot be read.
  """
  listed = read(prefix.parent)
  if listed is None:
    return canonical(targets)
  # The file may list more labels: those of heads that have been left out since.
  ordered = tuple(channel for channel in listed.targets if channel in targets)
  for what, held, named in (
    ('reads', inputs, listed.inputs),
    ('predicts', targets, ordered),
  ):
    if set(held) != set(named):
      raise ValueError(
        f'{str(prefix.parent / NAME)!r} is not of {prefix.name}, which {what}'
        f' {", ".join(canonical(held))}; delete it, or restore it'
      )
  return ordered


def canonical(channels: Collection[str]) -> tuple[str, ...]:
  """Sorts labels in the order of TARGET_CHANNELS; other labels come behind these, by name."""
  known = [channel for channel in TARGET_CHANNELS if channel in channels]
  return (*known, *sorted(set(channels).difference(known)))


def write(folder: str | os.PathLike[str], channels: Channels) -> None:
  """Writes the channels.json of a folder.

  Raises:
    OSError: the file cannot be written.
  """
  contents = {
    'format': _FORMAT,
    'input_channels': channels.inputs,
    'target_channels': channels.targets,
  }
  files.write_json(pathlib.Path(folder) / NAME, contents)


def carry(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
  """Copies channels.json from one folder to another, or removes it there if there is none.

  Args:
    source: the folder that it is copied from.
    folder: the folder that it is copied to.

  Raises:
    ValueError: the file in `source` is damaged.
    OSError: the file cannot be read or written.
  """
  channels = read(source)
  if channels is not None:
    write(folder, channels)
  else:
    (pathlib.Path(folder) / NAME).unlink(missing_ok=True)
