"""The page of a run: what is in it. What it does is in report_in_browser_test.py."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import math
import os
import pathlib
import re
import urllib.parse

import cv2
import numpy as np
import pytest

from isl.report.field_record import FieldRecord, LabelRecord
from isl.report.page import Failure, Report, write_report
from tests.support.records import make_record

_HOSTILE = '<script>alert(1)</script><b title="&quot;\'">&amp;{{ 1 }}'
_CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL')


class _Page(html.parser.HTMLParser):
  """A page as a browser reads it.

  Attributes:
    elements: (tag, attributes), in order.
    texts: tag -> the texts directly in such elements, in order.
  """

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.elements: list[tuple[str, dict[str, str | None]]] = []
    self.texts: dict[str, list[str]] = {}
    self.feed(path.read_text(encoding='utf-8'))

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    if data.strip():
      self.texts.setdefault(self.elements[-1][0], []).append(data)

  def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
    """The attributes of all elements of a kind."""
    return [
      found
      for name, found in self.elements
      if name == tag and attributes.items() <= {k: v for k, v in found.items() if v}.items()
    ]

  @property
  def text(self) -> str:
    """All of it."""
    return '\n'.join(text for texts in self.texts.values() for text in texts)


@pytest.fixture
def picture(tmp_path):
  """Writes a picture, and gives its path: another for each seed."""

  def write(name: str, seed: int = 0) -> pathlib.Path:
    path = tmp_path / name
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path

  return write


@pytest.fixture
def page_of(tmp_path):
  """Writes a report and reads the page."""

  def write(**parts) -> _Page:
    write_report(tmp_path / 'report.html', Report(**{'title': 'A run', 'fields': [], **parts}))
    return _Page(tmp_path / 'report.html')

  return write


def _field(
  name: str, picture: pathlib.Path, **scores: float | str
) -> tuple[pathlib.Path, FieldRecord]:
  """A field with one label, `picture` being all of its pictures."""
  shown = picture.name
  label = LabelRecord(channel='DAPI', prediction=shown, truth=shown, scores=scores)
  return picture.parent, make_record(name, shown, [label])


def test_any_text_is_shown_as_it_is(page_of, picture):
  path = picture('a.png')
  label = LabelRecord(channel=_HOSTILE, prediction=path.name, truth=path.name, scores={_HOSTILE: 1})
  page = page_of(
    title=_HOSTILE,
    fields=[(path.parent, make_record(_HOSTILE, path.name, [label], [_HOSTILE]))],
    failures=[Failure(name=_HOSTILE, reason=_HOSTILE)],
    what_was_run={_HOSTILE: _HOSTILE},
    sections={_HOSTILE: {_HOSTILE: _HOSTILE}},
  )
  assert len(page.all('script')) == 1
  assert not [x for x in page.all('b') if 'title' in x]
  # Title, heading, failure (2), facts (2), field, label..
  assert page.text.count(_HOSTILE) >= 12


def test_each_picture_is_embedded_once(page_of, picture, tmp_path):
  paths = {
    name: picture(name, seed)
    for seed, name in enumerate(['input.jpg', 'a.jpg', 'b.png', 'c.png', 'd.jpg', 'e.png'])
  }
  same = picture('same as c.png', seed=3).name
  labels = [
    LabelRecord(channel='A', prediction='a.jpg', truth='b.png', error='c.png'),
    LabelRecord(channel='B', prediction='d.jpg', truth='e.png', error=same, reliability=same),
  ]
  page = page_of(fields=[(tmp_path, make_record('A4', 'input.jpg', labels))])
  expected = {
    f'data:image/{"png" if path.suffix == ".png" else "jpeg"};base64,'
    + base64.b64encode(path.read_bytes()).decode()
    for path in paths.values()
  }
  contents = {image['id']: image['src'] for image in page.all('img') if 'src' in image}
  assert sorted(contents.values()) == sorted(expected)
  # All 7 + 2 * 2 others know where to take them from.
  others = [image['data-from'] for image in page.all('img') if 'data-from' in image]
  assert set(others) <= contents.keys()
  # Of A: input, prediction, truth, error, and two in the slider; B has a reliability diagram too.
  assert len(contents) + len(others) == 6 + 7


def test_page_needs_nothing_else(page_of, picture):
  page = page_of(fields=[_field('A4', picture('a.png'), mae=1)])
  assert not re.search('https?://', ''.join(x or '' for _, a in page.elements for x in a.values()))
  assert not re.search(r'https?://|url\(|@import', page.text)
  assert not page.all('link') and not page.all('iframe')
  assert all(attrs.get('src', 'data:').startswith('data:') for _, attrs in page.elements)
  # And the browser allows only this script.
  (policy,) = (x['content'] for x in page.all('meta') if 'http-equiv' in x)
  (script,) = page.texts['script']
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert "default-src 'none'; img-src data:;" in policy
  assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_failures_are_shown_with_their_reasons(page_of):
  reasons = {f'field {i}': f'damaged at byte {i}' for i in range(3)}
  page = page_of(failures=[Failure(name=n, reason=r) for n, r in reasons.items()])
  for text in (*reasons, *reasons.values(), '3 fields of view failed'):
    assert text in page.text
  assert page.all('section', id='failures')
  assert not page_of().all('section', id='failures')


def test_file_names_may_be_anything(page_of, picture, tmp_path):
  names = [
    'a b#c?d%e:f.tif',
    'tilde~/"quoted" \'and\'/ü.tif',
    os.fsdecode(b'byte \xff.tif'),
    'a\nb',
  ]
  folder = names[2]
  (tmp_path / folder).mkdir()
  record = make_record(folder, f'../{picture("a.png").name}', files=names)
  page = page_of(fields=[(tmp_path / folder, record)])
  links = [x['href'] for x in page.all('a')]
  found = [os.fsdecode(urllib.parse.unquote_to_bytes(link)) for link in links]
  assert found == [folder, *(f'{folder}/{name}' for name in names)]
  assert all(re.fullmatch(r'[\w/%.~-]+', link, re.ASCII) for link in links)
  assert r'byte \udcff.tif' in page.text


def test_missing_and_damaged_pictures_leave_a_note(page_of, picture, tmp_path):
  (tmp_path / 'damaged.png').write_bytes(b'II*\0')
  label = LabelRecord(
    channel='A', prediction=picture('a.png').name, truth='gone.png', scores={'mae': 0.25}
  )
  page = page_of(fields=[(tmp_path, make_record('A4', 'damaged.png', [label]))])
  notes = [text for text in page.texts['p'] if '.png' in text]
  assert notes == ['damaged.png: neither a PNG nor a JPEG', 'gone.png: No such file or directory']
  assert len([x for x in page.all('img') if 'src' in x]) == 1
  assert not page.all('input', type='range')
  assert '0.2500' in page.text


def test_without_truth_there_is_neither_slider_nor_score(page_of, picture, tmp_path):
  labels = [LabelRecord(channel=c, prediction=picture('a.png').name) for c in _CHANNELS]
  page = page_of(fields=[(tmp_path, make_record('A4', picture('b.png', 1).name, labels))])
  assert not page.all('input') and not page.all('table')
  assert [x['data-name'] for x in page.all('button', **{'class': 'enlarge'})] == [
    *('Input', 'Prediction'),
    *('Input', 'Prediction'),
  ]


def test_only_the_first_fields_are_unfolded(page_of, picture):
  path = picture('a.png')
  page = page_of(fields=[_field(f'well-{i}', path, mae=1) for i in range(20)])
  folded = ['open' not in x for x in page.all('details', **{'class': 'field'})]
  assert folded == sorted(folded)
  assert len(folded) == 20 and 1 <= folded.count(False) <= 3


def test_means_are_of_the_finite_values(page_of, picture):
  path = picture('a.png')
  values = [1.0, 4.0, math.nan, math.inf, 7.0]
  page = page_of(fields=[_field(f'well-{i}', path, psnr=x) for i, x in enumerate(values)])
  shown = [float(x['data-value'] or '') for x in page.all('td') if 'data-value' in x]
  np.testing.assert_equal(shown, [(1 + 4 + 7) / 3, *values])


def test_columns_are_all_scores_of_any_label(page_of, picture):
  path = picture('a.png')
  page = page_of(fields=[_field('A1', path, mae=1, ssim=2), _field('A2', path, ssim=3, odd_one=4)])
  titles = [x['title'] or '' for x in page.all('th') if 'title' in x]
  keys = ['mae', 'ssim', 'odd_one']
  # In the table of means and in that of the fields.
  assert [title.partition(':')[0] for title in titles] == 2 * keys
  cells = [x.get('data-value') for x in page.all('td', **{'class': 'number'})]
  assert [x and float(x) for x in cells] == [1, 2.5, 4, 1, 2, None, None, 3, 4]


@pytest.mark.parametrize(
  ('key', 'heading'),
  [
    ('coverage_90', 'cov. 90%'),
    ('width_50', 'width 50% ↓'),
    ('pearson_r', 'r ↑'),
    ('psnr', 'PSNR ↑'),
    ('expected_calibration_error', 'ECE ↓'),
    ('what_else', 'what else'),
  ],
)
def test_headings_of_scores(page_of, picture, key, heading):
  page = page_of(fields=[_field('A1', picture('a.png'), **{key: 0.5})])
  assert heading in page.texts['button'] + page.texts['dt']
  (title, *_) = (x['title'] or '' for x in page.all('th') if 'title' in x)
  assert title.startswith(f'{key}: ') and '{}' not in title
  if 'cov' in heading or 'width' in heading:
    assert heading.split('%')[0].split()[-1] + '%' in title


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    *[(0, '0'), (0.87654, '0.8765'), (-0.5, '-0.5000'), (0.000123, '1.2e-04'), (31.256, '31.26')],
    *[(720896, '720,896'), (720896.0, '720,896'), (np.float32(0.5), '0.5000')],
    *[(math.nan, 'n/a'), (math.inf, '∞'), (-math.inf, '-∞'), ('inf', '∞'), ('nan', 'n/a')],
  ],
)
def test_numbers(page_of, picture, value, text):
  assert text in page_of(fields=[_field('A1', picture('a.png'), mae=value)]).texts['td']


@pytest.mark.parametrize(
  ('names', 'shown'),
  [
    (['lab-X,well-A1,kind-Y', 'lab-X,well-B12,kind-Y'], ['…well-A1…', '…well-B12…']),
    (['plate/well-A1', 'plate/well-A2'], ['…well-A1', '…well-A2']),
    (['A1 kind', 'A2 kind'], ['A1…', 'A2…']),
    (['one', 'other'], ['one', 'other']),
    # Nothing would be left of these.
    (['lab-X,A', 'lab-X,'], ['lab-X,A', 'lab-X,']),
    (['lab-X,well-A1'], ['lab-X,well-A1']),
    (['same', 'same'], ['same', 'same']),
  ],
)
def test_what_names_share_is_left_out(page_of, picture, names, shown):
  path = picture('a.png')
  page = page_of(fields=[_field(name, path, mae=1) for name in names])
  assert [text for text in page.texts['a'] if text in shown] == shown
  # Pointed at, a link says the whole name.
  assert [x['title'] for x in page.all('a') if 'title' in x] == names


def test_templates_are_found_from_anywhere(page_of, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert page_of().texts['h1'] == ['A run']


def test_page_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'report.html').mkdir()
  with pytest.raises(IsADirectoryError, match=r'report\.html'):
    write_report(tmp_path / 'report.html', Report(title='A run', fields=[]))
