"""Computes how fast many machines would be from measurements of few.

    python benchmarks/scaling.py

It prints two tables and, last, one JSON line. Nothing is measured here: the defaults are
measurements of other benchmarks, which the flags' help names, and each can be given anew.

Training: workers, each by itself, read the weights, compute a step and send gradients. A parameter
server sends weights, receives and applies gradients, one worker's after the other. This is a closed
queueing network of as many customers as there are workers, of one delay (computing) and a queue for
each of a server's outgoing link, its incoming link and its processor. Its throughput follows
exactly from mean value analysis (Reiser and Lavenberg, Mean-value analysis of closed multichain
queuing networks, 1980). Several parameter servers have equal shares of the weights, and a worker
uses all of them at once, as if one were as many times faster. A synchronous step takes as long as
the slowest of all workers, and then all are served one after the other.

A plate: machines take fields of view one after the other, as soon as they are free; each starts
once. The times of fields of view differ; the mean of 100 random draws is printed.
"""

from __future__ import annotations

import argparse
import heapq
import json

import numpy as np

_BYTES_PER_NUMBER = 4


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument(
    '--step_seconds', type=float, default=2.76, help='of a worker alone (benchmarks/train.py)'
  )
  parser.add_argument(
    '--step_variation', type=float, default=0.1, help='standard deviation of a step over its mean'
  )
  parser.add_argument('--parameters', type=float, default=9.3e6, help="the network's")
  parser.add_argument(
    '--gbit_per_second', type=float, default=10.0, help="a parameter server's link"
  )
  parser.add_argument(
    '--server_cpu_seconds',
    type=float,
    default=0.1,
    help='that a parameter server computes for a step (benchmarks/distributed.py)',
  )
  parser.add_argument('--server_cores', type=int, default=16, help="a parameter server's")
  parser.add_argument(
    '--field_seconds', type=float, default=88.0, help='of a field of view (docs/performance.md)'
  )
  parser.add_argument(
    '--field_variation', type=float, default=0.1, help='standard deviation over mean'
  )
  parser.add_argument(
    '--start_seconds', type=float, default=10.0, help="from a worker's start to its first tile"
  )
  parser.add_argument('--fields', type=int, default=384, help='of a plate')
  return parser.parse_args()


def asynchronous(delay: float, demands: list[float], workers: int) -> float:
  """Computes the steps per second of an asynchronous training, by mean value analysis.

  Args:
    delay: seconds of a step in which a worker waits for nobody.
    demands: seconds of a step at each place where it may wait for other workers.
    workers: number of workers.
  """
  queues = np.zeros(len(demands))
  throughput = 0.0
  for count in range(1, workers + 1):
    residence = np.array(demands) * (1 + queues)
    throughput = count / (delay + residence.sum())
    queues = throughput * residence
  return throughput


def synchronous(
  delay: float, variation: float, demands: list[float], workers: int, rng: np.random.Generator
) -> float:
  """Computes the batches per second of a training whose workers wait for each other.

  Args:
    delay: mean seconds of a step in which a worker waits for nobody.
    variation: standard deviation of these seconds over their mean.
    demands: seconds of a step at each place where it may wait for other workers.
    workers: number of workers.
    rng: generator of the random numbers.
  """
  draws = rng.normal(1, variation, [1000, workers]).max(axis=1)
  # All come to the first queue at once, and the slowest queue spaces them from there on.
  served = sum(demands) + (workers - 1) * max(demands)
  return workers / (delay * float(draws.mean()) + served)


def makespan(
  fields: int, machines: int, mean: float, variation: float, start: float, rng: np.random.Generator
) -> float:
  """Draws the seconds until the last field of view of a plate is done.

  Args:
    fields: number of fields of view.
    machines: number of machines.
    mean: mean seconds of a field of view.
    variation: standard deviation of these seconds over their mean.
    start: seconds until a machine begins its first field of view.
    rng: generator of the random numbers.
  """
  free = [start] * machines
  for seconds in np.maximum(rng.normal(mean, variation * mean, fields), 0):
    heapq.heapreplace(free, free[0] + float(seconds))
  return max(free)


def main() -> None:
  """Computes both tables and prints them."""
  arguments = parse_arguments()
  rng = np.random.default_rng(0)
  transfer = arguments.parameters * _BYTES_PER_NUMBER * 8 / (arguments.gbit_per_second * 1e9)
  cpu = arguments.server_cpu_seconds / arguments.server_cores
  result: dict[str, object] = vars(arguments) | {'transfer_seconds': transfer}
  print(f'a link takes {transfer:.4f} s for all weights, a parameter server {cpu:.4f} s for a step')
  print('training: times one worker, asynchronous (synchronous)')
  titles = ['1 server', '2 servers', '4 servers', '8 servers']
  print(f'{"workers":>8}' + ''.join(title.rjust(18) for title in titles))
  training = {}
  for workers in (1, 2, 4, 8, 16, 32, 64, 128):
    cells = []
    for servers in (1, 2, 4, 8):
      demands = [transfer / servers, transfer / servers, cpu / servers]
      alone = asynchronous(arguments.step_seconds, demands, 1)
      both = (
        asynchronous(arguments.step_seconds, demands, workers) / alone,
        synchronous(arguments.step_seconds, arguments.step_variation, demands, workers, rng)
        / alone,
      )
      training[f'{workers} workers, {servers} servers'] = both
      cells.append(f'{both[0]:10.1f} ({both[1]:.1f})'.rjust(18))
    print(f'{workers:>8}' + ''.join(cells))
  print(f'a plate of {arguments.fields} fields of view')
  print(f'{"machines":>8}{"minutes":>10}{"times one":>11}{"share":>8}')
  plate = {}
  for machines in (1, 2, 4, 8, 16, 32, 64, 128, 256, 384):
    spans = [
      makespan(
        arguments.fields,
        machines,
        arguments.field_seconds,
        arguments.field_variation,
        arguments.start_seconds,
        rng,
      )
      for _ in range(100)
    ]
    plate[machines] = float(np.mean(spans))
    times = plate[1] / plate[machines]
    print(f'{machines:>8}{plate[machines] / 60:>10.1f}{times:>11.1f}{times / machines:>8.2f}')
  print(json.dumps(result | {'training': training, 'plate_seconds': plate}))


if __name__ == '__main__':
  main()
