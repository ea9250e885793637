"""Tests of event_files.py: what TensorBoard's own reader finds in the files, and full disks."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from isl.report import event_files
from tests.support.program import event_picture, events, small_disk


def test_scalars(tmp_path):
  with contextlib.closing(event_files.SummaryWriter(tmp_path / 'made' / 'here')) as writer:
    writer.scalars(3, {'total_loss': 0.25, 'loss/0.04/TRANSMISSION': np.float32(0.5)})
    writer.scalars(1 << 40, {'total_loss': 0.125})
  assert events(tmp_path / 'made' / 'here') == {
    (3, 'total_loss'): 0.25,
    (3, 'loss/0.04/TRANSMISSION'): 0.5,
    (1 << 40, 'total_loss'): 0.125,
  }


def test_steps_that_are_done_again_replace_the_older_ones(tmp_path):
  """TensorBoard shows the newer points of steps that were done again."""
  for start, steps in ((1, (1, 3, 5, 7)), (4, (4, 6))):
    # The order of files is that of their names, which have the time.
    with contextlib.closing(event_files.SummaryWriter(tmp_path)) as writer:
      writer.start(start)
      for step in steps:
        writer.scalars(step, {'x': 10 * start + step})
  read = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  assert [(event.step, event.value) for event in read.Scalars('x')] == [
    (1, 11),
    (3, 13),
    (4, 44),
    (6, 46),
  ]


def test_all_is_in_the_file_at_once(tmp_path):
  writer = event_files.SummaryWriter(tmp_path)
  for step in range(3):
    writer.scalars(step, {'x': 0.0})
    assert len(events(tmp_path)) == step + 1


def test_image(tmp_path):
  picture = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, 3), dtype=np.uint16)
  with contextlib.closing(event_files.SummaryWriter(tmp_path)) as writer:
    writer.image(2, 'target_error_panel', picture)
  ((key, value),) = events(tmp_path).items()
  assert key == (2, 'target_error_panel')
  decoded = event_picture(value)
  np.testing.assert_array_equal(decoded, picture // 256)


def _histogram(tmp_path, values):
  """[bucket, (left, right, count)]."""
  with contextlib.closing(event_files.SummaryWriter(tmp_path)) as writer:
    writer.histograms(1, {'x': values})
  (buckets,) = events(tmp_path).values()
  return buckets


def test_histogram_counts_every_value(tmp_path):
  values = np.random.default_rng(0).normal(0, 2, (40, 50)).astype(np.float32)
  buckets = _histogram(tmp_path, values)
  assert buckets.shape == (30, 3)
  expected, edges = np.histogram(values.astype(float), 30)
  np.testing.assert_array_equal(buckets[:, 2], expected)
  np.testing.assert_allclose(buckets[:, 0], edges[:-1], rtol=1e-5)
  np.testing.assert_allclose(buckets[:, 1], edges[1:], rtol=1e-5)


@pytest.mark.parametrize(
  'values',
  [
    np.full(7, 0.3),
    np.array([2.5], np.float32),
    np.array([1e38, 1e38], np.float32),
    np.array([1, np.nextafter(1, 2)]),
  ],
)
def test_histogram_of_hardly_any_range_is_one_bucket(tmp_path, values):
  ((left, right, count),) = _histogram(tmp_path, values)
  assert (left, right) == pytest.approx((values.min(), values.max()), rel=1e-6)
  assert count == values.size


def test_histogram_leaves_out_what_is_not_finite(tmp_path):
  buckets = _histogram(tmp_path, np.array([np.nan, 1, np.inf, 2, -np.inf], np.float32))
  assert buckets[:, 2].sum() == 2
  assert (buckets[0, 0], buckets[-1, 1]) == (1, 2)


@pytest.mark.parametrize('values', [np.zeros(0), np.array([np.nan])])
def test_histogram_of_nothing(tmp_path, values):
  assert _histogram(tmp_path, values).shape == (0, 3)


def test_two_writers_share_a_folder(tmp_path):
  for writer in [event_files.SummaryWriter(tmp_path) for _ in range(2)]:
    writer.close()
  assert len(list(tmp_path.iterdir())) == 2


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match='file'):
    event_files.SummaryWriter(tmp_path / 'file' / 'events')


def test_disk_that_is_full(tmp_path):
  """TensorFlow's own writer would go on without a word."""
  writer = event_files.SummaryWriter(tmp_path)
  steps = 0
  with (
    small_disk(1000),
    pytest.raises(OSError, match=r'cannot be written.*File too large') as raised,
  ):
    for steps in range(100):
      writer.scalars(steps, {'total_loss': 0.0})
  assert str(tmp_path) in str(raised.value)
  assert [step for step, _ in events(tmp_path)] == list(range(steps))
