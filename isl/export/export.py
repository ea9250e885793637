"""EXPORT: writes a checkpoint's network as a model that runs without isl.

From the newest checkpoint in --restore_directory (or in BASE/train) it makes

    EXPORT_DIRECTORY/{global step}/
      saved_model.pb      a SavedModel, for TensorFlow and TensorFlow Serving
      model.onnx          or an ONNX model, with --export_format ONNX
      run.json            checkpoint, flags, versions

The SavedModel's signature `predict` takes `transmission`, float32 [n, row, column, image]: n
z-stacks of any size from a patch on, intensities in [0, 1], at the positions that the signature
`describe` gives (a network of several input channels reads them side by side, channel fastest). It
returns `{label}_{statistic}`, float32 [n, row, column], which lacks the network's margin on each
side, and up to 7 more pixels at the bottom and right; a DISTRIBUTION has a further axis, class. The
numbers are those of INFER_FULL. The ONNX model has the same input and outputs, and the description
in its metadata.
"""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import tensorflow.compat.v1 as tf
from absl import logging

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.experiment import Experiment, ExportFormat
from isl.core.version import versions
from isl.export import onnx_export
from isl.export.export_graph import INPUT, ExportedGraph
from isl.inference import field_labeling
from isl.system import files

_PREDICT, _DESCRIBE = 'predict', 'describe'
_SAVED_MODEL, _ONNX, _RECORD = 'saved_model.pb', 'model.onnx', 'run.json'


def run(experiment: Experiment) -> None:
  """Exports the newest checkpoint.

  Raises:
    ValueError: the checkpoint is missing, damaged or does not fit; something else has the folder's
      name; or a library is missing.
    OSError: a file cannot be read or written.
  """
  assert experiment.export is not None
  is_onnx = experiment.export.format is ExportFormat.ONNX
  name = _ONNX if is_onnx else _SAVED_MODEL
  if is_onnx:
    onnx_export.require()
  checkpoint = Checkpoint(find_newest(experiment.checkpoint_directory))
  plan = field_labeling.make_network_plan(experiment, checkpoint)
  checkpoint.verify()
  graph = ExportedGraph(
    plan=plan,
    checkpoint=checkpoint,
    keys=field_labeling.find_targets(experiment.inference, checkpoint).keys,
    statistics=experiment.inference.statistics,
    tile_size=experiment.inference.tile_size,
  )
  if not graph.statistics:
    raise ValueError('--infer_statistics must name a statistic to be exported, got none')
  step = checkpoint.describe().global_step
  folder = experiment.export.directory / str(step)
  logging.info('Checkpoint %s, step %d', checkpoint.prefix, step)
  with files.whole_folder(folder, lambda older: _may_replace(older, name)) as partial:
    if is_onnx:
      onnx_export.write(graph, partial / name, _description(graph))
    else:
      _write_saved_model(graph, partial)
    files.write_json(partial / _RECORD, _record(experiment, checkpoint))
  logging.info('Wrote %s', folder)


def _may_replace(folder: pathlib.Path, name: str) -> bool:
  """Whether a folder is an older export of the same format, which may be replaced.

  Args:
    folder: a folder with something in it.
    name: file name of the new export's model.

  Raises:
    ValueError: the folder is an export of the other format, which may still be wanted.
  """
  if not (folder / _RECORD).is_file():
    return False
  for other in {_SAVED_MODEL, _ONNX} - {name}:
    if (folder / other).is_file():
      raise ValueError(
        f'{str(folder)!r} has a {other} of an older export, which a {name} will not replace; give'
        ' each --export_format an --export_directory of its own'
      )
  return (folder / name).is_file()


def _description(graph: ExportedGraph) -> dict[str, Any]:
  """What the signature `describe` returns, by name."""
  description = graph.checkpoint.describe()
  geometry = graph.plan.spec.geometry
  return {
    'labels': [key.channel for key in graph.keys],
    'statistics': [statistic.value for statistic in graph.statistics],
    'input_channels': list(description.inputs.channels),
    'z_positions': [float(z) for z in description.inputs.z_values],
    'patch': geometry.patch,
    'output': geometry.output,
    'margin': geometry.margin,
    'global_step': description.global_step,
    'model': description.model,
  }


def _write_saved_model(graph: ExportedGraph, folder: pathlib.Path) -> None:
  with tf.Graph().as_default() as tf_graph:
    stacks = graph.make_input()
    predict = _signature({INPUT: stacks}, graph.predict(stacks))
    described = {name: tf.constant(value) for name, value in _description(graph).items()}
    describe = _signature({}, described)
    # TensorFlow's Builder must make its folder itself.
    inside = folder / 'model'
    builder = tf.saved_model.Builder(str(inside))
    try:
      with tf.Session(graph=tf_graph) as session:
        builder.add_meta_graph_and_variables(
          session,
          [tf.saved_model.tag_constants.SERVING],
          signature_def_map={_PREDICT: predict, _DESCRIBE: describe},
          strip_default_attrs=True,
        )
      builder.save()
    except tf.errors.OpError as e:
      raise OSError(f'{str(folder)!r} cannot be written: {" ".join(e.message.split())}') from e
  for path in inside.iterdir():
    path.rename(folder / path.name)
  inside.rmdir()


def _signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> Any:
  build = tf.saved_model.build_tensor_info
  return tf.saved_model.build_signature_def(
    inputs={name: build(tensor) for name, tensor in inputs.items()},
    outputs={name: build(tensor) for name, tensor in outputs.items()},
    method_name=tf.saved_model.signature_constants.PREDICT_METHOD_NAME,
  )


def _record(experiment: Experiment, checkpoint: Checkpoint) -> dict[str, Any]:
  """The contents of run.json."""
  return {
    'checkpoint': str(checkpoint.prefix.absolute()),
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'versions': versions(),
    'flags': dict(experiment.flags),
  }
