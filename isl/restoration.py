"""Where a training starts from: its own last checkpoint, another's, or random weights."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from isl import checkpoints, files
from isl.checkpoints import Checkpoint, Description
from isl.experiment import (
  DEFAULT_BASE_DEPTH,
  DEFAULT_MODEL,
  DEFAULT_NUM_Z_VALUES,
  Experiment,
  Optimizer,
  StackSpec,
  input_stack,
  target_stack,
)
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan, variable_shapes

_RECORD = 'run.json'
_HEADS = 'head/'
# What a resumed run must have in common with the one that it goes on with, beside the network.
_BINDING_FLAGS = ('optimizer', 'loss', 'stretch_targets')
# Without effect on it, and so refused unless it began like that; the other way round they are the
# defaults.
_RESTORING_FLAGS = ('restore_logits', 'restore_inputs')
# What this module and train read of the record.
_RECORDED = {'flags': dict, 'fresh': dict, 'starts': list}
# The layers that read the z-stack, for --norestore_inputs.
_FIRST_LAYERS = {
  'CONCORDANCE': ('Conv/',),
  'FOVEA': ('lower_scale_0_recursion_0/', *(f'downscale_{scale}_0/' for scale in range(1, 5))),
}
# What TensorFlow calls an optimizer's state beside a variable.
_SLOT = {Optimizer.ADAM: 'Adam', Optimizer.ADAGRAD: 'Adagrad', Optimizer.MOMENTUM: 'Momentum'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where a training starts from, and with what network.

  Attributes:
    plan: the network.
    inputs: the images that it reads.
    targets: the labels that it predicts.
    checkpoint: the values to begin with; None: all variables start fresh.
    resumes: whether that is the training's own, with the optimizer's state and the step.
    fresh: why a model variable does not start from the checkpoint, by its name. Of a resumed run:
      those that did not when the run began.
  """

  plan: NetworkPlan
  inputs: StackSpec
  targets: StackSpec
  checkpoint: Checkpoint | None
  resumes: bool
  fresh: Mapping[str, str]


def find_start(experiment: Experiment) -> Start:
  """Decides where a training starts from, and says so in the log.

  Raises:
    ValueError: a checkpoint is damaged, or does not fit the flags; or BASE was trained with others.
    OSError: a folder cannot be read.
  """
  folder = experiment.train_directory
  if _has_begun(folder):
    return _resume(experiment, Checkpoint(checkpoints.find_newest(folder)))
  if experiment.restore_directory is not None:
    return _restore(experiment, Checkpoint(checkpoints.find_newest(experiment.restore_directory)))
  plan, inputs, targets = _network(experiment, None)
  logging.info('Training starts from random weights')
  shapes = variable_shapes(plan, inputs.keys + targets.keys)
  fresh = {name: 'no checkpoint' for name, _ in shapes}
  return Start(
    plan=plan, inputs=inputs, targets=targets, checkpoint=None, resumes=False, fresh=fresh
  )


def _has_begun(folder: pathlib.Path) -> bool:
  """Whether a training has saved a checkpoint here, even if parts of it are missing by now."""
  # Without a state file, data without an index is what a kill left of the first checkpoint.
  lost_index = (folder / 'checkpoint').is_file() and any(folder.glob('*.data-*'))
  return lost_index or any(folder.glob('*.index'))


def _network(
  experiment: Experiment, checkpoint: Checkpoint | None
) -> tuple[NetworkPlan, StackSpec, StackSpec]:
  """The network: as the flags say, or the checkpoint, or as the published one was."""
  model, base_depth, num_z_values = DEFAULT_MODEL, DEFAULT_BASE_DEPTH, DEFAULT_NUM_Z_VALUES
  if checkpoint is not None:
    held = checkpoint.describe()
    model, base_depth, num_z_values = held.model, held.base_depth, len(held.inputs.z_values)
  num_z_values = experiment.num_z_values or num_z_values
  plan = make_plan(
    NETWORKS[experiment.model or model], experiment.base_depth or base_depth, num_z_values
  )
  return plan, input_stack(num_z_values), target_stack()


def _resume(experiment: Experiment, checkpoint: Checkpoint) -> Start:
  record = read_record(experiment.train_directory)
  held = checkpoint.describe()
  _check_flags(experiment, record.get('flags', {}), held)
  _check_origin(experiment, record)
  plan, inputs, targets = _network(experiment, checkpoint)
  differing = _differing(checkpoint, plan, inputs, targets, {})
  if differing:
    raise ValueError(
      f'--base_directory has a training of another network: {checkpoints.shown(differing)} in'
      f' {str(checkpoint.prefix)!r}; give another --base_directory'
    )
  slot = _SLOT[experiment.training.optimizer]
  if not any(name.endswith(f'/{slot}') for name in checkpoint.shapes):
    raise ValueError(
      f'--base_directory was not trained with --optimizer {experiment.training.optimizer.name}:'
      f' {str(checkpoint.prefix)!r} has no variables named */{slot}; give the optimizer that it was'
      ' trained with, or another --base_directory'
    )
  _check_readable(checkpoint, checkpoint.shapes)
  logging.info('Resuming from %s, step %d', checkpoint.prefix, held.global_step)
  return Start(
    plan=plan,
    inputs=inputs,
    targets=targets,
    checkpoint=checkpoint,
    resumes=True,
    fresh=record.get('fresh', {}),
  )


def _check_flags(experiment: Experiment, began: Mapping[str, Any], held: Description) -> None:
  """Compares the flags with those of the run that began in this BASE.

  Args:
    experiment: the run now.
    began: flags of the run then, where there is a record of them.
    held: the network; the record may have flags that were left out for the checkpoint's.

  Raises:
    ValueError: one that must not change has.
  """
  now = dict(experiment.flags)
  wanted = {name: now.get(name) for name in _BINDING_FLAGS} | {
    'model': experiment.model,
    'base_depth': experiment.base_depth,
    'num_z_values': experiment.num_z_values,
  }
  # Several widths give the same network.
  base_depths = (experiment.base_depth, began.get('base_depth'), held.base_depth)
  trained = {name: began.get(name) for name in _BINDING_FLAGS} | {
    'model': held.model,
    'base_depth': next(depth for depth in base_depths if depth in held.base_depths),
    'num_z_values': len(held.inputs.z_values),
  }
  for name in _RESTORING_FLAGS:
    if not now.get(name, True):
      wanted[name], trained[name] = False, began.get(name)
  for name, value in wanted.items():
    if None not in (value, trained[name]) and _in_order(value) != _in_order(trained[name]):
      raise ValueError(
        f'--base_directory {str(experiment.base_directory)!r} was trained with --{name}'
        f' {_as_flag(trained[name])}, not {_as_flag(value)}; give that, or another'
        ' --base_directory'
      )
  for name, value in changed_flags(experiment, {'flags': began}).items():
    if name not in wanted:
      logging.info('--%s is now %s; the training began with %s', name, value, began[name])


def _check_origin(experiment: Experiment, record: Mapping[str, Any]) -> None:
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


def changed_flags(experiment: Experiment, record: Mapping[str, Any]) -> dict[str, Any]:
  """The flags that have other values than when the recorded run began, with their values now."""
  began = record.get('flags', {})
  return {n: v for n, v in experiment.flags if n in began and v != began[n]}


def check_stretched_as_trained(experiment: Experiment) -> None:
  """Compares --stretch_targets with what the checkpoint's training had, if there is a record of it.

  Its predictions are on that scale, and so must be what they are compared with.

  Raises:
    ValueError: they differ, or the record is damaged.
  """
  folder = experiment.checkpoint_directory
  trained = read_record(folder).get('flags', {}).get('stretch_targets')
  now = list(experiment.stretch_targets)
  if trained is not None and _in_order(trained) != _in_order(now):
    raise ValueError(
      f'the network in {str(folder)!r} was trained with --stretch_targets={_as_flag(trained)} and'
      f' predicts on that scale; give that, not {_as_flag(now)}'
    )


def _in_order(value: Any) -> Any:
  return sorted(value) if isinstance(value, list) else value


def _as_flag(value: Any) -> str:
  return (','.join(value) or 'empty') if isinstance(value, list) else str(value)


def _given_flags(experiment: Experiment, checkpoint: Checkpoint) -> str:
  held = checkpoint.describe()
  return ' '.join(
    checkpoint.needed_flags(
      model=experiment.model or held.model,
      base_depth=experiment.base_depth or held.base_depth,
      num_z_values=experiment.num_z_values or len(held.inputs.z_values),
    )
  )


def _restore(experiment: Experiment, checkpoint: Checkpoint) -> Start:
  plan, inputs, targets = _network(experiment, checkpoint)
  training = experiment.training
  first_layers = _FIRST_LAYERS[plan.spec.name]
  fresh = {}
  shapes = dict(variable_shapes(plan, inputs.keys + targets.keys))
  for name in shapes:
    if name.startswith(_HEADS) and not training.restore_logits:
      fresh[name] = '--norestore_logits'
    elif name.startswith(first_layers) and not training.restore_inputs:
      fresh[name] = '--norestore_inputs'
    elif name.startswith(_HEADS) and name not in checkpoint.shapes:
      fresh[name] = 'not in the checkpoint'
  differing = _differing(checkpoint, plan, inputs, targets, fresh)
  if differing:
    needed = _given_flags(experiment, checkpoint)
    if all(name.startswith(first_layers) for name, _, _ in differing):
      needed += ', or --norestore_inputs to start the first layer fresh'
    raise ValueError(
      f'--restore_directory has another network: {checkpoints.shown(differing)} in'
      f' {str(checkpoint.prefix)!r}; {len(shapes) - len(fresh) - len(differing):,} of'
      f' {len(shapes):,} variables match; give {needed}'
    )
  _check_readable(checkpoint, shapes.keys() - fresh.keys())
  logging.info(
    'Restored %d of %d model variables from %s, step %d',
    len(shapes) - len(fresh),
    len(shapes),
    checkpoint.prefix,
    checkpoint.describe().global_step,
  )
  restored = collections.Counter(map(_family, _layers(shapes.keys() - fresh.keys())))
  counted = (f'{family} ({n})' if '*' in family else family for family, n in restored.items())
  logging.info('Restored layers: %s', ', '.join(sorted(counted)) or 'none')
  for reason, layers in _by_reason(fresh).items():
    logging.info('Starting fresh (%s): %s', reason, ', '.join(layers))
  return Start(
    plan=plan, inputs=inputs, targets=targets, checkpoint=checkpoint, resumes=False, fresh=fresh
  )


def _check_readable(checkpoint: Checkpoint, names: Iterable[str]) -> None:
  """Reads values, since opening does not notice damage in the data.

  Raises:
    ValueError: one cannot be read, or is not finite.
  """
  for name in names:
    checkpoint.value(name)


def _differing(
  checkpoint: Checkpoint,
  plan: NetworkPlan,
  inputs: StackSpec,
  targets: StackSpec,
  fresh: Mapping[str, str],
) -> list[tuple[str, tuple[int, ...] | None, tuple[int, ...]]]:
  """(name, shape in the checkpoint or None, shape in the network) of what cannot be restored."""
  return [
    (name, checkpoint.shapes.get(name), shape)
    for name, shape in variable_shapes(plan, inputs.keys + targets.keys)
    if name not in fresh and checkpoint.shapes.get(name) != shape
  ]


def _by_reason(fresh: Mapping[str, str]) -> dict[str, list[str]]:
  """Layers instead of variables: `head/MAXPROJECT/DAPI_CONFOCAL`, `Conv`."""
  names = collections.defaultdict(list)
  for name, reason in fresh.items():
    names[reason].append(name)
  return {reason: _layers(of_reason) for reason, of_reason in names.items()}


def _layers(names: Iterable[str]) -> list[str]:
  """The layers that variables are of, each once."""
  depths = ((name, 3 if name.startswith(_HEADS) else 1) for name in names)
  return list(dict.fromkeys('/'.join(name.split('/')[:depth]) for name, depth in depths))


def _family(layer: str) -> str:
  """The layer's name, with a * for the number in which it differs from its neighbours."""
  return re.sub(r'(?<=^head/)[\d.]+|(?<=_)\d+(_in_scale)?$', '*', layer)


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """What the run that began in this folder wrote about itself; nothing of a foreign one.

  Raises:
    ValueError: the file is damaged.
  """
  path = folder / _RECORD
  if not path.is_file():
    return {}
  try:
    record: Any = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{str(path)!r} is not JSON; delete it, or restore it: {e}') from e
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
  with files.whole_file(folder / _RECORD) as partial:
    partial.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
