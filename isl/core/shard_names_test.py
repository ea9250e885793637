"""Tests of shard_names.py: patterns, and which shards are held out."""

from __future__ import annotations

import pytest

from isl.core import shard_names


@pytest.mark.parametrize(
  ('pattern', 'number', 'name'),
  [
    ('s-%d', 0, 's-0'),
    ('s-%d', 12, 's-12'),
    ('s-%05d-of-01024.tfrecord', 7, 's-00007-of-01024.tfrecord'),
    ('/a b/%d', 3, '/a b/3'),
    ('100%%-%d', 3, '100%-3'),
  ],
)
def test_name_has_the_number(pattern, number, name):
  assert shard_names.shard_name('--dataset_pattern', pattern, number) == name


@pytest.mark.parametrize('pattern', ['', 's', '%', 's-%', '%d-%d', '%s%d', '%q', '%%', '%(n)d'])
def test_error_names_flag_and_pattern(pattern):
  with pytest.raises(ValueError, match=r'^--pattern must have (a|one) %d ') as caught:
    shard_names.shard_name('--pattern', pattern, 0)
  assert str(caught.value).endswith(f' for the number of the shard, got {pattern!r}')


def test_one_of_eight_is_for_evaluation_from_the_first_on():
  held_out = [i for i in range(32) if shard_names.is_for_evaluation(i)]
  assert held_out == [0, 8, 16, 24]
