"""ONNX models: made by tf2onnx, checked by onnxruntime."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl import statistic
from isl.export_graph import INPUT, ExportedGraph
from isl.statistic import AnyStatistic

# The oldest that has all that is needed, among those that tools of today read.
_OPSET = 17
# How far the two may differ.
_TOLERANCE = 1e-4
# Where two classes are about equally likely, rounding decides on modes and quantiles.
_EQUAL_SHARE = 0.98


def require() -> None:
  """Raises ValueError if what makes and checks ONNX models is not installed."""
  try:
    import onnxruntime
    import tf2onnx
  except ImportError as e:
    raise ValueError(
      f"--export_format ONNX needs {e.name}, which is not installed: pip install 'isl[onnx]'"
    ) from e
  del onnxruntime, tf2onnx


def write(graph: ExportedGraph, path: pathlib.Path, description: Mapping[str, Any]) -> None:
  """Writes a model, after it was compared with the graph that it is made of.

  It computes all of an input at once. Its input and its outputs are named as those of the
  SavedModel; the description is in its metadata, each value as JSON.

  Args:
    graph: of the predictions.
    path: of the file.
    description: is written into it.

  Raises:
    ValueError: onnxruntime computes something else.
    OSError: the file cannot be written.
  """
  import onnx
  import tf2onnx

  # It tells much of what it does.
  logging.getLogger('tf2onnx').setLevel(logging.ERROR)
  with tf.Graph().as_default() as tf_graph:
    stacks = graph.make_input()
    outputs = {
      name: tf.identity(tensor, name=name) for name, tensor in graph.predict_whole(stacks).items()
    }
    # Its own optimizer takes minutes, ten times as long as all else, and onnxruntime has one.
    converted = tf2onnx.tfonnx.process_tf_graph(
      tf_graph,
      opset=_OPSET,
      input_names=[stacks.name],
      output_names=[tensor.name for tensor in outputs.values()],
      tensors_to_rename={stacks.name: INPUT, **{t.name: n for n, t in outputs.items()}},
    )
    model = converted.make_model('in silico labeling')
    for value in (*model.graph.input, *model.graph.output):
      for axis, name in enumerate(('n', 'rows', 'columns')):
        value.type.tensor_type.shape.dim[axis].dim_param = (
          name if value.name == INPUT or name == 'n' else f'predicted_{name}'
        )
    onnx.helper.set_model_props(model, {n: json.dumps(v) for n, v in description.items()})
    onnx.checker.check_model(model)
    encoded = model.SerializeToString()
    with tf.Session(graph=tf_graph) as session:
      _compare(graph, encoded, lambda stack: session.run(outputs, {stacks: stack}))
  path.write_bytes(encoded)


def _compare(graph: ExportedGraph, encoded: bytes, compute: Any) -> None:
  """Raises ValueError if onnxruntime's numbers are others than TensorFlow's, on noise."""
  import onnxruntime

  session = onnxruntime.InferenceSession(encoded, providers=['CPUExecutionProvider'])
  geometry = graph.plan.spec.geometry
  # An even and an odd number of blocks, and pixels that make none.
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
