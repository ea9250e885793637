"""How fast TRAIN is: steps per second, as a share of what the machine can do.

    python benchmarks/train.py

It prints a table and, last, one JSON line. Training steps and a large float32 matrix product take
turns in one process, since a machine's speed may change from one second to the next; a round's
share is that of its own products' speed, and medians of the rounds are printed. FLOP are those of
the convolutions of single patches (benchmarks/flop.py), times three for forward and backward.

Before that, the program itself is run for a few steps, to measure the time from the command to the
end of the first step, and the peak memory, TensorFlow itself (about 400 MB) included.

The images are random, unless --images names a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import machine
import training
from flop import patch_flop

from isl.programs import random_field

_STEPS_FOR_MEMORY = 4


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--images', help='folder of images with labels; otherwise noise')
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--num_z_values', type=int, default=13, help='z depths that it reads')
  parser.add_argument('--batch', type=int, default=4, help='patches in a step')
  parser.add_argument('--rounds', type=int, default=9, help='of products and steps')
  parser.add_argument('--steps', type=int, default=3, help='in a round')
  parser.add_argument('--matrix', type=int, default=machine.SIDE, help="a product's side")
  return parser.parse_args()


def run_program(options: dict[str, object], base: pathlib.Path) -> dict[str, float]:
  """Runs the program for a few steps.

  Returns:
    The seconds from the command to the end of the first step, and the peak memory in 10^6 bytes.
  """
  given = {**options, 'base_directory': base, 'number_of_steps': _STEPS_FOR_MEMORY}
  # -P: the isl that is measured here, not one in the current folder.
  command = [sys.executable, '-P', '-m', 'isl.launch', *(f'--{k}={v}' for k, v in given.items())]
  began = time.perf_counter()
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    assert process.stderr is not None
    log = []
    seconds = 0.0
    for line in process.stderr:
      log.append(line)
      if 'step 1:' in line:
        seconds = time.perf_counter() - began
  if process.returncode:
    sys.exit(''.join(log))
  # Linux counts in KiB.
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
  return {'until_first_step_s': seconds, 'peak_mb': peak}


def measure(arguments: argparse.Namespace, options: dict[str, object]) -> dict[str, object]:
  """Measures training steps and matrix products, in turns."""
  graph, session = training.start_training(**options)
  step = [graph.train, graph.seconds_waiting]
  # The first two steps start kernels and threads.
  for _ in range(2):
    session.run(step)
  product = machine.MatrixProduct(arguments.matrix)
  flop = 3 * patch_flop(graph.plan, len(graph.heads)) * arguments.batch
  seconds, shares, products, waits = [], [], [], []
  for _ in range(arguments.rounds):
    speeds = [product.flop_per_second()]
    began = time.perf_counter()
    waited = sum(session.run(step)[1] for _ in range(arguments.steps))
    elapsed = time.perf_counter() - began
    speeds.append(product.flop_per_second())
    seconds.append(elapsed / arguments.steps)
    products.append(statistics.mean(speeds))
    shares.append(flop / seconds[-1] / products[-1])
    waits.append(waited / elapsed)
  session.close()
  typical = statistics.median(seconds)
  return {
    'seconds_per_step': typical,
    'steps_per_s': 1 / typical,
    'gflop_per_step': flop / 1e9,
    'gflop_per_s': flop / typical / 1e9,
    'matmul_gflop_per_s': statistics.median(products) / 1e9,
    'share_of_matmul': statistics.median(shares),
    'shares_of_matmul': [round(share, 3) for share in shares],
    'share_waiting': statistics.median(waits),
  }


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    images = arguments.images
    if not images:
      images = folder / 'images'
      random_field.write_field(images, rows=600, columns=600, depths=arguments.num_z_values)
    options: dict[str, object] = {
      'mode': 'TRAIN',
      'read_pngs': True,
      'dataset_train_directory': images,
      'base_directory': folder / 'none',
      'model': arguments.model,
      'base_depth': arguments.base_depth,
      'num_z_values': arguments.num_z_values,
      'preprocess_batch_size': arguments.batch,
    }
    result = vars(arguments) | run_program(options, folder / 'base') | measure(arguments, options)
  print(f'seconds per step:               {result["seconds_per_step"]:.3f}')
  print(f'GFLOP/s:                        {result["gflop_per_s"]:.0f}')
  print(f'matrix product, GFLOP/s:        {result["matmul_gflop_per_s"]:.0f}')
  print(f"share of the product's speed:   {result['share_of_matmul']:.3f}")
  print(f'share of time waiting for data: {result["share_waiting"]:.4f}')
  print(f'peak memory, MB:                {result["peak_mb"]:.0f}')
  print(f'command to first step, s:       {result["until_first_step_s"]:.1f}')
  print(json.dumps(result))


if __name__ == '__main__':
  main()
