"""What a run of inference found, as one page: pictures, scores, and what was run.

The page is a single file that opens from disk without a network. It is made from dataclasses and
from the files of pictures that the run has written, so that it can be made again at any time.
Its looks are in templates/.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import itertools
import math
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

import jinja2
from markupsafe import Markup

from isl.report.field_record import FieldRecord
from isl.system import files

# Fields of view that are unfolded from the start. The others are unfolded by a click, and their
# pictures decoded only then.
_OPEN_FIELDS = 2

_TYPES = {b'\x89PNG\r\n\x1a\n': 'image/png', b'\xff\xd8\xff': 'image/jpeg'}

# A pattern of a score's name, the heading of its column, and what that means. A number in the name,
# which is a share or a percentage, is put in for {} as a percentage.
_NUMBER = r'_(\d+)'
_EXPLANATIONS = (
  ('pixels', 'pixels', 'how many pixels were compared'),
  ('pearson_r', 'r ↑', "Pearson's correlation of prediction and truth: 1 is perfect"),
  ('ssim', 'SSIM ↑', 'structural similarity of prediction and truth: 1 is perfect'),
  ('psnr', 'PSNR ↑', 'peak signal-to-noise ratio in dB, the peak being an intensity of 1'),
  ('mae', 'MAE ↓', 'mean absolute error, intensities being in [0, 1]'),
  ('rmse', 'RMSE ↓', 'root of the mean squared error, intensities being in [0, 1]'),
  (
    'cross_entropy',
    'CE ↓',
    'mean of -ln p(true class) / ln 256: 0 is perfect, 1 a uniform guess',
  ),
  (
    'negative_log_likelihood',
    'NLL ↓',
    'mean of -ln p(true class), in nats: 0 is perfect, 5.545 a uniform guess',
  ),
  (
    'crps',
    'CRPS ↓',
    'continuous ranked probability score of the predicted distributions, in units of intensity',
  ),
  (
    rf'coverage{_NUMBER}',
    'cov. {}%',
    "share of the pixels whose truth lies in the prediction's central {}% interval: ideal is {}%",
  ),
  (
    rf'width{_NUMBER}',
    'width {}% ↓',
    'mean width of the central {}% interval, in units of intensity: narrow is sharp',
  ),
  (
    'coverage_error',
    'cov. error ↓',
    'mean difference of observed and nominal coverage, of central intervals of 5% to 95%',
  ),
  (
    'expected_calibration_error',
    'ECE ↓',
    'expected calibration error, of the likeliest class: how far its probability is from how often'
    ' it is the true one; 0 is perfect',
  ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
  """A field of view for which there is no prediction.

  Attributes:
    name: name of the field of view, or of its file.
    reason: text of the error.
  """

  name: str
  reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a page shows.

  Attributes:
    title: heading of the page.
    fields: the fields of view, in the page's order: for each its record, and before that the folder
      that the record's paths are relative to, which is the page's own or within it.
    failures: the fields of view that failed.
    what_was_run: facts about the run, by name, for the page's top: checkpoint, step, time..
    sections: tables for the page's end: by heading, values by name: flags, versions..
  """

  title: str
  fields: Sequence[tuple[pathlib.Path, FieldRecord]]
  failures: Sequence[Failure] = ()
  what_was_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
  sections: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


def write_report(path: str | os.PathLike[str], report: Report) -> None:
  """Writes the page.

  Pictures are read one at a time; one that is missing or damaged leaves a note in its place.

  Args:
    path: the file's name, 'report.html'; see `files.whole_file`.
    report: what the page shows.

  Raises:
    OSError: the page cannot be written.
  """
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(_template),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  home = pathlib.Path(path).parent
  environment.filters.update(
    address=lambda target: _address(str(target.relative_to(home))), number=_number
  )
  script = _template('report.js')
  page = environment.get_template('report.html.jinja').generate(
    report=report,
    home=home,
    names=_distinct_parts([record.field for _, record in report.fields]),
    channels=_in_order(label.channel for _, record in report.fields for label in record.labels),
    columns=[(key, *_explained(key)) for key in _in_order(_score_names(report))],
    means=_means(report),
    picture=_Pictures(),
    open_fields=_OPEN_FIELDS,
    style=Markup(_template('report.css')),
    script=Markup(script),
    script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  )
  with (
    files.whole_file(path) as partial,
    # File names may hold bytes that are no text, as lone surrogates.
    partial.open('w', encoding='utf-8', errors='backslashreplace', newline='\n') as stream,
  ):
    stream.writelines(page)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Picture:
  """A picture at one of its places in the page.

  Attributes:
    id: identifier of the place that has the picture's contents.
    uri: the contents, as a data URI; None: this is not the first place.
    problem: why the picture has no contents; '': it has.
  """

  id: str = ''
  uri: str | None = None
  problem: str = ''


class _Pictures:
  """Puts pictures into a page: the first time with their contents, then as a reference to these."""

  def __init__(self) -> None:
    self._by_path: dict[pathlib.Path, _Picture] = {}
    self._ids: dict[bytes, str] = {}

  def __call__(self, path: pathlib.Path) -> _Picture:
    """Gives the picture of a file for its next place in the page."""
    if path in self._by_path:
      return self._by_path[path]
    picture = self._read(path)
    self._by_path[path] = dataclasses.replace(picture, uri=None)
    return picture

  def _read(self, path: pathlib.Path) -> _Picture:
    try:
      contents = path.read_bytes()
    except OSError as error:
      return _Picture(problem=f'{path.name}: {error.strerror}')
    kind = next((kind for start, kind in _TYPES.items() if contents.startswith(start)), None)
    if kind is None:
      return _Picture(problem=f'{path.name}: neither a PNG nor a JPEG')
    # Two files may show the same: error pictures without an error, labels without a signal.
    digest = hashlib.sha256(contents).digest()
    if digest in self._ids:
      return _Picture(id=self._ids[digest])
    self._ids[digest] = f'picture-{len(self._ids)}'
    uri = f'data:{kind};base64,{base64.b64encode(contents).decode()}'
    return _Picture(id=self._ids[digest], uri=uri)


def _template(name: str) -> str:
  """Reads one of the files of templates/."""
  return (importlib.resources.files('isl.report') / 'templates' / name).read_text(encoding='utf-8')


def _in_order(texts: Iterable[str]) -> list[str]:
  """Lists each of the texts once, in the order in which they come first."""
  return list(dict.fromkeys(texts))


def _score_names(report: Report) -> Iterable[str]:
  for _, record in report.fields:
    for label in record.labels:
      yield from label.scores


def _means(report: Report) -> dict[str, dict[str, float]]:
  """By channel and score, the mean over the fields of view, of the values that are finite."""
  values: dict[str, dict[str, list[float]]] = {}
  for label in itertools.chain.from_iterable(record.labels for _, record in report.fields):
    for key, value in label.scores.items():
      if math.isfinite(float(value)):
        values.setdefault(label.channel, {}).setdefault(key, []).append(float(value))
  return {
    channel: {key: math.fsum(x) / len(x) for key, x in by_key.items()}
    for channel, by_key in values.items()
  }


def _explained(key: str) -> tuple[str, str]:
  """A score's heading in tables, and what it means."""
  for pattern, heading, meaning in _EXPLANATIONS:
    if match := re.fullmatch(pattern, key):
      percent = ''.join(match.groups())
      return heading.replace('{}', percent), meaning.replace('{}', percent)
  return key.replace('_', ' '), key


def _number(score: float | str) -> str:
  """Formats a score for the tables."""
  value = float(score)
  size = abs(value)
  if math.isnan(value):
    return 'n/a'
  if math.isinf(value):
    return '∞' if value > 0 else '-∞'
  if value == 0 or (size >= 10 and value.is_integer()) or size >= 10_000:
    return f'{value:,.0f}'
  if size >= 10:
    return f'{value:.2f}'
  return f'{value:.4f}' if size >= 0.001 else f'{value:.1e}'


def _address(path: str) -> str:
  """Makes the address of a link to a relative path."""
  return urllib.parse.quote(os.fsencode(path.replace(os.sep, '/')))


def _distinct_parts(names: Sequence[str]) -> list[str]:
  """Shortens names by the beginning and the end that all share, of which `…` is left.

  Only whole words are left out, and nothing if a name would have nothing left.
  """
  if len(set(names)) < 2:
    return list(names)
  start = len(re.sub(r'[^,;/\s]*$', '', _common_start(names)))
  rests = [name[start:] for name in names]
  end = len(re.sub(r'[^,;/\s]*$', '', _common_start([rest[::-1] for rest in rests])))
  if any(len(rest) == end for rest in rests):
    start = end = 0
  return [
    ('…' if start else '') + name[start : len(name) - end] + ('…' if end else '') for name in names
  ]


def _common_start(texts: Sequence[str]) -> str:
  """The longest text that all the texts begin with."""
  # In the order of the alphabet, all others lie between the first and the last.
  first, last = min(texts), max(texts)
  pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
  return first[: len(list(pairs))]
