"""How fast INFER_FULL is: dense evaluation beside patch-by-patch evaluation of the same crop.

    python benchmarks/infer.py

It prints a table and, last, one JSON line. All is timed in one process, the two methods in turns,
and medians are compared, so that the ratio is right on a noisy machine, too. The speed of a large
float32 matrix product is measured beside, for what the machine can do. From it and the FLOP that
dense evaluation needs at least (benchmarks/flop.py: for the outputs asked for, nothing at the
crop's borders) follows the least time that the outputs could take; its share of the time measured
is printed for both methods.

Peak memory is that of a process of its own for each method, TensorFlow itself (about 400 MB)
included: in one process, the second method would inherit what the first left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import machine
import numpy as np
from flop import dense_flop, patch_flop

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION, ImageKey, input_stack, target_stack
from isl.core.statistic import PICTURE_STATISTICS, AnyStatistic, Statistic
from isl.data import data_provider
from isl.images import finding
from isl.inference import tiling
from isl.inference.controller import HeadGroup, Labeler
from isl.models.plan import NetworkPlan
from isl.programs.random_checkpoint import write_random_checkpoint

_TRIAL_PATCHES = 64
_BY_CLASS = (Statistic.MODE.name, Statistic.MEDIAN.name)

Outputs = dict[AnyStatistic, np.ndarray]


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', help='folder of a checkpoint; otherwise random values')
  parser.add_argument('--images', help='folder of images; otherwise noise')
  parser.add_argument('--model', default='CONCORDANCE', help='of the random values')
  parser.add_argument('--base_depth', type=int, default=400, help='of the random values')
  parser.add_argument('--num_z_values', type=int, default=26, help='of the random values')
  parser.add_argument('--blocks', type=int, default=32, help='side of the output, in 8 x 8 blocks')
  parser.add_argument('--infer_size', type=int, default=32, help="a dense tile's side, in blocks")
  parser.add_argument(
    '--channels', default='DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL', help='labels, a comma list'
  )
  parser.add_argument('--repeats', type=int, default=5, help='rounds of both methods')
  parser.add_argument('--batches', default='4,8,16,32,64', help='tried for PATCHES, a comma list')
  parser.add_argument('--matrix', type=int, default=machine.SIDE, help="a product's side")
  parser.add_argument('--peaks_of', help=argparse.SUPPRESS)
  return parser.parse_args()


def peaks_mb(
  arguments: argparse.Namespace, crops: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
  """Measures the peak memory of processes that evaluate a batch of crops each, in 10^6 bytes.

  Args:
    arguments: the command line.
    crops: for each process, the number of crops in the batch, and the side of a crop in blocks.
  """
  options = [f'--{name}={value}' for name, value in vars(arguments).items() if value is not None]
  peaks_of = ';'.join(f'{batch},{side}' for batch, side in crops.values())
  command = [sys.executable, __file__, *options, f'--peaks_of={peaks_of}']
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return dict(zip(crops, map(float, done.stdout.split()), strict=True))


def read_crop(arguments: argparse.Namespace, num_z_values: int, size: int) -> np.ndarray:
  """Reads the network's input, or makes noise: float32 [row, column, z, channel, mask]."""
  stack = input_stack(num_z_values)
  if arguments.images:
    field_of_view = (
      finding.find_fields(arguments.images)[0].select((TRANSMISSION,), TARGET_CHANNELS).read()
    )
    return data_provider.input_crop(field_of_view, stack, slice(0, size), slice(0, size))
  crop = np.ones((size, size, num_z_values, 1, 2), np.float32)
  crop[..., 0] = np.random.default_rng(0).uniform(0, 1, crop.shape[:-1])
  return crop


class Method:
  """A way to evaluate the crop: patch by patch, or densely in tiles."""

  def __init__(
    self,
    plan: NetworkPlan,
    checkpoint: Checkpoint,
    heads: Sequence[ImageKey],
    *,
    batch: int,
    blocks: tuple[int, int],
  ):
    """Builds the graph.

    Args:
      plan: plan of the network.
      checkpoint: checkpoint of the network.
      heads: keys of the images to predict.
      batch: number of tiles that are computed at once.
      blocks: number of blocks in a tile, in rows and columns; (1, 1): patch by patch.
    """
    self._geometry = plan.spec.geometry
    self._warm = False
    self._labeler = Labeler(
      plan,
      checkpoint,
      groups=[HeadGroup(heads=tuple(heads), statistics=PICTURE_STATISTICS)],
      batch=batch,
      blocks=blocks,
    )

  def seconds_per_block(
    self, crop: np.ndarray, tiles: Sequence[tiling.Tile], num_tiles: int
  ) -> float:
    """Measures the time per block of evaluating `num_tiles` tiles.

    If there are fewer tiles, they are evaluated again from the first on.
    """
    tiles = list(itertools.islice(itertools.cycle(tiles), num_tiles))
    if not self._warm:
      self.evaluate(crop, tiles[: self._labeler.batch])
    start = time.perf_counter()
    self.evaluate(crop, tiles)
    return (time.perf_counter() - start) / (num_tiles * math.prod(self._labeler.blocks))

  def evaluate(self, crop: np.ndarray, tiles: Sequence[tiling.Tile]) -> Outputs:
    """Computes the outputs of tiles of the crop, [head, row, column]; 0 where there is no tile."""
    labeler = self._labeler
    (group,) = labeler.groups
    num_heads = len(group.heads)
    size = [self._geometry.num_blocks(n) * self._geometry.output for n in crop.shape[:2]]
    outputs = {s: np.zeros((num_heads, *size), np.float32) for s in group.statistics}
    tile_size = [n * self._geometry.output for n in labeler.blocks]
    true_classes = np.zeros((num_heads, labeler.batch, *tile_size), np.uint8)
    for first in range(0, len(tiles), labeler.batch):
      batch = list(tiles[first : first + labeler.batch])
      batch += batch[-1:] * (labeler.batch - len(batch))
      windows = [tile.input_window(self._geometry, labeler.blocks) for tile in batch]
      (predicted,) = labeler(np.stack([crop[window] for window in windows]), [true_classes])
      for i, tile in enumerate(batch):
        for statistic, values in predicted.items():
          outputs[statistic][:, tile.rows, tile.columns] = tile.own(values[:, i])
    self._warm = True
    return outputs

  def close(self) -> None:
    """Frees the graph's memory."""
    self._labeler.close()


def compare(one: Outputs, other: Outputs) -> dict[str, float]:
  """Compares outputs: the share of differing pixels of modes and medians, else the difference.

  Returns:
    By statistic's name, for MODE and MEDIAN the share of pixels that differ, for the others the
    largest difference.
  """
  differences = {}
  for statistic, values in one.items():
    difference = np.abs(values - other[statistic])
    by_class = statistic.name in _BY_CLASS
    differences[statistic.name] = float((difference > 0).mean() if by_class else difference.max())
  return differences


def print_peaks(arguments: argparse.Namespace) -> None:
  """Prints the peak memory of a process for each batch of crops, which `peaks_mb` reads.

  They are forks of this one, which has loaded TensorFlow and done nothing yet.
  """
  for peak_of in arguments.peaks_of.split(';'):
    batch, side = (int(n) for n in peak_of.split(','))
    process = multiprocessing.get_context('fork').Process(
      target=print_peak, args=(arguments, batch, side)
    )
    process.start()
    process.join()
    if process.exitcode:
      sys.exit(process.exitcode)


def print_peak(arguments: argparse.Namespace, batch: int, side: int) -> None:
  """Evaluates a batch of crops of `side` blocks, then prints this process's peak memory."""
  checkpoint = Checkpoint(find_newest(arguments.checkpoint))
  description = checkpoint.describe()
  plan = description.plan()
  geometry = plan.spec.geometry
  heads = target_stack(arguments.channels.split(',')).keys
  size = geometry.input_size(arguments.blocks)
  crop = read_crop(arguments, len(description.inputs.z_values), size)
  method = Method(plan, checkpoint, heads, batch=batch, blocks=(side, side))
  grid = tiling.Grid(geometry=geometry, size=(size, size))
  tiles = tiling.split_grid(grid, (side, side))
  method.evaluate(crop, tiles[:batch])
  # Not getrusage(): its peak is inherited from the process that started this one.
  status = pathlib.Path('/proc/self/status').read_text()
  print(int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e6)


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  if arguments.peaks_of:
    print_peaks(arguments)
    return
  with tempfile.TemporaryDirectory() as folder:
    if not arguments.checkpoint:
      write_random_checkpoint(
        folder,
        model=arguments.model,
        base_depth=arguments.base_depth,
        num_z_values=arguments.num_z_values,
      )
      arguments.checkpoint = folder
    measure(arguments, Checkpoint(find_newest(arguments.checkpoint)))


def measure(arguments: argparse.Namespace, checkpoint: Checkpoint) -> None:
  """Measures all with one checkpoint, and prints it."""
  description = checkpoint.describe()
  plan = description.plan()
  geometry = plan.spec.geometry
  heads = target_stack(arguments.channels.split(',')).keys
  size = geometry.input_size(arguments.blocks)
  crop = read_crop(arguments, len(description.inputs.z_values), size)
  grid = tiling.Grid(geometry=geometry, size=(size, size))
  patches = tiling.split_grid(grid, (1, 1))
  side = tiling.tile_blocks(arguments.blocks, arguments.infer_size)
  tiles = tiling.split_grid(grid, (side, side))

  def method(batch: int, blocks: int) -> Method:
    return Method(plan, checkpoint, heads, batch=batch, blocks=(blocks, blocks))

  product = machine.MatrixProduct(arguments.matrix)
  matmul = product.best_flop_per_second()
  trials = {}
  for batch in (int(n) for n in arguments.batches.split(',')):
    trial = method(batch, 1)
    trials[batch] = trial.seconds_per_block(crop, patches, max(_TRIAL_PATCHES, batch))
    trial.close()
  batch = min(trials, key=lambda batch: trials[batch])
  by_patch, by_tile = method(batch, 1), method(1, side)
  # In turns, so that whatever else the machine does slows both.
  rounds = [
    (
      by_patch.seconds_per_block(crop, patches, 2 * _TRIAL_PATCHES),
      by_tile.seconds_per_block(crop, tiles, len(tiles)),
    )
    for _ in range(arguments.repeats)
  ]
  matmul = max(matmul, product.best_flop_per_second())
  differences = compare(by_tile.evaluate(crop, tiles), by_patch.evaluate(crop, patches))
  patches_seconds, dense_seconds = (statistics.median(times) for times in zip(*rounds, strict=True))
  least = dense_flop(plan, len(heads)) / matmul
  result = {
    'patches_s_per_block': patches_seconds,
    'dense_s_per_block': dense_seconds,
    'ratio': patches_seconds / dense_seconds,
    'max_difference': differences,
    'peak_mb': peaks_mb(arguments, {'patches': (batch, 1), 'dense': (1, side)}),
    'share_of_matmul': {
      'patches': least / patches_seconds,
      'dense': least / dense_seconds,
    },
    'matmul_gflop_per_s': matmul / 1e9,
    'gflop_per_block': {
      'patches': patch_flop(plan, len(heads)) / 1e9,
      'necessary': dense_flop(plan, len(heads)) / 1e9,
    },
    'patches_batch': batch,
    'dense_tile_blocks': side,
  }
  z_values, blocks = len(description.inputs.z_values), arguments.blocks
  print(
    f'{description.model}, base_depth {description.base_depth}, {z_values} z values;'
    f' {blocks} x {blocks} blocks, {len(heads)} heads'
  )
  print_table(result, trials, rounds)
  print(json.dumps(result))


def print_table(
  result: dict[str, Any], trials: dict[int, float], rounds: list[tuple[float, float]]
) -> None:
  """Prints for people what the JSON line has, and the single times."""
  print(f'matrix product: {result["matmul_gflop_per_s"]:.0f} GFLOP/s')
  batches = ', '.join(f'{batch}: {seconds * 1e3:.1f}' for batch, seconds in trials.items())
  print(f'PATCHES, ms per block by batch: {batches}')
  turns = ', '.join(f'{patches * 1e3:.1f} / {dense * 1e3:.2f}' for patches, dense in rounds)
  print(f'in turns, PATCHES / DENSE: {turns}')
  flop, share, peak = (result[name] for name in ('gflop_per_block', 'share_of_matmul', 'peak_mb'))
  rows = {
    'ms per block, median': (
      f'{result["patches_s_per_block"] * 1e3:.1f}',
      f'{result["dense_s_per_block"] * 1e3:.2f}',
    ),
    'GFLOP per block': (f'{flop["patches"]:.2f}', f'{flop["necessary"]:.2f}'),
    "share of the product's speed": (f'{share["patches"]:.3f}', f'{share["dense"]:.3f}'),
    'peak memory, MB': (f'{peak["patches"]:.0f}', f'{peak["dense"]:.0f}'),
  }
  print(f'{"":30}{"PATCHES":>10}{"DENSE":>10}')
  for name, (patches, dense) in rows.items():
    print(f'{name:30}{patches:>10}{dense:>10}')
  print(f'ratio: {result["ratio"]:.1f}')
  for name, difference in result['max_difference'].items():
    what = 'share of pixels that differ' if name in _BY_CLASS else 'largest difference'
    print(f'{name}: {what} {difference:.2g}')


if __name__ == '__main__':
  main()
