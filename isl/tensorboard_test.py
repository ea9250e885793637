"""What a user sees in TensorBoard: the real one, in a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import pytest

from isl import launch, random_checkpoint, testing, visualize
from isl.experiment import TARGET_CHANNELS
from isl.visualize import Layout

_STEPS = (100, 200, 350)
# 4 x 6 outputs of 8 pixels: FOVEA's patches have 110.
_ROWS, _COLUMNS = 139, 155
_SIZE = (32, 48)
_NUM_Z_VALUES = 3
_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
_BROWSER_FLAGS = (
  '--no-sandbox',
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
)
# Loading TensorFlow takes TensorBoard long on a busy machine.
_SECONDS = 120


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A BASE in which three checkpoints have been evaluated, by loss and by error panels."""
  base = tmp_path_factory.mktemp('base')
  images = tmp_path_factory.mktemp('images')
  testing.write_image_set(images, rows=_ROWS, columns=_COLUMNS, depths=5)
  for step in _STEPS:
    random_checkpoint.write_random_checkpoint(
      base / 'train',
      model='FOVEA',
      base_depth=8,
      num_z_values=_NUM_Z_VALUES,
      global_step=step,
      seed=step,
    )
    for metric in ('LOSS', 'STITCH'):
      outcome = testing.run_in_process(
        launch.run,
        '--mode=EVAL_EVAL',
        f'--metric={metric}',
        '--eval_once',
        '--read_pngs',
        f'--dataset_eval_directory={images}',
        f'--base_directory={base}',
        '--loss_crop_size=120',
        '--metric_num_examples=2',
      )
      assert outcome.status == 0, outcome.stderr
  return base


@pytest.fixture(scope='module')
def address(base):
  """Of the TensorBoard that shows BASE."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'tensorboard.main', f'--logdir={base}', '--host=127.0.0.1', '--port=0'],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  watchdog = threading.Timer(_SECONDS, process.kill)
  watchdog.start()
  said, found = [], None
  assert process.stderr
  for line in process.stderr:
    said.append(line)
    if found := re.search(r'http://127\.0\.0\.1:\d+', line):
      break
  watchdog.cancel()
  try:
    assert found, ''.join(said)
    yield found[0]
  finally:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
  assert process.returncode == 0


@pytest.fixture(scope='module')
def page():
  """A page of a browser."""
  try:
    from playwright import sync_api
  except ImportError:
    testing.skip_what_lacks('playwright')
  path = next(filter(None, map(shutil.which, _BROWSERS)), None)
  if path is None:
    testing.skip_what_lacks(f'a browser ({", ".join(_BROWSERS)})')
  with (
    # Chromium puts a socket there, whose path may have 107 bytes; Bazel's own folder is deeper.
    tempfile.TemporaryDirectory(prefix='isl-', dir='/tmp') as short,
    mock.patch.dict(os.environ, TMPDIR=short),
    sync_api.sync_playwright() as playwright,
    contextlib.closing(
      playwright.chromium.launch(executable_path=path, args=list(_BROWSER_FLAGS))
    ) as browser,
  ):
    page = browser.new_page(viewport={'width': 1400, 'height': 1000})
    page.set_default_timeout(1000 * _SECONDS)
    yield page


def test_each_evaluation_is_a_point_of_the_curve(page, address):
  # Else the curve is drawn on a canvas, in which no point can be found, and smoothed.
  page.goto(f'{address}/?tagFilter=total_loss&forceSVG=true&smoothing=0#timeseries')
  curves = page.locator('scalar-card .series-view path')
  curves.first.wait_for(state='attached')
  assert curves.count() == 1
  points = [
    tuple(float(n) for n in point.split(','))
    for point in re.split('[ML]', curves.first.get_attribute('d'))[1:]
  ]
  assert len(points) == len(_STEPS)
  columns = [column for column, _ in points]
  shares = [(column - columns[0]) / (columns[-1] - columns[0]) for column in columns]
  first, last = _STEPS[0], _STEPS[-1]
  assert shares == pytest.approx([(step - first) / (last - first) for step in _STEPS], abs=1e-3)
  assert page.locator('scalar-card').get_by_text('total_loss').count()


def test_error_panels_are_shown(page, address):
  page.goto(f'{address}/#images')
  # Decoded, or else they have no width.
  page.wait_for_function(
    """() => {
      const images = root => [...root.querySelectorAll('*')].flatMap(element =>
        [...(element.tagName === 'IMG' ? [element] : []),
         ...(element.shadowRoot ? images(element.shadowRoot) : [])]);
      window.panels = images(document).filter(image => image.src.includes('individualImage'));
      return window.panels.length === 2 && window.panels.every(image => image.naturalWidth > 0);
    }"""
  )
  sizes = page.evaluate('window.panels.map(image => [image.naturalHeight, image.naturalWidth])')
  assert sorted(map(tuple, sizes)) == sorted(
    visualize.panel_size(num_images, *_SIZE, Layout.STITCH)
    for num_images in (len(TARGET_CHANNELS), _NUM_Z_VALUES)
  )
  for tag in ('target_error_panel', 'input_error_panel'):
    assert page.get_by_text(tag).count()
