"""How far predictions are from the truth, summed up tile by tile."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """How well one image was predicted. All but the cross entropy are of the median.

  Attributes:
    pixels: how many were compared.
    pearson_r: Pearson's correlation; nan if either image is constant.
    mae: mean absolute error, intensities being in [0, 1].
    rmse: root of the mean squared error, likewise.
    cross_entropy: mean of -ln p[true class] / ln 256: 0 is perfect, 1 a uniform guess.
  """

  pixels: int
  pearson_r: float
  mae: float
  rmse: float
  cross_entropy: float


class RunningScores:
  """Sums over the pixels seen so far, in double precision."""

  def __init__(self) -> None:
    self._pixels = 0
    # Of prediction, truth, their squares, their product, |error|, error^2, cross entropy.
    self._sums = np.zeros(8)
    # Intensities are summed as differences from the first pixel's, so that a constant's variance
    # is 0, not what rounding leaves of it.
    self._first: tuple[float, float] | None = None

  def add(self, predicted: np.ndarray, truth: np.ndarray, cross_entropy: np.ndarray) -> None:
    """Adds pixels: intensities in [0, 1] and cross entropies, three arrays of one shape."""
    x, y, c = (a.astype(np.float64).ravel() for a in (predicted, truth, cross_entropy))
    error = x - y
    if self._first is None:
      self._first = (x[0], y[0])
    x, y = x - self._first[0], y - self._first[1]
    self._pixels += x.size
    products = [x @ x, y @ y, x @ y]
    self._sums += [x.sum(), y.sum(), *products, np.abs(error).sum(), error @ error, c.sum()]

  def scores(self) -> Scores:
    """Of all pixels added; at least one is needed."""
    x, y, xx, yy, xy, absolute, squared, cross_entropy = self._sums / self._pixels
    variances = (xx - x * x) * (yy - y * y)
    return Scores(
      pixels=self._pixels,
      pearson_r=(xy - x * y) / math.sqrt(variances) if variances > 0 else math.nan,
      mae=absolute,
      rmse=math.sqrt(squared),
      cross_entropy=cross_entropy,
    )
