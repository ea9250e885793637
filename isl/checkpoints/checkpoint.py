"""Reads checkpoints: finds the newest, describes its network, compares it with flags, gives values.

A checkpoint is TensorFlow's own: `PREFIX.index`, `PREFIX.data-*` and, in the folder, a state file
named `checkpoint` that says which is the newest. TensorFlow 1.x wrote the same format. The names
and shapes of the model's variables say which network it is; there may be other variables, an
optimizer's slots for example. Only the order of the labels is in a file beside the checkpoint
(isl/checkpoints/channels_file.py).
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl.checkpoints import channels_file
from isl.core.channels import (
  MAXPROJECT,
  TRANSMISSION,
  ImageKey,
  StackSpec,
  input_stack,
  target_stack,
)
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, make_plan, variable_shapes

STATE_FILE = 'checkpoint'
# A checkpoint's files begin with this, a hyphen and the step.
CHECKPOINT_NAME = 'model.ckpt'
_PART = re.compile(r'(?P<prefix>.+)\.(index|data-\d{5}-of-\d{5})')
_WIDEST = 1 << 14
_HEAD = re.compile(r'head/(?P<z>[^/]+)/(?P<channel>[^/]+)/residual_v2_conv/Conv/weights')

Shape = tuple[int, ...]


def find_newest(directory: str | os.PathLike[str]) -> pathlib.Path:
  """Finds the newest checkpoint's prefix: the path of its files without `.index`.

  The state file decides, by the last part of the path in it: the folder may have been elsewhere
  when it was written. If there is none, or its checkpoint is not there, the largest step decides.

  Args:
    directory: a folder of checkpoints.

  Raises:
    ValueError: there is no such folder, no checkpoint in it, or only a part of one.
  """
  folder = pathlib.Path(directory)
  if not folder.is_dir():
    raise ValueError(f'{str(directory)!r} is not a folder; a folder with a checkpoint is needed')
  parts = {path: _PART.fullmatch(path.name) for path in folder.iterdir()}
  prefixes = {folder / part['prefix'] for part in parts.values() if part}
  prefix = _named_by_state_file(folder)
  if prefix not in prefixes:
    if not prefixes:
      raise ValueError(f'{str(directory)!r} holds no checkpoint: it has no file named *.index')
    prefix = max(prefixes, key=lambda path: (step_in_name(path), path.name))
  for part in ('.index', '.data-00000-of-'):
    if not any(path.name.startswith(prefix.name + part) for path in parts):
      raise ValueError(f'checkpoint {str(prefix)!r} is incomplete: its {part}* file is missing')
  return prefix


def _named_by_state_file(folder: pathlib.Path) -> pathlib.Path | None:
  path = folder / STATE_FILE
  if not path.is_file():
    return None
  named = re.search(r'^model_checkpoint_path: "(.*)"', path.read_text(errors='replace'), re.M)
  # Only the last part: the folder may have been on another machine.
  return folder / last_part(named[1]) if named else None


def last_part(path: str) -> str:
  """The name at the end of a path, also of a path of another operating system."""
  return re.split(r'[/\\]', path)[-1]


def step_in_name(prefix: pathlib.Path) -> int:
  """The global step at the end of a checkpoint's prefix; -1 if there is none."""
  step = re.search(r'-(\d+)$', prefix.name)
  return int(step[1]) if step else -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """The network of a checkpoint, as its variables' names and shapes describe it.

  Attributes:
    model: the network's name, CONCORDANCE or FOVEA.
    base_depths: the widths that give this network; 397 to 400, for example, give the same.
    inputs: the z-stacks that the network reads (and predicts again).
    targets: the labels that the network predicts.
    global_step: number of training steps.
    num_model_variables: number of variables of the network itself.
    num_parameters: number of floats in the network's variables.
    num_other_variables: number of all other variables, an optimizer's for example.
  """

  model: str
  base_depths: range
  inputs: StackSpec
  targets: StackSpec
  global_step: int
  num_model_variables: int
  num_parameters: int
  num_other_variables: int

  @property
  def base_depth(self) -> int:
    """The largest of the widths that give this network."""
    return self.base_depths[-1]

  @property
  def heads(self) -> tuple[ImageKey, ...]:
    """Keys of all images that the network predicts, inputs first; each has a head."""
    return self.inputs.keys + self.targets.keys

  def plan(self) -> NetworkPlan:
    """Derives the plan of the network's layers."""
    return make_plan(NETWORKS[self.model], self.base_depth, len(self.inputs.keys))

  def __str__(self) -> str:
    """Describes the network in several lines for people."""
    first, last = self.base_depths[0], self.base_depths[-1]
    same = f' ({first} to {last} give the same network)' if first != last else ''
    is_usual = self.inputs.channels == (TRANSMISSION,)
    return '\n'.join(
      [
        f'model: {self.model}',
        f'base_depth: {last}{same}',
        f'num_z_values: {len(self.inputs.z_values)}',
        *([] if is_usual else [f'input channels: {", ".join(self.inputs.channels)}']),
        f'target channels: {", ".join(self.targets.channels)}',
        f'global step: {self.global_step}',
        f'variables: {self.num_model_variables} of the model'
        f' ({self.num_parameters:,} parameters), {self.num_other_variables} others',
      ]
    )


class Checkpoint:
  """A checkpoint that is open for reading.

  Attributes:
    prefix: the path of the checkpoint's files without `.index`.
  """

  def __init__(self, prefix: str | os.PathLike[str]):
    """Opens the checkpoint and reads its index.

    Args:
      prefix: the path of the checkpoint's files without `.index`.

    Raises:
      ValueError: the checkpoint cannot be read.
    """
    self.prefix = pathlib.Path(prefix)
    self._description: Description | None = None
    self._reader = self._reading(lambda: tf.train.load_checkpoint(self._openable()))
    shapes = self._reading(self._reader.get_variable_to_shape_map)
    self._shapes: dict[str, Shape] = {name: tuple(shape) for name, shape in shapes.items()}

  @property
  def shapes(self) -> Mapping[str, Shape]:
    """The shape of every variable in the checkpoint, by name, the optimizer's included."""
    return self._shapes

  def _openable(self) -> str:
    """A prefix that TensorFlow can open: of links if `prefix` has brackets, a pattern to it."""
    if not re.search(r'[\[\\]', os.fspath(self.prefix)):
      return os.fspath(self.prefix)
    links = pathlib.Path(tempfile.mkdtemp(prefix='isl-'))
    # Not before this object is gone: the data files are opened when a value is read.
    weakref.finalize(self, shutil.rmtree, links, ignore_errors=True)
    for path in self.prefix.parent.iterdir():
      if path.name.startswith(f'{self.prefix.name}.'):
        ending = path.name.removeprefix(self.prefix.name)
        (links / f'model{ending}').symlink_to(path.resolve())
    return os.fspath(links / 'model')

  def _reading(self, read: Callable[[], Any]) -> Any:
    try:
      return read()
    # A damaged index shows as any of these: TensorFlow trusts lengths of blocks in it unchecked.
    except (tf.errors.OpError, RuntimeError, ValueError, LookupError, MemoryError) as e:
      reason = ' '.join(str(e).split())
      raise ValueError(
        f'checkpoint {str(self.prefix)!r} cannot be read, is it complete? ({reason})'
      ) from e

  def describe(self) -> Description:
    """Describes the checkpoint's network; finds it out once.

    Raises:
      ValueError: isl does not know the network, or channels.json does not fit it.
    """
    if self._description is None:
      self._description = self._describe()
    return self._description

  def _describe(self) -> Description:
    inputs, targets = self._stacks()
    keys = inputs.keys + targets.keys
    model = 'CONCORDANCE' if 'Conv/weights' in self._shapes else 'FOVEA'
    base_depths = self._base_depths(model, len(inputs.keys), keys)
    plan = make_plan(NETWORKS[model], base_depths[-1], len(inputs.keys))
    differing = self._differences(plan, keys)
    if differing:
      raise ValueError(
        f'checkpoint {str(self.prefix)!r} is no {model} as isl knows it; the nearest has'
        f' base_depth {base_depths[-1]}, but {shown(differing)}'
      )
    sizes = [np.prod(shape, dtype=int) for _, shape in variable_shapes(plan, keys)]
    return Description(
      model=model,
      base_depths=base_depths,
      inputs=inputs,
      targets=targets,
      global_step=self._global_step(),
      num_model_variables=len(sizes),
      num_parameters=int(sum(sizes)),
      num_other_variables=len(self._shapes) - len(sizes),
    )

  def _stacks(self) -> tuple[StackSpec, StackSpec]:
    """The images that the network reads and those that it predicts, from the names of its heads.

    Raises:
      ValueError: there are no heads, those of the input are no whole z-stacks, or channels.json is
        damaged or of other channels.
    """
    heads = [match for name in self._shapes if (match := _HEAD.fullmatch(name))]
    labels = {match['channel'] for match in heads if match['z'] == MAXPROJECT}
    read = {(match['z'], match['channel']) for match in heads if match['z'] != MAXPROJECT}
    if not labels or not read:
      raise ValueError(
        f'checkpoint {str(self.prefix)!r} is of another program: it has no variables named'
        f' head/{MAXPROJECT}/.. and head/0.0/{TRANSMISSION}/..'
      )
    z_values, channels = ({part[i] for part in read} for i in range(2))
    inputs = input_stack(len(z_values), tuple(channels))
    missing = [key for key in inputs.keys if (str(key.z), key.channel) not in read]
    if missing:
      raise ValueError(
        f'checkpoint {str(self.prefix)!r} has no head/{missing[0]}: expected a head for each of'
        f' {", ".join(inputs.channels)} at {len(z_values)} z positions from 0.0 to 1.0, as it has'
        f' some at {", ".join(sorted(z_values))}'
      )
    return inputs, target_stack(channels_file.ordered_targets(self.prefix, inputs.channels, labels))

  def _global_step(self) -> int:
    if 'global_step' in self._shapes:
      return int(self._reading(lambda: self._reader.get_tensor('global_step')))
    return max(step_in_name(self.prefix), 0)

  def _base_depths(self, model: str, num_images: int, heads: Sequence[ImageKey]) -> range:
    """The widths whose networks have as many parameters as the checkpoint, or else the nearest."""
    spec = NETWORKS[model]

    def num_parameters(base_depth: int) -> int:
      plan = make_plan(spec, base_depth, num_images)
      # Only of variables that are here: a missing one must not make the network look narrower.
      return sum(
        np.prod(shape, dtype=int)
        for name, shape in variable_shapes(plan, heads)
        if name in self._shapes
      )

    names = {name for name, _ in variable_shapes(make_plan(spec, 400, num_images), heads)}
    count = sum(np.prod(self._shapes[name], dtype=int) for name in names & self._shapes.keys())
    # No depth ever falls as the width grows, so equal counts mean equal shapes.
    widths = range(spec.min_base_depth, _WIDEST)
    first = bisect.bisect_left(widths, count, key=num_parameters)
    last = bisect.bisect_right(widths, count, key=num_parameters)
    return widths[first:last] or widths[max(first - 1, 0) : max(first, 1)]

  def _differences(
    self, plan: NetworkPlan, heads: Iterable[ImageKey]
  ) -> list[tuple[str, Shape | None, Shape]]:
    """Lists variables of a network that this checkpoint lacks or has in another shape.

    Returns:
      (name, shape here or None, shape in the network) of each.
    """
    return [
      (name, self._shapes.get(name), shape)
      for name, shape in variable_shapes(plan, heads)
      if self._shapes.get(name) != shape
    ]

  def check_fits(
    self, *, model: str | None, base_depth: int | None, num_z_values: int | None
  ) -> NetworkPlan:
    """Compares the variables' names and shapes with those of a network for the same channels.

    Args:
      model: the network's name; None: as the checkpoint says.
      base_depth: the network's width; None: as the checkpoint says.
      num_z_values: number of z depths that the network reads; None: as the checkpoint says.

    Returns:
      The plan of the network's layers.

    Raises:
      ValueError: the network has variables that the checkpoint lacks or has in another shape. The
        message names the first of them and the flags that would make the network fit.
    """
    description = self.describe()
    inputs = input_stack(
      num_z_values or len(description.inputs.z_values), description.inputs.channels
    )
    plan = make_plan(
      NETWORKS[model or description.model], base_depth or description.base_depth, len(inputs.keys)
    )
    differing = self._differences(plan, inputs.keys + description.targets.keys)
    if differing:
      needed = self.needed_flags(model=model, base_depth=base_depth, inputs=inputs)
      raise ValueError(
        f'checkpoint {str(self.prefix)!r} does not fit the flags: {shown(differing)}; it needs'
        f' {" ".join(needed)} (or leave these flags out)'
      )
    return plan

  def needed_flags(
    self, *, model: str | None, base_depth: int | None, inputs: StackSpec
  ) -> list[str]:
    """Lists the flags, with values, that would make a network fit this checkpoint.

    Args:
      model: the network's name; None: as the checkpoint says.
      base_depth: the network's width; None: as the checkpoint says.
      inputs: the images that the network reads.
    """
    description = self.describe()
    needed = []
    if model not in (None, description.model):
      needed.append(f'--model {description.model}')
    if len(inputs.z_values) != len(description.inputs.z_values):
      needed.append(f'--num_z_values {len(description.inputs.z_values)}')
    if len(inputs.channels) != len(description.inputs.channels):
      needed.append(f'--input_channels {",".join(description.inputs.channels)}')
    if base_depth is not None and base_depth not in description.base_depths:
      needed.append(f'--base_depth {description.base_depth}')
    return needed

  def value(self, name: str) -> np.ndarray:
    """Reads a variable's value.

    Raises:
      ValueError: the value's part of the file is missing or damaged, or the value is not finite,
        because the training had diverged.
    """
    value: np.ndarray = self._reading(lambda: self._reader.get_tensor(name))
    if not np.isfinite(value).all():
      raise ValueError(f'checkpoint {str(self.prefix)!r} is useless: {name} is not finite in it')
    return value

  def fingerprint(self) -> str:
    """Computes a SHA-256, in hexadecimal, of the files' contents, whatever their folder and prefix.

    Raises:
      OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(self.prefix.parent.iterdir()):
      if path.name.startswith((f'{self.prefix.name}.index', f'{self.prefix.name}.data-')):
        digest.update(path.name.removeprefix(self.prefix.name).encode() + b'\0')
        with path.open('rb') as stream:
          digest.update(hashlib.file_digest(stream, 'sha256').digest())
    return digest.hexdigest()

  def verify(self) -> None:
    """Reads every value of the network, since opening does not notice damage in the data.

    Raises:
      ValueError: a part of the files is missing or damaged, a value is not finite, or isl does not
        know the network.
    """
    description = self.describe()
    for name, _ in variable_shapes(description.plan(), description.heads):
      self.value(name)

  def custom_getter(self, getter: Callable[..., tf.Tensor], name: str, **kwargs: Any) -> tf.Tensor:
    """Gives constants with this checkpoint's values in place of variables, for tf.variable_scope.

    A graph of constants builds several times faster than one of variables, and what TensorFlow
    computes of them alone is computed once.
    """
    del getter
    value = self.value(name)
    assert value.shape == tuple(kwargs['shape']), (name, value.shape, kwargs['shape'])
    return tf.constant(value, name=name)


def shown(differing: Sequence[tuple[str, Shape | None, Shape]]) -> str:
  """Names the first of the variables that differ, for an error.

  Args:
    differing: (name, shape in the checkpoint or None, shape in the network) of each.
  """
  first = '; '.join(
    f'{name} is {list(here) if here else "missing"}, not {list(there)}'
    for name, here, there in itertools.islice(differing, 3)
  )
  return first + (f' (and {len(differing) - 3} more)' if len(differing) > 3 else '')
