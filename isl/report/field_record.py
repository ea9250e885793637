"""What is known of a field of view that is done: `field.json`, beside its files.

It is written last, so that where it is, all else is. A run that is started again finds by it what
it need not do again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from isl.system import files

_NAME = 'field.json'
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRecord:
  """What is known of a label. Paths are relative to the record's folder.

  Attributes:
    channel: the label's name.
    prediction: path of a small picture of the predicted medians.
    truth: path of a small picture of the true intensities; None: they are unknown.
    error: path of a small picture of how the two differ; None: the truth is unknown.
    reliability: path of a diagram of predicted against observed frequencies; None: the truth is
      unknown.
    scores: the label's scores, by name; empty if the truth is unknown. Infinity and nan, which JSON
      lacks, are text.
    calibration: observed frequencies, see metrics.Reliability; empty if the truth is unknown.
  """

  channel: str
  prediction: str
  truth: str | None = None
  error: str | None = None
  reliability: str | None = None
  scores: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
  calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldRecord:
  """What is known of a field of view. Sizes are in pixels, paths relative to the record's folder.

  Attributes:
    field: the field of view's name.
    fingerprint: fingerprint of all that the files depend on.
    image_size: (rows, columns) of the images.
    output_size: (rows, columns) of the predictions.
    output_offset: (row, column) of the images at which the predictions begin.
    padded_margin: rows and columns at each border whose prediction depends on padding.
    pixel_size: a pixel's (height, width) in micrometres; None: unknown.
    seconds: seconds that the labeling took.
    files: paths of the error panels and predictions.
    input: path of a small picture of the input.
    labels: the records of the predicted labels.
  """

  field: str
  fingerprint: str
  image_size: tuple[int, int]
  output_size: tuple[int, int]
  output_offset: tuple[int, int]
  padded_margin: int
  pixel_size: tuple[float, float] | None
  seconds: float
  files: tuple[str, ...]
  input: str
  labels: tuple[LabelRecord, ...]

  @property
  def pictures(self) -> tuple[str, ...]:
    """Paths of the small pictures and diagrams."""
    pictures = [self.input]
    for label in self.labels:
      pictures += [p for p in (label.prediction, label.truth, label.error, label.reliability) if p]
    return tuple(pictures)

  @property
  def all_files(self) -> tuple[str, ...]:
    """Paths of all files of the field of view, the record itself included."""
    return (*self.files, *self.pictures, _NAME)

  def write(self, folder: pathlib.Path) -> None:
    """Writes the record to the field of view's folder.

    Raises:
      OSError: the file cannot be written.
    """
    files.write_json(folder / _NAME, {'format': _FORMAT, **dataclasses.asdict(self)})


def path_in(folder: pathlib.Path) -> pathlib.Path:
  """The path of a folder's record."""
  return folder / _NAME


def read(folder: pathlib.Path) -> FieldRecord | None:
  """Reads a folder's record; None if there is none, or a file that it names is gone."""
  try:
    values = files.read_json(folder / _NAME, 'it is made again')
    if values.pop('format') != _FORMAT:
      return None
    for name in ('image_size', 'output_size', 'output_offset', 'pixel_size', 'files'):
      # JSON has lists in place of tuples; a size that is not known is null.
      values[name] = values[name] and tuple(values[name])
    labels = tuple(LabelRecord(**label) for label in values.pop('labels'))
    record = FieldRecord(labels=labels, **values)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return None
  return record if all((folder / name).exists() for name in record.all_files) else None


def as_scores(values: Mapping[str, float]) -> dict[str, float | str]:
  """Converts scores, by name, to what a record has: numbers that are not finite become text."""
  return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def fingerprint(settings: Mapping[str, Any], name: str, contents: str) -> str:
  """Makes a fingerprint of all that a field of view's files depend on.

  Args:
    settings: the checkpoint, the flags and the program's version, as values that JSON has.
    name: the field of view's name.
    contents: a fingerprint of the field of view's images.
  """
  text = json.dumps([settings, name, contents], sort_keys=True, default=str)
  return hashlib.sha256(text.encode('ascii')).hexdigest()
