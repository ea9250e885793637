"""PS: holds variables of a training on many machines, until its chief is done."""

from __future__ import annotations

import threading

import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.cluster import Cluster
from isl.training import cluster_session

# For workers to notice that the chief is done, at the end of their step.
_SECONDS_FOR_GOODBYES = 120.0
_CHIEF_GOES = cluster_session.Presence(0, is_there=False)


def run(cluster: Cluster) -> None:
  """Serves until the chief is done, and the other workers have had time to notice.

  Raises:
    ValueError: its address cannot be listened on.
  """
  server = cluster_session.make_server(cluster)
  logging.info('Parameter server %d listens on %s', cluster.task, cluster.address)
  there: set[int] = set()
  is_chief_done = False
  changed = threading.Condition()
  with tf.Graph().as_default():
    attendance = cluster_session.Attendance(cluster)
    config = cluster_session.session_config(cluster)
    with tf.Session(server.target, config=config) as session:

      def listen() -> None:
        nonlocal is_chief_done
        while (told := attendance.next(session)) is not None:
          with changed:
            (there.add if told.is_there else there.discard)(told.worker)
            is_chief_done = is_chief_done or told == _CHIEF_GOES
            changed.notify_all()

      # In a thread of its own: signals do not interrupt TensorFlow.
      listener = threading.Thread(target=listen)
      listener.start()
      try:
        with changed:
          changed.wait_for(lambda: is_chief_done)
          changed.wait_for(lambda: not there, _SECONDS_FOR_GOODBYES)
      finally:
        attendance.end(session)
        listener.join()
  logging.info('The chief is done')
