"""How much sooner two workers train than one: steps per second, and who computes meanwhile.

    python benchmarks/distributed.py

It prints a table and, last, one JSON line. One parameter server and two workers, each worker bound
to a core of its own, are processes of this machine. The first worker trains alone, then beside the
second, which is then killed, and so on in turns: each speed with two workers is compared with the
speeds with one before and after it. Steps are counted by the parameter server, so they are those of
both workers. CPU shares are of a core.

The images are random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from isl.programs import random_field

_TICKS = os.sysconf('SC_CLK_TCK')


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--num_z_values', type=int, default=13, help='z depths that it reads')
  parser.add_argument('--batch', type=int, default=4, help='patches in a step')
  parser.add_argument('--seconds', type=float, default=60, help='that each measurement takes')
  parser.add_argument('--rounds', type=int, default=2, help='of one, two workers')
  return parser.parse_args()


class Process:
  """A process of the program, and the steps that its log tells of.

  Attributes:
    step: the last step in the log; 0: there is none yet.
  """

  def __init__(self, folder: pathlib.Path, flags: list[str], core: int | None = None):
    """Starts the process.

    Args:
      folder: the process's working directory.
      flags: the command line.
      core: the only core that the process may use; None: it may use all.
    """
    command = [sys.executable, '-P', '-m', 'isl.launch', *flags]
    self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    if core is not None:
      # Limiting the number of threads would still let operations run beside others.
      os.sched_setaffinity(self._process.pid, {core})
    self._log: list[str] = []
    self.step = 0
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    assert self._process.stderr is not None
    for line in self._process.stderr:
      self._log.append(line)
      if match := re.search(r'step (\d+): loss', line):
        self.step = int(match[1])

  def wait_for_step(self, after: int) -> None:
    """Waits until the log tells of a step behind `after`; exits if the process has ended."""
    while self.step <= after:
      if self._process.poll() is not None:
        sys.exit(''.join(self._log))
      time.sleep(0.01)

  def cpu_seconds(self) -> float:
    """The processor time that the process has taken so far, in seconds."""
    stat = pathlib.Path(f'/proc/{self._process.pid}/stat').read_text()
    user, system = stat.rpartition(')')[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS

  def kill(self) -> None:
    """Kills the process."""
    self._process.kill()
    self._process.wait()


def measure(chief: Process, others: dict[str, Process], seconds: float) -> dict[str, float]:
  """Measures steps per second, and CPU shares, between two of the chief's lines of progress.

  Args:
    chief: the first worker.
    others: the other processes, by name.
    seconds: how long to measure, at least.
  """
  # The first line after a change is partly about the time before it.
  for _ in range(2):
    chief.wait_for_step(chief.step)
  every = {'worker 0': chief, **others}
  began, step = time.perf_counter(), chief.step
  cpu = {name: process.cpu_seconds() for name, process in every.items()}
  while time.perf_counter() - began < seconds:
    chief.wait_for_step(chief.step)
  elapsed = time.perf_counter() - began
  shares = {name: (p.cpu_seconds() - cpu[name]) / elapsed for name, p in every.items()}
  return {'steps_per_s': (chief.step - step) / elapsed, **shares}


def free_addresses(count: int) -> list[str]:
  """Finds addresses on this machine, as host:port, that nobody listens on."""
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  addresses = [f'127.0.0.1:{s.getsockname()[1]}' for s in sockets]
  for s in sockets:
    s.close()
  return addresses


def run(arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, list[dict[str, float]]]:
  """Measures one worker and two workers in turns; there is one more measurement of one."""
  random_field.write_field(folder / 'images', rows=600, columns=600, depths=13)
  server_host, *hosts = free_addresses(3)
  flags = [
    *(f'--{name}={getattr(arguments, name)}' for name in ('model', 'base_depth', 'num_z_values')),
    f'--preprocess_batch_size={arguments.batch}',
    f'--dataset_train_directory={folder / "images"}',
    f'--base_directory={folder / "base"}',
    f'--ps_hosts={server_host}',
    f'--worker_hosts={",".join(hosts)}',
    '--read_pngs',
    # So that neither checkpoints nor summaries are written while it measures.
    '--save_interval_secs=1000000',
    '--save_summaries_secs=1000000',
  ]
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    sys.exit('distributed: needs two cores, one for each worker')
  started = [Process(folder, [*flags, '--mode=PS'])]
  server = started[0]
  ones, twos = [], []
  try:
    chief = Process(folder, [*flags, '--mode=TRAIN'], cores[0])
    started.append(chief)
    chief.wait_for_step(0)
    ones.append(measure(chief, {'parameter server': server}, arguments.seconds))
    for _ in range(arguments.rounds):
      second = Process(folder, [*flags, '--mode=TRAIN', '--task=1'], cores[1])
      started.append(second)
      second.wait_for_step(0)
      others = {'worker 1': second, 'parameter server': server}
      twos.append(measure(chief, others, arguments.seconds))
      second.kill()
      ones.append(measure(chief, {'parameter server': server}, arguments.seconds))
  finally:
    for process in started:
      process.kill()
  return {'one': ones, 'two': twos}


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as name:
    found = run(arguments, pathlib.Path(name))
  ones = [x['steps_per_s'] for x in found['one']]
  ratios = [
    two['steps_per_s'] / statistics.mean(pair)
    for two, pair in zip(found['two'], itertools.pairwise(ones), strict=True)
  ]
  print(f'{"":<22}{"one worker":>12}{"two workers":>12}')
  for row in ('steps_per_s', 'worker 0', 'worker 1', 'parameter server'):
    cells = []
    for kind in ('one', 'two'):
      values = [x[row] for x in found[kind] if row in x]
      cells.append(f'{statistics.median(values):12.3f}' if values else ' ' * 12)
    title = 'steps per second' if row == 'steps_per_s' else f'CPU, {row}'
    print(f'{title:<22}{"".join(cells)}')
  print(f'{"ratio":<22}{statistics.median(ratios):24.2f}')
  print(json.dumps(vars(arguments) | found | {'ratios': ratios}))


if __name__ == '__main__':
  main()
