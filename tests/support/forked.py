"""Processes of the program that find TensorFlow loaded: forks of one that has run nothing yet.

Loading it would take five seconds of each. They are killed, signalled and waited for like any other
process; how the program starts by itself is what `tests.support.program.python_process` is for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from unittest import mock

from isl import launch

# With what they load: all that the program loads late.
_LOADED_BEFOREHAND = [
  'tests.support.shallow',
  'isl.evaluation.evaluate',
  'isl.inference.infer',
  'isl.training.cluster_session',
  'isl.training.train',
]
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(_LOADED_BEFOREHAND)


class ForkedProgram:
  """A process of the program, of which FOVEA is shallow; used like a `subprocess.Popen`.

  Attributes:
    pid: the process's number.
    stderr: what the process writes to stderr, as text.
  """

  def __init__(
    self,
    *flags: object,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
  ):
    """Starts the process.

    Args:
      *flags: the command line.
      environment: what the process's environment has besides this process's.
      before: what the process calls before it runs the program: a function of a module.
    """
    # As the program has it before it loads TensorFlow.
    with mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3'):
      forkserver.ensure_running()
    reader, writer = _CONTEXT.Pipe(duplex=False)
    self._process = _CONTEXT.Process(
      target=_run,
      args=(
        writer,
        [*map(str, flags)],
        pathlib.Path.cwd(),
        {**os.environ, **(environment or {})},
        before,
      ),
    )
    self._process.start()
    writer.close()
    assert self._process.pid is not None
    self.pid = self._process.pid
    self.stderr = os.fdopen(os.dup(reader.fileno()), encoding='utf-8')
    reader.close()

  @property
  def returncode(self) -> int | None:
    """The exit status, minus a signal's number after a signal; None while the process runs."""
    return self._process.exitcode

  def poll(self) -> int | None:
    """Gives `returncode`, without waiting."""
    return self.returncode

  def wait(self, timeout: float | None = None) -> int:
    """Waits for the end and gives the exit status, see `returncode`.

    Raises:
      subprocess.TimeoutExpired: the process runs on after `timeout` seconds.
    """
    self._process.join(timeout)
    if self.returncode is None:
      assert timeout is not None
      raise subprocess.TimeoutExpired('isl-launch', timeout)
    return self.returncode

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    """Waits for the end and gives the (stdout, stderr) not read so far; of stdout nothing is.

    Raises:
      subprocess.TimeoutExpired: the process runs on after `timeout` seconds.
    """
    # Somebody has to read, or the process may wait for that.
    with concurrent.futures.ThreadPoolExecutor() as executor:
      rest = executor.submit(self.stderr.read)
      try:
        self.wait(timeout)
      except subprocess.TimeoutExpired:
        # Ends the reading.
        self.kill()
        raise
      text = rest.result()
    self.stderr.close()
    return '', text

  def send_signal(self, number: int) -> None:
    """Sends a signal to the process, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def kill(self) -> None:
    """Kills the process, as kill -9 does."""
    self.send_signal(signal.SIGKILL)


def _run(
  writer: Connection,
  flags: list[str],
  folder: pathlib.Path,
  environment: dict[str, str],
  before: Callable[[], None] | None,
) -> None:
  """Runs the program in a process that has been forked."""
  os.dup2(writer.fileno(), sys.__stderr__.fileno() if sys.__stderr__ else 2)
  os.chdir(folder)
  os.environ.clear()
  os.environ.update(environment)
  # A shell's background jobs ignore Ctrl-C, and so would programs that they start.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.argv = ['isl-launch', *flags]
  if before is not None:
    before()
  launch.run()
