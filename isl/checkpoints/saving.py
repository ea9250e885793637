"""Checkpoints are written: by a training, or value by value; and what a kill left is mended."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import STATE_FILE, Checkpoint, last_part, step_in_name
from isl.system import files

# Of a checkpoint in the making, too.
_PART = re.compile(r'(?P<prefix>.+)\.(?P<part>(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?)')


def make_saver(tensors: Mapping[str, tf.Tensor], **kwargs: Any) -> tf.train.Saver:
  """A Saver that writes tensors under these names; values are read with `Checkpoint`.

  Args:
    tensors: by name.
    **kwargs: of tf.train.SaverDef: max_to_keep say. It needs keep_checkpoint_every_n_hours, too,
      whose default of 0 keeps all.
  """
  prefix = tf.placeholder(tf.string, [], name='checkpoint_prefix')
  saved = tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(tensors),
    shape_and_slices=[''] * len(tensors),
    tensors=list(tensors.values()),
  )
  with tf.control_dependencies([saved]):
    written = tf.identity(prefix)
  return tf.train.Saver(
    saver_def=tf.train.SaverDef(
      filename_tensor_name=prefix.name,
      save_tensor_name=written.name,
      # A Saver wants one; nobody runs it.
      restore_op_name=written.op.name,
      version=tf.train.SaverDef.V2,
      **kwargs,
    ),
    save_relative_paths=True,
  )


def complete_state_file(directory: str | os.PathLike[str]) -> None:
  """Has the state file name the newest checkpoint, where a kill came between the two.

  A checkpoint is taken for that if it is whole, has more steps than the one that is named, and is
  younger than the state file: one from which somebody has gone back, by naming another, is not.

  Args:
    directory: a folder of checkpoints. Without a state file nothing has to be done: then the
      largest step is the newest.

  Raises:
    OSError: the state file cannot be written.
  """
  folder = pathlib.Path(directory)
  state = tf.train.get_checkpoint_state(folder)
  if state is None:
    return
  # Names alone: the folder may be a copy of one that the state file names.
  listed = [last_part(path) for path in state.all_model_checkpoint_paths]
  named = last_part(state.model_checkpoint_path)
  written = (folder / STATE_FILE).stat().st_mtime_ns
  younger = [
    path.with_suffix('')
    for path in folder.glob('model.ckpt-*.index')
    if path.stem not in (named, *listed) and path.stat().st_mtime_ns >= written
  ]
  for prefix in sorted(younger, key=step_in_name, reverse=True):
    if step_in_name(prefix) > step_in_name(pathlib.Path(named)) and _is_readable(prefix):
      write_state(folder, prefix.name, listed, state.last_preserved_timestamp)
      return


def _is_readable(prefix: pathlib.Path) -> bool:
  try:
    checkpoint = Checkpoint(prefix)
    for name in checkpoint.shapes:
      checkpoint.value(name)
  except ValueError:
    return False
  return True


def remove_partial(directory: str | os.PathLike[str]) -> None:
  """Removes what saving that was cut short has left in a folder of checkpoints."""
  folder = pathlib.Path(directory)
  # TensorFlow's, of a state file for which the disk had no room.
  for path in folder.glob('checkpoint.tmp*'):
    path.unlink(missing_ok=True)
  parts: dict[str, set[str]] = {}
  for path in folder.glob('model.ckpt-*'):
    if match := _PART.fullmatch(path.name):
      parts.setdefault(match['prefix'], set()).add(match['part'])
  for prefix, found in parts.items():
    complete = {'index', 'data'} <= {part.partition('-')[0] for part in found - _partial(found)}
    for part in _partial(found) if complete else found:
      (folder / f'{prefix}.{part}').unlink(missing_ok=True)


def _partial(parts: set[str]) -> set[str]:
  return {part for part in parts if 'tempstate' in part}


def write_values(prefix: pathlib.Path, values: Mapping[str, np.ndarray]) -> None:
  """Writes a checkpoint's `.index` and `.data` files with these variables, by name.

  Raises:
    OSError: they cannot be written; nothing is left of them.
  """
  # The op of tf.train.Saver, without its thousand variables.
  with tf.Graph().as_default(), tf.Session() as session:
    save = tf.raw_ops.SaveV2(
      prefix=os.fspath(prefix),
      tensor_names=list(values),
      shape_and_slices=[''] * len(values),
      tensors=[tf.constant(value) for value in values.values()],
    )
    try:
      session.run(save)
    except tf.errors.OpError as e:
      for path in prefix.parent.iterdir():
        if path.name.startswith(f'{prefix.name}.') and 'tempstate' in path.name:
          path.unlink()
      raise OSError(f'{prefix} cannot be written: {e.message.splitlines()[0]}') from e


def write_state(
  folder: pathlib.Path, newest: str, older: Sequence[str] = (), last_preserved: float | None = None
) -> None:
  """Writes the state file, which says which of a folder's checkpoints is the newest.

  Args:
    folder: has the checkpoints.
    newest: the name of the newest, model.ckpt-2000 say.
    older: names of those that a training will delete one day to make room.
    last_preserved: when the last one was kept for good, in seconds since 1970.

  Raises:
    OSError: it cannot be written.
  """
  state = tf.train.generate_checkpoint_state_proto(
    str(folder.absolute()),
    newest,
    all_model_checkpoint_paths=[*older, newest],
    last_preserved_timestamp=last_preserved,
  )
  with files.whole_file(folder / STATE_FILE) as partial:
    partial.write_text(str(state), encoding='utf-8')
