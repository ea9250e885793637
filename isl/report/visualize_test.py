"""Error panels on tiny images, and against the original's own panel."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from isl.core.experiment import Panel
from isl.core.statistic import Statistic
from isl.report import visualize
from isl.report.visualize import Layout, PredictedImage, Target
from tests.support.program import panel_boxes, shared_path

# The borders as the original drew them.
PURPLE = (26214, 0, 65535)
TURQUOISE = (16448, 57568, 53456)
MANGO = (65535, 33410, 17219)
RED = (65535, 0, 0)
WHITE = (65535, 65535, 65535)
BLACK = (0, 0, 0)

STATISTICS = {
  Layout.SIMPLIFIED: (Statistic.MEDIAN,),
  Layout.FULL: (
    Statistic.MODE,
    Statistic.MEDIAN,
    Statistic.MEAN,
    Statistic.STANDARD_DEVIATION,
  ),
  Layout.STITCH: (
    Statistic.MODE,
    Statistic.MEDIAN,
    Statistic.MEAN,
    Statistic.STANDARD_DEVIATION,
    Statistic.ENTROPY,
  ),
}
DRAWN = {**STATISTICS, Layout.STITCH: (*STATISTICS[Layout.STITCH], Statistic.CROSS_ENTROPY)}


def predicted_image(rows: int = 5, columns: int = 7, seed: int = 0) -> PredictedImage:
  """Every statistic at random, so that no box looks like another."""
  random = np.random.default_rng(seed)
  truth, mask, *images = random.random((2 + len(DRAWN[Layout.STITCH]), rows, columns), np.float32)
  statistics = dict(zip(DRAWN[Layout.STITCH], images, strict=True))
  return PredictedImage(statistics=statistics, truth=truth, mask=mask)


@pytest.mark.parametrize('layout', Layout)
def test_statistics_of_a_layout_are_what_it_draws(layout: Layout) -> None:
  """Each once, whatever is drawn of it."""
  assert layout.statistics == DRAWN[layout]


def test_names_of_panels() -> None:
  """A panel has a name as a file, and one as TensorBoard's tag."""
  for panel, name in ((Panel.TARGET, 'target_error_panel'), (Panel.INPUT, 'input_error_panel')):
    assert visualize.panel_tag(panel) == name
    assert visualize.panel_file(panel) == f'{name}.png'


def one_pixel(image: float, truth: float) -> tuple[np.ndarray, np.ndarray]:
  """An image and a truth of a single pixel."""
  return np.full((1, 1), image, np.float32), np.full((1, 1), truth, np.float32)


def boxes(panel: np.ndarray, layout: Layout) -> list[np.ndarray]:
  """A strip's boxes, borders included."""
  return np.split(panel, len(layout.columns), axis=1)


def inside(box: np.ndarray) -> np.ndarray:
  """A box's picture, [row, column, 3]."""
  return box[4:-4, 4:-4]


def truncated(values: np.ndarray) -> np.ndarray:
  """What [row, column, 1 or 3] is drawn as: v * 65535, truncated, [row, column, 3]."""
  pixels = np.floor(values.astype(np.float32) * np.float32(65535))
  return np.broadcast_to(pixels, (*values.shape[:2], 3))


@pytest.mark.parametrize(
  ('image', 'truth', 'additive', 'subtractive'),
  [
    (0.0, 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    (1.0, 1.0, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    (0.25, 0.25, (0.25, 0.25, 0.25), (0.0, 0.0, 0.0)),
    (1.0, 0.0, (1.0, 0.5, 0.0), (1.0, 0.5, 0.0)),  # false positive: orange
    (0.0, 1.0, (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)),  # false negative: blue
    (0.75, 0.25, (0.75, 0.5, 0.25), (0.5, 0.25, 0.0)),
    (0.25, 0.75, (0.25, 0.5, 0.75), (0.0, 0.25, 0.5)),
  ],
)
def test_errors(
  image: float,
  truth: float,
  additive: tuple[float, float, float],
  subtractive: tuple[float, float, float],
) -> None:
  """The formulas of both error pictures, corners and mixtures."""
  pixel = one_pixel(image, truth)
  np.testing.assert_array_equal(visualize.additive_error(*pixel), [[additive]])
  np.testing.assert_array_equal(visualize.subtractive_error(*pixel), [[subtractive]])


def test_correct_predictions_are_grey_and_black() -> None:
  """Where nothing differs, only brightness is left, or nothing."""
  image = predicted_image().statistics[Statistic.MEAN]
  grey = visualize.additive_error(image, image)
  for colour in range(3):
    np.testing.assert_array_equal(grey[..., colour], image)
  assert not visualize.subtractive_error(image, image).any()


@pytest.mark.parametrize('layout', Layout)
def test_order_and_contents_of_boxes(layout: Layout) -> None:
  """Every box of every layout: its place, its border and its picture."""
  predicted = predicted_image()
  truth = predicted.truth

  statistics = [predicted.statistics[statistic] for statistic in STATISTICS[layout]]
  compared = statistics[:3]
  expected = [(PURPLE, image[..., np.newaxis]) for image in statistics]
  expected += [(TURQUOISE, truth[..., np.newaxis])]
  if layout is Layout.STITCH:
    expected += [(RED, predicted.statistics[Statistic.CROSS_ENTROPY][..., np.newaxis])]
  if layout is not Layout.SIMPLIFIED:
    expected += [(WHITE, visualize.additive_error(image, truth)) for image in compared]
  expected += [(BLACK, visualize.subtractive_error(image, truth)) for image in compared]
  if layout is not Layout.SIMPLIFIED:
    expected += [(MANGO, predicted.mask[..., np.newaxis])]

  drawn = boxes(visualize.strip(predicted, layout), layout)
  assert len(drawn) == len(expected)
  for box, (border, picture) in zip(drawn, expected, strict=True):
    np.testing.assert_array_equal(inside(box), truncated(picture))
    framed = np.empty_like(box)
    framed[:] = border
    framed[4:-4, 4:-4] = inside(box)
    np.testing.assert_array_equal(box, framed)


@pytest.mark.parametrize(
  ('layout', 'num_boxes'), [(Layout.SIMPLIFIED, 3), (Layout.FULL, 12), (Layout.STITCH, 14)]
)
@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (8, 8), (24, 16), (3, 40)])
def test_strips_fill_the_panel(layout: Layout, num_boxes: int, rows: int, columns: int) -> None:
  """Strips stack to exactly the announced size."""
  strips = [visualize.strip(predicted_image(rows, columns, seed), layout) for seed in range(3)]
  for drawn in strips:
    assert drawn.dtype == np.uint16
    assert drawn.shape == (rows + 8, num_boxes * (columns + 8), 3)
  panel = np.concatenate(strips)
  assert panel.shape[:2] == visualize.panel_size(3, rows, columns, layout)


@pytest.mark.parametrize('pixels_per_band', [1, 7, 16, 1000])
def test_bands_stack_to_the_strip(pixels_per_band: int, monkeypatch: pytest.MonkeyPatch) -> None:
  """However high the bands are, they give the same strip."""
  predicted = predicted_image(rows=11)
  whole = visualize.strip(predicted, Layout.FULL)
  monkeypatch.setattr(visualize, '_PIXELS_PER_BAND', pixels_per_band)
  bands = list(visualize.bands(predicted, Layout.FULL))
  assert max(map(len, bands)) <= max(pixels_per_band // 7, 4)
  np.testing.assert_array_equal(np.concatenate(bands), whole)
  np.testing.assert_array_equal(visualize.strip(predicted, Layout.FULL), whole)


@pytest.mark.parametrize(
  ('value', 'pixel'),
  [
    (0.0, 0),
    (1.0, 65535),
    (0.5, 32767),
    (0.9 / 65535, 0),
    (1.1 / 65535, 1),
    (65534.9 / 65535, 65534),
    (1.001, 65535),
    (-0.001, 0),
  ],
)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_truncation(value: float, pixel: int, dtype: type[np.floating]) -> None:
  """Pixels are truncated, not rounded, and never wrap around."""
  image = np.full((2, 3), value, dtype)
  predicted = PredictedImage(statistics={Statistic.MEDIAN: image}, truth=image, mask=image)
  median, truth, error = boxes(visualize.strip(predicted, Layout.SIMPLIFIED), Layout.SIMPLIFIED)
  assert (inside(median) == pixel).all()
  assert (inside(truth) == pixel).all()
  assert (inside(error) == 0).all()


def test_absent_target_is_drawn_black() -> None:
  """Without ground truth there still is a prediction to be seen."""
  absent = np.broadcast_to(np.float32(0), (5, 7))
  predicted = dataclasses.replace(predicted_image(), truth=absent, mask=absent)
  drawn = boxes(visualize.strip(predicted, Layout.FULL), Layout.FULL)
  assert not inside(drawn[4]).any()
  assert not inside(drawn[-1]).any()
  assert inside(drawn[0]).any()


@pytest.mark.parametrize(
  ('layout', 'missing'),
  [
    (layout, statistic)
    for layout in Layout
    for statistic in DRAWN[layout]
    if statistic is not Statistic.MEDIAN
  ],
)
def test_missing_statistic(layout: Layout, missing: Statistic) -> None:
  """A layout says which statistic it misses."""
  whole = predicted_image()
  without = {s: image for s, image in whole.statistics.items() if s is not missing}
  predicted = dataclasses.replace(whole, statistics=without)
  name = missing.value.lower()
  with pytest.raises(ValueError, match=f'^{name} is needed by the layout {layout.name}'):
    visualize.strip(predicted, layout)


def test_wrong_arrays() -> None:
  """An image of another size or type is refused by name."""
  image = np.zeros((4, 6), np.float32)
  with pytest.raises(
    ValueError, match=r'truth must have the median.s shape \(4, 6\), got \(6, 4\)'
  ):
    PredictedImage(statistics={Statistic.MEDIAN: image}, truth=image.T, mask=image)
  with pytest.raises(ValueError, match=r'mask must be floats in \[0, 1\], got uint8'):
    PredictedImage(statistics={Statistic.MEDIAN: image}, truth=image, mask=image.astype(np.uint8))
  with pytest.raises(ValueError, match=r'median must be \[row, column\], got the shape \(24,\)'):
    PredictedImage(statistics={Statistic.MEDIAN: image.ravel()}, truth=image, mask=image)


def test_reproduces_the_reference_panel() -> None:
  """The original's panel again, from its medians and the real field of view."""
  reference = read_png(shared_path('reference', 'target_error_panel_seed7_crop306.png'))
  reference = reference[..., ::-1]
  folder = shared_path('data', 'condition_b_sample')
  crop, margin = 306, 121
  output = slice(margin, crop - margin)

  strips = []
  channels = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')
  for of_original, channel in zip(np.split(reference, len(channels)), channels, strict=True):
    (path,) = Path(folder).glob(f'*,channel-{channel},*')
    truth = read_png(path)[output, output].astype(np.float32) / np.float32(65535)
    # The original's graph multiplied by the reciprocal; a division would differ in the last bit.
    classes = np.round(inside(boxes(of_original, Layout.SIMPLIFIED)[0])[..., 0] / 257)
    median = classes.astype(np.float32) * np.float32(1 / 255)
    predicted = PredictedImage(
      statistics={Statistic.MEDIAN: median}, truth=truth, mask=np.ones_like(truth)
    )
    strips.append(visualize.strip(predicted, Layout.SIMPLIFIED))

  size = crop - 2 * margin
  assert reference.shape[:2] == visualize.panel_size(3, size, size, Layout.SIMPLIFIED)
  np.testing.assert_array_equal(np.concatenate(strips), reference)


def read_png(path: Path) -> np.ndarray:
  """A 16-bit PNG as it is on disk."""
  image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
  assert image is not None, path
  assert image.dtype == np.uint16
  return image


def test_panel_is_its_strips_from_top_to_bottom() -> None:
  images = [predicted_image(seed=seed) for seed in range(3)]
  panel = visualize.panel(images, Layout.STITCH)
  for image, strip in zip(images, np.split(panel, 3), strict=True):
    np.testing.assert_array_equal(strip, visualize.strip(image, Layout.STITCH))


def test_clipped_cross_entropy() -> None:
  p = np.array([0, 1e-9, 1 / 256, 0.01, 0.5, 1 - 1e-7, 1])
  with np.errstate(divide='ignore'):
    cross_entropy = (-np.log(p) / np.log(256)).astype(np.float32)
  expected = np.clip(-np.log(p + 1e-6) / np.log(256), 0, 1)
  np.testing.assert_allclose(visualize.clipped_cross_entropy(cross_entropy), expected, atol=1e-6)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 8, 9, 10, 16, 17])
def test_mosaic_holds_each_image_once(count):
  images = _random(count, 3, 5)
  mosaic = visualize.mosaic(images)
  down, across = mosaic.shape[0] // 3, mosaic.shape[1] // 5
  assert mosaic.shape == (down * 3, across * 5)
  assert across == math.ceil(math.sqrt(count))
  assert (down - 1) * across < count <= down * across
  cells = [mosaic[r * 3 : r * 3 + 3, c * 5 : c * 5 + 5] for r in range(down) for c in range(across)]
  np.testing.assert_array_equal(cells[:count], images)
  assert not np.any(cells[count:])


def test_patch_panel_is_a_panel_of_mosaics():
  shape = (2, 5, 4, 6)
  statistics = {s: _random(*shape, seed=i) for i, s in enumerate(Layout.STITCH.statistics)}
  statistics[Statistic.CROSS_ENTROPY] *= 3  # It has no bound.
  truth = _random(*shape, seed=len(statistics))
  mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], np.float32)[..., np.newaxis, np.newaxis]
  panel = visualize.patch_panel(statistics, truth, mask)
  size = (2 * 4, 3 * 6)
  assert panel.shape == (*visualize.panel_size(2, *size, Layout.STITCH), 3)
  arrays: dict[Statistic | Target, np.ndarray] = {
    Target.TRUTH: truth,
    Target.MASK: np.broadcast_to(mask, shape),
  }
  for statistic, values in statistics.items():
    is_clipped = statistic is Statistic.CROSS_ENTROPY
    arrays[statistic] = visualize.clipped_cross_entropy(values) if is_clipped else values
  for head, strip in enumerate(np.split(panel, 2)):
    boxes = panel_boxes(strip, len(Layout.STITCH.columns))
    for column, box in zip(Layout.STITCH.columns, boxes, strict=True):
      if column.draw is visualize.as_is:
        whole = arrays[column.image][head]
        expected = (visualize.mosaic(whole) * np.float32(65535)).astype(np.uint16)
        np.testing.assert_array_equal(box, np.repeat(expected[..., np.newaxis], 3, axis=-1))


def test_grey_boxes():
  images = _random(3, 4, 6)
  row = visualize.grey_boxes(images, visualize.MANGO)
  assert row.dtype == np.uint16
  assert row.shape == (4 + 8, 3 * (6 + 8), 3)
  boxes = panel_boxes(row, 3)
  for box, image in zip(boxes, images, strict=True):
    expected = (image * np.float32(65535)).astype(np.uint16)
    np.testing.assert_array_equal(box, np.repeat(expected[..., np.newaxis], 3, axis=-1))
  corner = (np.array(visualize.MANGO) * 65535).astype(np.uint16)
  np.testing.assert_array_equal(row[0, 0], corner)
  np.testing.assert_array_equal(row[-1, -1], corner)
