"""channels.json beside a checkpoint: what its network reads and predicts, in order.

    {"format": 1, "input_channels": ["TRANSMISSION"], "target_channels": ["GFP", "RFP"]}

The variables' names hold the same channels, but not in which order somebody wants to see the
labels. A checkpoint without the file is as good as one with it.
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
  """What a network reads and predicts.

  Attributes:
    inputs: its input channels.
    targets: its labels, in the order in which they were asked for.
  """

  inputs: tuple[str, ...]
  targets: tuple[str, ...]


def read(folder: str | os.PathLike[str]) -> Channels | None:
  """Reads a folder's file; None if it has none.

  Raises:
    ValueError: the file is damaged, or is another program's.
    OSError: it cannot be read.
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
  """A list of different names.

  Raises:
    ValueError: it is something else.
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
  """A checkpoint's labels in the order of the file beside it, or else in the canonical one.

  Args:
    prefix: of the checkpoint.
    inputs: its input channels, as its variables say.
    targets: its labels, likewise.

  Raises:
    ValueError: the file is damaged, or of other channels.
    OSError: it cannot be read.
  """
  listed = read(prefix.parent)
  if listed is None:
    return canonical(targets)
  # It may have more: heads that have been left out since.
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
  """In the order of TARGET_CHANNELS; others behind them, by name."""
  known = [channel for channel in TARGET_CHANNELS if channel in channels]
  return (*known, *sorted(set(channels).difference(known)))


def write(folder: str | os.PathLike[str], channels: Channels) -> None:
  """Writes a folder's file.

  Raises:
    OSError: it cannot be written.
  """
  contents = {
    'format': _FORMAT,
    'input_channels': channels.inputs,
    'target_channels': channels.targets,
  }
  files.write_json(pathlib.Path(folder) / NAME, contents)


def carry(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
  """Lets a folder have the file that another has, or none if that has none.

  Raises:
    ValueError: the other's is damaged.
    OSError: it cannot be read, or written.
  """
  channels = read(source)
  if channels is not None:
    write(folder, channels)
  else:
    (pathlib.Path(folder) / NAME).unlink(missing_ok=True)
