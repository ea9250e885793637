"""Compares losses over time: how much sooner one training gets as far as another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

# Points (seconds, loss), in the order of time.
Curve = Sequence[tuple[float, float]]


def seconds_to(curve: Curve, loss: float) -> float | None:
  """Finds when a curve gets to a loss and stays at or below it, on lines between its points.

  A moment at which a noisy curve is below does not count: otherwise, of two curves that differ in
  noise alone, each would seem faster than the other.

  Returns:
    The time in seconds; that of the first point, if the curve stays below from there on; None if
    the curve ends above.
  """
  since: float | None = None
  before: tuple[float, float] | None = None
  for seconds, value in curve:
    if not value <= loss:
      since = None
    elif since is None:
      since = seconds
      if before is not None and math.isfinite(before[1]):
        share = (before[1] - loss) / (before[1] - value)
        since = before[0] + share * (seconds - before[0])
    before = (seconds, value)
  return since


def lowest_so_far(curve: Curve) -> Curve:
  """The curve of the lowest loss so far."""
  losses = itertools.accumulate((loss for _, loss in curve), min)
  return [(seconds, loss) for (seconds, _), loss in zip(curve, losses, strict=True)]


def times_as_fast(one: Curve, other: Curve) -> float:
  """How many times as fast as `other` the curve `one` is; above 1 if it ends with the lower loss.

  The curve that ends lower reaches the other's final loss in some part of the time. The result is
  one over this part if that is `one`, else this part. A curve whose last loss is not finite has got
  nowhere.
  """
  if not math.isfinite(other[-1][1]):
    return math.inf if math.isfinite(one[-1][1]) else 1.0
  if not one[-1][1] <= other[-1][1]:
    return 1 / times_as_fast(other, one) if math.isfinite(one[-1][1]) else 0.0
  seconds = seconds_to(one, other[-1][1])
  assert seconds is not None
  return other[-1][0] / seconds
