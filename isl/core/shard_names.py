"""Names of TFRecord shards, and which shards are kept for evaluation."""

from __future__ import annotations

# Of every so many shards, the first is for evaluation.
EVALUATION_SHARE = 8


def shard_name(flag: str, pattern: str, number: int) -> str:
  """Fills a shard's number into the pattern of shards' names.

  Args:
    flag: the flag that gave the pattern, for error messages.
    pattern: a pattern for Python's % operator with one %d (or %05d).
    number: the shard's number, from 0.

  Raises:
    ValueError: the pattern does not have one %d.
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
  """Whether the shard of this number is kept for evaluation and not trained on."""
  return number % EVALUATION_SHARE == 0
