"""Writes a checkpoint with random values, for tests, benchmarks, and to try a command line.

    python -m isl.programs.random_checkpoint --directory checkpoints --target_channels GFP,RFP

Its predictions mean nothing, but exercise all of the network: batch norm's statistics are away from
their defaults, and activations keep their size from layer to layer.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from isl.checkpoints import channels_file
from isl.checkpoints.checkpoint import CHECKPOINT_NAME
from isl.checkpoints.saving import write_state, write_values
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION, input_stack, target_stack
from isl.core.experiment import DEFAULT_BASE_DEPTH, DEFAULT_MODEL, DEFAULT_NUM_Z_VALUES
from isl.models.networks import NETWORKS
from isl.models.plan import make_plan, variable_shapes


def _random_value(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
  kind = name.rsplit('/', 1)[-1]
  if kind == 'gamma':
    return rng.uniform(0.6, 1.4, shape)
  if kind == 'moving_variance':
    return rng.uniform(0.5, 1.5, shape)
  if kind == 'weights':
    # [relu, tanh] of a standard normal number has about 0.45 of its variance in the mean.
    return rng.normal(0, (0.7 / np.prod(shape[:-1])) ** 0.5, shape)
  return rng.normal(0, 0.2, shape)


def write_random_checkpoint(
  directory: str | os.PathLike[str],
  *,
  model: str = DEFAULT_MODEL,
  base_depth: int,
  num_z_values: int,
  target_channels: Sequence[str] | None = None,
  input_channels: Sequence[str] | None = None,
  global_step: int = 1000,
  seed: int = 0,
) -> pathlib.Path:
  """Writes a checkpoint of a network with random values.

  Args:
    directory: folder of the checkpoint; made if it is missing.
    model: the network's name.
    base_depth: the network's width.
    num_z_values: number of z depths that the network reads.
    target_channels: the labels that the network predicts; None: the original's nine.
    input_channels: the channels that the network reads at each z depth; None: TRANSMISSION. If
      these or the labels are given, channels.json lists both.
    global_step: number of training steps that the checkpoint claims to have had.
    seed: seed of the values; the same seed gives the same values.

  Returns:
    The checkpoint's prefix.

  Raises:
    ValueError: `base_depth` or `num_z_values` is too small for the network.
    OSError: a file cannot be written.
  """
  inputs = input_stack(num_z_values, input_channels or (TRANSMISSION,))
  targets = target_stack(target_channels or TARGET_CHANNELS)
  plan = make_plan(NETWORKS[model], base_depth, len(inputs.keys))
  rng = np.random.default_rng(seed)
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  prefix = folder / f'{CHECKPOINT_NAME}-{global_step}'
  values: dict[str, np.ndarray] = {
    name: _random_value(rng, name, shape).astype(np.float32)
    for name, shape in variable_shapes(plan, inputs.keys + targets.keys)
  }
  values['global_step'] = np.array(global_step, np.int64)
  write_values(prefix, values)
  if target_channels or input_channels:
    channels = channels_file.Channels(inputs=inputs.channels, targets=targets.channels)
    channels_file.write(folder, channels)
  write_state(prefix.parent, prefix.name)
  return prefix


def main() -> None:
  """Runs the program: writes a checkpoint as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--directory', required=True, help='made if it is missing')
  parser.add_argument('--model', default=DEFAULT_MODEL, choices=sorted(NETWORKS))
  parser.add_argument(
    '--base_depth', type=int, default=DEFAULT_BASE_DEPTH, help="the network's width"
  )
  parser.add_argument(
    '--num_z_values', type=int, default=DEFAULT_NUM_Z_VALUES, help='z depths that it reads'
  )
  for name, meaning in (
    ('target_channels', "labels that it predicts, otherwise the original's nine"),
    ('input_channels', f'what it reads at each z depth, otherwise {TRANSMISSION}'),
  ):
    parser.add_argument(
      f'--{name}', type=lambda text: text.split(','), help=f'{meaning}; a comma list'
    )
  parser.add_argument('--seed', type=int, default=0, help='of the values')
  arguments = parser.parse_args()
  prefix = write_random_checkpoint(
    arguments.directory,
    model=arguments.model,
    base_depth=arguments.base_depth,
    num_z_values=arguments.num_z_values,
    target_channels=arguments.target_channels,
    input_channels=arguments.input_channels,
    seed=arguments.seed,
  )
  print(prefix)


if __name__ == '__main__':
  main()
