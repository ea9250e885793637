"""Servers and sessions of a training on many machines, on TensorFlow's own distributed runtime.

`serve` is all that a parameter server does. A worker makes its server (`make_server`), its sessions
(`SessionCreator`) and takes part in an orderly end (`Attendance`, `AttendanceHook`). A training of
one process uses `session_config` alone.

Variables are on the parameter servers and stay there when a worker is lost. A lost parameter server
takes its share of them with it: then all begin again from the chief's newest checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.cluster import Cluster

_SECONDS_BETWEEN_TRIES = 1.0
_SECONDS_BETWEEN_LINES = 10.0
# At the end of a training, whether workers are still there.
_SECONDS_BETWEEN_LOOKS = 0.2
# Told by a parameter server to itself, to end its waiting: no worker has this number.
_NOBODY = -1
# Capacity of the queues: more than workers will ever tell, however often they are started again.
_MANY = 1 << 20


# What a session raises if a parameter server has gone, or was started anew.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError)
# The time that other workers have to notice, at the end of their step, that the chief is done, and
# all of them to end.
_SECONDS_FOR_GOODBYES = 120.0


class StoppedError(Exception):
  """Raised when a session that is waited for is not wanted any more."""


def make_server(cluster: Cluster) -> tf.train.Server:
  """Starts the TensorFlow server of this process.

  Raises:
    ValueError: the port is taken, or may not be listened on.
  """
  host, _, port = cluster.address.rpartition(':')
  # TensorFlow's own server listens on all addresses of the machine, and would say nothing of a
  # port that another one shares.
  with socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', int(port)))
    except OSError as e:
      raise ValueError(
        f'port {port} of {cluster.address} cannot be listened on ({e.strerror}); stop what does, or'
        ' give another'
      ) from e
  return tf.train.Server(
    tf.train.ClusterSpec({job: list(hosts) for job, hosts in cluster.jobs}),
    job_name=cluster.job,
    task_index=cluster.task,
    config=session_config(cluster),
  )


def session_config(cluster: Cluster | None) -> tf.ConfigProto:
  """The configuration of a training's sessions: threads, Grappler, devices.

  Args:
    cluster: the machines that train together; None: this process trains alone.
  """
  # One operation after the other, on all cores: two at a time were not faster.
  config = tf.ConfigProto(inter_op_parallelism_threads=1)
  # Grappler's passes cost seconds of the first step and gained nothing measurable after it.
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  if cluster is not None:
    # With one thread, values from other machines would wait behind a computation.
    config.inter_op_parallelism_threads = 4
    # So that workers that are not there yet, or not any more, are not waited for.
    own = [] if cluster.is_ps else ['/job:ps']
    config.device_filters.extend([*own, cluster.device])
  return config


@dataclasses.dataclass(frozen=True)
class Presence:
  """What a worker tells the parameter servers: that it comes or goes.

  Attributes:
    worker: the worker's number.
    is_there: whether the worker comes; false: it goes.
  """

  worker: int
  is_there: bool


class Attendance:
  """Lets all processes end when the chief is done, by queues on the parameter servers.

  Attributes:
    chief_is_done: whether the chief has said that it is done: a bool scalar tensor.
  """

  def __init__(self, cluster: Cluster):
    """Adds the queues of all parameter servers to the current graph; of a server, its own."""
    devices = [cluster.device] if cluster.is_ps else cluster.ps_devices
    queues = [_queue('attendance', [2], device) for device in devices]
    done = _queue('chief_is_done', [], devices[0])
    with tf.device(devices[0]):
      self.chief_is_done = tf.identity(done.size() > 0)
      mark = done.enqueue(0)
    self._told = tf.placeholder(tf.int32, [2])
    self._tell = tf.group(*(queue.enqueue(self._told) for queue in queues))
    # The mark first, since servers may end when they are told.
    with tf.control_dependencies([mark]):
      self._tell_last = tf.group(*(queue.enqueue(self._told) for queue in queues))
    self._next = queues[0].dequeue()

  def tell(self, session: Any, cluster: Cluster, *, is_there: bool) -> None:
    """Tells the parameter servers that this worker comes or goes; the chief is the last to go."""
    operation = self._tell_last if cluster.is_chief and not is_there else self._tell
    session.run(operation, {self._told: [cluster.worker_number, is_there]})

  def next(self, session: tf.Session) -> Presence | None:
    """Waits until a worker tells this parameter server something; gives None after `end`."""
    worker, is_there = session.run(self._next)
    return None if worker == _NOBODY else Presence(int(worker), bool(is_there))

  def end(self, session: tf.Session) -> None:
    """Ends the waiting of this parameter server in `next`."""
    session.run(self._tell, {self._told: [_NOBODY, False]})


def _queue(name: str, shape: list[int], device: str) -> tf.QueueBase:
  with tf.device(device):
    return tf.FIFOQueue(_MANY, [tf.int32], [shape], shared_name=name)


class AttendanceHook(tf.train.SessionRunHook):
  """Tells the parameter servers that a worker is there, and ends the worker after the chief."""

  def __init__(self, cluster: Cluster, attendance: Attendance):
    """Takes the cluster, as this worker sees it, and the queues in its graph."""
    self._cluster = cluster
    self._attendance = attendance
    self._steps = 0

  def after_create_session(self, session: Any, coord: Any) -> None:
    """Tells the parameter servers that this worker is there."""
    del coord
    self._attendance.tell(session, self._cluster, is_there=True)

  def before_run(self, run_context: Any) -> tf.train.SessionRunArgs:
    """Asks whether the chief is done."""
    return tf.train.SessionRunArgs(self._attendance.chief_is_done)

  def after_run(self, run_context: Any, run_values: Any) -> None:
    """Asks the session to stop if the chief is done."""
    self._steps += 1
    if run_values.results and not self._cluster.is_chief:
      logging.info('The chief is done')
      run_context.request_stop()

  def end(self, session: Any) -> None:
    """Tells the parameter servers that this worker goes."""
    number, count = self._cluster.worker_number, len(self._cluster.workers)
    logging.info('Worker %d of %d did %d steps', number, count, self._steps)
    self._attendance.tell(session, self._cluster, is_there=False)


def say_goodbye(cluster: Cluster, server: tf.train.Server, is_stopped: Callable[[], bool]) -> None:
  """Ends the parameter servers of a training that its chief need not begin.

  Args:
    cluster: the cluster, of which this process is the chief.
    server: the TensorFlow server of this process.
    is_stopped: tells whether to stop waiting for servers that are not there yet.
  """
  with contextlib.suppress(StoppedError, *LOST), tf.Graph().as_default():
    wait_for(cluster.ps_hosts, is_stopped)
    attendance = Attendance(cluster)
    with tf.Session(server.target, config=session_config(cluster)) as session:
      attendance.tell(session, cluster, is_there=False)


class SessionCreator(tf.train.SessionCreator):
  """Makes a worker's session, and another one whenever it is lost.

  The chief gives the variables their values; the other workers wait until it has.
  """

  def __init__(
    self,
    cluster: Cluster,
    server: tf.train.Server,
    scaffold: tf.train.Scaffold,
    is_stopped: Callable[[], bool],
  ):
    """Takes what sessions are made of; makes none yet.

    Args:
      cluster: the cluster, of which this process is a worker.
      server: the TensorFlow server of this process.
      scaffold: the training's operations for initializing and saving.
      is_stopped: tells whether to stop waiting: a signal came, or the training is over.
    """
    self._cluster = cluster
    self._server = server
    self._scaffold = scaffold
    self._is_stopped = is_stopped
    self._sessions = 0

  def create_session(self) -> tf.Session:
    """Makes a session, after waiting for the parameter servers and, if not the chief, for it.

    Raises:
      StoppedError: the session is not wanted any more.
    """
    if self._sessions:
      logging.warning('The session was lost with a parameter server, or one that was started anew')
    self._sessions += 1
    wait_for(self._cluster.ps_hosts, self._is_stopped)
    self._scaffold.finalize()
    manager = tf.train.SessionManager(
      local_init_op=self._scaffold.local_init_op,
      ready_op=self._scaffold.ready_op,
      ready_for_local_init_op=self._scaffold.ready_for_local_init_op,
      recovery_wait_secs=_SECONDS_BETWEEN_TRIES,
    )
    config = session_config(self._cluster)
    if self._cluster.is_chief:
      return manager.prepare_session(
        self._server.target,
        init_op=self._scaffold.init_op,
        init_fn=self._scaffold.init_fn,
        config=config,
      )
    lines = _Lines()
    while not self._is_stopped():
      lines.say('Waiting for the chief to give the variables their values')
      try:
        return manager.wait_for_session(
          self._server.target, config=config, max_wait_secs=5 * _SECONDS_BETWEEN_TRIES
        )
      except tf.errors.DeadlineExceededError:
        continue
    raise StoppedError


class _Lines:
  """Writes log lines about what is waited for, not too often."""

  def __init__(self) -> None:
    # Usually there is nothing to wait for.
    self._due = time.monotonic() + _SECONDS_BETWEEN_TRIES

  def say(self, text: str) -> None:
    if time.monotonic() >= self._due:
      logging.info('%s', text)
      self._due = time.monotonic() + _SECONDS_BETWEEN_LINES


def wait_for(addresses: Sequence[str], is_stopped: Callable[[], bool]) -> None:
  """Waits until all parameter servers can be reached.

  TensorFlow would wait, too, but log nothing and let no signal through.

  Args:
    addresses: addresses of the servers, as host:port.
    is_stopped: tells whether to stop waiting.

  Raises:
    StoppedError: `is_stopped` said so.
  """
  missing, lines = list(addresses), _Lines()
  while True:
    missing = [address for address in missing if not _is_reachable(address)]
    if not missing:
      return
    if is_stopped():
      raise StoppedError
    lines.say(f'Waiting for parameter servers: {", ".join(missing)}')
    time.sleep(_SECONDS_BETWEEN_TRIES)


def _is_reachable(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=_SECONDS_BETWEEN_TRIES):
      return True
  except OSError:
    return False


_CHIEF_GOES = Presence(0, is_there=False)


def serve(cluster: Cluster) -> None:
  """Runs a parameter server until the chief is done and the other workers have had time to notice.

  It outlasts their processes: a session that is closed while a server of its goes may hang.

  Raises:
    ValueError: the address of this process cannot be listened on.
  """
  server = make_server(cluster)
  logging.info('Parameter server %d listens on %s', cluster.task, cluster.address)
  there: set[int] = set()
  ever: set[int] = set()
  is_chief_done = False
  changed = threading.Condition()
  with tf.Graph().as_default():
    attendance = Attendance(cluster)
    config = session_config(cluster)
    with tf.Session(server.target, config=config) as session:

      def listen() -> None:
        nonlocal is_chief_done
        while (told := attendance.next(session)) is not None:
          with changed:
            (there.add if told.is_there else there.discard)(told.worker)
            ever.add(told.worker)
            is_chief_done = is_chief_done or told == _CHIEF_GOES
            changed.notify_all()

      # In a thread of its own: signals do not interrupt TensorFlow.
      listener = threading.Thread(target=listen)
      listener.start()
      try:
        with changed:
          changed.wait_for(lambda: is_chief_done)
          deadline = time.monotonic() + _SECONDS_FOR_GOODBYES
          changed.wait_for(lambda: not there, _SECONDS_FOR_GOODBYES)
          hosts = [cluster.worker_hosts[number] for number in ever]
        while any(map(_is_reachable, hosts)) and time.monotonic() < deadline:
          time.sleep(_SECONDS_BETWEEN_LOOKS)
      finally:
        attendance.end(session)
        listener.join()
  logging.info('The chief is done')
