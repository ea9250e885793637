"""Copies a checkpoint's network alone: what predicting needs, a third of what training keeps.

    python -m isl.programs.bare_checkpoint --from BASE/train --to checkpoints \
      --target_channels DAPI_CONFOCAL,MAP2_CONFOCAL

copies the newest checkpoint of a folder without the optimizer's state, and without the heads of
labels that are not named: those that the training never saw, for example. channels.json lists the
remaining labels, in the order in which they were named.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from isl.checkpoints import channels_file, saving
from isl.checkpoints.checkpoint import CHECKPOINT_NAME, STATE_FILE, Checkpoint, find_newest
from isl.core.channels import target_stack
from isl.models.plan import variable_shapes
from isl.system import files


def copy_bare(
  source: str | os.PathLike[str],
  directory: str | os.PathLike[str],
  target_channels: Sequence[str] | None = None,
) -> pathlib.Path:
  """Copies the network's variables and the global step of the newest checkpoint of a folder.

  Args:
    source: the folder of the checkpoint.
    directory: folder for the copy; made if it is missing.
    target_channels: labels whose heads are copied, in this order; None: all.

  Returns:
    The copy's prefix.

  Raises:
    ValueError: there is no checkpoint, or it is damaged, or does not predict these labels; or both
      folders are the same.
    OSError: the copy cannot be written.
  """
  checkpoint = Checkpoint(find_newest(source))
  if pathlib.Path(directory).exists() and pathlib.Path(directory).samefile(source):
    raise ValueError(
      f'--to must be another folder than --from, got {str(directory)!r} for both: a training could'
      ' not go on from the copy'
    )
  description = checkpoint.describe()
  targets = tuple(target_channels or description.targets.channels)
  unknown = [channel for channel in targets if channel not in description.targets.channels]
  if unknown:
    raise ValueError(
      f'--target_channels has {", ".join(unknown)}, which {str(checkpoint.prefix)!r} does not'
      f' predict; it predicts {", ".join(description.targets.channels)}'
    )
  heads = description.inputs.keys + target_stack(targets).keys
  values = {name: checkpoint.value(name) for name, _ in variable_shapes(description.plan(), heads)}
  values['global_step'] = np.array(description.global_step, np.int64)
  prefix = pathlib.Path(directory) / f'{CHECKPOINT_NAME}-{description.global_step}'
  files.check_writable(prefix.with_name(STATE_FILE))
  saving.write_values(prefix, values)
  channels = channels_file.Channels(inputs=description.inputs.channels, targets=targets)
  channels_file.write(directory, channels)
  saving.write_state(prefix.parent, prefix.name)
  return prefix


def main() -> None:
  """Runs the program: copies a checkpoint as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--from', dest='source', required=True, help='folder with a checkpoint')
  parser.add_argument('--to', required=True, help='folder for the copy; made if it is missing')
  parser.add_argument(
    '--target_channels',
    type=lambda text: text.split(','),
    help='labels whose heads are copied, in this order, a comma list; otherwise all',
  )
  arguments = parser.parse_args()
  try:
    print(copy_bare(arguments.source, arguments.to, arguments.target_channels))
  except (ValueError, OSError) as e:
    sys.exit(f'bare_checkpoint: {" ".join(str(e).split())}')


if __name__ == '__main__':
  main()
