"""Losses over time, and how much sooner one gets how far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

# (seconds, loss), by time.
Curve = Sequence[tuple[float, float]]


def seconds_to(curve: Curve, loss: float) -> float | None:
  """From when on a curve stays at or below a loss, on straight lines between its points.

  Where a noisy curve is below for a moment does not count: of two curves that differ in noise only,
  each would else seem faster than the other.

  Returns:
    Seconds; those of the first point, if it stays below from there on; None if it ends above.
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
  """The curve of what is kept where only the best is."""
  losses = itertools.accumulate((loss for _, loss in curve), min)
  return [(seconds, loss) for (seconds, _), loss in zip(curve, losses, strict=True)]


def times_as_fast(one: Curve, other: Curve) -> float:
  """How much sooner `one` gets as far as `other`: above 1 if it ends with the lower loss.

  The one that ends lower reaches the other's final loss in some part of the time: the ratio is one
  over this part, or if it is the other, this part. A curve whose losses are not finite at the end
  has got nowhere.
  """
  if not math.isfinite(other[-1][1]):
    return math.inf if math.isfinite(one[-1][1]) else 1.0
  if not one[-1][1] <= other[-1][1]:
    return 1 / times_as_fast(other, one) if math.isfinite(one[-1][1]) else 0.0
  seconds = seconds_to(one, other[-1][1])
  assert seconds is not None
  return other[-1][0] / seconds
