"""Temperatures of labels' distributions: fitting them, and calibration.json beside a checkpoint.

A network that was trained long is often too sure of itself. One number per label mends most of
that: p_T is proportional to p^(1 / T), which is the softmax of logits / T; T > 1 widens. (Guo et
al., On calibration of modern neural networks, ICML 2017.) T is fitted on fields of view that
neither training nor later reports use: isl/inference/calibrate.py reads and predicts these.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import optimize, special

from isl.core.statistic import NUM_CLASSES
from isl.system import files

NAME = 'calibration.json'
_FORMAT = 1
_REMEDY = 'run --calibrate again'

# The range in which temperatures are searched.
LOWEST, HIGHEST = 0.05, 20.0
# Number of a label's pixels that is enough to fit one temperature.
SAMPLE_PIXELS = 20_000
# Number of pixels that a step of the fit looks at together: 2 MB of logarithms.
_CHUNK = 2048

# The rank at a place of a sample that has no pixel.
_EMPTY = np.uint64(2**64 - 1)


class PixelSample:
  """Pixels of one label, drawn evenly from any number of fields of view.

  Every pixel has a pseudorandom rank, which depends on its place alone, and the pixels with the
  lowest ranks are kept. So all are equally likely to be kept, their number need not be known in
  advance, and neither the order nor the shapes of the tiles matter.
  """

  def __init__(self, most: int = SAMPLE_PIXELS) -> None:
    """Makes a sample without pixels.

    Args:
      most: number of pixels that are kept at most; each takes 1 KB.
    """
    self._ranks = np.full(most, _EMPTY)
    self._log_p = np.empty((most, NUM_CLASSES), np.float32)
    self._classes = np.empty(most, np.uint8)

  def add(
    self, field: int, rows: slice, columns: slice, log_p: np.ndarray, classes: np.ndarray
  ) -> None:
    """Takes those of a tile's pixels that have low ranks.

    Tiles come in any order; each pixel must come once.

    Args:
      field: the field of view's number.
      rows: rows of the tile in its field of view, in pixels.
      columns: columns of the tile in its field of view, in pixels.
      log_p: logarithms of the predicted probabilities, or logits: float32 [row, column, class].
      classes: true classes, uint8 [row, column].
    """
    most = len(self._ranks)
    ranks = _ranks(field, rows, columns)
    assert log_p.shape == (*classes.shape, NUM_CLASSES), (log_p.shape, classes.shape)
    assert classes.size == ranks.size, (classes.shape, rows, columns)
    lowest = np.argsort(np.concatenate([self._ranks, ranks]), kind='stable')[:most]
    chosen = lowest[lowest >= most] - most
    # As many have to leave as come: empty places first, then the highest ranks.
    places = np.argsort(self._ranks)[most - len(chosen) :]
    self._ranks[places] = ranks[chosen]
    self._log_p[places] = log_p.reshape(-1, NUM_CLASSES)[chosen]
    self._classes[places] = classes.ravel()[chosen]

  def __len__(self) -> int:
    return int(np.count_nonzero(self._ranks != _EMPTY))

  def pixels(self) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that were kept, in the order of their ranks.

    Returns:
      log_p, float32 [pixel, class], and true classes, uint8 [pixel].
    """
    order = np.argsort(self._ranks)[: len(self)]
    return self._log_p[order], self._classes[order]


def _ranks(field: int, rows: slice, columns: slice) -> np.ndarray:
  """Computes a rank for each pixel of a tile, different for different places.

  It is SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014) of
  the pixel's place. Its steps can be undone, so no two places have the same rank.

  Returns:
    uint64 [row * column].
  """
  assert 0 <= field < 1 << 16, field
  assert max(rows.stop, columns.stop) <= 1 << 24, (rows, columns)
  row, column = (np.arange(s.start, s.stop, dtype=np.uint64) for s in (rows, columns))
  x = (np.uint64(field << 48) | (row[:, np.newaxis] << np.uint64(24)) | column).ravel()
  x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def mean_nll(log_p: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
  """Computes the mean negative log-likelihood: the mean of -ln p_T[true class], in nats.

  Args:
    log_p: logarithms of probabilities, or logits, all finite: float32 [pixel, class].
    classes: true classes, uint8 [pixel].
    temperature: the temperature T; 1: the network's own distributions.
  """
  total = 0.0
  for first in range(0, len(classes), _CHUNK):
    chunk = slice(first, first + _CHUNK)
    scaled = log_p[chunk] / np.float32(temperature)
    true = np.take_along_axis(scaled, classes[chunk, np.newaxis].astype(np.intp), axis=1)[:, 0]
    total += float(np.sum(special.logsumexp(scaled, axis=1) - true, dtype=np.float64))
  return total / len(classes)


def fit_temperature(log_p: np.ndarray, classes: np.ndarray) -> float:
  """Finds the temperature in [0.05, 20] at which the mean negative log-likelihood is lowest.

  The mean is convex in 1 / T, so there is one minimum.

  Args:
    log_p: logarithms of probabilities, or logits, all finite: float32 [pixel, class].
    classes: true classes, uint8 [pixel]; at least one.

  Returns:
    The temperature; 1 if no other is better.
  """
  assert len(classes) > 0
  found = optimize.minimize_scalar(
    lambda log_t: mean_nll(log_p, classes, math.exp(log_t)),
    bounds=(math.log(LOWEST), math.log(HIGHEST)),
    method='bounded',
    options={'xatol': 1e-4},
  )
  # Distributions that are as good as they can be stay as they are.
  return math.exp(found.x) if found.fun < mean_nll(log_p, classes) else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """A label's temperature, and how much better it makes the label's distributions.

  Attributes:
    temperature: the temperature T; 1 changes nothing.
    pixels: number of pixels that the temperature was fitted on.
    nll_before: mean negative log-likelihood of these pixels with the network's own distributions,
      in nats.
    nll_after: mean negative log-likelihood of these pixels with the distributions at the
      temperature, in nats; not above `nll_before`.
  """

  temperature: float
  pixels: int
  nll_before: float
  nll_after: float


def fit(sample: PixelSample) -> Fit:
  """Fits a label's temperature to a sample of its pixels, at least one."""
  log_p, classes = sample.pixels()
  temperature = fit_temperature(log_p, classes)
  return Fit(
    temperature=temperature,
    pixels=len(classes),
    nll_before=mean_nll(log_p, classes),
    nll_after=mean_nll(log_p, classes, temperature),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """The temperatures of a checkpoint's labels, and what they were fitted on.

  Attributes:
    checkpoint: the checkpoint's name: model.ckpt-500, for example.
    step: the checkpoint's global step.
    fingerprint: fingerprint of the checkpoint's contents.
    folders: folders, files or manifests of the fields of view that the temperatures were fitted on.
    fields: names of these fields of view, by a fingerprint of their contents. The fingerprint
      should be of the input alone, so that it is found again whatever labels are asked for.
    fits: the fit of each label, by channel.
  """

  checkpoint: str
  step: int
  fingerprint: str
  folders: tuple[pathlib.Path, ...]
  fields: Mapping[str, str]
  fits: Mapping[str, Fit]

  @property
  def temperatures(self) -> dict[str, float]:
    """The temperature of each label, by channel."""
    return {channel: of_channel.temperature for channel, of_channel in self.fits.items()}

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes calibration.json to the checkpoint's folder.

    Raises:
      OSError: the file cannot be written.
    """
    contents = dataclasses.asdict(self)
    contents['folders'] = [str(path.resolve()) for path in self.folders]
    files.write_json(pathlib.Path(folder) / NAME, {'format': _FORMAT, **contents})

  def check_checkpoint(self, fingerprint: str) -> None:
    """Checks that the temperatures are of the checkpoint whose contents have this fingerprint.

    Raises:
      ValueError: the temperatures are of another checkpoint.
    """
    if fingerprint != self.fingerprint:
      raise ValueError(
        f'{NAME} is of another checkpoint, {self.checkpoint} at step {self.step}; {_REMEDY}'
      )

  def check_not_fitted_on(
    self, folders: Iterable[str | os.PathLike[str]], fields: Mapping[str, str]
  ) -> None:
    """Checks that images were not used for the fit, since reports on them would look too good.

    Args:
      folders: folders of images, files or manifests.
      fields: names of fields of view by fingerprints, made like those of the fit.

    Raises:
      ValueError: one of them was used for the fit.
    """
    used = {path.resolve() for path in self.folders}
    names = [repr(str(folder)) for folder in folders if pathlib.Path(folder).resolve() in used]
    names += [f'field of view {name!r}' for key, name in fields.items() if key in self.fields]
    if names:
      raise ValueError(
        f'the temperatures in {NAME} were fitted on {", ".join(names)}; choose other images,'
        ' or run --calibrate on others'
      )


def load(folder: str | os.PathLike[str]) -> Calibration:
  """Reads calibration.json in a checkpoint's folder.

  Raises:
    ValueError: there is no such file, or it is damaged, or is another program's.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(folder) / NAME
  try:
    contents = files.read_json(path, _REMEDY)
  except (FileNotFoundError, NotADirectoryError) as e:
    raise ValueError(f'{str(path)!r} is missing; --calibrate makes it') from e
  try:
    return _parse(contents)
  except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
    raise ValueError(
      f'{str(path)!r} is damaged, or not a calibration of this version of isl; {_REMEDY}'
      f' ({type(e).__name__}: {e})'
    ) from e


def _parse(contents: dict[str, Any]) -> Calibration:
  """Makes a Calibration of the file's contents; raises exceptions that `load` expects if wrong."""
  if contents['format'] != _FORMAT:
    raise ValueError(f'"format" is {contents["format"]!r}, not {_FORMAT}')
  return Calibration(
    checkpoint=_of_type(str, contents['checkpoint']),
    step=_of_type(int, contents['step']),
    fingerprint=_of_type(str, contents['fingerprint']),
    folders=tuple(pathlib.Path(f) for f in _of_type(list, contents['folders'])),
    fields={key: _of_type(str, name) for key, name in contents['fields'].items()},
    fits={channel: _parse_fit(values) for channel, values in contents['fits'].items()},
  )


def _parse_fit(values: dict[str, Any]) -> Fit:
  result = Fit(
    temperature=float(values['temperature']),
    pixels=_of_type(int, values['pixels']),
    nll_before=float(values['nll_before']),
    nll_after=float(values['nll_after']),
  )
  if not LOWEST <= result.temperature <= HIGHEST:
    raise ValueError(f'a temperature is {result.temperature:g}, not in [{LOWEST:g}, {HIGHEST:g}]')
  return result


def _of_type(kind: type, value: Any) -> Any:
  if not isinstance(value, kind):
    raise TypeError(f'{value!r:.40} is not {kind.__name__}')
  return value
