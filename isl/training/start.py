"""Decides where a training starts from: its own last checkpoint, another's, or random weights."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

from absl import logging

from isl.checkpoints import training_record
from isl.checkpoints.checkpoint import STATE_FILE, Checkpoint, find_newest, shown
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION, StackSpec, input_stack, target_stack
from isl.core.experiment import (
  DEFAULT_BASE_DEPTH,
  DEFAULT_MODEL,
  DEFAULT_NUM_Z_VALUES,
  Experiment,
  Optimizer,
)
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan, variable_shapes

_HEADS = 'head/'
# The layers that read the z-stack, for --norestore_inputs.
_FIRST_LAYERS = {
  'CONCORDANCE': ('Conv/',),
  'FOVEA': ('lower_scale_0_recursion_0/', *(f'downscale_{scale}_0/' for scale in range(1, 5))),
}
# What TensorFlow allows as a part of a variable's name.
_CHANNEL_NAME = re.compile('[A-Za-z0-9_.-]+')
# By optimizer, TensorFlow's name of its state beside a variable.
_SLOT = {Optimizer.ADAM: 'Adam', Optimizer.ADAGRAD: 'Adagrad', Optimizer.MOMENTUM: 'Momentum'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where a training starts from, and its network.

  Attributes:
    plan: plan of the network.
    inputs: the images that the network reads.
    targets: the labels that the network predicts.
    checkpoint: the checkpoint that has the first values; None: all variables start fresh.
    resumes: whether the checkpoint is the training's own, with the optimizer's state and the step.
    fresh: by name of a model variable that does not start from a checkpoint, the reason. For a
      resumed run, these are the variables that did not when the training began.
    leaves_out_others: whether the labels were chosen by --target_channels, so that images of other
      labels are no mistake.
  """

  plan: NetworkPlan
  inputs: StackSpec
  targets: StackSpec
  checkpoint: Checkpoint | None
  resumes: bool
  fresh: Mapping[str, str]
  leaves_out_others: bool = False


def find_start(experiment: Experiment) -> Start:
  """Decides where a training starts from, and says so in the log.

  Raises:
    ValueError: a checkpoint is damaged, or does not fit the flags; or BASE was trained with other
      flags.
    OSError: a folder cannot be read.
  """
  for flag in ('input_channels', 'target_channels'):
    _check_names(flag, getattr(experiment, flag) or ())
  start = _find_start(experiment)
  training_record.check_stretch_targets(experiment.stretch_targets, start.targets)
  return start


def _find_start(experiment: Experiment) -> Start:
  folder = experiment.train_directory
  if _has_begun(folder):
    return _resume(experiment, Checkpoint(find_newest(folder)))
  if experiment.restore_directory is not None:
    return _restore(experiment, Checkpoint(find_newest(experiment.restore_directory)))
  plan, inputs, targets = _network(experiment, None)
  logging.info('Training starts from random weights')
  shapes = variable_shapes(plan, inputs.keys + targets.keys)
  return Start(
    plan=plan,
    inputs=inputs,
    targets=targets,
    checkpoint=None,
    resumes=False,
    fresh={name: 'no checkpoint' for name, _ in shapes},
    leaves_out_others=experiment.target_channels is not None,
  )


def _check_names(flag: str, names: Iterable[str]) -> None:
  """Raises ValueError if a channel's name cannot be a part of a variable's name."""
  wrong = [repr(name) for name in names if not _CHANNEL_NAME.fullmatch(name)]
  if wrong:
    raise ValueError(
      f"--{flag} has {', '.join(wrong)}; expected names of letters (A-Z, a-z), digits, '_', '.' and"
      " '-'"
    )


def _has_begun(folder: pathlib.Path) -> bool:
  """Whether a training has saved a checkpoint in a folder, even if parts of it are missing now."""
  # Data without an index and without a state file are what a kill left of the first checkpoint.
  lost_index = (folder / STATE_FILE).is_file() and any(folder.glob('*.data-*'))
  return lost_index or any(folder.glob('*.index'))


def _network(
  experiment: Experiment, checkpoint: Checkpoint | None
) -> tuple[NetworkPlan, StackSpec, StackSpec]:
  """A new training's network: as flags say, else as the checkpoint's, else as the published one.

  Returns:
    The plan of the network, the images that it reads, and the labels that it predicts.
  """
  model, base_depth, num_z_values = DEFAULT_MODEL, DEFAULT_BASE_DEPTH, DEFAULT_NUM_Z_VALUES
  channels: tuple[str, ...] = (TRANSMISSION,)
  targets: tuple[str, ...] = TARGET_CHANNELS
  if checkpoint is not None:
    description = checkpoint.describe()
    model, base_depth, num_z_values = (
      description.model,
      description.base_depth,
      len(description.inputs.z_values),
    )
    channels = description.inputs.channels
    # A checkpoint with some of the original's labels is a beginning for all of them.
    if not set(description.targets.channels) <= set(TARGET_CHANNELS):
      targets = description.targets.channels
  inputs = input_stack(
    experiment.num_z_values or num_z_values, experiment.input_channels or channels
  )
  plan = make_plan(
    NETWORKS[experiment.model or model], experiment.base_depth or base_depth, len(inputs.keys)
  )
  return plan, inputs, target_stack(experiment.target_channels or targets)


def _resume(experiment: Experiment, checkpoint: Checkpoint) -> Start:
  record = training_record.read_record(experiment.train_directory)
  began = record.get('flags', {})
  description = checkpoint.describe()
  training_record.check_flags(experiment, began, description)
  training_record.check_origin(experiment, record)
  slot = _SLOT[experiment.training.optimizer]
  if not any(name.endswith(f'/{slot}') for name in checkpoint.shapes):
    raise ValueError(
      f'--base_directory was not trained with --optimizer {experiment.training.optimizer.name}:'
      f' {str(checkpoint.prefix)!r} has no variables named */{slot}; give the optimizer that it was'
      ' trained with, or another --base_directory'
    )
  _check_readable(checkpoint, checkpoint.shapes)
  logging.info('Resuming from %s, step %d', checkpoint.prefix, description.global_step)
  return Start(
    plan=description.plan(),
    inputs=description.inputs,
    targets=description.targets,
    checkpoint=checkpoint,
    resumes=True,
    fresh=record.get('fresh', {}),
    leaves_out_others=bool(experiment.target_channels or began.get('target_channels')),
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
  _check_fits(experiment, checkpoint, inputs, shapes, fresh)
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
    plan=plan,
    inputs=inputs,
    targets=targets,
    checkpoint=checkpoint,
    resumes=False,
    fresh=fresh,
    leaves_out_others=experiment.target_channels is not None,
  )


def _check_fits(
  experiment: Experiment,
  checkpoint: Checkpoint,
  inputs: StackSpec,
  shapes: Mapping[str, tuple[int, ...]],
  fresh: Iterable[str],
) -> None:
  """Compares a new training's network with the checkpoint that it starts from.

  Args:
    experiment: the run.
    checkpoint: the checkpoint that the training starts from.
    inputs: the images that the network reads.
    shapes: shapes of the network's variables, by name.
    fresh: names of the variables that do not start from the checkpoint.

  Raises:
    ValueError: the other variables are not all in the checkpoint, in the same shapes; or the first
      layer reads another number of channels (which does not show in the shapes if the number of z
      depths makes up for it).
  """
  restored_inputs = checkpoint.describe().inputs
  restored = {name: shape for name, shape in shapes.items() if name not in fresh}
  differing = [
    (name, checkpoint.shapes.get(name), shape)
    for name, shape in restored.items()
    if checkpoint.shapes.get(name) != shape
  ]
  other_channels = experiment.training.restore_inputs and len(inputs.channels) != len(
    restored_inputs.channels
  )
  if not differing and not other_channels:
    return
  what = shown(differing)
  if other_channels:
    read = ', '.join(restored_inputs.channels)
    what = f'it reads {read} at each z depth, not {", ".join(inputs.channels)},'
  needed = ' '.join(
    checkpoint.needed_flags(model=experiment.model, base_depth=experiment.base_depth, inputs=inputs)
  )
  first_layers = _FIRST_LAYERS[checkpoint.describe().model]
  if all(name.startswith(first_layers) for name, _, _ in differing):
    needed += ', or --norestore_inputs to start the first layer fresh'
  raise ValueError(
    f'--restore_directory has another network: {what} in {str(checkpoint.prefix)!r};'
    f' {len(restored) - len(differing):,} of {len(shapes):,} variables match; give {needed}'
  )


def _check_readable(checkpoint: Checkpoint, names: Iterable[str]) -> None:
  """Reads the values of variables, since opening does not notice damage in the data.

  Raises:
    ValueError: a value cannot be read, or is not finite.
  """
  for name in names:
    checkpoint.value(name)


def _by_reason(fresh: Mapping[str, str]) -> dict[str, list[str]]:
  """By reason, the layers whose variables start fresh: head/MAXPROJECT/DAPI_CONFOCAL, Conv."""
  names = collections.defaultdict(list)
  for name, reason in fresh.items():
    names[reason].append(name)
  return {reason: _layers(of_reason) for reason, of_reason in names.items()}


def _layers(names: Iterable[str]) -> list[str]:
  """The layers that variables belong to, each once."""
  depths = ((name, 3 if name.startswith(_HEADS) else 1) for name in names)
  return list(dict.fromkeys('/'.join(name.split('/')[:depth]) for name, depth in depths))


def _family(layer: str) -> str:
  """A layer's name, with a * for the number in which it differs from its neighbours."""
  return re.sub(r'(?<=^head/)[\d.]+|(?<=_)\d+(_in_scale)?$', '*', layer)
