"""What a user sees in TensorBoard: the real one, in a real browser."""

from __future__ import annotations

import re

import pytest
from tensorboard import program

from isl import launch
from isl.core.channels import TARGET_CHANNELS
from isl.report import visualize
from isl.report.visualize import Layout
from tests.support.browser import chromium
from tests.support.program import SHALLOW, make_fovea_shallow, run_in_process, write_field

# Of the checkpoints that are evaluated; each start of the training writes summaries once, after its
# second step.
_EVALUATED = (2, 5)
_TRAINED = (2, 4)
# 4 x 6 outputs of 8 pixels, and some more.
_ROWS, _COLUMNS = 47, 63
_SIZE = (32, 48)
_NUM_Z_VALUES = 3
_CROP, _PATCH, _BATCH = 42, SHALLOW.patch, 2
# A browser takes long on a busy machine.
_SECONDS = 120


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A BASE whose training has been evaluated, by loss and, at its end, by error panels."""
  base = tmp_path_factory.mktemp('base')
  images = tmp_path_factory.mktemp('images')
  write_field(images, rows=_ROWS, columns=_COLUMNS, depths=5)

  def run(*flags):
    outcome = run_in_process(
      launch.run,
      '--read_pngs',
      f'--dataset_train_directory={images}',
      f'--dataset_eval_directory={images}',
      f'--base_directory={base}',
      f'--loss_crop_size={_CROP}',
      f'--preprocess_batch_size={_BATCH}',
      '--metric_num_examples=2',
      *flags,
    )
    assert outcome.status == 0, outcome.stderr

  network = ('--model=FOVEA', '--base_depth=8', f'--num_z_values={_NUM_Z_VALUES}')
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    for step in _EVALUATED:
      run('--mode=TRAIN', *network, f'--number_of_steps={step}')
      run('--mode=EVAL_EVAL', '--metric=LOSS', '--eval_once')
    run('--mode=EVAL_EVAL', '--metric=STITCH', '--eval_once')
  return base


@pytest.fixture(scope='module')
def address(base):
  """The address of a TensorBoard that shows BASE; of its own, it would load TensorFlow again."""
  board = program.TensorBoard()
  board.configure(logdir=str(base), host='127.0.0.1', port=0)
  return board.launch()


@pytest.fixture(scope='module')
def page():
  """A page of a browser."""
  with chromium() as browser:
    page = browser.new_page(viewport={'width': 1400, 'height': 1000})
    page.set_default_timeout(1000 * _SECONDS)
    yield page


def test_each_step_and_evaluation_is_a_point_of_a_curve(page, address):
  # Else the curve is drawn on a canvas, in which no point can be found, and smoothed.
  page.goto(f'{address}/?tagFilter=total_loss&forceSVG=true&smoothing=0#timeseries')
  paths = page.locator('scalar-card .series-view path')
  # One of the training, one of the evaluation.
  paths.nth(1).wait_for(state='attached')
  assert paths.count() == 2
  curves = [
    [float(point.split(',')[0]) for point in re.split('[ML]', path.get_attribute('d'))[1:]]
    for path in paths.all()
  ]
  left, right = min(map(min, curves)), max(map(max, curves))
  first, last = _EVALUATED[0], _EVALUATED[-1]
  steps = sorted(
    [first + (last - first) * (column - left) / (right - left) for column in columns]
    for columns in curves
  )
  assert len(steps[0]) == len(steps[1]) == 2
  assert steps == [pytest.approx(_TRAINED, abs=0.01), pytest.approx(_EVALUATED, abs=0.01)]
  assert page.locator('scalar-card').get_by_text('total_loss').count()


def test_error_panels_are_shown(page, address):
  # TensorBoard reads one run after the other; which tags are unfolded depends on what it has then.
  page.goto(address)
  page.wait_for_function(
    """async () => {
      const response = await fetch('data/plugin/images/tags');
      const runs = Object.values(await response.json());
      return runs.flatMap(tags => Object.keys(tags)).length === 6;
    }""",
    polling=200,
  )
  page.goto('about:blank')
  page.goto(f'{address}/#images')
  # The first two tags are unfolded, the others by a click.
  for tag in ('patches', 'target_error_panel'):
    page.get_by_text(tag, exact=True).first.click()
  # Decoded, or else they have no width.
  page.wait_for_function(
    """() => {
      const images = root => [...root.querySelectorAll('*')].flatMap(element =>
        [...(element.tagName === 'IMG' ? [element] : []),
         ...(element.shadowRoot ? images(element.shadowRoot) : [])]);
      window.panels = images(document).filter(image => image.src.includes('individualImage'));
      return window.panels.length === 6 && window.panels.every(image => image.naturalWidth > 0);
    }"""
  )
  sizes = page.evaluate('window.panels.map(image => [image.naturalHeight, image.naturalWidth])')
  # Of the evaluation, the fields of view; of the training, the patches of a batch side by side, and
  # a crop: its light, and three labels and the one made of two.
  expected = [
    visualize.panel_size(num_images, *size, Layout.STITCH)
    for num_images in (len(TARGET_CHANNELS), _NUM_Z_VALUES)
    for size in (_SIZE, (8, 8 * _BATCH))
  ]
  expected += [(_CROP + 8, 5 * (_CROP + 8)), (_PATCH + 8, _BATCH * (_PATCH + 8))]
  assert sorted(map(tuple, sizes)) == sorted(expected)
  for tag in ('target_error_panel', 'input_error_panel', 'crops', 'patches'):
    assert page.get_by_text(tag).count()
