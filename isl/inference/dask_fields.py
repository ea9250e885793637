"""Spreads the labeling of fields of view over processes and machines, by Dask."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging as python_logging
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from absl import logging

from isl.core.experiment import DaskWorkers
from isl.core.version import __version__
from isl.images.fields_of_view import FieldFiles
from isl.inference.field_run import FieldRun, Settings
from isl.report.field_record import FieldRecord

_SECONDS_TO_CONNECT = 10
_SECONDS_BETWEEN_LINES = 10
# The environment variables that tell TensorFlow and NumPy how many threads to use.
_THREAD_VARIABLES = ('TF_NUM_INTRAOP_THREADS', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """A field of view that a worker has labeled, or failed to label.

  Attributes:
    number: the field of view's number, from 0.
    result: the field of view's record, or the error because of which there is none.
    worker: address of the worker; '' if several began the field of view and were all lost.
  """

  number: int
  result: FieldRecord | Exception
  worker: str


class Workers:
  """The workers of a Dask cluster, or processes of this machine, as a context manager."""

  def __init__(self, workers: DaskWorkers):
    """Checks that Dask is installed; starts nothing yet.

    Args:
      workers: which workers label fields of view.

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
    """Connects to the cluster's scheduler, or starts processes on this machine.

    Raises:
      ValueError: the scheduler cannot be reached.
    """
    # Dask's loggers tell of every process that comes and goes; some have levels of their own.
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

  def __exit__(self, *exception: object) -> None:
    if self._is_loaded:
      # So that workers that join the scheduler later do not load isl.
      with contextlib.suppress(Exception):
        from isl.inference import dask_start

        self._client.unregister_worker_plugin(dask_start.Start.name)
    self._stack.close()

  def label(self, settings: Settings, fields: Sequence[FieldFiles]) -> Iterator[Done]:
    """Labels fields of view, and yields each as soon as it is done.

    A field of view that a lost worker had begun is begun again by another.

    Args:
      settings: settings of the run, with paths that all machines have.
      fields: the fields of view.

    Raises:
      ValueError: a worker has no isl, or another version.
      OSError: the connection to the scheduler is lost.
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
    """Logs which workers have been lost; returns the addresses of those that are there.

    Args:
      there: addresses of the workers that were there the last time.
    """
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
    """The addresses of the workers that are there."""
    return set(self._client.scheduler_info(n_workers=-1)['workers'])

  def _wait_for_workers(self) -> None:
    """Waits for the first worker, then checks the version of all workers that are there.

    Raises:
      ValueError: a worker has no isl, or another version.
    """
    import distributed

    from isl.inference import dask_start

    while not self._names():
      self._say_waiting()
      with contextlib.suppress(TimeoutError, distributed.TimeoutError):
        self._client.wait_for_workers(1, timeout=_SECONDS_BETWEEN_LINES)
    try:
      versions = self._client.run(dask_start.version)
      # Before this module is loaded on the workers, which loads TensorFlow.
      self._client.register_plugin(dask_start.Start(__name__, __version__))
      self._is_loaded = True
    except Exception as e:
      # A worker that cannot import isl may raise anything.
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
  """Starts processes on this machine, which divide its cores; yields their scheduler's address."""
  import distributed

  threads = str(max(1, len(os.sched_getaffinity(0)) // count))
  # The warning is of what a killed process leaves behind, which the system tidies up.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker:UserWarning')
  logging.info('Starting %d processes of %s threads', count, threads)
  with distributed.LocalCluster(
    n_workers=count,
    threads_per_worker=1,
    processes=True,
    # Dask would end processes above a limit; the memory that a field of view takes is known.
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


# From here on: what runs in the workers.

_lock = threading.Lock()
_current: tuple[str, FieldRun] | None = None


def _label(key: str, settings: Settings, field: FieldFiles) -> tuple[FieldRecord | Exception, str]:
  """Labels a field of view on a worker.

  Args:
    key: identifies the run.
    settings: settings of the run.
    field: the field of view.

  Returns:
    The field of view's record, or the error because of which there is none, and the worker's
    address.
  """
  import distributed

  # A process has one network, and may have several threads that label.
  with _lock:
    try:
      result: FieldRecord | Exception = _field_run(key, settings).label(field, None)
    except (ValueError, OSError) as e:
      # A copy of the error, since parts of the original may not be sendable.
      result = (OSError if isinstance(e, OSError) else ValueError)(str(e))
  return result, distributed.get_worker().address


def _field_run(key: str, settings: Settings) -> FieldRun:
  """The FieldRun of this process, which loads the checkpoint once for a run.

  Raises:
    ValueError: the run's BASE is not there, or the checkpoint is damaged.
    OSError: a file cannot be read.
  """
  global _current
  if _current is None or _current[0] != key:
    if _current is not None:
      _current[1].labeler.close()
    base = settings.experiment.base_directory
    if not base.is_dir():
      raise ValueError(f'{str(base)!r} is not there on this worker; expected a shared file system')
    _current = key, FieldRun(settings)
  return _current[1]
