"""Tests of error_panels.py, and of the sinks beside it that need a field of view's truth."""

import itertools

import cv2
import numpy as np
import pytest
import skimage.metrics

from isl.core.channels import ImageKey, input_stack, target_stack
from isl.core.experiment import Geometry, Panel
from isl.core.parts import Part
from isl.core.statistic import AnyStatistic, Statistic, is_class
from isl.data import data_provider
from isl.data.data_provider import TruthReader
from isl.inference.error_panels import ErrorPanel
from isl.inference.prediction_files import PredictionStore
from isl.inference.tiling import Grid
from isl.report import metrics, visualize
from isl.report.metrics import RunningScores
from isl.report.thumbnails import Thumbnails
from isl.report.visualize import Layout
from tests.support.program import files_in, original_fields, write_field

_MARGIN = 3
_SIZE = (16, 24)
_GRID = Grid(geometry=Geometry(patch=8 + 2 * _MARGIN, output=8), size=(22, 30))
_INPUTS = input_stack(2)
# DEAD_CONFOCAL is not among the images.
_TARGETS = target_stack(('NFH_CONFOCAL', 'DEAD_CONFOCAL', 'NEURITE_CONFOCAL'))
_STACKS = {Panel.TARGET: _TARGETS, Panel.INPUT: _INPUTS}
_STATISTICS = tuple(
  dict.fromkeys(s for s in (*Statistic, *metrics.NEEDED) if s is not Statistic.DISTRIBUTION)
)


@pytest.fixture
def field_of_view(tmp_path):
  write_field(tmp_path / 'images', rows=30, columns=32, depths=3)
  (field,) = original_fields(tmp_path / 'images')
  return field.read()


def _predictions(seed=0):
  """Makes every statistic of each image: classes for modes and medians, other floats in [0, 1]."""
  rng = np.random.default_rng(seed)
  made: dict[ImageKey, dict[AnyStatistic, np.ndarray]] = {}
  for key in (*_TARGETS.keys, *_INPUTS.keys):
    made[key] = {s: rng.random(_SIZE, dtype=np.float32) for s in _STATISTICS}
    for statistic in filter(is_class, _STATISTICS):
      classes = rng.integers(0, 256, _SIZE)
      made[key][statistic] = classes.astype(np.float32) * np.float32(1 / 255)
    below = made[key][Statistic.PROBABILITY_BELOW]
    made[key][Statistic.PROBABILITY_UP_TO] = below + (1 - below) / 2
  return made


def _truth_reader(field_of_view):
  return TruthReader(field_of_view, _GRID.offset, _GRID.output_size)


def _panels(field_of_view, layout=Layout.SIMPLIFIED, panels=tuple(Panel)):
  truth, store = _truth_reader(field_of_view), PredictionStore(_SIZE)
  return [ErrorPanel(panel, _STACKS[panel], layout, truth, store) for panel in panels]


def _scores(field_of_view):
  """Makes a sink of scores for each label whose truth is known."""
  truth = _truth_reader(field_of_view)
  keys = [key for key in _TARGETS.keys if truth.is_known(key)]
  return [RunningScores(key, columns=_SIZE[1]) for key in keys]


def _thumbnails():
  return [Thumbnails(key, _SIZE, 512) for key in _TARGETS.keys]


def _fill(sinks, field_of_view, predictions, *, tile=8):
  """Gives the sinks parts of predictions, as FieldLabeler does."""
  truth = _truth_reader(field_of_view)
  for row, column in itertools.product(*(range(0, size, tile) for size in _SIZE)):
    rows = slice(row, min(row + tile, _SIZE[0]))
    columns = slice(column, min(column + tile, _SIZE[1]))
    for key, statistics in predictions.items():
      part = Part(
        key=key,
        rows=rows,
        columns=columns,
        predicted={s: values[rows, columns] for s, values in statistics.items()},
        truth=truth.image(key, rows, columns) if truth.is_known(key) else None,
      )
      for sink in sinks:
        if key in sink.keys:
          sink.add(part)
  return sinks


def _write(panels, folder):
  for panel in panels:
    panel.write(folder)


def _truth(field_of_view, stack):
  """[row, column, z, channel, mask], cut from the images as the margin says."""
  window = [slice(_MARGIN, _MARGIN + size) for size in _SIZE]
  crop = data_provider.input_crop if stack is _INPUTS else data_provider.target_crop
  return crop(field_of_view, stack, *window)


def _read(folder, panel):
  bgr = cv2.imread(str(folder / f'{panel.value.lower()}_error_panel.png'), cv2.IMREAD_UNCHANGED)
  assert bgr is not None
  return bgr[..., ::-1].astype(int)


def _expected_panel(field_of_view, predictions, stack, layout):
  truth = _truth(field_of_view, stack)
  strips = []
  for i, key in enumerate(stack.keys):
    z, channel = divmod(i, len(stack.channels))
    predicted = {s: predictions[key][s] for s in layout.statistics}
    if Statistic.CROSS_ENTROPY in predicted:
      predicted[Statistic.CROSS_ENTROPY] = visualize.clipped_cross_entropy(
        predicted[Statistic.CROSS_ENTROPY]
      )
    image = visualize.PredictedImage(
      statistics=predicted,
      truth=truth[:, :, z, channel, 0],
      mask=truth[:, :, z, channel, 1],
    )
    strips.append(visualize.strip(image, layout))
  return np.concatenate(strips).astype(int)


@pytest.mark.parametrize('layout', [Layout.SIMPLIFIED, Layout.FULL])
def test_panels_show_the_predictions_beside_the_truth(field_of_view, tmp_path, layout):
  predictions = _predictions()
  _write(_fill(_panels(field_of_view, layout), field_of_view, predictions), tmp_path)
  # Means and standard deviations are kept in 16 bit until they are drawn.
  tolerance = {Layout.SIMPLIFIED: 0, Layout.FULL: 1}[layout]
  for panel, stack in _STACKS.items():
    expected = _expected_panel(field_of_view, predictions, stack, layout)
    np.testing.assert_allclose(_read(tmp_path, panel), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize('layout', Layout)
def test_pictures_are_the_panels_as_a_whole(field_of_view, layout):
  predictions = _predictions()
  for statistics in predictions.values():
    statistics[Statistic.CROSS_ENTROPY] *= 3  # It has no bound.
  for panel in _fill(_panels(field_of_view, layout), field_of_view, predictions):
    picture = panel.picture()
    assert picture.dtype == np.uint16
    expected = _expected_panel(field_of_view, predictions, _STACKS[panel.panel], layout)
    np.testing.assert_allclose(picture.astype(int), expected, atol=1, rtol=0)


def test_label_without_truth_is_drawn_black_with_mask_0(field_of_view, tmp_path):
  _write(_fill(_panels(field_of_view, Layout.FULL), field_of_view, _predictions()), tmp_path)
  strips = np.split(_read(tmp_path, Panel.TARGET), len(_TARGETS.keys))
  for strip, has_truth in zip(strips, (True, False, True), strict=True):
    boxes = [box[4:-4, 4:-4] for box in np.split(strip, len(Layout.FULL.columns), axis=1)]
    assert (boxes[4].max() > 0) == has_truth
    assert (boxes[-1] == 65535 * has_truth).all()


@pytest.mark.parametrize('panels', [(), (Panel.TARGET,), (Panel.INPUT,), tuple(Panel)])
def test_paths_are_those_of_the_panels_written(field_of_view, tmp_path, panels):
  made = _fill(_panels(field_of_view, panels=panels), field_of_view, _predictions())
  folder = tmp_path / 'output'
  _write(made, folder)
  paths = [panel.path_in(folder) for panel in made]
  assert len(paths) == len(panels)
  assert files_in(folder) == {path.name for path in paths}


def test_panels_need_what_their_layout_draws(field_of_view):
  for layout in Layout:
    for panel in _panels(field_of_view, layout):
      assert panel.keys == _STACKS[panel.panel].keys
      assert panel.statistics == layout.statistics


@pytest.mark.parametrize('tile', [5, 8, 24])
def test_tiles_of_any_size_give_the_same_panels_scores_and_thumbnails(
  field_of_view, tmp_path, tile
):
  folders = {'whole': 100, 'tiled': tile}
  sinks = {}
  for folder, side in folders.items():
    sinks[folder] = _panels(field_of_view), _scores(field_of_view), _thumbnails()
    together = list(itertools.chain(*sinks[folder]))
    _fill(together, field_of_view, _predictions(), tile=side)
    _write(sinks[folder][0], tmp_path / folder)
  (_, *whole), (_, *tiled) = sinks['whole'], sinks['tiled']
  for scores, scores_of_tiles in zip(whole[0], tiled[0], strict=True):
    expected = vars(scores.scores())
    assert vars(scores_of_tiles.scores()) == pytest.approx(expected, nan_ok=True)
  for pictures, pictures_of_tiles in zip(whole[1], tiled[1], strict=True):
    np.testing.assert_array_equal(
      pictures.prediction.picture(), pictures_of_tiles.prediction.picture()
    )
    if pictures.truth is not None:
      assert pictures_of_tiles.truth is not None
      np.testing.assert_array_equal(pictures.truth.picture(), pictures_of_tiles.truth.picture())
  for name in files_in(tmp_path / 'whole'):
    pair = [(tmp_path / folder / name).read_bytes() for folder in folders]
    assert pair[0] == pair[1], name


def test_scores_are_of_labels_with_truth(field_of_view):
  predictions = _predictions()
  scores = _fill(_scores(field_of_view), field_of_view, predictions)
  keys = [key for running in scores for key in running.keys]
  assert [key.channel for key in keys] == ['NFH_CONFOCAL', 'NEURITE_CONFOCAL']
  truth = _truth(field_of_view, _TARGETS)
  for key, running in zip(keys, scores, strict=True):
    i = _TARGETS.channels.index(key.channel)
    median = predictions[key][Statistic.MEDIAN].astype(float)
    found = running.scores()
    assert found.pixels == median.size
    assert found.mae == pytest.approx(np.abs(median - truth[:, :, 0, i, 0]).mean())
    assert found.ssim == pytest.approx(_ssim(median, truth[:, :, 0, i, 0].astype(float)))
    entropies = predictions[key][Statistic.CROSS_ENTROPY]
    assert found.cross_entropy == pytest.approx(entropies.mean(dtype=float))


def _ssim(median, truth):
  return skimage.metrics.structural_similarity(median, truth, data_range=1)


def test_thumbnails_are_of_the_predictions_and_the_truth(field_of_view):
  """They are not smaller than images of this size."""
  predictions = _predictions()
  pictures = _fill(_thumbnails(), field_of_view, predictions)
  truth = _truth(field_of_view, _TARGETS)
  known = [of_label.keys[0].channel for of_label in pictures if of_label.truth is not None]
  assert known == ['NFH_CONFOCAL', 'NEURITE_CONFOCAL']
  for i, of_label in enumerate(pictures):
    assert of_label.keys == (_TARGETS.keys[i],)
    median = predictions[_TARGETS.keys[i]][Statistic.MEDIAN] * 255
    np.testing.assert_allclose(of_label.prediction.picture(), median, atol=0.51)
    if of_label.truth is not None:
      found = of_label.truth.picture()
      np.testing.assert_allclose(found, truth[:, :, 0, i, 0] * 255, atol=0.51)
