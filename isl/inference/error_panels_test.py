"""Tests of error_panels.py: what is gathered tile by tile, and the files made of it."""

import itertools

import cv2
import numpy as np
import pytest

from isl.core.channels import ImageKey, input_stack, target_stack
from isl.core.experiment import Geometry, Panel
from isl.core.statistic import AnyStatistic, Statistic, is_class
from isl.data import data_provider
from isl.inference.error_panels import PANEL_STATISTICS, FieldPrediction
from isl.inference.tiling import Grid
from isl.report import metrics, visualize
from isl.report.visualize import Layout
from tests.support.program import files_in, original_fields, write_field

_MARGIN = 3
_SIZE = (16, 24)
_GRID = Grid(geometry=Geometry(patch=8 + 2 * _MARGIN, output=8), size=(22, 30))
_INPUTS = input_stack(2)
# DEAD_CONFOCAL is not among the images.
_TARGETS = target_stack(('NFH_CONFOCAL', 'DEAD_CONFOCAL', 'NEURITE_CONFOCAL'))
_STATISTICS = tuple(
  dict.fromkeys(s for s in (*Statistic, *metrics.NEEDED) if s is not Statistic.DISTRIBUTION)
)


@pytest.fixture
def field_of_view(tmp_path):
  write_field(tmp_path / 'images', rows=30, columns=32, depths=3)
  (field,) = original_fields(tmp_path / 'images')
  return field.read()


def _predictions(seed=0):
  """Of each image every statistic: classes for modes and medians, other floats in [0, 1]."""
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


def _gathered(field_of_view, predictions, *, tile=8, **kwargs):
  options = {'panels': tuple(Panel), 'layout': Layout.SIMPLIFIED, **kwargs}
  prediction = FieldPrediction(
    field_of_view, inputs=_INPUTS, targets=_TARGETS, grid=_GRID, **options
  )
  for row, column in itertools.product(*(range(0, size, tile) for size in _SIZE)):
    rows = slice(row, min(row + tile, _SIZE[0]))
    columns = slice(column, min(column + tile, _SIZE[1]))
    for key, statistics in predictions.items():
      parts = {s: values[rows, columns] for s, values in statistics.items()}
      prediction.add(key, rows, columns, parts)
  return prediction


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
    predicted = {s.value.lower(): predictions[key][s] for s in PANEL_STATISTICS[layout]}
    if 'cross_entropy' in predicted:
      predicted['cross_entropy'] = visualize.clipped_cross_entropy(predicted['cross_entropy'])
    image = visualize.PredictedImage(
      **predicted, truth=truth[:, :, z, channel, 0], mask=truth[:, :, z, channel, 1]
    )
    strips.append(visualize.strip(image, layout))
  return np.concatenate(strips).astype(int)


@pytest.mark.parametrize('layout', [Layout.SIMPLIFIED, Layout.FULL])
def test_panels_show_the_predictions_beside_the_truth(field_of_view, tmp_path, layout):
  predictions = _predictions()
  _gathered(field_of_view, predictions, layout=layout).write_panels(tmp_path)
  # Means and standard deviations are kept in 16 bit until they are drawn.
  tolerance = {Layout.SIMPLIFIED: 0, Layout.FULL: 1}[layout]
  for panel, stack in ((Panel.TARGET, _TARGETS), (Panel.INPUT, _INPUTS)):
    expected = _expected_panel(field_of_view, predictions, stack, layout)
    np.testing.assert_allclose(_read(tmp_path, panel), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize('layout', Layout)
def test_pictures_are_the_panels_as_a_whole(field_of_view, layout):
  predictions = _predictions()
  for statistics in predictions.values():
    statistics[Statistic.CROSS_ENTROPY] *= 3  # It has no bound.
  prediction = _gathered(field_of_view, predictions, layout=layout)
  for panel, stack in ((Panel.TARGET, _TARGETS), (Panel.INPUT, _INPUTS)):
    picture = prediction.picture(panel)
    assert picture.dtype == np.uint16
    expected = _expected_panel(field_of_view, predictions, stack, layout)
    np.testing.assert_allclose(picture.astype(int), expected, atol=1, rtol=0)


def test_label_without_truth_is_drawn_black_with_mask_0(field_of_view, tmp_path):
  _gathered(field_of_view, _predictions(), layout=Layout.FULL).write_panels(tmp_path)
  strips = np.split(_read(tmp_path, Panel.TARGET), len(_TARGETS.keys))
  for strip, has_truth in zip(strips, (True, False, True), strict=True):
    boxes = [box[4:-4, 4:-4] for box in np.split(strip, len(Layout.FULL.columns), axis=1)]
    assert (boxes[4].max() > 0) == has_truth
    assert (boxes[-1] == 65535 * has_truth).all()


@pytest.mark.parametrize('panels', [(), (Panel.TARGET,), (Panel.INPUT,), tuple(Panel)])
def test_paths_are_those_of_the_panels_written(field_of_view, tmp_path, panels):
  prediction = _gathered(field_of_view, _predictions(), panels=panels)
  folder = tmp_path / 'output'
  prediction.write_panels(folder)
  paths = prediction.panel_paths(folder)
  assert len(paths) == len(panels)
  assert files_in(folder) == {path.name for path in paths}


@pytest.mark.parametrize('tile', [5, 8, 24])
def test_tiles_of_any_size_give_the_same_panels_scores_and_thumbnails(
  field_of_view, tmp_path, tile
):
  whole = _gathered(field_of_view, _predictions(), tile=100, with_scores=True)
  tiled = _gathered(field_of_view, _predictions(), tile=tile, with_scores=True)
  assert whole.scores.keys() == tiled.scores.keys()
  for channel, scores in whole.scores.items():
    expected = vars(scores.scores())
    assert vars(tiled.scores[channel].scores()) == pytest.approx(expected, nan_ok=True)
  np.testing.assert_array_equal(whole.shown_input(), tiled.shown_input())
  for key, thumbnail in whole.thumbnails.predictions.items():
    np.testing.assert_array_equal(thumbnail.picture(), tiled.thumbnails.predictions[key].picture())
  whole.write_panels(tmp_path / 'whole')
  tiled.write_panels(tmp_path / 'tiled')
  for name in files_in(tmp_path / 'whole'):
    pair = [(tmp_path / folder / name).read_bytes() for folder in ('whole', 'tiled')]
    assert pair[0] == pair[1], name


def test_scores_are_of_labels_with_truth(field_of_view):
  predictions = _predictions()
  prediction = _gathered(field_of_view, predictions, panels=(), with_scores=True)
  assert prediction.is_scored
  assert list(prediction.scores) == ['NFH_CONFOCAL', 'NEURITE_CONFOCAL']
  truth = _truth(field_of_view, _TARGETS)
  for key in _TARGETS.keys:
    if key.channel in prediction.scores:
      i = _TARGETS.channels.index(key.channel)
      median = predictions[key][Statistic.MEDIAN].astype(float)
      found = prediction.scores[key.channel].scores()
      assert found.pixels == median.size
      assert found.mae == pytest.approx(np.abs(median - truth[:, :, 0, i, 0]).mean())
      entropies = predictions[key][Statistic.CROSS_ENTROPY]
      assert found.cross_entropy == pytest.approx(entropies.mean(dtype=float))


def test_thumbnails_are_of_the_predictions_and_the_truth(field_of_view):
  """They are not smaller than images of this size."""
  predictions = _predictions()
  prediction = _gathered(field_of_view, predictions, panels=(), with_scores=True)
  truth = _truth(field_of_view, _TARGETS)
  light = _truth(field_of_view, _INPUTS)[:, :, 1, 0, 0]
  np.testing.assert_allclose(prediction.shown_input(), light * 255, atol=0.51)
  assert [key.channel for key in prediction.thumbnails.truths] == list(prediction.scores)
  for i, key in enumerate(_TARGETS.keys):
    median = predictions[key][Statistic.MEDIAN] * 255
    found = prediction.thumbnails.predictions[key].picture()
    np.testing.assert_allclose(found, median, atol=0.51)
    if key in prediction.thumbnails.truths:
      found = prediction.thumbnails.truths[key].picture()
      np.testing.assert_allclose(found, truth[:, :, 0, i, 0] * 255, atol=0.51)


def test_scores_and_thumbnails_are_made_on_request(field_of_view):
  prediction = _gathered(field_of_view, _predictions(), panels=())
  assert not prediction.is_scored
  assert prediction.thumbnails is None


def test_true_classes_are_rounded(field_of_view):
  prediction = _gathered(field_of_view, {})
  rows, columns = slice(1, 9), slice(2, 20)
  for panel, stack in ((Panel.TARGET, _TARGETS), (Panel.INPUT, _INPUTS)):
    truth = _truth(field_of_view, stack)[rows, columns, ..., 0].astype(float)
    found = prediction.true_classes(stack.keys, rows, columns)
    assert found.dtype == np.uint8
    expected = np.rint(truth * 255).reshape(8, 18, -1)
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)
    if panel is Panel.TARGET:
      assert not found[_TARGETS.channels.index('DEAD_CONFOCAL')].any()
