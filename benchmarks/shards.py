"""How fast training shards are read, beside how fast a training consumes them.

    python benchmarks/shards.py

It prints a table and, last, one JSON line. Random fields of view (1024 x 704 pixels, 13 depths, 3
labels) are written into shards, whole and in tiles. In one process, training steps and reading take
turns, since a machine's speed may change from one second to the next: steps alone, whose batch is
in memory already, then reading alone. A round's ratio is that of its own speeds in patches per
second, and medians of the rounds are printed. The first patches fill the buffers, and do not count.

Peak memory is that of a process of its own that reads as many patches from 8 shards, and from 64 of
the same size each, TensorFlow itself (about 400 MB) included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import machine
import tensorflow.compat.v1 as tf
import training
from absl import logging

from isl.data import shard_writing
from isl.data.shard_writing import Cut
from isl.images import finding
from isl.models.networks import NETWORKS
from isl.programs import random_field
from isl.training import train
from isl.training.start import find_start

_ROWS, _COLUMNS, _DEPTHS = 1024, 704, 13
_TILES = {'whole': None, 'tiles': 520}
_NUMBERS = (8, 64)
_FIELDS_PER_SHARD = 2


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--batches', default='4,16', help='patches in a step, a comma list')
  parser.add_argument('--rounds', type=int, default=3, help='of reading and of steps')
  parser.add_argument('--patches', type=int, default=96, help='read in a round')
  parser.add_argument('--steps', type=int, default=2, help='in a round')
  parser.add_argument('--png_compression', type=int, default=0)
  parser.add_argument('--peak_of', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--pattern', help=argparse.SUPPRESS)
  return parser.parse_args()


def write_shards(folder: pathlib.Path, name: str, tile_size: int | None, compression: int) -> str:
  """Writes shards that all have the same fields of view; returns their pattern."""
  images = folder / 'images'
  if not images.exists():
    random_field.write_field(images, rows=_ROWS, columns=_COLUMNS, depths=_DEPTHS)
  (field,) = finding.find_all([images])
  same = [dataclasses.replace(field, name=f'field {i}') for i in range(_FIELDS_PER_SHARD)]
  pattern = str(folder / f'{name}-%05d')
  cut = Cut(
    tile_size=tile_size, overlap=NETWORKS['CONCORDANCE'].geometry.margin, compression=compression
  )
  (first,) = shard_writing.write_shards(same, pattern, 1, cut)
  for i in range(1, max(_NUMBERS)):
    pathlib.Path(pattern % i).hardlink_to(first)
  return pattern


def make_options(
  arguments: argparse.Namespace, pattern: str, number: int, batch: int
) -> dict[str, object]:
  """The flags, by name, of a training from shards."""
  return {
    'mode': 'TRAIN',
    'dataset_pattern': pattern,
    'dataset_num_shards': number,
    'train_on_full_dataset': True,
    'base_directory': '/nowhere',
    'model': arguments.model,
    'base_depth': arguments.base_depth,
    'num_z_values': _DEPTHS,
    'target_channels': 'DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL',
    'preprocess_batch_size': batch,
  }


class Reading:
  """Reads the stream of batches that a training reads."""

  def __init__(self, options: dict[str, object]):
    """Opens the stream of a training with these flags, and reads until the buffers are full."""
    experiment = training.make_experiment(**options)
    patches = train.training_patches(experiment, find_start(experiment), seed=0)
    sampling = experiment.sampling
    self._batch = sampling.batch_size
    graph = tf.Graph()
    with graph.as_default():
      data = patches.dataset(0, self._batch, sampling.num_threads)
      iterator = tf.data.make_initializable_iterator(data)
      self._next = [tensor.op for tensor in iterator.get_next()]
    self._session = tf.Session(graph=graph)
    self._session.run(iterator.initializer)
    self.patches_per_second(2 * self._batch)

  def patches_per_second(self, count: int) -> float:
    """Measures the speed of reading at least `count` patches."""
    num_batches = math.ceil(count / self._batch)
    seconds = machine.seconds(lambda: [self._session.run(self._next) for _ in range(num_batches)])
    return num_batches * self._batch / seconds

  def close(self) -> None:
    """Closes the stream."""
    self._session.close()


class Steps:
  """A training whose batch is in memory already."""

  def __init__(self, options: dict[str, object]):
    """Starts a training with these flags, and does two steps, which start kernels and threads."""
    self._graph, self._session = training.start_training(**options)
    batch = self._session.run(self._graph.batch)
    self._batch = len(batch[0])
    self._feed = dict(zip(self._graph.batch, batch, strict=True))
    self.patches_per_second(2)

  def patches_per_second(self, steps: int) -> float:
    """Measures the speed of `steps` steps, in patches per second."""
    seconds = machine.seconds(
      lambda: [self._session.run(self._graph.train, self._feed) for _ in range(steps)]
    )
    return steps * self._batch / seconds

  def close(self) -> None:
    """Closes the training's session."""
    self._session.close()


def measure_batch(
  arguments: argparse.Namespace, patterns: dict[str, str], batch: int
) -> dict[str, Any]:
  """Measures steps, and reading of each kind of shards, in turns.

  Args:
    arguments: the command line.
    patterns: pattern of the shards, by their kind.
    batch: number of patches in a step.

  Returns:
    A row of the results, for the JSON line.
  """
  readings = {}
  for kind, pattern in patterns.items():
    readings[kind] = Reading(make_options(arguments, pattern, _NUMBERS[0], batch))
  steps = Steps(make_options(arguments, patterns['whole'], _NUMBERS[0], batch))
  consumed: list[float] = []
  read: dict[str, list[float]] = {kind: [] for kind in readings}
  ratios: dict[str, list[float]] = {kind: [] for kind in readings}
  for _ in range(arguments.rounds):
    consumed.append(steps.patches_per_second(arguments.steps))
    for kind, reading in readings.items():
      read[kind].append(reading.patches_per_second(arguments.patches))
      ratios[kind].append(read[kind][-1] / consumed[-1])
  for reading in readings.values():
    reading.close()
  steps.close()
  return {
    'batch': batch,
    'consumed_per_s': statistics.median(consumed),
    'read_per_s': {kind: statistics.median(speeds) for kind, speeds in read.items()},
    'ratio': {kind: statistics.median(found) for kind, found in ratios.items()},
  }


def peak_memory_mb(arguments: argparse.Namespace, pattern: str, number: int) -> float:
  """Measures the peak memory of a process that reads `number` shards, in 10^6 bytes."""
  given = {name: value for name, value in vars(arguments).items() if value is not None}
  flags = [f'--{name}={value}' for name, value in given.items()]
  command = [sys.executable, __file__, *flags, f'--peak_of={number}', f'--pattern={pattern}']
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return float(done.stdout.split()[-1])


def print_peak_memory(arguments: argparse.Namespace) -> None:
  """Reads patches, then prints this process's peak memory, which `peak_memory_mb` reads."""
  options = make_options(arguments, arguments.pattern, arguments.peak_of, batch=4)
  reading = Reading(options)
  # Two crops, of four patches each, for each of 64 shards, whatever the number that is read.
  reading.patches_per_second(4 * 2 * max(_NUMBERS))
  reading.close()
  # Not getrusage(): its peak is inherited from the process that started this one.
  status = pathlib.Path('/proc/self/status').read_text()
  print(int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e6)


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  logging.set_verbosity(logging.ERROR)
  if arguments.peak_of:
    print_peak_memory(arguments)
    return
  with tempfile.TemporaryDirectory() as name:
    patterns = {
      kind: write_shards(pathlib.Path(name), kind, tile_size, arguments.png_compression)
      for kind, tile_size in _TILES.items()
    }
    sizes = {k: pathlib.Path(p % 0).stat().st_size / 1e6 for k, p in patterns.items()}
    batches = [
      measure_batch(arguments, patterns, int(batch)) for batch in arguments.batches.split(',')
    ]
    peaks = {
      kind: {number: peak_memory_mb(arguments, pattern, number) for number in _NUMBERS}
      for kind, pattern in patterns.items()
    }
  result = {'shard_mb': sizes, 'batches': batches, 'peak_mb': peaks}
  for row in batches:
    for kind in patterns:
      print(
        f'batch {row["batch"]}, {kind}: {row["read_per_s"][kind]:.1f} patches/s read,'
        f' {row["consumed_per_s"]:.2f} consumed, {row["ratio"][kind]:.1f} times'
      )
  for kind, by_number in peaks.items():
    shown = ', '.join(f'{peak:.0f} MB with {number} shards' for number, peak in by_number.items())
    print(f'{kind}: peak {shown}')
  print(json.dumps(vars(arguments) | result))


if __name__ == '__main__':
  main()
