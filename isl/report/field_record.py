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
  """What is known of a label. Paths are seen from the record's folder.

  Attributes:
    channel: its name.
    prediction: a small picture of its medians.
    truth: a small picture of what is true, if that is known.
    error: how the two differ, if it is known.
    reliability: a diagram of predicted against observed frequencies, if the truth is known.
    scores: by name; where the truth is not known, none. Infinity and nan, which JSON lacks, are
      text.
    calibration: observed frequencies, see metrics.Reliability.
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
  """What is known of a field of view. Sizes are in pixels, paths seen from the record's folder.

  Attributes:
    field: its name.
    fingerprint: of all that its files depend on.
    image_size: (rows, columns) of its images.
    output_size: of its predictions.
    output_offset: where these begin in the images.
    padded_margin: rows and columns at each border whose prediction depends on padding.
    pixel_size: (row, column) in micrometres; None: unknown.
    seconds: that it took.
    files: the panels and predictions.
    input: a small picture of the input.
    labels: what was predicted.
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
    """The small pictures and diagrams."""
    pictures = [self.input]
    for label in self.labels:
      pictures += [p for p in (label.prediction, label.truth, label.error, label.reliability) if p]
    return tuple(pictures)

  @property
  def all_files(self) -> tuple[str, ...]:
    """All that there is of the field of view, the record itself included."""
    return (*self.files, *self.pictures, _NAME)

  def write(self, folder: pathlib.Path) -> None:
    """Writes it as the folder's.

    Raises:
      OSError: it cannot be written.
    """
    files.write_json(folder / _NAME, {'format': _FORMAT, **dataclasses.asdict(self)})


def path_in(folder: pathlib.Path) -> pathlib.Path:
  """Where a folder's record is."""
  return folder / _NAME


def read(folder: pathlib.Path) -> FieldRecord | None:
  """The record of a field of view whose files are all there; None if there is none like that."""
  try:
    values = files.read_json(folder / _NAME, 'it is made again')
    if values.pop('format') != _FORMAT:
      return None
    for name in ('image_size', 'output_size', 'output_offset', 'pixel_size', 'files'):
      # JSON has lists; a size that is not known is null.
      values[name] = values[name] and tuple(values[name])
    labels = tuple(LabelRecord(**label) for label in values.pop('labels'))
    record = FieldRecord(labels=labels, **values)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return None
  return record if all((folder / name).exists() for name in record.all_files) else None


def as_scores(values: Mapping[str, float]) -> dict[str, float | str]:
  """Numbers as a record has them."""
  return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def fingerprint(settings: Mapping[str, Any], name: str, contents: str) -> str:
  """Makes a fingerprint of all that a field of view's files depend on.

  Args:
    settings: the checkpoint, the flags, the program, as JSON knows them.
    name: the field of view's.
    contents: a fingerprint of its images.
  """
  text = json.dumps([settings, name, contents], sort_keys=True, default=str)
  return hashlib.sha256(text.encode('ascii')).hexdigest()
