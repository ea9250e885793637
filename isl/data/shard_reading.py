"""Reads the TFRecord shards of a run.

A damaged shard or Example is an error that names it, or is left out where that is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Iterator

import tensorflow.compat.v1 as tf
from absl import logging

from isl.core.channels import ImageKey
from isl.core.experiment import ShardReading
from isl.data import shard_examples
from isl.data.shard_examples import DamagedError, ShardTile
from isl.images.fields_of_view import FieldFiles
from isl.images.sources import EncodedSource
from isl.system.progress import Progress

# The first bytes of a file that TensorFlow compressed.
_GZIP = b'\x1f\x8b\x08\x00'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """An Example as it lies in a shard.

  Attributes:
    path: the shard.
    number: the Example's number in the shard, from 0.
    data: the Example's bytes.
  """

  path: pathlib.Path
  number: int
  data: bytes

  @property
  def shown(self) -> str:
    """The Example's name in errors."""
    return f'shard {str(self.path)!r}, example {self.number}'

  def decode(self) -> ShardTile:
    """Parses the Example, see `shard_examples.decode`.

    Raises:
      DamagedError: the Example is damaged, or is not the one that belongs at this place.
    """
    tile = shard_examples.decode(self.data, self.path, self.shown)
    number, count = tile.record
    if number != self.number or self.number >= count:
      raise DamagedError(
        f'{self.shown} says that it is number {number} of {count}; the shard is damaged'
      )
    return tile


def records(path: pathlib.Path) -> Iterator[Record]:
  """Yields the Examples of a shard, compressed or not, one after the other.

  Raises:
    DamagedError: the shard is damaged, or cut off within or before its first Example.
    OSError: the shard cannot be read.
  """
  for number, data in enumerate(_read(path)):
    yield Record(path=path, number=number, data=data)


def compression(path: pathlib.Path) -> str:
  """TensorFlow's name of a shard's compression: 'GZIP', or '' for none; raises OSError."""
  with path.open('rb') as stream:
    return 'GZIP' if stream.read(len(_GZIP)) == _GZIP else ''


def _read(path: pathlib.Path) -> Iterator[bytes]:
  count = 0
  says_so = False
  try:
    for data in tf.io.tf_record_iterator(str(path), tf.io.TFRecordOptions(compression(path))):
      if data == shard_examples.EMPTY:
        says_so = True
        continue
      yield data
      count += 1
  except tf.errors.OpError as e:
    # The rest of the message is about the function that found it.
    reason = ' '.join(e.message.partition("' failed with")[0].split())
    raise DamagedError(
      f'shard {str(path)!r} is damaged or cut off after {count} examples: {reason}'
    ) from e
  if not count and not says_so:
    raise DamagedError(f'shard {str(path)!r} is cut off before its first example')


class Shards:
  """The shards of a run.

  Attributes:
    reading: which shards are read, and how.
    left_out: why an Example, or the rest of a shard, was left out, by the text that names it.
  """

  def __init__(self, reading: ShardReading):
    """Checks that the files are there; reads none.

    Raises:
      ValueError: a shard is missing.
    """
    missing = [path for path in reading.paths if not path.is_file()]
    if missing:
      raise ValueError(
        f'{len(missing)} of {len(reading.paths)} shards are missing, the first is'
        f' {str(missing[0])!r}; expected all that --dataset_pattern and --dataset_num_shards name'
      )
    self.reading = reading
    self.left_out: dict[str, str] = {}
    self._counts: dict[pathlib.Path, int] = {}
    self._lock = threading.Lock()

  def records(self, path: pathlib.Path) -> Iterator[Record]:
    """Yields the Examples of a shard.

    Once one of them has been decoded, it is known how many there should be.

    Raises:
      DamagedError: the shard is damaged or cut off, and the rest of it may not be left out.
      OSError: the shard cannot be read.
    """
    count = 0
    try:
      for record in records(path):
        yield record
        count += 1
      expected = self._counts.get(path, count)
      if count < expected:
        raise DamagedError(f'shard {str(path)!r} is cut off: it has {count} of {expected} examples')
    except DamagedError as e:
      self._leave_out(f'all after {count} examples of {str(path)!r}', e)

  def decode(self, record: Record) -> ShardTile | None:
    """Parses an Example.

    Returns:
      The field of view, or tile of one; None: the Example is damaged and is left out.

    Raises:
      DamagedError: the Example is damaged and may not be left out.
    """
    try:
      tile = record.decode()
    except DamagedError as e:
      self.leave_out(record, e)
      return None
    self._counts[record.path] = tile.record[1]
    return tile

  def check_end(self, path: pathlib.Path, count: int) -> None:
    """Checks that a shard ended where it should.

    Args:
      path: the shard.
      count: number of Examples that were read of the shard.

    Raises:
      DamagedError: the shard is damaged or cut off, and the rest of it may not be left out.
      OSError: the shard cannot be read.
    """
    if not count or self._counts.get(path) != count:
      for record in self.records(path):
        # The first Example says how many there should be.
        if record.number == 0:
          self.decode(record)

  def leave_out(self, record: Record, error: ValueError) -> None:
    """Notes and logs that an Example is left out; raises the error if it may not be."""
    self._leave_out(f'example {record.number} of {str(record.path)!r}', error)

  def _leave_out(self, what: str, error: ValueError) -> None:
    if not self.reading.skip_corrupt:
      raise error
    with self._lock:
      is_new = what not in self.left_out
      self.left_out[what] = str(error)
      count = len(self.left_out)
    if is_new:
      logging.warning('--skip_corrupt_shards left out %s (%d so far): %s', what, count, error)

  def every_record(self) -> Iterator[Record]:
    """Yields the Examples of all shards, in order; raises as `records` does."""
    for path in self.reading.paths:
      yield from self.records(path)

  def no_examples(self) -> ValueError:
    """Makes the error which says that the shards have no Examples."""
    left_out = f'; {len(self.left_out)} were left out' if self.left_out else ''
    return ValueError(
      f'none of {len(self.reading.paths)} shards, from {str(self.reading.paths[0])!r} on, has an'
      f' example{left_out}'
    )


def read_tiles(reading: ShardReading) -> list[FieldFiles]:
  """Finds the fields of view, or tiles of them, of all shards, with all their images.

  All shards are read once for that; a shard is read again for each of its Examples that is used.

  Returns:
    The fields of view and tiles, at least one, sorted by name.

  Raises:
    ValueError: shards are missing or damaged, or have no Example, or two of one name.
    OSError: a shard cannot be read.
  """
  shards = Shards(reading)
  found: dict[str, FieldFiles] = {}
  with Progress('shards', len(reading.paths), 'shard') as progress:
    for path in reading.paths:
      for record in shards.records(path):
        tile = shards.decode(record)
        if tile is None:
          continue
        files = _read_later(tile.files, record)
        if files.name in found:
          raise ValueError(
            f'{found[files.name].origin} and {files.origin} are both {files.name!r}; expected names'
            ' that differ'
          )
        found[files.name] = files
      progress.add(1)
  if not found:
    raise shards.no_examples()
  return [found[name] for name in sorted(found)]


def _read_later(files: FieldFiles, record: Record) -> FieldFiles:
  """Replaces images in memory by ones that are read from the shard when they are needed."""
  sources = {}
  for key, source in files.sources.items():
    assert isinstance(source, EncodedSource)
    load = functools.partial(_load, record.path, record.number, key)
    sources[key] = dataclasses.replace(source, load=load)
  return dataclasses.replace(files, sources=sources)


# The images of a field of view are read by several threads, out of one Example.
_LOADING = threading.Lock()


def _load(path: pathlib.Path, number: int, key: ImageKey) -> bytes:
  with _LOADING:
    source = _tile(path, number, path.stat().st_mtime_ns).files.sources[key]
  assert isinstance(source, EncodedSource)
  return source.load()


@functools.lru_cache(maxsize=1)
def _tile(path: pathlib.Path, number: int, changed: int) -> ShardTile:
  """Reads an Example again; the shard's time of last change tells whether it is remembered."""
  del changed
  for record in records(path):
    if record.number == number:
      return record.decode()
  raise DamagedError(f'shard {str(path)!r} has lost its example {number} since it was looked at')
