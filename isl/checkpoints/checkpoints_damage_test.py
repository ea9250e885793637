"""Tests of checkpoints.py on damaged files: one line, or no harm, and never a crash."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.programs.random_checkpoint import write_random_checkpoint


@pytest.fixture(scope='module')
def fovea(tmp_path_factory):
  """The prefix of a small whole one."""
  return write_random_checkpoint(
    tmp_path_factory.mktemp('fovea'), model='FOVEA', base_depth=4, num_z_values=2
  )


class _Damaged:
  """A copy of a checkpoint to be damaged."""

  _ENDINGS = ('index', 'data-00000-of-00001')

  def __init__(self, prefix, folder):
    self.prefix = folder / prefix.name
    self.index, self.data = (
      prefix.with_name(f'{prefix.name}.{ending}').read_bytes() for ending in self._ENDINGS
    )
    reader = tf.train.load_checkpoint(os.fspath(prefix))
    names = reader.get_variable_to_shape_map()
    self._values = {name: reader.get_tensor(name) for name in names}

  def error(self, *, index: bytes | None = None, data: bytes | None = None) -> str | None:
    """What the reading of a checkpoint with these contents says, in one line.

    Where it says nothing, every value must be as it was.
    """
    whole = (self.index, self.data)
    for ending, content, otherwise in zip(self._ENDINGS, (index, data), whole, strict=True):
      path = self.prefix.with_name(f'{self.prefix.name}.{ending}')
      path.write_bytes(otherwise if content is None else content)
    try:
      checkpoint = Checkpoint(find_newest(self.prefix.parent))
      checkpoint.verify()
    except ValueError as e:
      assert str(e).startswith(f'checkpoint {str(self.prefix)!r} '), e
      assert '\n' not in str(e)
      return str(e)
    for name, value in self._values.items():
      np.testing.assert_array_equal(checkpoint.value(name), value, err_msg=name)
    return None


@pytest.fixture
def damaged(fovea, tmp_path):
  return _Damaged(fovea, tmp_path)


def test_whole_files_are_no_error(damaged):
  assert damaged.error() is None


@pytest.mark.parametrize('length', [0, 1, 1 / 4, 1 / 2, -4, -1])
def test_truncated_files(damaged, length):
  """Bytes from the beginning, a share of the file, or all but so many bytes."""
  for file in ('index', 'data'):
    whole = getattr(damaged, file)
    kept = int(length * len(whole)) if 0 < length < 1 else length
    assert damaged.error(**{file: whole[:kept]}), file


def test_files_of_text(damaged):
  for file in ('index', 'data'):
    assert damaged.error(**{file: b'<html>404 Not Found</html>\n' * 100}), file


def test_flipped_bits_of_the_data_are_noticed(damaged):
  for position in np.linspace(0, len(damaged.data) - 1, 20).astype(int):
    data = bytearray(damaged.data)
    data[position] ^= 1
    assert damaged.error(data=bytes(data)), position


@pytest.mark.parametrize(('model', 'base_depth'), [('FOVEA', 4), ('FOVEA', 30), ('CONCORDANCE', 5)])
def test_index_of_another_checkpoint(damaged, tmp_path, model, base_depth):
  other = write_random_checkpoint(
    tmp_path / 'other', model=model, base_depth=base_depth, num_z_values=2, seed=1
  )
  assert damaged.error(index=other.with_name(f'{other.name}.index').read_bytes())


@pytest.mark.parametrize('size', [0, 1 << 20, 1 << 36, 1 << 62, (1 << 64) - 6, (1 << 64) - 1])
def test_length_in_the_index_that_cannot_be(damaged, size):
  """At its end, not checksummed, stand the offsets and lengths of two blocks, as varints."""
  varints = bytearray()
  for number in (0, 8, 0, size):
    while number >= 128:
      varints.append(number & 127 | 128)
      number >>= 7
    varints.append(number)
  magic_number = damaged.index[-8:]
  assert damaged.error(index=damaged.index[:-48] + varints.ljust(40, b'\0') + magic_number)


def _mutated(rng: np.random.Generator, contents: bytes) -> bytes:
  """Bits flipped, or a stretch zeroed, overwritten, taken out, put in, or all behind it missing."""
  start = int(rng.integers(len(contents)))
  # Often near the end, where an index has what leads to the rest.
  if rng.random() < 0.3:
    start = max(len(contents) - 1 - int(rng.integers(120)), 0)
  length = int(2 ** rng.uniform(0, 12))
  before, stretch, after = (
    contents[:start],
    contents[start : start + length],
    contents[start + length :],
  )
  kind = rng.integers(6)
  if kind == 0:
    return before + bytes([stretch[0] ^ 1 << int(rng.integers(8))]) + stretch[1:] + after
  if kind == 1:
    return before + bytes(len(stretch)) + after
  if kind == 2:
    return before + rng.bytes(len(stretch)) + after
  if kind == 3:
    return before + after
  if kind == 4:
    return before + rng.bytes(length) + stretch + after
  return before


def _assert_mutations_are_noticed_or_harmless(damaged, rounds, seed):
  rng = np.random.default_rng(seed)
  noticed = 0
  for _ in range(rounds):
    chosen = [['index'], ['data'], ['index', 'data']][rng.integers(3)]
    mutated = {file: _mutated(rng, getattr(damaged, file)) for file in chosen}
    noticed += damaged.error(**mutated) is not None
  # What is harmless: the index's padding, or bytes behind the data.
  assert noticed > 0.8 * rounds


def test_mutations_are_noticed_or_harmless(damaged):
  _assert_mutations_are_noticed_or_harmless(damaged, 40, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(1, 3))
def test_many_mutations_are_noticed_or_harmless(damaged, seed):
  _assert_mutations_are_noticed_or_harmless(damaged, 300, seed)
