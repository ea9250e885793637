"""How much sooner two of Dask's workers label a plate than one: fields of view per minute.

    python benchmarks/dask_inference.py

It prints a table and, last, one JSON line. A scheduler and workers of one thread each are processes
of this machine; INFER_FULL is run with one worker and with two, in turns. Each worker's time counts
from its first field of view done to its last; loading TensorFlow and the checkpoint, which each
does once, is printed beside it.

Images and weights are random.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from isl.programs import random_checkpoint, random_field

_DONE = re.compile(r'I\d{4} (\d\d:\d\d:\d\d\.\d+).* Field \d+ of \d+: .*, by (\S+)')
_BEGUN = re.compile(r'I\d{4} (\d\d:\d\d:\d\d\.\d+).* Checkpoint ')


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--fields', type=int, default=8, help='of view')
  parser.add_argument('--size', type=int, default=346, help='of a field of view, in pixels')
  parser.add_argument('--rounds', type=int, default=2, help='of one, two workers')
  return parser.parse_args()


class Cluster:
  """A scheduler and its workers, as a context manager."""

  def __init__(self, folder: pathlib.Path):
    """Starts the scheduler, with files in `folder`, and no workers yet."""
    self._folder = folder
    self._file = folder / 'scheduler.json'
    self._processes = [
      self._start('dask_scheduler', '--host=127.0.0.1', '--port=0', '--no-dashboard')
    ]
    self._workers: list[subprocess.Popen[bytes]] = []
    while not self._file.exists():
      time.sleep(0.1)

  def __enter__(self) -> Cluster:
    return self

  def __exit__(self, *_: object) -> None:
    for process in (*self._workers, *self._processes):
      process.kill()
      process.wait()

  @property
  def address(self) -> str:
    """The scheduler's address."""
    address: str = json.loads(self._file.read_text())['address']
    return address

  def _start(self, program: str, *flags: str) -> subprocess.Popen[bytes]:
    file = f'--scheduler-file={self._file}'
    return subprocess.Popen(
      [sys.executable, '-m', f'distributed.cli.{program}', *flags, file],
      cwd=self._folder,
      stderr=subprocess.DEVNULL,
      env={**os.environ, 'TF_NUM_INTRAOP_THREADS': '1', 'OMP_NUM_THREADS': '1'},
    )

  def have_workers(self, count: int) -> None:
    """Starts or ends workers, until there are `count`."""
    while len(self._workers) < count:
      self._workers.append(self._start('dask_worker', '--nthreads=1', '--no-dashboard'))
    while len(self._workers) > count:
      worker = self._workers.pop()
      worker.terminate()
      worker.wait()
    # They register with the scheduler.
    time.sleep(10)


def label(cluster: Cluster, folder: pathlib.Path) -> dict[str, float]:
  """Labels the fields of view with the cluster's workers.

  Returns:
    Fields of view per minute, seconds until the first was done, and the number of workers.
  """
  command = [sys.executable, '-P', '-m', 'isl.launch', '--mode=EVAL_EVAL', '--metric=INFER_FULL']
  flags = [
    '--read_pngs',
    f'--dataset_eval_directory={folder / "images"}',
    f'--restore_directory={folder / "checkpoint"}',
    f'--base_directory={folder / "base"}',
    f'--dask_scheduler={cluster.address}',
    '--infer_panels=TARGET',
    '--overwrite',
  ]
  done = subprocess.run([*command, *flags], stderr=subprocess.PIPE, text=True)
  if done.returncode:
    sys.exit(done.stderr)
  times = collections.defaultdict(list)
  for clock, worker in _DONE.findall(done.stderr):
    times[worker].append(_seconds(clock))
  (begun,) = map(_seconds, _BEGUN.findall(done.stderr))
  speeds = [(len(t) - 1) / (t[-1] - t[0]) for t in times.values() if len(t) > 1]
  first = min(t[0] for t in times.values()) - begun
  return {'fields_per_minute': 60 * sum(speeds), 'seconds_to_first': first, 'workers': len(times)}


def _seconds(clock: str) -> float:
  time_of_day = datetime.time.fromisoformat(clock)
  return (
    3600 * time_of_day.hour
    + 60 * time_of_day.minute
    + time_of_day.second
    + 1e-6 * time_of_day.microsecond
  )


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    random_checkpoint.write_random_checkpoint(
      folder / 'checkpoint',
      model=arguments.model,
      base_depth=arguments.base_depth,
      num_z_values=13,
    )
    wells = [f'A{number}' for number in range(1, arguments.fields + 1)]
    random_field.write_field(
      folder / 'images', rows=arguments.size, columns=arguments.size, depths=13, wells=wells
    )
    with Cluster(folder) as cluster:
      for _ in range(arguments.rounds):
        for count in found:
          cluster.have_workers(count)
          found[count].append(label(cluster, folder))
  medians = {
    count: statistics.median(x['fields_per_minute'] for x in of_count)
    for count, of_count in found.items()
  }
  print(f'{"":<30}{"one worker":>12}{"two workers":>12}')
  print(f'{"fields of view per minute":<30}{medians[1]:>12.2f}{medians[2]:>12.2f}')
  first = [
    statistics.median(x['seconds_to_first'] for x in of_count) for of_count in found.values()
  ]
  print(f'{"seconds to the first":<30}{first[0]:>12.1f}{first[1]:>12.1f}')
  print(f'{"ratio":<30}{medians[2] / medians[1]:>24.2f}')
  print(json.dumps(vars(arguments) | {'found': found, 'ratio': medians[2] / medians[1]}))


if __name__ == '__main__':
  main()
