"""Helpers of tests of TFRecord shards: small fields of view, their shards, reading them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Corruption, Geometry, InputRange, Sampling, ShardReading
from isl.data import shard_writing
from isl.data.patches import PatchSpec
from isl.data.shard_patches import Preparation, ShardPatches
from isl.data.shard_reading import Record
from isl.data.shard_writing import Cut
from isl.images import finding
from tests.support.program import write_field

GEOMETRY = Geometry(patch=20, output=4)
NO_CORRUPTION = Corruption(multiplier_std=0, offset_std=0, noise_std=0)
SAMPLING = Sampling(
  crop_size=33, patch_stride=6, output_size=4, batch_size=2, num_threads=2, capacity=1
)
PER_CROP = 3 * 3
CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')
WELLS = ('A1', 'A2', 'A3', 'B1', 'B2')
ROWS, COLUMNS = 47, 60


def write_images(folder: pathlib.Path) -> pathlib.Path:
  """Writes five fields of view with 5 depths and three labels; returns their folder."""
  write_field(folder, rows=ROWS, columns=COLUMNS, wells=WELLS, depths=5)
  return folder


def write_shards(folder: pathlib.Path, images: pathlib.Path, count: int) -> list[pathlib.Path]:
  """Writes fields of view, uncut, into `count` shards; returns the shards' paths."""
  return shard_writing.write_shards(
    finding.find_all([images]), str(folder / 's-%d'), count, Cut(overlap=0)
  )


def make_patches(
  paths: Iterable[pathlib.Path],
  *,
  input_range: InputRange | None = None,
  stretch: tuple[str, ...] = (),
  skip_corrupt: bool = False,
  num_threads: int = 1,
  batch_size: int = 1,
  capacity: int = 1,
  channels: tuple[str, ...] = CHANNELS,
  leave_out: bool = False,
  seed: int = 1,
  augment: bool = False,
  corruption: Corruption = NO_CORRUPTION,
  z: int = 3,
  shuffled: int = 1,
  **sampling: int,
) -> ShardPatches:
  """Makes the stream of patches of shards.

  Args:
    paths: the shards.
    input_range: see `Preparation`.
    stretch: see `Preparation.stretch_targets`.
    skip_corrupt: see `ShardReading`.
    num_threads: see `ShardReading`.
    batch_size: see `ShardReading`.
    capacity: see `ShardReading`.
    channels: the labels that are predicted.
    leave_out: see `Preparation.leave_out_others`.
    seed: see `PatchSpec`.
    augment: see `PatchSpec`.
    corruption: see `PatchSpec`.
    z: number of z depths that are read.
    shuffled: see `Sampling.capacity`.
    **sampling: other attributes of the Sampling that differ from SAMPLING's.
  """
  return ShardPatches(
    ShardReading(
      paths=tuple(paths),
      num_threads=num_threads,
      batch_size=batch_size,
      capacity=capacity,
      skip_corrupt=skip_corrupt,
    ),
    Preparation(input_range=input_range, stretch_targets=stretch, leave_out_others=leave_out),
    PatchSpec(
      sampling=dataclasses.replace(SAMPLING, capacity=shuffled, **sampling),
      geometry=GEOMETRY,
      inputs=input_stack(z),
      targets=target_stack(channels),
      seed=seed,
      augment=augment,
      corruption=corruption,
    ),
  )


def read_batches(
  patches: ShardPatches, count: int, size: int = PER_CROP, first: int = 0
) -> list[list[np.ndarray]]:
  """Reads batches of a stream as a training does.

  Args:
    patches: the stream.
    count: number of batches.
    size: number of patches in a batch.
    first: number of the first patch.
  """
  with tf.Graph().as_default():
    batches = patches.dataset(first, size, 2)
    iterator = tf.data.make_initializable_iterator(batches)
    batch = iterator.get_next()
    assert [t.shape.as_list() for t in batch] == [
      [size, *patches.input_shape],
      [size, *patches.target_shape],
      [size, patches.target_shape[-1]],
      [size, *patches.input_shape[:2]],
    ]
    with tf.Session() as session:
      session.run(iterator.initializer)
      return [session.run(batch) for _ in range(count)]


def is_same(first: Iterable[Sequence[np.ndarray]], second: Iterable[Sequence[np.ndarray]]) -> bool:
  """Whether two series of batches are the same."""
  return all(
    np.array_equal(a, b)
    for one, other in zip(first, second, strict=True)
    for a, b in zip(one, other, strict=True)
  )


def drawn_wells(patches: ShardPatches, count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """Reads batches and gives the wells of the fields of view that crops are of, in drawing order."""
  drawn: dict[int, str] = {}
  crop = patches._crop

  def noting(record: Record, *number: int) -> Any:
    drawn[number[0]] = record.decode().files.name.partition('well-')[2][:2]
    return crop(record, *number)

  monkeypatch.setattr(patches, '_crop', noting)
  read_batches(patches, count)
  return [drawn[number] for number in sorted(drawn)]
