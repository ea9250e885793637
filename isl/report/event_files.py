"""Writes TensorBoard's event files: curves, histograms and pictures."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import SupportsFloat

import cv2
import numpy as np
import tensorflow.compat.v1 as tf

from isl.system import files

_BUCKETS = 30
# The fastest compression: panels are large, and are read on the machine that wrote them.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1)


class SummaryWriter:
  """Writes an event file, until `close`.

  When a method returns, what it added is in the file. TensorFlow's own writers write in another
  thread, and drop silently what a full disk does not take.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Makes the folder and the file in it.

    Args:
      directory: the folder in which TensorBoard looks for the run; several writers may share it.

    Raises:
      OSError: the file cannot be written.
    """
    now = time.time()
    name = f'events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}'
    self._path = pathlib.Path(directory) / name
    files.check_writable(self._path)
    with self._naming():
      self._writer = tf.io.TFRecordWriter(os.fspath(self._path))
    # From this event, a reader knows the format.
    self._write(tf.Event(wall_time=now, file_version='brain.Event:2'))

  def start(self, step: int) -> None:
    """Marks that a run goes on: events in the folder's older files from this step on are void.

    Raises:
      OSError: the file cannot be written.
    """
    started = tf.SessionLog(status=tf.SessionLog.START)
    self._write(tf.Event(wall_time=time.time(), step=step, session_log=started))

  def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
    """Adds a point to the curve of each tag.

    Args:
      step: the global step.
      values: the point's value, by tag.

    Raises:
      OSError: the file cannot be written.
    """
    summary = tf.Summary()
    for tag, value in values.items():
      summary.value.add(tag=tag, simple_value=float(value))
    self._add(summary, step)

  def image(self, step: int, tag: str, picture: np.ndarray) -> None:
    """Adds a picture.

    Args:
      step: the global step.
      tag: the picture's name in TensorBoard.
      picture: uint16 RGB [row, column, 3], as `visualize` draws it; written in 8 bit, which is what
        a browser shows.

    Raises:
      OSError: the file cannot be written.
    """
    assert picture.dtype == np.uint16, picture.dtype
    # OpenCV's order of colours is the reverse.
    colours = np.ascontiguousarray((picture >> 8).astype(np.uint8)[..., ::-1])
    done, encoded = cv2.imencode('.png', colours, _PNG_OPTIONS)
    assert done, picture.shape
    summary = tf.Summary()
    summary.value.add(
      tag=tag,
      image=tf.Summary.Image(
        height=picture.shape[0],
        width=picture.shape[1],
        colorspace=3,
        encoded_image_string=encoded.tobytes(),
      ),
    )
    self._add(summary, step)

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Adds histograms of 30 equal classes between the least and the largest value.

    Args:
      step: the global step.
      values: by tag, floats of any shape. Values that are not finite are left out.

    Raises:
      OSError: the file cannot be written.
    """
    summary = tf.Summary()
    for tag, array in values.items():
      summary.value.add(tag=tag, histo=_histogram(array.ravel()))
    self._add(summary, step)

  def serialized(self, step: int, summary: bytes) -> None:
    """Adds what a graph's summary operations gave.

    Args:
      step: the global step.
      summary: a serialized tf.Summary.

    Raises:
      OSError: the file cannot be written.
    """
    self._add(tf.Summary.FromString(summary), step)

  def close(self) -> None:
    """Completes and closes the file.

    Raises:
      OSError: the file cannot be written.
    """
    with self._naming():
      self._writer.close()

  def _add(self, summary: tf.Summary, step: int) -> None:
    self._write(tf.Event(wall_time=time.time(), step=step, summary=summary))

  def _write(self, event: tf.Event) -> None:
    with self._naming():
      self._writer.write(event.SerializeToString())
      self._writer.flush()

  @contextlib.contextmanager
  def _naming(self) -> Iterator[None]:
    """Turns TensorFlow's errors in the `with` block into an OSError that names the file."""
    try:
      yield
    except tf.errors.OpError as e:
      raise OSError(f'{str(self._path)!r} cannot be written: {e.message}') from e


def _histogram(values: np.ndarray) -> tf.HistogramProto:
  """Makes the histogram of the finite values among floats, [value]."""
  # In double precision: squares of large floats overflow.
  values = values[np.isfinite(values)].astype(np.float64)
  if not values.size:
    return tf.HistogramProto(bucket_limit=[0.0], bucket=[0.0])
  low, high = float(values.min()), float(values.max())
  # If all are equal, or too near for thirty limits between them, NumPy would widen the range.
  num_buckets = _BUCKETS if np.diff(np.linspace(low, high, _BUCKETS + 1)).min() > 0 else 1
  if num_buckets > 1:
    counts, edges = np.histogram(values, num_buckets, (low, high))
  else:
    counts, edges = np.array([values.size]), np.array([low, high])
  return tf.HistogramProto(
    min=low,
    max=high,
    num=values.size,
    sum=float(values.sum()),
    sum_squares=float(np.vdot(values, values)),
    bucket_limit=edges[1:],
    bucket=counts,
  )
