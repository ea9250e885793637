"""Fields of view spread over processes and machines, by Dask."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging as python_logging
import os
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from absl import logging

from isl.core.experiment import DaskWorkers
from isl.core.version import __version__
from isl.images.fields_of_view import FieldFiles
from isl.inference.field_record import FieldRecord
from isl.inference.field_run import FieldRun, Settings

_SECONDS_TO_CONNECT = 10
_SECONDS_BETWEEN_LINES = 10
# How TensorFlow and NumPy are told how many threads to take.
_THREAD_VARIABLES = ('TF_NUM_INTRAOP_THREADS', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """A field of view that need not be waited for any more.

  Attributes:
    number: of the field of view.
    result: its record, or why there is none.
    worker: who did it.
  """

  number: int
  result: FieldRecord | Exception
  worker: str


class Workers:
  """Dask's workers, as a context manager: those of a cluster, or processes of this machine."""

  def __init__(self, workers: DaskWorkers):
    """Starts nothing yet.

    Raises:
      ValueError: Dask is not installed.
    """
    try:
      import distributed
    except ImportError as e:
      raise ValueError(
        f'--dask_scheduler and --dask_workers need {e.name}, which is not installed: pip install'
        " 'isl[dask]'"
      ) from e
    del distributed
    self._workers = workers
    self._stack = contextlib.ExitStack()
    self._client: Any = None
    self._is_loaded = False

  def __enter__(self) -> Self:
    """Connects, or starts processes.

    Raises:
      ValueError: the scheduler cannot be reached.
    """
    # They tell of every process that comes and goes; some have levels of their own.
    for name in list(python_logging.root.manager.loggerDict):
      if name.split('.')[0] == 'distributed':
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)
    try:
      if self._workers.scheduler is None:
        address = self._stack.enter_context(_local_cluster(self._workers.num_local or 1))
      else:
        address = self._workers.scheduler
      self._client = self._stack.enter_context(_client(address))
    except BaseException:
      self._stack.close()
      raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._is_loaded:
      # Workers that come to a scheduler later are others' again.
      with contextlib.suppress(Exception):
        from isl.inference import dask_start

        self._client.unregister_worker_plugin(dask_start.Start.name)
    self._stack.close()

  def label(self, settings: Settings, fields: Sequence[FieldFiles]) -> Iterator[Done]:
    """Labels fields of view, and yields each as soon as it is done.

    What a lost worker had begun, another does.

    Args:
      settings: of the run; its paths are those of all machines.
      fields: of view.

    Raises:
      ValueError: a worker has no isl, or another version.
      OSError: the scheduler is lost.
    """
    import distributed

    self._wait_for_workers()
    key = os.urandom(8).hex()
    futures = {
      self._client.submit(_label, key, settings, field, pure=False, key=f'{key}-{number}'): number
      for number, field in enumerate(fields)
    }
    there, pending = self._names(), set(futures)
    while pending:
      try:
        with self._client.as_current():
          finished = distributed.wait(pending, _SECONDS_BETWEEN_LINES, 'FIRST_COMPLETED').done
      except (TimeoutError, distributed.TimeoutError):
        finished = set()
      except concurrent.futures.CancelledError as e:
        raise _lost_scheduler() from e
      there = self._say_who_is_lost(there)
      for future in finished:
        yield self._done(future, futures[future])
      pending -= finished

  def _say_who_is_lost(self, there: set[str]) -> set[str]:
    """Logs which of some workers are not there any more; returns those that are there."""
    try:
      now = self._names()
    except OSError as e:
      raise _lost_scheduler() from e
    if lost := there - now:
      logging.warning('Lost %s; what they had begun, others do', ', '.join(sorted(lost)))
    if not now:
      self._say_waiting()
    return now

  def _say_waiting(self) -> None:
    logging.info('Waiting for a worker of the Dask scheduler %s', self._client.scheduler.address)

  def _done(self, future: Any, number: int) -> Done:
    import distributed

    try:
      result, worker = future.result()
    except concurrent.futures.CancelledError as e:
      raise _lost_scheduler() from e
    except distributed.KilledWorker as e:
      result, worker = OSError(f'it was begun by several workers, which were all lost: {e}'), ''
    future.release()
    return Done(number=number, result=result, worker=worker)

  def _names(self) -> set[str]:
    """Addresses of the workers that there are."""
    return set(self._client.scheduler_info(n_workers=-1)['workers'])

  def _wait_for_workers(self) -> None:
    """Waits for the first, and checks all that there are."""
    import distributed

    from isl.inference import dask_start

    while not self._names():
      self._say_waiting()
      with contextlib.suppress(TimeoutError, distributed.TimeoutError):
        self._client.wait_for_workers(1, timeout=_SECONDS_BETWEEN_LINES)
    try:
      versions = self._client.run(dask_start.version)
      # Before this module is, which loads TensorFlow.
      self._client.register_plugin(dask_start.Start(__name__, __version__))
      self._is_loaded = True
    except Exception as e:
      # Whatever a worker raises that cannot import what it is to run.
      raise ValueError(
        f'the workers of Dask cannot run isl {__version__}: {e}; expected the same environment'
        ' as here'
      ) from e
    for address, version in versions.items():
      if version != __version__:
        raise ValueError(
          f'the Dask worker {address} has isl {version}, expected {__version__} as here'
        )


@contextlib.contextmanager
def _local_cluster(count: int) -> Iterator[str]:
  """Processes of this machine, which divide its cores; yields their scheduler's address."""
  import distributed

  threads = str(max(1, len(os.sched_getaffinity(0)) // count))
  # Of what a killed process leaves behind; the system tidies it up.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker:UserWarning')
  logging.info('Starting %d processes of %s threads', count, threads)
  with distributed.LocalCluster(
    n_workers=count,
    threads_per_worker=1,
    processes=True,
    # What a field of view takes is known, and what Dask would do about it is to end the process.
    memory_limit=0,
    dashboard_address=None,
    silence_logs=python_logging.CRITICAL,
    env=dict.fromkeys(_THREAD_VARIABLES, threads) | {'TF_CPP_MIN_LOG_LEVEL': '3'},
  ) as cluster:
    yield cluster.scheduler_address


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
  import distributed

  try:
    client = distributed.Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
  except (OSError, ValueError, TypeError, ImportError) as e:
    raise ValueError(
      f'--dask_scheduler {address!r} cannot be reached ({type(e).__name__}); expected the address'
      ' of a Dask scheduler that runs, as in tcp://host:8786'
    ) from e
  with client:
    yield client


def _lost_scheduler() -> OSError:
  return OSError(
    'the connection to the Dask scheduler was lost; the same command goes on from what is done'
  )


# In the workers.

_lock = threading.Lock()
_current: tuple[str, FieldRun] | None = None


def _label(key: str, settings: Settings, field: FieldFiles) -> tuple[FieldRecord | Exception, str]:
  """Labels a field of view; returns its record, or what went wrong, and who did it."""
  import distributed

  # A process has one network, and may have several threads.
  with _lock:
    try:
      result: FieldRecord | Exception = _field_run(key, settings).label(field, None)
    except (ValueError, OSError) as e:
      # Not itself, since what it holds may not be sendable.
      result = (OSError if isinstance(e, OSError) else ValueError)(str(e))
  return result, distributed.get_worker().address


def _field_run(key: str, settings: Settings) -> FieldRun:
  """This process's, which has loaded the checkpoint once."""
  global _current
  if _current is None or _current[0] != key:
    if _current is not None:
      _current[1].labeler.close()
    base = settings.experiment.base_directory
    if not base.is_dir():
      raise ValueError(f'{str(base)!r} is not there on this worker; expected a shared file system')
    _current = key, FieldRun(settings)
  return _current[1]
