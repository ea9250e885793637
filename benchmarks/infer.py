"""How fast INFER_FULL is: dense evaluation beside patch-by-patch evaluation of the same crop.

    python benchmarks/infer.py

Prints a table and, last, one JSON line. All is timed in one process and one run, so that the ratios
hold on a noisy machine, too. What the machine can do is measured beside: the speed of a large
float32 matrix product. From it and the FLOP that dense evaluation cannot do without (see
isl/models/flop.py: for the outputs asked for, nothing at the crop's borders) follows the least
time that the outputs could take; its share of the time measured is printed for both methods.

Peak memory is that of a process of its own for each method, TensorFlow itself (about 400 MB)
included: in one process the second would inherit what the first left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import tensorflow.compat.v1 as tf

from isl import checkpoints, data_provider, image_io, tiling
from isl.controller import Labeler
from isl.experiment import PREDICTION_STATISTICS, ImageKey, Statistic, input_stack, target_stack
from isl.models.flop import dense_flop, patch_flop
from isl.models.plan import NetworkPlan
from isl.random_checkpoint import write_random_checkpoint

_TRIAL_PATCHES = 64

Outputs = dict[Statistic, np.ndarray]


def parse_arguments() -> argparse.Namespace:
  """The command line."""
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
  parser.add_argument('--repeats', type=int, default=3, help='of dense evaluation; the best counts')
  parser.add_argument('--batches', default='4,8,16,32,64', help='tried for PATCHES, a comma list')
  parser.add_argument('--peak_of', help=argparse.SUPPRESS)
  return parser.parse_args()


def matmul_flop_per_second(size: int = 4096, repeats: int = 3) -> float:
  """Speed of a large float32 matrix product, the best of some."""
  with tf.Graph().as_default(), tf.Session() as session:
    matrix = tf.get_variable('matrix', initializer=tf.random_normal([size, size]))
    session.run(tf.global_variables_initializer())
    product = tf.matmul(matrix, matrix).op
    session.run(product)
    return max(2 * size**3 / _seconds(lambda: session.run(product)) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def peak_memory_mb(arguments: argparse.Namespace, batch: int, blocks: int) -> float:
  """The peak of a process that evaluates a batch of crops of `blocks` outputs' side, in 10^6 B."""
  options = [f'--{name}={value}' for name, value in vars(arguments).items() if value is not None]
  command = [sys.executable, __file__, *options, f'--peak_of={batch},{blocks}']
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return float(done.stdout.split()[-1])


def read_crop(arguments: argparse.Namespace, num_z_values: int, size: int) -> np.ndarray:
  """The network's input, float32 [row, column, z, channel, mask]."""
  stack = input_stack(num_z_values)
  if arguments.images:
    image_set = image_io.find_image_sets(arguments.images)[0].read()
    return data_provider.input_crop(image_set, stack, slice(0, size), slice(0, size))
  crop = np.ones((size, size, num_z_values, 1, 2), np.float32)
  crop[..., 0] = np.random.default_rng(0).uniform(0, 1, crop.shape[:-1])
  return crop


class Method:
  """One way of evaluating the crop."""

  def __init__(
    self,
    plan: NetworkPlan,
    checkpoint: checkpoints.Checkpoint,
    heads: Sequence[ImageKey],
    *,
    batch: int,
    blocks: tuple[int, int],
  ):
    """Builds the graph."""
    self._geometry = plan.spec.geometry
    self._labeler = Labeler(
      plan,
      checkpoint,
      heads=heads,
      statistics=PREDICTION_STATISTICS,
      batch=batch,
      blocks=blocks,
    )

  def evaluate(self, crop: np.ndarray, tiles: Sequence[tiling.Tile]) -> tuple[float, Outputs]:
    """Seconds and outputs [head, row, column] (0 where no tile is)."""
    labeler = self._labeler
    num_heads = len(labeler.heads)
    size = [self._geometry.num_blocks(n) * self._geometry.output for n in crop.shape[:2]]
    outputs = {s: np.zeros((num_heads, *size), np.float32) for s in labeler.statistics}
    label_size = [n * self._geometry.output for n in labeler.blocks]
    labels = np.zeros((num_heads, labeler.batch, *label_size), np.uint8)
    start = time.perf_counter()
    for first in range(0, len(tiles), labeler.batch):
      batch = list(tiles[first : first + labeler.batch])
      batch += batch[-1:] * (labeler.batch - len(batch))
      windows = [tile.input_window(self._geometry, labeler.blocks) for tile in batch]
      predicted = labeler(np.stack([crop[window] for window in windows]), labels)
      for i, tile in enumerate(batch):
        for statistic, values in predicted.items():
          outputs[statistic][:, tile.rows, tile.columns] = tile.own(values[:, i])
    return time.perf_counter() - start, outputs

  def close(self) -> None:
    """Frees the memory."""
    self._labeler.close()


def compare(one: Outputs, other: Outputs) -> dict[str, float]:
  """Of modes and medians the share of pixels that differ, of the others the largest difference."""
  differences = {}
  for statistic, values in one.items():
    difference = np.abs(values - other[statistic])
    by_class = statistic in (Statistic.MODE, Statistic.MEDIAN)
    differences[statistic.name] = float((difference > 0).mean() if by_class else difference.max())
  return differences


def print_peak_memory(arguments: argparse.Namespace, checkpoint: checkpoints.Checkpoint) -> None:
  """What `peak_memory_mb` reads: evaluates one batch, then prints this process's peak."""
  batch, side = (int(n) for n in arguments.peak_of.split(','))
  held = checkpoint.describe()
  plan = held.plan()
  geometry = plan.spec.geometry
  heads = target_stack(arguments.channels.split(',')).keys
  crop = read_crop(arguments, len(held.inputs.z_values), geometry.input_size(arguments.blocks))
  method = Method(plan, checkpoint, heads, batch=batch, blocks=(side, side))
  num_blocks = (arguments.blocks, arguments.blocks)
  tiles = tiling.split(num_blocks, (side, side), geometry.output)
  method.evaluate(crop, tiles[:batch])
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main() -> None:
  """Measures and prints."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as folder:
    if not arguments.checkpoint:
      write_random_checkpoint(
        folder,
        model=arguments.model,
        base_depth=arguments.base_depth,
        num_z_values=arguments.num_z_values,
      )
      arguments.checkpoint = folder
    checkpoint = checkpoints.Checkpoint(checkpoints.find_newest(arguments.checkpoint))
    (print_peak_memory if arguments.peak_of else measure)(arguments, checkpoint)


def measure(arguments: argparse.Namespace, checkpoint: checkpoints.Checkpoint) -> None:
  """All measurements with one checkpoint."""
  held = checkpoint.describe()
  plan = held.plan()
  geometry = plan.spec.geometry
  heads = target_stack(arguments.channels.split(',')).keys
  crop = read_crop(arguments, len(held.inputs.z_values), geometry.input_size(arguments.blocks))
  num_blocks = (arguments.blocks, arguments.blocks)
  total = arguments.blocks**2
  patches = tiling.split(num_blocks, (1, 1), geometry.output)
  matmul = matmul_flop_per_second()

  trials = {}
  for batch in (int(n) for n in arguments.batches.split(',')):
    method = Method(plan, checkpoint, heads, batch=batch, blocks=(1, 1))
    some = list(itertools.islice(itertools.cycle(patches), max(_TRIAL_PATCHES, batch)))
    method.evaluate(crop, some[:batch])
    trials[batch] = min(method.evaluate(crop, some)[0] for _ in range(2)) / len(some)
    method.close()
  best_batch = min(trials, key=lambda batch: trials[batch])

  blocks = tiling.tile_blocks(arguments.blocks, arguments.infer_size)
  tiles = tiling.split(num_blocks, (blocks, blocks), geometry.output)
  by_patch = Method(plan, checkpoint, heads, batch=best_batch, blocks=(1, 1))
  by_tile = Method(plan, checkpoint, heads, batch=1, blocks=(blocks, blocks))
  by_patch.evaluate(crop, patches[:best_batch])
  first_seconds, _ = by_tile.evaluate(crop, tiles[:1])
  # Taken in turns: whatever else the machine does meets both.
  dense_runs = [by_tile.evaluate(crop, tiles)[0] for _ in range(arguments.repeats)]
  patches_seconds, patches_outputs = by_patch.evaluate(crop, patches)
  last_seconds, dense_outputs = by_tile.evaluate(crop, tiles)
  patches_seconds = min(patches_seconds / total, trials[best_batch])
  dense_seconds = min(*dense_runs, last_seconds) / total
  matmul = max(matmul, matmul_flop_per_second())

  flop = dense_flop(plan, len(heads))
  least = flop / matmul
  differences = compare(dense_outputs, patches_outputs)
  patches_mb = peak_memory_mb(arguments, best_batch, 1)
  dense_mb = peak_memory_mb(arguments, 1, blocks)
  print(f'{held.model}, base_depth {held.base_depth}, {len(held.inputs.z_values)} z values')
  print(f'output {total} blocks of {geometry.output} x {geometry.output}, {len(heads)} heads')
  print(f'matrix product: {matmul / 1e9:.0f} GFLOP/s')
  print(f'FLOP per block: {patch_flop(plan, len(heads)) / 1e9:.2f} G by patch, {flop / 1e9:.2f} G'
        ' necessary')  # fmt: skip
  print('PATCHES, ms per block by batch: '
        + ', '.join(f'{b}: {s * 1e3:.1f}' for b, s in trials.items()))  # fmt: skip
  print(f'{"":22}{"PATCHES":>10}{"DENSE":>10}')
  print(f'{"ms per block":22}{patches_seconds * 1e3:10.2f}{dense_seconds * 1e3:10.2f}')
  print(f'{"share of the product":22}{least / patches_seconds:10.3f}{least / dense_seconds:10.3f}')
  print(f'{"peak memory, MB":22}{patches_mb:10.0f}{dense_mb:10.0f}')
  print(f'ratio: {patches_seconds / dense_seconds:.1f}')
  for name, difference in differences.items():
    what = 'pixels that differ' if name in ('MODE', 'MEDIAN') else 'largest difference'
    print(f'{name}: {what} {difference:.2g}')
  print(
    json.dumps(
      {
        'patches_s_per_block': patches_seconds,
        'dense_s_per_block': dense_seconds,
        'ratio': patches_seconds / dense_seconds,
        'max_difference': differences,
        'peak_mb': {'patches': patches_mb, 'dense': dense_mb},
        'patches_batch': best_batch,
        'dense_tile_blocks': blocks,
        'dense_first_run_s': first_seconds,
        'necessary_gflop_per_block': flop / 1e9,
        'matmul_gflop_per_s': matmul / 1e9,
        'patches_share_of_matmul': least / patches_seconds,
        'dense_share_of_matmul': least / dense_seconds,
      }
    )
  )


if __name__ == '__main__':
  main()
