"""What TFRecord shards are called, and which are for evaluation."""

from __future__ import annotations

# Of so many shards, the first is for evaluation.
EVALUATION_SHARE = 8


def shard_name(flag: str, pattern: str, number: int) -> str:
  """The name of a shard.

  Args:
    flag: what the pattern was given by, for errors.
    pattern: as for Python's %, with one %d (or %05d).
    number: of the shard, from 0 on.

  Raises:
    ValueError: the pattern is another.
  """
  try:
    name, next_name = pattern % number, pattern % (number + 1)
  except (TypeError, ValueError) as e:
    raise ValueError(
      f'{flag} must have one %d (or %05d) for the number of the shard, got {pattern!r}'
    ) from e
  if name == next_name:
    raise ValueError(f'{flag} must have a %d for the number of the shard, got {pattern!r}')
  return name


def is_for_evaluation(number: int) -> bool:
  """Whether a shard is held out of training."""
  return number % EVALUATION_SHARE == 0
