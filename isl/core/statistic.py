"""What is reported of a pixel's predicted distribution."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

# A pixel's intensity is one of this many classes; class k has the value k / (NUM_CLASSES - 1).
NUM_CLASSES = 256

_QUANTILE_PREFIX = 'QUANTILE_'


class Statistic(enum.Enum):
  """What is reported of a pixel's predicted distribution; formulas in ops.py."""

  MODE = 'MODE'
  MEDIAN = 'MEDIAN'
  MEAN = 'MEAN'
  STANDARD_DEVIATION = 'STANDARD_DEVIATION'
  PROBABILITY_NONZERO = 'PROBABILITY_NONZERO'
  ENTROPY = 'ENTROPY'
  # The distribution itself: all classes' probabilities.
  DISTRIBUTION = 'DISTRIBUTION'
  # What these say needs the truth.
  CROSS_ENTROPY = 'CROSS_ENTROPY'
  RANKED_PROBABILITY_SCORE = 'RANKED_PROBABILITY_SCORE'
  PROBABILITY_BELOW = 'PROBABILITY_BELOW'
  PROBABILITY_UP_TO = 'PROBABILITY_UP_TO'
  # Of the likeliest class.
  MODE_PROBABILITY = 'MODE_PROBABILITY'


@dataclasses.dataclass(frozen=True)
class Quantile:
  """The lowest intensity up to which a share of the distribution lies; QUANTILE_50 is the median.

  Attributes:
    percent: that share, above 0 and below 100.
  """

  percent: float

  def __post_init__(self) -> None:
    """Checks the share.

    Raises:
      ValueError: it is not between 0 and 100.
    """
    if not (math.isfinite(self.percent) and 0 < self.percent < 100):
      raise ValueError(f'a quantile must be above 0 and below 100 percent, got {self.percent:g}')

  @property
  def name(self) -> str:
    """As flags and file names have it: QUANTILE_2.5."""
    return f'{_QUANTILE_PREFIX}{self.percent:g}'

  @property
  def value(self) -> str:
    """Likewise, as an enumeration's."""
    return self.name


AnyStatistic = Statistic | Quantile

# Those that are a picture of any field of view, quantiles apart.
PICTURE_STATISTICS = (
  Statistic.MODE,
  Statistic.MEDIAN,
  Statistic.MEAN,
  Statistic.STANDARD_DEVIATION,
  Statistic.PROBABILITY_NONZERO,
  Statistic.ENTROPY,
)

# What can be asked for by name.
ALLOWED = ', '.join(
  [s.name for s in (*PICTURE_STATISTICS, Statistic.DISTRIBUTION)] + [f'{_QUANTILE_PREFIX}<percent>']
)


def is_class(statistic: AnyStatistic) -> bool:
  """Whether its values are those of classes, k / (NUM_CLASSES - 1)."""
  return isinstance(statistic, Quantile) or statistic in (Statistic.MODE, Statistic.MEDIAN)


def parse(name: str) -> AnyStatistic:
  """The statistic of a name.

  Raises:
    ValueError: there is none of that name that could be written of any field of view.
  """
  for statistic in (*PICTURE_STATISTICS, Statistic.DISTRIBUTION):
    if statistic.name == name:
      return statistic
  if name.startswith(_QUANTILE_PREFIX):
    try:
      quantile = Quantile(float(name.removeprefix(_QUANTILE_PREFIX)))
    except ValueError:
      pass
    else:
      if quantile.name == name:
        return quantile
  raise ValueError(
    f'{name!r} is not one of {ALLOWED} (a number between 0 and 100, such as QUANTILE_2.5)'
  )


# The ends of the central intervals that metrics report, by the percentage that these should hold.
INTERVALS = {
  percent: (Quantile(50 - percent / 2), Quantile(50 + percent / 2)) for percent in (50, 80, 95)
}


def parse_all(names: Sequence[str]) -> tuple[AnyStatistic, ...]:
  """The statistics of names; raises ValueError as `parse` does."""
  return tuple(parse(name) for name in names)
