"""Writes ONNX models, which tf2onnx makes and onnxruntime checks."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl.core import statistic
from isl.core.statistic import AnyStatistic
from isl.export.export_graph import INPUT, ExportedGraph

# The oldest set of operators that has all that is needed, so that many tools read it.
_OPSET = 17
# How far values of TensorFlow and onnxruntime may differ.
_TOLERANCE = 1e-4
# Where two classes are about equally likely, rounding decides on modes and quantiles.
_EQUAL_SHARE = 0.98


def require() -> None:
  """Raises ValueError unless the libraries that make and check ONNX models are installed."""
  try:
    import onnxruntime
    import tf2onnx
  except ImportError as e:
    raise ValueError(
      f"--export_format ONNX needs {e.name}, which is not installed: pip install 'isl[onnx]'"
    ) from e
  del onnxruntime, tf2onnx


def write(graph: ExportedGraph, path: pathlib.Path, description: Mapping[str, Any]) -> None:
  """Writes a model, after comparing its results with those of the graph that it is made of.

  The model's input and outputs are named like those of the SavedModel; the description is in its
  metadata, each value as JSON.

  Args:
    graph: the graph of the predictions.
    path: path of the file.
    description: description of the model, by name.

  Raises:
    ValueError: onnxruntime's results differ from TensorFlow's.
    OSError: the file cannot be written.
  """
  import onnx

  with tf.Graph().as_default() as tf_graph:
    # Unless the graph's names are in a scope, tf2onnx mistakes names within the loop over tiles for
    # them.
    with tf.name_scope('whole'):
      stacks = graph.make_input()
      # A label may have a name that a node of the graph cannot have.
      outputs = {
        name: tf.identity(tensor, name=f'output_{i}')
        for i, (name, tensor) in enumerate(graph.predict(stacks).items())
      }
    model = _convert(tf_graph, {INPUT: stacks}, outputs)
    onnx.helper.set_model_props(model, {n: json.dumps(v) for n, v in description.items()})
    onnx.checker.check_model(model)
    encoded = model.SerializeToString()
    with tf.Session(graph=tf_graph) as session:
      _compare(graph, encoded, lambda stack: session.run(outputs, {stacks: stack}))
  path.write_bytes(encoded)


def _convert(
  tf_graph: tf.Graph, inputs: Mapping[str, tf.Tensor], outputs: Mapping[str, tf.Tensor]
) -> Any:
  """Converts a graph to an ONNX ModelProto, whose inputs and outputs have these names."""
  from tf2onnx import optimizer, tfonnx
  from tf2onnx.optimizer.const_fold_optimizer import ConstFoldOptimizer
  from tf2onnx.optimizer.identity_optimizer import IdentityOptimizer

  # tf2onnx logs much of what it does.
  logging.getLogger('tf2onnx').setLevel(logging.ERROR)
  converted = tfonnx.process_tf_graph(
    tf_graph,
    opset=_OPSET,
    input_names=[tensor.name for tensor in inputs.values()],
    output_names=[tensor.name for tensor in outputs.values()],
    tensors_to_rename={t.name: name for name, t in (*inputs.items(), *outputs.items())},
  )
  # All of tf2onnx's passes take ten times as long as all else, and onnxruntime has its own. Without
  # these two, a loop is not valid and convolutions transpose their weights.
  passes = {'remove_identity': IdentityOptimizer, 'fold_constants': ConstFoldOptimizer}
  optimized = optimizer.optimize_graph(converted, catch_errors=False, optimizers=passes)
  model = optimized.make_model('in silico labeling')
  for value in (*model.graph.input, *model.graph.output):
    for axis, name in enumerate(('n', 'rows', 'columns')):
      value.type.tensor_type.shape.dim[axis].dim_param = (
        name if value.name in inputs or name == 'n' else f'predicted_{name}'
      )
  return model


def _compare(graph: ExportedGraph, encoded: bytes, compute: Any) -> None:
  """Raises ValueError if onnxruntime's results differ from TensorFlow's on an input of noise."""
  import onnxruntime

  session = onnxruntime.InferenceSession(encoded, providers=['CPUExecutionProvider'])
  geometry = graph.plan.spec.geometry
  # An even and an odd number of blocks, and pixels that make no whole block.
  size = (1, geometry.input_size(2), geometry.input_size(3) + 1, graph.plan.input_depth // 2)
  stack = np.random.default_rng(0).random(size, np.float32)
  expected = compute(stack)
  names = list(expected)
  found = dict(zip(names, session.run(names, {INPUT: stack}), strict=True))
  for key in graph.keys:
    for s in graph.statistics:
      name = graph.output_name(key, s)
      if not _is_same(s, found[name], expected[name]):
        raise ValueError(
          f'{name} is another in onnxruntime {onnxruntime.__version__} than in TensorFlow, by up to'
          f' {np.abs(found[name] - expected[name]).max():.2g}; expected at most {_TOLERANCE:g}'
        )


def _is_same(kind: AnyStatistic, found: np.ndarray, expected: np.ndarray) -> bool:
  close = np.abs(found - expected) <= _TOLERANCE
  return bool(close.mean() >= _EQUAL_SHARE if statistic.is_class(kind) else close.all())
