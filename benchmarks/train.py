"""How fast TRAIN is: steps per second, as a share of what the machine can do.

    python benchmarks/train.py

Prints a table and, last, one JSON line. Training steps and a large float32 matrix product take
turns in one process, since a machine's speed may change from one second to the next; a round's share
is that of its own products' speed, and medians of the rounds are printed. FLOP are those of the
convolutions of single patches (isl/models/flop.py), three times for forward and backward.

The images are noise, unless --images names a folder. Peak memory is the process's, with
TensorFlow itself (about 400 MB), before the matrices of the product are made.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

START = time.time()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import machine
import tensorflow.compat.v1 as tf
from absl import flags

from isl import launch, random_field, restoration, train
from isl.models.flop import patch_flop
from isl.training_graph import TrainingGraph


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--images', help='folder of images with labels; otherwise noise')
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--num_z_values', type=int, default=13, help='z depths that it reads')
  parser.add_argument('--batch', type=int, default=4, help='patches in a step')
  parser.add_argument('--rounds', type=int, default=9, help='of products and steps')
  parser.add_argument('--steps', type=int, default=3, help='in a round')
  return parser.parse_args()


def make_graph(arguments: argparse.Namespace, folder: str) -> tuple[TrainingGraph, tf.Session]:
  """The graph that TRAIN has with these options, and a session in which it has begun."""
  images = arguments.images or os.path.join(folder, 'images')
  if not arguments.images:
    random_field.write_image_set(pathlib.Path(images), rows=600, columns=600, depths=13)
  options = [f'--{name}={getattr(arguments, name)}' for name in ('model', 'base_depth', 'num_z_values')]
  flags.FLAGS(
    [
      'benchmark',
      *options,
      '--mode=TRAIN',
      '--read_pngs',
      f'--dataset_train_directory={images}',
      f'--preprocess_batch_size={arguments.batch}',
      f'--base_directory={folder}',
    ]
  )
  experiment = launch.make_experiment()
  start = restoration.find_start(experiment)
  return train.make_session(experiment, start, seed=0)


def main() -> None:
  """Measures and prints."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as folder:
    graph, session = make_graph(arguments, folder)
    step = [graph.train, graph.seconds_waiting]
    first = machine.seconds(lambda: session.run(step))
    until_first_step = time.time() - START
    for _ in range(arguments.steps):
      session.run(step)
    peak = machine.peak_memory_mb()
    product = machine.MatrixProduct()
    plan_flop = 3 * patch_flop(graph.plan, len(graph.heads)) * arguments.batch
    seconds, shares, products, waits = [], [], [], []
    for _ in range(arguments.rounds):
      speeds = [product.flop_per_second()]
      began = time.perf_counter()
      waited = sum(session.run(step)[1] for _ in range(arguments.steps))
      elapsed = time.perf_counter() - began
      speeds.append(product.flop_per_second())
      seconds.append(elapsed / arguments.steps)
      products.append(statistics.mean(speeds))
      shares.append(plan_flop / seconds[-1] / products[-1])
      waits.append(waited / elapsed)
    session.close()
  result = {
    'batch': arguments.batch,
    'base_depth': arguments.base_depth,
    'num_z_values': arguments.num_z_values,
    'steps_per_s': 1 / statistics.median(seconds),
    'seconds_per_step': statistics.median(seconds),
    'gflop_per_step': plan_flop / 1e9,
    'gflop_per_s': plan_flop / statistics.median(seconds) / 1e9,
    'matmul_gflop_per_s': statistics.median(products) / 1e9,
    'share_of_matmul': statistics.median(shares),
    'shares': [round(share, 3) for share in shares],
    'share_waiting': statistics.median(waits),
    'peak_mb': peak,
    'first_step_s': first,
    'until_first_step_s': until_first_step,
  }
  print(f'steps per second:               {result["steps_per_s"]:.2f}')
  print(f'GFLOP per second:               {result["gflop_per_s"]:.0f}')
  print(f'matrix product, GFLOP/s:        {result["matmul_gflop_per_s"]:.0f}')
  print(f"share of the product's speed:   {result['share_of_matmul']:.3f}")
  print(f'share of time waiting for data: {result["share_waiting"]:.4f}')
  print(f'peak memory, MB:                {peak:.0f}')
  print(f'from the start to the end of the first step, s: {until_first_step:.1f}')
  print(json.dumps(result))


if __name__ == '__main__':
  main()
