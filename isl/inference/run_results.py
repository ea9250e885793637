"""Writes what a run of inference says of all its fields of view: tables, run.json, report.html."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from isl.report import metrics
from isl.report.field_record import FieldRecord
from isl.report.page import Failure, Report, write_report
from isl.system import files

TABLES = ('metrics.csv', 'metrics.json', 'run.json', 'report.html')
_SCORES = tuple(field.name for field in dataclasses.fields(metrics.Scores))


class RunResults:
  """Gathers records of fields of view, and writes tables and a page of those gathered so far."""

  def __init__(self, folder: pathlib.Path, what: Mapping[str, Any]):
    """Starts without fields of view; writes nothing yet.

    Args:
      folder: folder of the run.
      what: what was run, for run.json and the page: checkpoint, flags, versions..
    """
    self._folder = folder
    self._what = what
    # By number, because fields of view may be done in another order.
    self._records_by_number: dict[int, tuple[pathlib.Path, FieldRecord]] = {}
    self._failures_by_number: dict[int, Failure] = {}

  def add(self, number: int, folder: pathlib.Path, record: FieldRecord) -> None:
    """Takes in a field of view that is done.

    Args:
      number: the field of view's number, from 0.
      folder: the folder that the record's paths are relative to.
      record: the field of view's record.
    """
    self._records_by_number[number] = folder, record

  def fail(self, number: int, failure: Failure) -> None:
    """Takes in a field of view that failed.

    Args:
      number: the field of view's number, from 0.
      failure: the field of view's name, and why it failed.
    """
    self._failures_by_number[number] = failure

  @property
  def _records(self) -> list[tuple[pathlib.Path, FieldRecord]]:
    return [record for _, record in sorted(self._records_by_number.items())]

  @property
  def failures(self) -> list[Failure]:
    """The fields of view that failed, in the order of their numbers."""
    return [failure for _, failure in sorted(self._failures_by_number.items())]

  def _relative(self, folder: pathlib.Path, name: str) -> str:
    return str((folder / name).relative_to(self._folder))

  def write_tables(self) -> None:
    """Writes metrics.csv, metrics.json and run.json.

    Raises:
      OSError: one of the files cannot be written.
    """
    with (
      files.whole_file(self._folder / 'metrics.csv') as partial,
      # A field of view's name comes from files' names, which on Linux may be any bytes.
      partial.open('w', newline='', encoding='utf-8', errors='backslashreplace') as stream,
    ):
      writer = csv.writer(stream)
      writer.writerow(['field', 'channel', *_SCORES])
      for _, record in self._records:
        for label in record.labels:
          if label.scores:
            values = [f'{float(label.scores[name]):.6g}' for name in _SCORES]
            writer.writerow([record.field, label.channel, *values])
    files.write_json(self._folder / 'metrics.json', self._metrics())
    files.write_json(self._folder / 'run.json', self._run())

  def _metrics(self) -> list[dict[str, Any]]:
    return [
      {
        'field': record.field,
        'channel': label.channel,
        **{n: None if isinstance(v, str) else v for n, v in label.scores.items()},
        'calibration': label.calibration,
      }
      for _, record in self._records
      for label in record.labels
      if label.scores
    ]

  def _run(self) -> dict[str, Any]:
    fields = [
      {
        'field': record.field,
        'image_size': record.image_size,
        'output_size': record.output_size,
        'output_offset': record.output_offset,
        'padded_margin': record.padded_margin,
        'pixel_size': record.pixel_size,
        'seconds': record.seconds,
        'files': [self._relative(folder, name) for name in record.all_files],
      }
      for folder, record in self._records
    ]
    failures = [dataclasses.asdict(failure) for failure in self.failures]
    return {**self._what, 'fields': fields, 'failures': failures, 'tables': TABLES}

  def write_report(self) -> None:
    """Writes report.html.

    Raises:
      OSError: the file cannot be written.
    """
    what = {name: str(value) for name, value in self._what.items() if not isinstance(value, dict)}
    page = Report(
      title='In silico labeling',
      fields=self._records,
      failures=self.failures,
      what_was_run=what,
      sections={
        name: {key: _as_flag(value) for key, value in section.items()}
        for name, section in self._what.items()
        if isinstance(section, dict)
      },
    )
    write_report(self._folder / 'report.html', page)


def _as_flag(value: Any) -> str:
  return ','.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
