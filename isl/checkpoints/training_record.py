"""run.json: what a training says of itself, and whether a run may go on with it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from isl.checkpoints.checkpoint import Description
from isl.core.channels import StackSpec
from isl.core.experiment import Experiment
from isl.system import files

_RECORD = 'run.json'
# What this module, restoration and train read of the record.
_RECORDED = {'flags': dict, 'fresh': dict, 'starts': list}
# What a resumed run must have in common with the one that it goes on with, beside the network.
_BINDING_FLAGS = ('optimizer', 'loss', 'stretch_targets', 'input_range')
# Without effect on it, and so refused unless it began like that; the other way round they are the
# defaults.
_RESTORING_FLAGS = ('restore_logits', 'restore_inputs')
# Which machines train does not matter, and differs from one to the next.
_MACHINE_FLAGS = ('master', 'ps_hosts', 'ps_tasks', 'task', 'worker_hosts')


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """What the run that began in this folder wrote about itself; nothing of a foreign one.

  Raises:
    ValueError: the file is damaged.
  """
  path = folder / _RECORD
  if not path.is_file():
    return {}
  record = files.read_json(path, 'delete it, or restore it')
  if not isinstance(record, dict) or not all(
    isinstance(record.get(name, kind()), kind) for name, kind in _RECORDED.items()
  ):
    raise ValueError(f'{str(path)!r} is no record of a training; delete it, or restore it')
  return record


def write_record(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes it.

  Raises:
    OSError: it cannot be written.
  """
  files.write_json(folder / _RECORD, record)


def changed_flags(experiment: Experiment, record: Mapping[str, Any]) -> dict[str, Any]:
  """The flags that have other values than when the recorded run began, with their values now."""
  began = record.get('flags', {})
  return {n: v for n, v in experiment.flags if n in began and v != began[n]}


def check_flags(experiment: Experiment, began: dict[str, Any], description: Description) -> None:
  """Compares the flags with those of the run that began in this BASE.

  Args:
    experiment: the run now.
    began: flags of the run then, where there is a record of them.
    description: the network; the record may have flags that were left out for the checkpoint's.

  Raises:
    ValueError: one that must not change has.
  """
  now = dict(experiment.flags)
  given = {
    'model': experiment.model,
    'base_depth': experiment.base_depth,
    'num_z_values': experiment.num_z_values,
    'input_channels': experiment.input_channels,
    'target_channels': experiment.target_channels,
  }
  # Several widths give the same network.
  base_depths = (experiment.base_depth, began.get('base_depth'), description.base_depth)
  # Older records lack the range: their trainings used all of it.
  began = {'input_range': None} | began if began else began
  trained = began | {
    'model': description.model,
    'base_depth': next(depth for depth in base_depths if depth in description.base_depths),
    'num_z_values': len(description.inputs.z_values),
    'input_channels': description.inputs.channels,
    'target_channels': description.targets.channels,
  }
  wanted = {name: value for name, value in given.items() if value is not None}
  wanted |= {name: now[name] for name in _BINDING_FLAGS if name in now and name in began}
  wanted |= {name: False for name in _RESTORING_FLAGS if name in began and not now.get(name, True)}
  for name, value in wanted.items():
    if in_order(value) != in_order(trained[name]):
      raise ValueError(
        f'--base_directory {str(experiment.base_directory)!r} was trained with --{name}'
        f' {as_flag(trained[name])}, not {as_flag(value)}; give that, or another'
        ' --base_directory'
      )
  for name, value in changed_flags(experiment, {'flags': began}).items():
    if name not in (*wanted, *given, *_MACHINE_FLAGS):
      logging.info('--%s is now %s; the training began with %s', name, value, began[name])


def check_origin(experiment: Experiment, record: Mapping[str, Any]) -> None:
  """Compares --restore_directory with what the run in this BASE began with.

  Raises:
    ValueError: that was something else, which the flag cannot change any more.
  """
  folder = experiment.restore_directory
  if folder is None or 'restored_from' not in record:
    return
  prefix = record['restored_from']
  if prefix is None or pathlib.Path(str(prefix)).parent.resolve() != folder.resolve():
    began = f'with {str(prefix)!r}' if prefix else 'with random weights'
    raise ValueError(
      f'--base_directory {str(experiment.base_directory)!r} has a training that began {began}, not'
      f' with --restore_directory {str(folder)!r}; leave that out to go on with it, or give another'
      ' --base_directory'
    )


def in_order(value: Any) -> Any:
  """A flag's value, such that two are equal if they mean the same: lists are sorted."""
  return sorted(map(str, value)) if isinstance(value, list | tuple) else value


def as_flag(value: Any) -> str:
  """A flag's value as the command line has it."""
  if isinstance(value, list | tuple):
    return ','.join(map(str, value)) or 'empty'
  return 'left out' if value is None else str(value)


def check_stretch_targets(stretch_targets: Sequence[str], targets: StackSpec) -> None:
  """Compares --stretch_targets with the labels that a network predicts.

  Raises:
    ValueError: one is none of these.
  """
  unknown = [channel for channel in stretch_targets if channel not in targets.channels]
  if unknown:
    raise ValueError(
      f'--stretch_targets has {", ".join(unknown)}, which the network does not predict; it predicts'
      f' {", ".join(targets.channels)}'
    )


def check_stretched_as_trained(experiment: Experiment) -> None:
  """Compares --stretch_targets with what the checkpoint's training had, if there is a record of it.

  Its predictions are on that scale, and so must be what they are compared with.

  Raises:
    ValueError: they differ, or the record is damaged.
  """
  folder = experiment.checkpoint_directory
  trained = read_record(folder).get('flags', {}).get('stretch_targets')
  now = experiment.stretch_targets
  if trained is not None and in_order(trained) != in_order(now):
    was = as_flag(trained)
    raise ValueError(
      f'the network in {str(folder)!r} was trained with --stretch_targets={was} and predicts on'
      f' that scale; give that, not {as_flag(now)}'
    )
