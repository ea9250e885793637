"""The page of a run in a real browser: it fits, nothing is fetched, and all that moves moves."""

from __future__ import annotations

import math
import re

import cv2
import numpy as np
import pytest

from isl.report.field_record import LabelRecord
from isl.report.page import Failure, Report, write_report
from tests.support.browser import chromium
from tests.support.program import field_name
from tests.support.records import make_record

_LABELS = 3
_SECONDS = 30


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  """The address of a page of 4 fields of view with _LABELS labels each.

  Names are long; the third field of view has no truth. Predictions are white and truths are black,
  or they are noise.
  """
  folder = tmp_path_factory.mktemp('report')

  def picture(name: str, pixels: np.ndarray) -> str:
    assert cv2.imwrite(str(folder / name), pixels)
    # As seen from the folders of the fields.
    return f'../{name}'

  random = np.random.default_rng(0)
  white = picture('white.png', np.full((60, 80), 255, np.uint8))
  black = picture('black.png', np.zeros((60, 80), np.uint8))
  labels = [
    LabelRecord(
      channel=f'PROPIDIUM_IODIDE_CONFOCAL_{i}',
      prediction=white,
      truth=black,
      error=picture(f'error {i}.jpg', random.integers(0, 256, (60, 80, 3), np.uint8)),
      reliability=picture(f'reliability {i}.png', random.integers(0, 256, (90, 90), np.uint8)),
      scores={'pearson_r': math.nan if i == 1 else 1 / (1 + i), 'psnr': 30 - i, 'mae': 0.01}
      | {f'{kind}_{n}': n / 100 for kind in ('coverage', 'width') for n in range(10, 100, 20)},
    )
    for i in range(_LABELS)
  ]
  unknown = [LabelRecord(channel=x.channel, prediction=x.prediction) for x in labels]
  # Not one word, so that nothing says where it may be broken.
  names = [field_name(f'{well}{"X" * 80}') for well in ('A1', 'A2', 'A3', 'A4')]
  fields = []
  for i, name in enumerate(names):
    (folder / name).mkdir()
    shown = picture(f'input {i}.jpg', random.integers(0, 256, (60, 80), np.uint8))
    written_files = [f'{name}_{label.channel}.tif' for label in labels]
    record = make_record(name, shown, unknown if i == 2 else labels, written_files)
    fields.append((folder / name, record))
  written = Report(
    title=f'Run of {names[0]}',
    fields=fields,
    failures=[Failure(name=names[0], reason=f'{names[0]}.png is damaged')],
    what_was_run={'checkpoint': '/a/long/path' * 9, 'step': '1000'},
    sections={'Flags': {'--dataset_eval_directory': '/a/long/path' * 9}},
  )
  write_report(folder / 'report.html', written)
  return (folder / 'report.html').as_uri()


@pytest.fixture(scope='module')
def browser():
  """Chromium without a window."""
  with chromium() as browser:
    yield browser


@pytest.fixture
def open_page(browser, address):
  """Opens the page; at the end, the browser must not have complained or asked for anything."""
  contexts, complaints, asked = [], [], []

  def open_it(width: int = 1280, scheme: str = 'light'):
    context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    return page

  yield open_it
  for context in contexts:
    context.close()
  assert not complaints
  assert not [url for url in asked if not url.startswith((address, 'data:'))]
  assert address in asked


@pytest.mark.parametrize(('width', 'scheme'), [(1280, 'light'), (400, 'dark')])
def test_page_fits_the_window_and_the_users_scheme(open_page, width, scheme):
  page = open_page(width, scheme)
  wide = 'document.documentElement.scrollWidth - innerWidth'
  assert page.evaluate(wide) <= 0
  page.click('#fold')
  assert page.locator('details.field[open]').count() == 0
  page.click('#unfold')
  assert page.locator('details.field:not([open])').count() == 0
  page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
  assert page.evaluate(wide) <= 0
  # Nothing is cut off either, but in the tables, which scroll.
  outside = """[...document.querySelectorAll('main *, header *')].filter(element =>
    !element.closest('.table') && element.getBoundingClientRect().right > innerWidth).length"""
  assert page.evaluate(outside) == 0
  colours = page.locator('body').evaluate(
    'body => ["backgroundColor", "color"].map(name => getComputedStyle(body)[name])'
  )
  # Red stands for grey.
  ground, ink = (int(re.findall(r'\d+', colour)[0]) for colour in colours)
  assert (ground > 200 > 60 > ink) if scheme == 'light' else (ground < 60 < 200 < ink)


def test_unfolded_field_shows_all_its_pictures(open_page):
  page = open_page()
  field = page.locator('details.field').nth(3)
  assert field.locator('img:not([src])').count() > 0
  field.locator('summary').click()
  assert field.locator('img').count() == _LABELS * (3 + 2 + 2)
  assert field.locator('img:not([src])').count() == 0
  sizes = field.locator('img').evaluate_all("""images => Promise.all(images.map(async image => {
    image.loading = 'eager';
    await image.decode();
    return image.naturalWidth;
  }))""")
  assert set(sizes) == {80, 90}


def _brightness(locator) -> float:
  """The mean brightness of what is seen of an element, in [0, 1]."""
  seen = cv2.imdecode(np.frombuffer(locator.screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
  assert seen is not None
  return seen.mean() / 255


def test_slider_moves_by_keyboard_by_mouse_and_by_value(open_page):
  page = open_page()
  comparison = page.locator('.comparison').first
  comparison.scroll_into_view_if_needed()
  slider = comparison.get_by_role('slider')
  label = page.locator('section.label').first.get_attribute('data-title').split(' ')[0]
  assert label in slider.get_attribute('aria-label')
  split = 'element => getComputedStyle(element.querySelectorAll("img")[1]).clipPath'

  def check(percent: int) -> None:
    assert comparison.evaluate(split) == f'inset(0px {100 - percent}% 0px 0px)'
    # The prediction is white, the truth black, and the line between is both.
    assert _brightness(comparison) == pytest.approx(percent / 100, abs=0.03)

  assert comparison.evaluate(split) == 'inset(0px 50% 0px 0px)'
  slider.press('ArrowRight')
  check(51)
  slider.press('Home')
  check(0)
  slider.press('PageUp')
  check(10)
  slider.fill('80')
  check(80)
  box = comparison.bounding_box()
  middle = box['y'] + box['height'] / 2
  page.mouse.move(box['x'] + 0.8 * box['width'], middle)
  page.mouse.down()
  page.mouse.move(box['x'] + 0.25 * box['width'], middle, steps=3)
  page.mouse.up()
  assert abs(int(slider.input_value()) - 25) <= 4
  check(int(slider.input_value()))


def _view(page) -> tuple[float, float, float]:
  """Scale, x and y of the enlarged picture."""
  scale, x, y = page.locator('.stage img').evaluate("""image => {
    const {a, e, f} = new DOMMatrix(getComputedStyle(image).transform);
    return [a, e, f];
  }""")
  return scale, x, y


def test_enlarged_picture_is_zoomed_and_moved(open_page):
  page = open_page()
  button = page.locator('.enlarge[data-name=Error]').first
  button.click()
  dialog = page.get_by_role('dialog')
  assert dialog.is_visible() and 'Error' in dialog.get_by_role('heading').inner_text()
  page.wait_for_function("document.querySelector('.stage img').naturalWidth === 80")
  stage = page.locator('.stage').bounding_box()
  page.wait_for_function("document.querySelector('output').value")
  fitted = _view(page)
  assert fitted[0] == pytest.approx(min(stage['width'] / 80, stage['height'] / 60), rel=0.01)

  # What is under the mouse stays there.
  x, y = 300, 200
  page.mouse.move(stage['x'] + x, stage['y'] + y)
  page.mouse.wheel(0, -400)
  page.wait_for_function(f'view.scale > {1.5 * fitted[0]}')
  scale, left, top = _view(page)
  assert (x - left) / scale == pytest.approx((x - fitted[1]) / fitted[0], abs=0.1)
  assert (y - top) / scale == pytest.approx((y - fitted[2]) / fitted[0], abs=0.1)

  page.mouse.down()
  page.mouse.move(stage['x'] + x + 50, stage['y'] + y - 30, steps=5)
  page.mouse.up()
  assert _view(page) == pytest.approx((scale, left + 50, top - 30), abs=0.1)
  page.mouse.move(stage['x'], stage['y'])
  assert _view(page) == pytest.approx((scale, left + 50, top - 30), abs=0.1)

  dialog.get_by_role('button', name='Zoom out').click()
  assert _view(page)[0] == pytest.approx(scale * 0.8, rel=1e-3)
  dialog.get_by_role('button', name='Zoom in').click()
  assert _view(page)[0] == pytest.approx(scale, rel=1e-3)
  dialog.get_by_role('button', name='Fit').click()
  assert _view(page) == pytest.approx(fitted, rel=1e-3)

  page.keyboard.press('Escape')
  assert not dialog.is_visible()
  assert button.evaluate('element => element === document.activeElement')


def test_enlarged_pictures_of_a_label_follow_each_other_at_the_same_place(open_page):
  page = open_page()
  page.locator('.enlarge[data-name=Prediction]').first.click()
  dialog = page.get_by_role('dialog')
  names = dialog.locator('.tabs button').all_inner_texts()
  assert names == ['Input', 'Prediction', 'Truth', 'Error', 'Reliability']
  page.wait_for_function("document.querySelector('.stage img').naturalWidth === 80")
  page.keyboard.press('+')
  before = _view(page)
  for name in ('Truth', 'Error'):
    page.keyboard.press('ArrowRight')
    assert dialog.locator('[aria-pressed=true]').inner_text() == name
    assert dialog.get_by_role('heading').inner_text().startswith(name)
    page.evaluate("document.querySelector('.stage img').decode()")
    assert _view(page) == before
  dialog.get_by_role('button', name='Close').click()
  assert not dialog.is_visible()


def test_table_is_sorted_by_a_click(open_page):
  page = open_page()
  table = page.locator('table').nth(1)
  head = table.get_by_role('button', name='r ↑', exact=True)

  def values() -> list[str]:
    cells = table.locator('tbody tr td:nth-child(3)')
    return cells.evaluate_all('cells => cells.map(cell => cell.dataset.value)')

  before = values()
  ordered = sorted((x for x in before if x != 'nan'), key=float)
  unknown = ['nan'] * before.count('nan')
  assert unknown and before != ordered + unknown
  head.click()
  assert values() == ordered + unknown
  assert table.locator('[aria-sort=ascending]').count() == 1
  head.click()
  assert values() == ordered[::-1] + unknown
  assert table.locator('[aria-sort]').get_attribute('aria-sort') == 'descending'


def test_table_leads_to_a_folded_field(open_page):
  page = open_page()
  field = page.locator('#field-4')
  assert field.get_attribute('open') is None
  page.locator('table a[href="#field-4"]').first.click()
  assert field.get_attribute('open') is not None
  page.wait_for_function(
    'document.querySelector("#field-4").getBoundingClientRect().top < innerHeight'
  )
