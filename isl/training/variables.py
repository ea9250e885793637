"""A network's variables in training, packed into few, and their first values.

A plain graph has a variable for each of a network's 1,252 arrays, with an initializer, a read, an
update and slots of the optimizer each: some 25,000 nodes, which take longer to build and to start
than a hundred steps take to run. Here one variable has all weights (or one on each parameter server
a share of them), another all moving averages, and a checkpoint still has each array under its own
name: `PackedVariables` are for the graph and for saving, `Initializer` is for the session's start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl.core.channels import ImageKey
from isl.models.plan import NetworkPlan, variable_shapes
from isl.training.start import Start

Shape = tuple[int, ...]

_AVERAGES = ('moving_mean', 'moving_variance')


def is_average(name: str) -> bool:
  """Whether a model variable follows batch norm's statistics; all others are trained."""
  return name.rsplit('/', 1)[-1] in _AVERAGES


def initial_value(name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
  """Makes the value that a model variable starts from if no checkpoint has it.

  Convolutions' weights are drawn from U(-a, a) with a = sqrt(6 / (fan in + fan out)) (Glorot and
  Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010); gammas
  and moving variances are 1, all others 0.

  Args:
    name: the variable's name in checkpoints.
    shape: the variable's shape.
    rng: generator of random weights; other variables do not use it.

  Returns:
    float32 of that shape.
  """
  kind = name.rsplit('/', 1)[-1]
  if kind == 'weights':
    # In a transposed convolution the two fans change places, which does not change their sum.
    limit = np.sqrt(6 / (np.prod(shape[:2]) * (shape[2] + shape[3])))
    return rng.uniform(-limit, limit, shape).astype(np.float32)
  filled = 1 if kind in ('gamma', 'moving_variance') else 0
  return np.full(shape, filled, np.float32)


class Packing:
  """Where arrays lie in a vector, one behind the other.

  Attributes:
    shapes: the arrays' shapes by name, in their order.
  """

  def __init__(self, shapes: Mapping[str, Shape]):
    """Takes the arrays' names and shapes, in their order."""
    self.shapes = dict(shapes)
    self._sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values()]

  @property
  def size(self) -> int:
    """The length of the vector."""
    return sum(self._sizes)

  def pack(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Packs arrays, given by name, into a vector."""
    return np.concatenate([np.ravel(arrays[name]) for name in self.shapes])

  def repeat(self, value: Callable[[str], float]) -> np.ndarray:
    """Makes a float32 vector that has one number, given by name, all over each array's place."""
    return np.repeat(np.array([value(name) for name in self.shapes], np.float32), self._sizes)

  def unpack_array(self, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Cuts a vector into its arrays, by name."""
    pieces = np.split(vector, np.cumsum(self._sizes)[:-1])
    shaped = zip(self.shapes.items(), pieces, strict=True)
    return {name: piece.reshape(shape) for (name, shape), piece in shaped}

  def unpack(self, vector: tf.Tensor) -> dict[str, tf.Tensor]:
    """Cuts a tensor that is a vector into its arrays, by name."""
    pieces = zip(self.shapes.items(), tf.split(vector, self._sizes), strict=True)
    return {
      name: piece if len(shape) == 1 else tf.reshape(piece, shape)
      for (name, shape), piece in pieces
    }

  def pack_tensors(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Packs tensors, given by name, of which each has one dimension, into a vector."""
    return tf.concat([tensors[name] for name in self.shapes], axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedPart:
  """Some of a network's weights, in one variable.

  Attributes:
    variable: the weights in one vector, float32 [weight].
    packing: names and places of the arrays in the vector.
    read: tensor of the variable's value, by which gradients are taken.
  """

  variable: tf.Variable
  packing: Packing
  read: tf.Tensor


class PackedVariables:
  """The variables of a network in training.

  Attributes:
    parts: the weights, which are trained: in one vector, or in one for each device.
    averages: batch norm's moving averages in one vector, float32 [average].
    average_packing: names and places of the moving averages in the vector.
  """

  def __init__(
    self, plan: NetworkPlan, heads: Iterable[ImageKey], devices: Sequence[str | None] = (None,)
  ):
    """Makes the variables in the current graph.

    Args:
      plan: plan of the network.
      heads: keys of the images that the network predicts.
      devices: devices that get about the same share of the weights each; None: the graph's own.
    """
    shapes = dict(variable_shapes(plan, heads))
    trained = {name: shape for name, shape in shapes.items() if not is_average(name)}
    averaged = {name: shape for name, shape in shapes.items() if is_average(name)}
    shares = _divide(trained, len(devices))
    names = ['weights'] if len(devices) == 1 else [f'weights_{i}' for i in range(len(devices))]
    self.parts = tuple(
      _make_part(name, Packing(share), device)
      for name, share, device in zip(names, shares, devices, strict=True)
    )
    self.average_packing = Packing(averaged)
    # The last device has the smallest share of the weights.
    with tf.device(devices[-1]):
      self.averages = _vector('moving_averages', self.average_packing.size)
    self._views = {
      name: view for part in self.parts for name, view in part.packing.unpack(part.read).items()
    }

  def read_averages(self) -> tf.Tensor:
    """Reads the moving averages as they are when the result is run, float32 [average]."""
    return read_where_it_is(self.averages)

  def custom_getter(self, getter: Callable[..., tf.Tensor], name: str, **kwargs: Any) -> tf.Tensor:
    """Gives parts of the packed weights in place of variables, for tf.variable_scope."""
    del getter
    view = self._views[name]
    assert view.shape.as_list() == list(kwargs['shape']), (name, view.shape, kwargs['shape'])
    return view

  def unpack_arrays(self, vectors: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Cuts vectors, one for each of the parts, into arrays by the variables' names."""
    pairs = zip(self.parts, vectors, strict=True)
    return {n: a for part, v in pairs for n, a in part.packing.unpack_array(v).items()}

  def named_tensors(self, optimizer: tf.train.Optimizer) -> dict[str, tf.Tensor]:
    """The tensors that a checkpoint gets, by name.

    These are the model's variables, the optimizer's slots, and scalars such as the global step. An
    optimizer's slots are named as TensorFlow names those of single variables: `{variable}/Adam`,
    `{variable}/Adam_1`.

    Args:
      optimizer: the optimizer, after it has been applied to the weights.
    """
    tensors = dict(self._views) | self.average_packing.unpack(self.read_averages())
    for part in self.parts:
      for name, slot in slots(part, optimizer).items():
        views = part.packing.unpack(read_where_it_is(slot))
        tensors |= {f'{variable}/{name}': view for variable, view in views.items()}
    for variable in tf.global_variables():
      if variable.shape.rank == 0:
        tensors[variable.op.name] = read_where_it_is(variable)
    return tensors


def slots(part: PackedPart, optimizer: tf.train.Optimizer) -> dict[str, tf.Variable]:
  """The optimizer's slots for a part of the weights, by the last part of their names."""
  found = [optimizer.get_slot(part.variable, name) for name in optimizer.get_slot_names()]
  return {slot.op.name.rsplit('/', 1)[-1]: slot for slot in found}


def read_where_it_is(variable: tf.Variable) -> tf.Tensor:
  """Reads a variable's value when the result is run; only the value goes to another machine."""
  with tf.device(variable.device):
    value = variable.read_value()
  return tf.identity(value)


def _divide(shapes: Mapping[str, Shape], count: int) -> list[dict[str, Shape]]:
  """Divides arrays into `count` shares of about the same size.

  Each array, the largest first, goes to the share that is smallest so far (Graham, Bounds on
  multiprocessing timing anomalies, 1969: at most 4/3 of the best possible).

  Returns:
    The shares, the largest first, each in the order of `shapes`.
  """
  sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
  totals, owner = [0] * count, {}
  for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
    owner[name] = totals.index(min(totals))
    totals[owner[name]] += sizes[name]
  order = sorted(range(count), key=lambda share: totals[share], reverse=True)
  return [{n: shape for n, shape in shapes.items() if owner[n] == share} for share in order]


def _make_part(name: str, packing: Packing, device: str | None) -> PackedPart:
  with tf.device(device):
    variable = _vector(name, packing.size)
  return PackedPart(variable=variable, packing=packing, read=read_where_it_is(variable))


def _vector(name: str, size: int) -> tf.Variable:
  return tf.get_variable(name, [size], initializer=tf.zeros_initializer(), use_resource=True)


class Initializer:
  """Gives all variables of a training their first values.

  As `init_fn` of a Scaffold it is called again if a session was lost with its variables. Other
  workers may be at work then, which must never see TensorFlow's own initial values: so the
  Scaffold's `init_op` must do nothing.
  """

  def __init__(
    self,
    variables: PackedVariables,
    optimizer: tf.train.Optimizer,
    find_start: Callable[[], Start],
    seed: int,
  ):
    """Adds the operations that assign values to the current graph.

    Args:
      variables: the network's variables.
      optimizer: the optimizer, after it has been applied to the weights.
      find_start: tells at each call where the training starts from now.
      seed: seed of random weights.
    """
    self._find_start = find_start
    self._seed = seed
    self._model = {
      **{part.variable: part.packing for part in variables.parts},
      variables.averages: variables.average_packing,
    }
    # The optimizer's slots, which only a resumed run takes from a checkpoint, with their packing
    # and name there.
    self._slots = {
      slot: (part.packing, name)
      for part in variables.parts
      for name, slot in slots(part, optimizer).items()
    }
    self._scalars = [variable for variable in tf.global_variables() if variable.shape.rank == 0]
    self._placeholders: dict[tf.Variable, tf.Tensor] = {}
    self._reset = tf.variables_initializer([*self._slots, *self._scalars])
    self._assign_model = self._assign([*self._model])
    self._assign_others = self._assign([*self._slots, *self._scalars])

  def _assign(self, variables: list[tf.Variable]) -> tf.Operation:
    operations = []
    for variable in variables:
      placeholder = tf.placeholder(variable.dtype.base_dtype, variable.shape)
      self._placeholders[variable] = placeholder
      with tf.device(variable.device):
        operations.append(variable.assign(placeholder))
    return tf.group(*operations)

  def __call__(self, scaffold: tf.train.Scaffold | None, session: tf.Session) -> None:
    """Assigns first values to all variables; it has the arguments of a Scaffold's `init_fn`.

    Raises:
      ValueError: a checkpoint is damaged.
    """
    del scaffold
    start = self._find_start()
    values = self._model_values(start)
    self._run(session, self._assign_model, {v: p.pack(values) for v, p in self._model.items()})
    if not start.resumes:
      session.run(self._reset)
      return
    assert start.checkpoint is not None
    arrays = {
      variable: packing.pack(
        {name: start.checkpoint.value(f'{name}/{slot}') for name in packing.shapes}
      )
      for variable, (packing, slot) in self._slots.items()
    }
    arrays |= {variable: start.checkpoint.value(variable.op.name) for variable in self._scalars}
    self._run(session, self._assign_others, arrays)

  def _run(
    self, session: tf.Session, assign: tf.Operation, arrays: Mapping[tf.Variable, np.ndarray]
  ) -> None:
    session.run(assign, {self._placeholders[variable]: a for variable, a in arrays.items()})

  def _model_values(self, start: Start) -> dict[str, np.ndarray]:
    """The first values of all model variables, by their names in checkpoints."""
    rng = np.random.default_rng(self._seed)
    packings = list(self._model.values())
    # Sorted, so that random weights do not depend on how they are divided.
    shapes = dict(sorted(item for packing in packings for item in packing.shapes.items()))
    return {name: _first_value(start, name, shape, rng) for name, shape in shapes.items()}


def _first_value(start: Start, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
  checkpoint = start.checkpoint
  if checkpoint is None or (not start.resumes and name in start.fresh):
    return initial_value(name, shape, rng)
  return checkpoint.value(name)
