"""The statistics of a pixel's predicted distribution that isl reports, and their names."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

# A pixel's intensity is one of this many classes; class k has the value k / (NUM_CLASSES - 1).
NUM_CLASSES = 256

_QUANTILE_PREFIX = 'QUANTILE_'


class Statistic(enum.Enum):
  """A statistic of a pixel's predicted distribution; formulas are in isl/models/ops.py."""

  MODE = 'MODE'
  MEDIAN = 'MEDIAN'
  MEAN = 'MEAN'
  STANDARD_DEVIATION = 'STANDARD_DEVIATION'
  PROBABILITY_NONZERO = 'PROBABILITY_NONZERO'
  ENTROPY = 'ENTROPY'
  # The distribution itself: all classes' probabilities.
  DISTRIBUTION = 'DISTRIBUTION'
  # These compare the distribution with the true class.
  CROSS_ENTROPY = 'CROSS_ENTROPY'
  RANKED_PROBABILITY_SCORE = 'RANKED_PROBABILITY_SCORE'
  PROBABILITY_BELOW = 'PROBABILITY_BELOW'
  PROBABILITY_UP_TO = 'PROBABILITY_UP_TO'
  # The probability of the likeliest class.
  MODE_PROBABILITY = 'MODE_PROBABILITY'


@dataclasses.dataclass(frozen=True)
class Quantile:
  """The lowest intensity below or at which lies a given share of a pixel's distribution.

  QUANTILE_50 is the median.

  Attributes:
    percent: the share in percent, above 0 and below 100.
  """

  percent: float

  def __post_init__(self) -> None:
    """Checks that `percent` is a share.

    Raises:
      ValueError: `percent` is not above 0 and below 100.
    """
    if not (math.isfinite(self.percent) and 0 < self.percent < 100):
      raise ValueError(f'a quantile must be above 0 and below 100 percent, got {self.percent:g}')

  @property
  def name(self) -> str:
    """The quantile's name in flags and file names: QUANTILE_2.5, for example."""
    return f'{_QUANTILE_PREFIX}{self.percent:g}'

  @property
  def value(self) -> str:
    """The quantile's name, under the attribute by which members of Statistic have theirs."""
    return self.name


AnyStatistic = Statistic | Quantile

# The statistics, besides quantiles, that can be drawn as a picture of any field of view.
PICTURE_STATISTICS = (
  Statistic.MODE,
  Statistic.MEDIAN,
  Statistic.MEAN,
  Statistic.STANDARD_DEVIATION,
  Statistic.PROBABILITY_NONZERO,
  Statistic.ENTROPY,
)

# The names that `parse` takes, as errors list them.
ALLOWED = ', '.join(
  [s.name for s in (*PICTURE_STATISTICS, Statistic.DISTRIBUTION)] + [f'{_QUANTILE_PREFIX}<percent>']
)


def is_class(statistic: AnyStatistic) -> bool:
  """Whether a statistic's values are intensities of classes: k / (NUM_CLASSES - 1)."""
  return isinstance(statistic, Quantile) or statistic in (Statistic.MODE, Statistic.MEDIAN)


def parse(name: str) -> AnyStatistic:
  """Finds the statistic that has a name.

  Raises:
    ValueError: no statistic has that name, or the one that has it needs the truth.
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


# By percentage, the ends of the central interval that this percentage of the truth should lie in.
INTERVALS = {
  percent: (Quantile(50 - percent / 2), Quantile(50 + percent / 2)) for percent in (50, 80, 95)
}


def parse_all(names: Sequence[str]) -> tuple[AnyStatistic, ...]:
  """Finds the statistics that have these names; raises ValueError as `parse` does."""
  return tuple(parse(name) for name in names)
