"""BASE/train/run.json: how a training began and was resumed, and whether a run fits with that.

isl/training/train.py writes it; training checks a resumed run's flags against it, and evaluation
and inference check --stretch_targets.
"""

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
# The parts of the record that this module, isl/training/start.py and isl/training/train.py read.
_RECORDED = {'flags': dict, 'fresh': dict, 'starts': list}
# Beside the network, flags that a resumed run must have in common with the run that it continues.
_BINDING_FLAGS = ('optimizer', 'loss', 'stretch_targets', 'input_range')
# They have no effect on a resumed run. So false is refused unless the training began with it; true
# is the default.
_RESTORING_FLAGS = ('restore_logits', 'restore_inputs')
# Which machines train does not matter, and differs from process to process.
_MACHINE_FLAGS = ('master', 'ps_hosts', 'ps_tasks', 'task', 'worker_hosts')


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the record of the training in a folder.

  Returns:
    The record; empty if the folder has none, as beside another program's checkpoint.

  Raises:
    OSError: the file cannot be read.
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
  """Writes the record of the training in a folder.

  Raises:
    OSError: the file cannot be written.
  """
  files.write_json(folder / _RECORD, record)


def changed_flags(experiment: Experiment, record: Mapping[str, Any]) -> dict[str, Any]:
  """The flags that have other values than when the recorded training began, with values now."""
  began = record.get('flags', {})
  return {n: v for n, v in experiment.flags if n in began and v != began[n]}


def check_flags(experiment: Experiment, began: dict[str, Any], description: Description) -> None:
  """Compares a run's flags with those of the training that began in this BASE.

  Flags that may change, and have, are logged.

  Args:
    experiment: the run now.
    began: flags with which the training began; empty where there is no record of them.
    description: the checkpoint's network, for flags that were left out when the training began.

  Raises:
    ValueError: a flag that must not change has another value.
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
  """Compares --restore_directory with what the training in this BASE began with.

  Raises:
    ValueError: the training began with another checkpoint or with random weights, which the flag
      cannot change any more.
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
  """Normalizes a flag's value: two that mean the same become equal, since lists are sorted."""
  return sorted(map(str, value)) if isinstance(value, list | tuple) else value


def as_flag(value: Any) -> str:
  """Formats a flag's value as on the command line; a list without elements is 'empty'."""
  if isinstance(value, list | tuple):
    return ','.join(map(str, value)) or 'empty'
  return 'left out' if value is None else str(value)


def check_stretch_targets(stretch_targets: Sequence[str], targets: StackSpec) -> None:
  """Checks that a network predicts all labels of --stretch_targets.

  Raises:
    ValueError: the network does not predict one of them.
  """
  unknown = [channel for channel in stretch_targets if channel not in targets.channels]
  if unknown:
    raise ValueError(
      f'--stretch_targets has {", ".join(unknown)}, which the network does not predict; it predicts'
      f' {", ".join(targets.channels)}'
    )


def check_stretched_as_trained(experiment: Experiment) -> None:
  """Checks that --stretch_targets is what the checkpoint's training had, if there is a record.

  Predictions are on the scale of the training, so the labels that they are compared with must be.

  Raises:
    ValueError: --stretch_targets differs, or the record is damaged.
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
