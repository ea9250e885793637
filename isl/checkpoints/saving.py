"""Writes checkpoints, and mends what a killed training left of them.

`make_saver` is for a training, whose graph has the values; `write_values` and `write_state` are for
programs that make a checkpoint of arrays. A training that starts calls `complete_state_file` and
`remove_partial` on its folder.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import (
  CHECKPOINT_NAME,
  STATE_FILE,
  Checkpoint,
  last_part,
  step_in_name,
)
from isl.system import files

# Matches the files of a checkpoint, temporary ones included.
_PART = re.compile(r'(?P<prefix>.+)\.(?P<part>(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?)')


def make_saver(tensors: Mapping[str, tf.Tensor], **kwargs: Any) -> tf.train.Saver:
  """Makes a Saver that writes tensors under these names; it cannot restore (`Checkpoint` reads).

  Args:
    tensors: the tensors to write, by name in the checkpoint.
    **kwargs: fields of tf.train.SaverDef: max_to_keep, for example. With that, give
      keep_checkpoint_every_n_hours, too, whose default of 0 keeps all checkpoints.
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
      # A Saver must have one; nobody runs it.
      restore_op_name=written.op.name,
      version=tf.train.SaverDef.V2,
      **kwargs,
    ),
    save_relative_paths=True,
  )


def complete_state_file(directory: str | os.PathLike[str]) -> None:
  """Makes the state file name the newest checkpoint if a kill came between writing the two.

  A checkpoint is taken for the newest if it is whole, has more steps than the one that the state
  file names, and is not older than the state file: if somebody has gone back to an earlier
  checkpoint by naming it there, that stays the newest.

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
    for path in folder.glob(f'{CHECKPOINT_NAME}-*.index')
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
  """Removes what a save that was cut short has left in a folder of checkpoints."""
  folder = pathlib.Path(directory)
  # TensorFlow leaves these when the disk has no room for the state file.
  for path in folder.glob('checkpoint.tmp*'):
    path.unlink(missing_ok=True)
  parts: dict[str, set[str]] = {}
  for path in folder.glob(f'{CHECKPOINT_NAME}-*'):
    if match := _PART.fullmatch(path.name):
      parts.setdefault(match['prefix'], set()).add(match['part'])
  for prefix, found in parts.items():
    complete = {'index', 'data'} <= {part.partition('-')[0] for part in found - _partial(found)}
    for part in _partial(found) if complete else found:
      (folder / f'{prefix}.{part}').unlink(missing_ok=True)


def _partial(parts: set[str]) -> set[str]:
  return {part for part in parts if 'tempstate' in part}


def write_values(prefix: pathlib.Path, values: Mapping[str, np.ndarray]) -> None:
  """Writes a checkpoint's `.index` and `.data` files.

  Args:
    prefix: the path of the files without `.index`.
    values: the variables' values, by name.

  Raises:
    OSError: the files cannot be written; temporary files are removed.
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
    folder: the folder of the checkpoints.
    newest: the name of the newest checkpoint: model.ckpt-2000, for example.
    older: names of older checkpoints, which a training will delete one day to make room.
    last_preserved: when a checkpoint was last kept for good, in seconds since 1970.

  Raises:
    OSError: the state file cannot be written.
  """
  state = tf.train.generate_checkpoint_state_proto(
    str(folder.absolute()),
    newest,
    all_model_checkpoint_paths=[*older, newest],
    last_preserved_timestamp=last_preserved,
  )
  with files.whole_file(folder / STATE_FILE) as partial:
    partial.write_text(str(state), encoding='utf-8')
