"""Runs trainings on many machines for tests, as processes on this machine."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence

import pytest

from tests.support.forked import ForkedProgram


def free_addresses(count: int) -> list[str]:
  """Finds addresses on this machine, as host:port, that nobody listens on."""
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  addresses = [f'127.0.0.1:{s.getsockname()[1]}' for s in sockets]
  for s in sockets:
    s.close()
  return addresses


class Machine:
  """A process of the program, whose log is read while it runs.

  Attributes:
    process: the process.
  """

  def __init__(
    self,
    *flags: object,
    tf_config: object = None,
    before: Callable[[], None] | None = None,
  ):
    """Starts the process.

    Args:
      *flags: the command line.
      tf_config: value of TF_CONFIG in the process's environment, before it becomes JSON; None:
        TF_CONFIG is not set.
      before: what the process calls first, see `ForkedProgram`.
    """
    environment = {} if tf_config is None else {'TF_CONFIG': json.dumps(tf_config)}
    self.process = ForkedProgram(*flags, environment=environment, before=before)
    self._lines: list[str] = []
    self._changed = threading.Condition()
    self._is_over = False
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    with self.process.stderr as stderr:
      for line in stderr:
        with self._changed:
          self._lines.append(line)
          self._changed.notify_all()
    with self._changed:
      self._is_over = True
      self._changed.notify_all()

  @property
  def log(self) -> str:
    """The process's log so far."""
    with self._changed:
      return ''.join(self._lines)

  def wait_for(self, pattern: str, count: int = 1, timeout: float = 120) -> re.Match[str]:
    """Waits for the `count`th match of a pattern in the process's log, and gives it.

    The test fails if there is none when the process ends, or after `timeout` seconds.
    """
    found: list[re.Match[str]] = []

    def is_there() -> bool:
      found[:] = list(re.finditer(pattern, ''.join(self._lines)))
      return len(found) >= count or self._is_over

    with self._changed:
      self._changed.wait_for(is_there, timeout)
    if len(found) < count:
      pytest.fail(f'{count} x {pattern!r} is not in the log:\n{self.log}')
    return found[count - 1]

  def kill(self) -> None:
    """Kills the process, as kill -9 does."""
    self.process.send_signal(signal.SIGKILL)
    self.process.wait()

  def end(self, timeout: float = 120) -> int:
    """Waits for the process's end and gives its exit status; the test fails after `timeout` s."""
    try:
      return self.process.wait(timeout)
    except subprocess.TimeoutExpired:
      self.kill()
      pytest.fail(f'ran longer than {timeout} s:\n{self.log}')

  def losses(self) -> list[tuple[int, float]]:
    """The (step, loss) of each of the log's lines of progress."""
    return [(int(s), float(x)) for s, x in re.findall(r'step (\d+): loss ([\d.]+)', self.log)]


class Machines:
  """A training of a narrow FOVEA, which any number of processes take part in.

  Attributes:
    base: BASE, the folder that the training writes to.
    ps_hosts: addresses of the parameter servers.
    worker_hosts: addresses of the workers.
  """

  def __init__(
    self,
    images: pathlib.Path,
    base: pathlib.Path,
    *,
    servers: int,
    workers: int,
    flags: Sequence[str],
  ):
    """Chooses the addresses; starts no process yet.

    Args:
      images: folder of images to train on.
      base: BASE, the folder to write to.
      servers: number of parameter servers.
      workers: number of workers.
      flags: further flags of all processes.
    """
    self.base = base
    addresses = free_addresses(servers + workers)
    self.ps_hosts, self.worker_hosts = addresses[:servers], addresses[servers:]
    self._flags = [
      '--model=FOVEA',
      '--base_depth=6',
      '--num_z_values=3',
      '--read_pngs',
      f'--dataset_train_directory={images}',
      '--loss_crop_size=130',
      '--preprocess_batch_size=2',
      f'--base_directory={base}',
      *flags,
    ]
    self._started: list[Machine] = []

  def _hosts(self) -> list[str]:
    return [
      f'--ps_hosts={",".join(self.ps_hosts)}',
      f'--worker_hosts={",".join(self.worker_hosts)}',
    ]

  def server_flags(self, task: int, *flags: str) -> list[str]:
    """The command line of a parameter server."""
    return [*self._flags, '--mode=PS', f'--task={task}', *self._hosts(), *flags]

  def worker_flags(self, task: int, *flags: str) -> list[str]:
    """The command line of a worker."""
    return [*self._flags, '--mode=TRAIN', f'--task={task}', *self._hosts(), *flags]

  def _start(
    self,
    *flags: str,
    tf_config: object = None,
    before: Callable[[], None] | None = None,
  ) -> Machine:
    machine = Machine(*flags, tf_config=tf_config, before=before)
    self._started.append(machine)
    return machine

  def server(self, task: int, *flags: str, before: Callable[[], None] | None = None) -> Machine:
    """Starts the parameter server of a number, by flags."""
    return self._start(*self.server_flags(task, *flags), before=before)

  def worker(self, task: int, *flags: str) -> Machine:
    """Starts the worker of a number, by flags."""
    return self._start(*self.worker_flags(task, *flags))

  def from_environment(self, job: str, task: int, *flags: str) -> Machine:
    """Starts a server or worker by TF_CONFIG, with the same command for all."""
    cluster = {'ps': self.ps_hosts, 'worker': self.worker_hosts}
    config = {'cluster': cluster, 'task': {'type': job, 'index': task}}
    return self._start(*self._flags, '--mode=TRAIN', *flags, tf_config=config)

  def steps_saved(self) -> list[int]:
    """The steps of the checkpoints in BASE/train, sorted."""
    indices = (self.base / 'train').glob('model.ckpt-*.index')
    return sorted(int(path.stem.rpartition('-')[2]) for path in indices)

  def kill_all(self) -> None:
    """Kills the processes that still run."""
    for machine in self._started:
      if machine.process.poll() is None:
        machine.kill()
