"""The values that a training's variables begin with: a checkpoint's, or fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow.compat.v1 as tf

from isl.training.graph import TrainingGraph
from isl.training.start import Start
from isl.training.variables import Shape, initial_value, slots


class Initializer:
  """Gives all variables of a training their first values.

  As `init_fn` of a Scaffold it is called again where a session was lost with its variables. Other
  workers may be at work then, which must never see TensorFlow's own initial values: the Scaffold's
  `init_op` is to do nothing.
  """

  def __init__(self, graph: TrainingGraph, find_start: Callable[[], Start], seed: int):
    """Adds what it needs to the current graph.

    Args:
      graph: of the training.
      find_start: says at each call where the training starts from now.
      seed: of random weights.
    """
    self._find_start = find_start
    self._seed = seed
    variables = graph.variables
    self._model = {
      **{part.variable: part.packing for part in variables.parts},
      variables.averages: variables.average_packing,
    }
    # The optimizer's, which only a resumed run takes from a checkpoint: with what it is called
    # there.
    self._slots = {
      slot: (part.packing, name)
      for part in variables.parts
      for name, slot in slots(part, graph.optimizer).items()
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
    """Assigns them."""
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
    """Of all model variables, by the names that checkpoints have."""
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
