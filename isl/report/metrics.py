"""How far predictions are from the truth, summed up part by part in little memory.

Three questions are asked. How good is the median as a picture (correlation, SSIM, PSNR, MAE, RMSE)?
How good is the distribution as a forecast (negative log-likelihood, CRPS)? And does it mean what it
says: does a central 80% interval hold 80% of the true intensities (coverage, beside how wide the
interval is), and is a class with probability 0.3 the true one in 30% of its pixels?
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from skimage.metrics import structural_similarity

from isl.core.channels import ImageKey
from isl.core.parts import Part
from isl.core.statistic import INTERVALS, NUM_CLASSES, AnyStatistic, Statistic

# The statistics that scores are computed from.
NEEDED: tuple[AnyStatistic, ...] = (
  Statistic.MEDIAN,
  Statistic.MODE,
  Statistic.MODE_PROBABILITY,
  Statistic.CROSS_ENTROPY,
  Statistic.RANKED_PROBABILITY_SCORE,
  Statistic.PROBABILITY_BELOW,
  Statistic.PROBABILITY_UP_TO,
  *(quantile for ends in INTERVALS.values() for quantile in ends),
)

# Nominal coverages, in percent, whose mean error is reported.
NOMINAL = tuple(range(5, 100, 5))
# The ends of all central intervals of NOMINAL are among the shares i / _PIT_STEPS.
_PIT_STEPS = 40
_CONFIDENCE_BINS = 15
# Two cumulative probabilities that are nearer than this are one; float32 resolves less near 1.
_NO_PROBABILITY = 1e-9

# Side of the window within which images are compared, scikit-image's default, in pixels.
_SSIM_WINDOW = 7
_SSIM_RADIUS = _SSIM_WINDOW // 2
# SSIM takes a dozen arrays of double precision, of about this many pixels at a time.
_SSIM_PIXELS = 1 << 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """How well one label of one field of view was predicted; intensities are in [0, 1].

  The first five compare the median with the truth, the others the whole distribution.

  Coverage counts a pixel by the expected share of its randomized probability integral transform,
  see Reliability. Widths need no such thing, but the discreteness shows: a quantile is the value of
  a class, so that a width is a multiple of 1/255, the interval with both its ends holds at least
  its nominal probability, and 0 means that one class holds that much.

  Attributes:
    pixels: number of pixels that were compared.
    pearson_r: Pearson's correlation; nan if either image is constant.
    ssim: mean structural similarity in windows of 7 x 7 pixels, scikit-image's
      structural_similarity; nan of images that are smaller. (Wang et al., Image quality assessment,
      IEEE Transactions on Image Processing 2004.)
    psnr: -10 log10(mean squared error), in dB: the peak is an intensity of 1. inf if perfect.
    mae: mean absolute error.
    rmse: root of the mean squared error.
    cross_entropy: mean of -ln p[true class] / ln 256: 0 is perfect, 1 a uniform guess.
    negative_log_likelihood: mean of -ln p[true class], in nats.
    crps: mean continuous ranked probability score, in units of intensity: the integral over
      intensity of (F - H)^2, where F is the predicted distribution function and H the true class's
      step. F is constant between classes, 1/255 apart, so that this is the sum over classes of
      (F - H)^2 / 255, RANKED_PROBABILITY_SCORE. Of a point mass it is the absolute error.
      (Gneiting and Raftery, Strictly proper scoring rules, JASA 2007.)
    coverage_50: share of true intensities in the central 50% interval; ideal is 0.5.
    coverage_80: share of true intensities in the central 80% interval; ideal is 0.8.
    coverage_95: share of true intensities in the central 95% interval; ideal is 0.95.
    width_50: mean width of the central 50% interval, an intensity; narrow is sharp.
    width_80: mean width of the central 80% interval.
    width_95: mean width of the central 95% interval.
    coverage_error: mean |observed - nominal coverage| over central intervals of 5, 10, .., 95%.
      (Kuleshov et al., Accurate uncertainties for deep learning, ICML 2018.)
    expected_calibration_error: mean |accuracy - confidence| over 15 equal bins of the likeliest
      class's probability, weighted by their pixels. (Guo et al., On calibration of modern neural
      networks, ICML 2017.)
  """

  pixels: int
  pearson_r: float
  ssim: float
  psnr: float
  mae: float
  rmse: float
  cross_entropy: float
  negative_log_likelihood: float
  crps: float
  coverage_50: float
  coverage_80: float
  coverage_95: float
  width_50: float
  width_80: float
  width_95: float
  coverage_error: float
  expected_calibration_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
  """Observed beside predicted frequencies of one label of one field of view.

  A calibrated forecast's probability integral transform (PIT), the share u of its distribution up
  to what came true, is uniform. Of a discrete distribution that holds if u is drawn evenly between
  F(c - 1) and F(c), c being the true class: then a background that is black with certainty counts
  as calibrated, and not as covered by every interval. Instead of drawing, the expectation is taken:
  each pixel spreads its weight evenly from F(c - 1) to F(c). (Czado, Gneiting and Held, Predictive
  model assessment for count data, Biometrics 2009.)

  Attributes:
    pixels: number of pixels that were compared.
    pit: the mean share of a pixel's u that is at most i / 40, for i = 0, .., 40; from 0 to 1.
    bin_pixels: number of pixels whose likeliest class has a probability above i / 15 and up to
      (i + 1) / 15, for i = 0, .., 14.
    bin_confidence: the sum of these probabilities in each bin.
    bin_correct: number of pixels in each bin whose likeliest class is the true one.
  """

  pixels: int
  pit: tuple[float, ...]
  bin_pixels: tuple[int, ...]
  bin_confidence: tuple[float, ...]
  bin_correct: tuple[int, ...]

  def coverage(self, percent: int) -> float:
    """Observed share of the truth in the central interval of this nominal percentage.

    Args:
      percent: one of NOMINAL, or 100.
    """
    steps, remainder = divmod(percent * _PIT_STEPS, 200)
    assert remainder == 0, percent
    middle = _PIT_STEPS // 2
    return self.pit[middle + steps] - self.pit[middle - steps]

  @property
  def coverage_error(self) -> float:
    """Mean |observed - nominal coverage| over NOMINAL."""
    errors = [abs(self.coverage(percent) - percent / 100) for percent in NOMINAL]
    return sum(errors) / len(errors)

  @property
  def expected_calibration_error(self) -> float:
    """Mean |accuracy - confidence| over the bins, weighted by their pixels."""
    pairs = zip(self.bin_correct, self.bin_confidence, strict=True)
    return sum(abs(correct - confidence) for correct, confidence in pairs) / self.pixels


class RunningScores:
  """A sink that scores one label: it sums over the pixels seen so far, in double precision.

  The order of the parts matters to the SSIM alone, whose windows reach over the parts' edges: it is
  computed of whole rows, which have to come from the top down. Only as many rows are kept as a part
  has.

  Attributes:
    keys: the label's key, alone.
    statistics: the statistics that scores are computed from.
  """

  statistics = NEEDED

  def __init__(self, key: ImageKey, *, columns: int) -> None:
    """Begins with no pixels.

    Args:
      key: the label's key.
      columns: number of columns of the whole image, in pixels.
    """
    self.keys = (key,)
    self._errors = _Errors()
    self._rows = _Rows(columns)
    self._ssim = _Ssim(columns)
    self._observed = _Observed()
    self._cross_entropy = 0.0
    self._crps = 0.0
    self._widths = dict.fromkeys(INTERVALS, 0.0)

  def add(self, part: Part) -> None:
    """Adds a part whose truth is known."""
    predicted, truth = part.predicted, part.truth
    assert truth is not None, part.key
    median = predicted[Statistic.MEDIAN]
    self._errors.add(median, truth)
    self._observed.add(predicted, truth)
    self._cross_entropy += _sum(predicted[Statistic.CROSS_ENTROPY])
    self._crps += _sum(predicted[Statistic.RANKED_PROBABILITY_SCORE])
    for percent, (lower, upper) in INTERVALS.items():
      self._widths[percent] += _sum(predicted[upper]) - _sum(predicted[lower])
    whole = self._rows.add(part.rows, part.columns, np.stack([median, truth]))
    if whole is not None:
      self._ssim.add(*whole)

  def scores(self) -> Scores:
    """Computes the scores of all pixels that were added, at least one."""
    reliability = self.reliability()
    pixels = reliability.pixels
    mean_squared = self._errors.squared / pixels
    return Scores(
      pixels=pixels,
      pearson_r=self._errors.pearson_r(),
      ssim=self._ssim.mean(),
      psnr=math.inf if mean_squared == 0 else -10 * math.log10(mean_squared),
      mae=self._errors.absolute / pixels,
      rmse=math.sqrt(mean_squared),
      cross_entropy=self._cross_entropy / pixels,
      negative_log_likelihood=self._cross_entropy / pixels * math.log(NUM_CLASSES),
      crps=self._crps / pixels,
      coverage_50=reliability.coverage(50),
      coverage_80=reliability.coverage(80),
      coverage_95=reliability.coverage(95),
      width_50=self._widths[50] / pixels,
      width_80=self._widths[80] / pixels,
      width_95=self._widths[95] / pixels,
      coverage_error=reliability.coverage_error,
      expected_calibration_error=reliability.expected_calibration_error,
    )

  def reliability(self) -> Reliability:
    """Computes the reliability of all pixels that were added, at least one."""
    return self._observed.reliability()


def _sum(values: np.ndarray) -> float:
  return float(values.sum(dtype=np.float64))


class _Errors:
  """Sums up medians and truths, their products and their differences."""

  def __init__(self) -> None:
    self._pixels = 0
    self.absolute = 0.0
    self.squared = 0.0
    # The sums of median, truth, their squares, and their product.
    self._sums = np.zeros(5)
    # Intensities are summed as differences from the first pixel's, so that a constant's variance
    # is 0, not what rounding leaves of it.
    self._first: tuple[float, float] | None = None

  def add(self, median: np.ndarray, truth: np.ndarray) -> None:
    x, y = (image.astype(np.float64).ravel() for image in (median, truth))
    error = x - y
    self.absolute += float(np.abs(error).sum())
    self.squared += float((error * error).sum())
    if self._first is None:
      self._first = (x[0], y[0])
    x, y = x - self._first[0], y - self._first[1]
    self._pixels += x.size
    # Not `x @ y`: BLAS would wake its threads, which takes ten times as long as the sum.
    self._sums += [values.sum() for values in (x, y, x * x, y * y, x * y)]

  def pearson_r(self) -> float:
    x, y, xx, yy, xy = map(float, self._sums / self._pixels)
    variances = (xx - x * x) * (yy - y * y)
    return (xy - x * y) / math.sqrt(variances) if variances > 0 else math.nan


class _Rows:
  """Puts parts that lie beside each other together to whole rows."""

  def __init__(self, columns: int) -> None:
    self._columns = columns
    self._rows = slice(0, 0)
    self._pictures = np.empty((2, 0, columns), np.float32)
    self._missing = 0

  def add(self, rows: slice, columns: slice, pictures: np.ndarray) -> np.ndarray | None:
    """Takes in a part, [picture, row, column]; gives the whole rows if it was their last part."""
    if rows != self._rows:
      self._rows, self._missing = rows, self._columns
      self._pictures = np.empty((*pictures.shape[:2], self._columns), np.float32)
    self._pictures[:, :, columns] = pictures
    self._missing -= columns.stop - columns.start
    return None if self._missing else self._pictures


class _Ssim:
  """Sums up the SSIM of all windows, band by band; bands overlap by as much as windows reach."""

  def __init__(self, columns: int) -> None:
    # The last rows so far of median and truth; in double precision, since in single precision the
    # variance in a bright window would be lost to rounding.
    self._above = np.empty((2, 0, columns))
    self._sum = 0.0
    self._windows = 0

  def add(self, median: np.ndarray, truth: np.ndarray) -> None:
    columns = self._above.shape[2]
    assert median.shape == truth.shape == (len(median), columns), (median.shape, truth.shape)
    step = max(_SSIM_PIXELS // columns, _SSIM_WINDOW)
    for first in range(0, len(median), step):
      band = slice(first, first + step)
      rows = np.concatenate([self._above, np.stack([median[band], truth[band]])], axis=1)
      self._above = rows[:, 1 - _SSIM_WINDOW :].copy()
      if min(rows.shape[1:]) >= _SSIM_WINDOW:
        self._add_windows(rows)

  def _add_windows(self, rows: np.ndarray) -> None:
    _, ssim = structural_similarity(*rows, win_size=_SSIM_WINDOW, data_range=1, full=True)
    inside = ssim[_SSIM_RADIUS:-_SSIM_RADIUS, _SSIM_RADIUS:-_SSIM_RADIUS]
    self._sum += float(inside.sum())
    self._windows += inside.size

  def mean(self) -> float:
    return self._sum / self._windows if self._windows else math.nan


class _Observed:
  """Sums up observed and predicted frequencies, from which a Reliability is made."""

  def __init__(self) -> None:
    self._pixels = 0
    self._pit = np.zeros(_PIT_STEPS + 1)
    self._bin_pixels = np.zeros(_CONFIDENCE_BINS, np.int64)
    self._bin_confidence = np.zeros(_CONFIDENCE_BINS)
    self._bin_correct = np.zeros(_CONFIDENCE_BINS, np.int64)

  def add(self, predicted: Mapping[AnyStatistic, np.ndarray], truth: np.ndarray) -> None:
    self._pixels += truth.size
    self._add_pit(predicted[Statistic.PROBABILITY_BELOW], predicted[Statistic.PROBABILITY_UP_TO])
    confidence = predicted[Statistic.MODE_PROBABILITY].astype(np.float64).ravel()
    bins = np.ceil(confidence * _CONFIDENCE_BINS).astype(np.intp) - 1
    bins = np.clip(bins, 0, _CONFIDENCE_BINS - 1)
    correct = _classes(predicted[Statistic.MODE]) == _classes(truth)
    self._bin_pixels += np.bincount(bins, minlength=_CONFIDENCE_BINS)
    self._bin_confidence += np.bincount(bins, confidence, _CONFIDENCE_BINS)
    self._bin_correct += np.bincount(bins[correct.ravel()], minlength=_CONFIDENCE_BINS)

  def _add_pit(self, below: np.ndarray, up_to: np.ndarray) -> None:
    # Rounding may leave a sum of probabilities above 1.
    low, high = (np.clip(p.astype(np.float64).ravel(), 0, 1) for p in (below, up_to))
    # A true class whose probability underflowed has all its weight at F(c).
    length = np.maximum(high - low, _NO_PROBABILITY)
    low = high - length
    # Level by level, as 16384 pixels fit into the cache. No weight is below 0, nor above 1.
    for i in range(1, _PIT_STEPS):
      self._pit[i] += np.clip((i / _PIT_STEPS - low) / length, 0, 1).sum()
    self._pit[-1] += low.size

  def reliability(self) -> Reliability:
    assert self._pixels, 'no pixels were added'
    return Reliability(
      pixels=self._pixels,
      pit=tuple((self._pit / self._pixels).tolist()),
      bin_pixels=tuple(self._bin_pixels.tolist()),
      bin_confidence=tuple(self._bin_confidence.tolist()),
      bin_correct=tuple(self._bin_correct.tolist()),
    )


def _classes(intensities: np.ndarray) -> np.ndarray:
  """Computes round(255 * intensity), in single precision, as the network's targets are made."""
  return np.rint(intensities * np.float32(NUM_CLASSES - 1))
