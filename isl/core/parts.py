"""What passes from the network to all that takes in predictions: parts of predicted images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from isl.core.channels import ImageKey
from isl.core.statistic import AnyStatistic


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
  """A rectangle of one predicted image of a field of view.

  Attributes:
    key: key of the image.
    rows: rows of the rectangle in the prediction, in pixels; there is at least one.
    columns: columns of the rectangle in the prediction, in pixels; there is at least one.
    predicted: statistics of the rectangle's pixels, at least all that the sink needs: float32 [row,
      column]; of DISTRIBUTION, [row, column, class].
    truth: the intensities that were recorded there, float32 [row, column] in [0, 1]; None: the
      field of view lacks the image.
  """

  key: ImageKey
  rows: slice
  columns: slice
  predicted: Mapping[AnyStatistic, np.ndarray]
  truth: np.ndarray | None


class Sink(Protocol):
  """What takes in the predictions of a field of view.

  Parts come row by row of tiles, and within a row from left to right; together, the parts of an
  image cover each of its pixels once.
  """

  @property
  def keys(self) -> tuple[ImageKey, ...]:
    """Keys of the images whose parts it takes: labels, or images of the network's own input."""

  @property
  def statistics(self) -> tuple[AnyStatistic, ...]:
    """The statistics that it needs of each of these images."""

  def add(self, part: Part) -> None:
    """Takes in a part of one of the images."""
