"""What is predicted of one field of view: gathered part by part, scored, drawn and written."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from isl.core.channels import ImageKey, StackSpec
from isl.core.experiment import Panel
from isl.core.statistic import AnyStatistic, Statistic
from isl.data import data_provider
from isl.data.data_provider import TruthReader
from isl.images import png_io
from isl.images.fields_of_view import FieldOfView
from isl.inference.prediction_files import PredictionFiles, PredictionStore
from isl.inference.tiling import Grid
from isl.report import metrics, visualize
from isl.report.thumbnails import Thumbnail

# What a panel of each layout draws of the predictions.
PANEL_STATISTICS = {
  visualize.Layout.SIMPLIFIED: (Statistic.MEDIAN,),
  visualize.Layout.FULL: (
    Statistic.MODE,
    Statistic.MEDIAN,
    Statistic.MEAN,
    Statistic.STANDARD_DEVIATION,
  ),
  visualize.Layout.STITCH: (
    Statistic.MODE,
    Statistic.MEDIAN,
    Statistic.MEAN,
    Statistic.STANDARD_DEVIATION,
    Statistic.ENTROPY,
    Statistic.CROSS_ENTROPY,
  ),
}


class _Scoring:
  """The scores of a label, for which its medians are also gathered in whole rows."""

  def __init__(self, truth: TruthReader, key: ImageKey):
    self._truth = truth
    self._key = key
    self.running = metrics.RunningScores(columns=truth.size[1])
    self._band = np.empty((0, truth.size[1]), np.float32)

  def add(self, rows: slice, columns: slice, predicted: Mapping[AnyStatistic, np.ndarray]) -> None:
    """Parts come row by row of tiles, from left to right."""
    median = predicted[Statistic.MEDIAN]
    self.running.add(predicted, self._truth.image(self._key, rows, columns))
    if columns.start == 0:
      self._band = np.empty((len(median), self._truth.size[1]), np.float32)
    self._band[:, columns] = median
    if columns.stop == self._truth.size[1]:
      whole = slice(0, columns.stop)
      self.running.add_rows(self._band, self._truth.image(self._key, rows, whole))


class FieldThumbnails:
  """Small pictures of a field of view: its input, and each label as predicted and as it is.

  Attributes:
    input: of the middle depth of the first input channel.
    predictions: the medians, by label.
    truths: what is known, likewise.
  """

  def __init__(
    self, size: tuple[int, int], targets: StackSpec, known: Sequence[ImageKey], longest: int
  ):
    """Empty ones, of at most `longest` pixels in each direction."""
    self.input = Thumbnail(size, longest)
    self.predictions = {key: Thumbnail(size, longest) for key in targets.keys}
    self.truths = {key: Thumbnail(size, longest) for key in known}


class FieldPrediction:
  """The predicted images of one field of view.

  What the panels show beside them is read from the field of view while they are drawn.

  Attributes:
    field_of_view: the field of view.
    grid: where its blocks are.
    size: (rows, columns) of the predicted images.
    scores: of each label with ground truth, if they are wanted.
    thumbnails: likewise.
  """

  def __init__(
    self,
    field_of_view: FieldOfView,
    *,
    inputs: StackSpec,
    targets: StackSpec,
    grid: Grid,
    panels: Sequence[Panel],
    layout: visualize.Layout,
    with_scores: bool = False,
    thumbnail: int = 512,
  ):
    """Makes room for what the panels show.

    Args:
      field_of_view: the field of view.
      inputs: the images that the network reads; predicted if the input panel is wanted.
      targets: the labels that are predicted, in the panel's order.
      grid: where the blocks are.
      panels: error panels to draw.
      layout: their columns.
      with_scores: whether the predictions are compared with the truth, and thumbnails made.
      thumbnail: longest side of these, in pixels.
    """
    self.field_of_view = field_of_view
    self.grid = grid
    self.size = grid.output_size
    self.store = PredictionStore(self.size)
    self._truth = TruthReader(field_of_view, grid.offset, grid.output_size)
    self._panels = tuple(panels)
    self._layout = layout
    self._stacks = {Panel.TARGET: targets, Panel.INPUT: inputs}
    for panel in panels:
      for key in self._stacks[panel].keys:
        for statistic in PANEL_STATISTICS[layout]:
          self.store.make_room(key, statistic)
    known = [key for key in targets.keys if data_provider.has_truth(field_of_view, key.channel)]
    self._scoring = {key: _Scoring(self._truth, key) for key in known if with_scores}
    self.thumbnails = FieldThumbnails(self.size, targets, known, thumbnail) if with_scores else None
    middle = inputs.z_values[len(inputs.z_values) // 2]
    self._shown_input = ImageKey(middle, inputs.channels[0])
    self._files: PredictionFiles | None = None

  @property
  def is_scored(self) -> bool:
    """Whether there are labels to compare with, and that is wanted."""
    return bool(self._scoring)

  @contextlib.contextmanager
  def writing(self, written: PredictionFiles | None) -> Iterator[None]:
    """The block in which all parts are added, with the files that they go to."""
    self._files = written
    with written.writing() if written else contextlib.nullcontext():
      yield
    self._files = None

  def true_classes(self, keys: Sequence[ImageKey], rows: slice, columns: slice) -> np.ndarray:
    """Classes of labels or of the input, uint8 [image, row, column]; 0 without a truth.

    Args:
      keys: all labels, or all of the input, in the panel's order.
      rows: of the output.
      columns: likewise.
    """
    stack = next(stack for stack in self._stacks.values() if stack.keys == tuple(keys))
    return self._truth.classes(stack, rows, columns)

  def add(
    self, key: ImageKey, rows: slice, columns: slice, predicted: Mapping[AnyStatistic, np.ndarray]
  ) -> None:
    """Takes in what was computed of one image in a part of the output.

    Args:
      key: the image.
      rows: of the output.
      columns: likewise.
      predicted: each statistic, float32 [row, column].
    """
    self.store.add(key, rows, columns, predicted)
    if self._files is not None:
      self._files.add(key, rows, columns, predicted)
    if key in self._scoring:
      self._scoring[key].add(rows, columns, predicted)
    if self.thumbnails is not None:
      self._add_thumbnails(self.thumbnails, key, rows, columns, predicted)

  def _add_thumbnails(
    self,
    thumbnails: FieldThumbnails,
    key: ImageKey,
    rows: slice,
    columns: slice,
    predicted: Mapping[AnyStatistic, np.ndarray],
  ) -> None:
    if key not in thumbnails.predictions:
      return
    if key == self._stacks[Panel.TARGET].keys[0]:
      light = self._truth.image(self._shown_input, rows, columns)
      thumbnails.input.add(rows, columns, light)
    thumbnails.predictions[key].add(rows, columns, predicted[Statistic.MEDIAN])
    if key in thumbnails.truths:
      thumbnails.truths[key].add(rows, columns, self._truth.image(key, rows, columns))

  def shown_input(self) -> np.ndarray:
    """The thumbnail of the input, uint8 [row, column]."""
    assert self.thumbnails is not None
    return self.thumbnails.input.picture()

  @property
  def scores(self) -> dict[str, metrics.RunningScores]:
    """Of each label with ground truth, by its name."""
    return {key.channel: scoring.running for key, scoring in self._scoring.items()}

  def panel_paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
    """Names of the files that `write_panels` writes."""
    return [folder / f'{panel.value.lower()}_error_panel.png' for panel in self._panels]

  def write_panels(self, folder: pathlib.Path) -> None:
    """Writes the error panels, each as a 16-bit PNG.

    Raises:
      OSError: a file cannot be written.
    """
    for panel, path in zip(self._panels, self.panel_paths(folder), strict=True):
      keys = self._stacks[panel].keys
      png_io.write_png_strips(
        path, self._bands(keys), visualize.panel_size(len(keys), *self.size, self._layout)
      )

  def picture(self, panel: Panel) -> np.ndarray:
    """Draws an error panel as a whole: uint16 RGB [row, column, 3]."""
    images = (self._predicted_image(key) for key in self._stacks[panel].keys)
    return visualize.panel(images, self._layout)

  def _bands(self, keys: Sequence[ImageKey]) -> Iterator[np.ndarray]:
    for key in keys:
      yield from visualize.bands(self._predicted_image(key), self._layout)

  def _predicted_image(self, key: ImageKey) -> visualize.PredictedImage:
    rows, columns = (slice(0, n) for n in self.size)
    stack = StackSpec(z_values=(key.z,), channels=(key.channel,))
    true = self._truth.stack(stack, rows, columns)
    predicted = {s: self.store.values(key, s) for s in PANEL_STATISTICS[self._layout]}
    return visualize.PredictedImage(
      median=predicted[Statistic.MEDIAN],
      mode=predicted.get(Statistic.MODE),
      mean=predicted.get(Statistic.MEAN),
      standard_deviation=predicted.get(Statistic.STANDARD_DEVIATION),
      entropy=predicted.get(Statistic.ENTROPY),
      cross_entropy=predicted.get(Statistic.CROSS_ENTROPY),
      truth=true[:, :, 0, 0, 0],
      mask=true[:, :, 0, 0, 1],
    )
