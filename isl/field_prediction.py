"""What is predicted of one field of view: gathered tile by tile, then written as files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from isl import data_provider, image_io, metrics, png_io, visualize
from isl.experiment import (
  MAXPROJECT,
  NUM_CLASSES,
  ImageKey,
  Panel,
  StackSpec,
  Statistic,
)

# In float32, as the network's own: a quotient would differ in the last bit.
_PER_CLASS = np.float32(1 / (NUM_CLASSES - 1))
_CLASSES = (Statistic.MODE, Statistic.MEDIAN)
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


class FieldPrediction:
  """The predicted images of one field of view.

  They are kept as the files need them: modes and medians as classes (8 bit), other statistics in 16
  bit. What the panels show beside them is read from the field of view while they are drawn.

  Attributes:
    image_set: the field of view.
    size: (rows, columns) of the predicted images.
  """

  def __init__(
    self,
    image_set: image_io.ImageSet,
    *,
    inputs: StackSpec,
    targets: StackSpec,
    margin: int,
    size: tuple[int, int],
    panels: Sequence[Panel],
    layout: visualize.Layout,
    statistics: Sequence[Statistic],
  ):
    """Makes room for the predictions.

    Args:
      image_set: the field of view.
      inputs: the images that the network reads; predicted if the input panel is wanted.
      targets: the labels that are predicted, in the panel's order.
      margin: rows and columns of the image in front of the output's.
      size: (rows, columns) of the output.
      panels: error panels to draw.
      layout: their columns.
      statistics: of the labels, to write as files.
    """
    self.image_set = image_set
    self._margin = margin
    self.size = size
    self._panels = tuple(panels)
    self._layout = layout
    self._statistics = tuple(statistics)
    self._stacks = {Panel.TARGET: targets, Panel.INPUT: inputs}
    drawn = PANEL_STATISTICS[layout]
    self._images: dict[tuple[ImageKey, Statistic], np.ndarray] = {}
    for key in targets.keys:
      self._make_room(key, {*statistics, *(drawn if Panel.TARGET in panels else ())})
    if Panel.INPUT in panels:
      for key in inputs.keys:
        self._make_room(key, set(drawn))
    self._scores = {
      key: metrics.RunningScores()
      for key in targets.keys
      if data_provider.has_truth(image_set, key.channel)
    }

  def _make_room(self, key: ImageKey, statistics: set[Statistic]) -> None:
    for statistic in statistics:
      dtype = np.uint8 if statistic in _CLASSES else np.uint16
      self._images[key, statistic] = np.zeros(self.size, dtype)

  def true_classes(self, panel: Panel, rows: slice, columns: slice) -> np.ndarray:
    """Classes of the labels or of the input, uint8 [image, row, column]; 0 without a truth.

    Args:
      panel: which of them, in the panel's order.
      rows: of the output.
      columns: likewise.
    """
    truth = self._true_stack(self._stacks[panel], rows, columns)[..., 0]
    classes = data_provider.classes_of(truth)
    return np.moveaxis(classes.reshape(*classes.shape[:2], -1), -1, 0)

  def _true_stack(self, stack: StackSpec, rows: slice, columns: slice) -> np.ndarray:
    """[row, column, z, channel, mask] of a part of the output."""
    window = [slice(s.start + self._margin, s.stop + self._margin) for s in (rows, columns)]
    is_target = stack.z_values == (MAXPROJECT,)
    crop = data_provider.target_crop if is_target else data_provider.input_crop
    return crop(self.image_set, stack, window[0], window[1])

  def add(
    self, key: ImageKey, rows: slice, columns: slice, predicted: dict[Statistic, np.ndarray]
  ) -> None:
    """Takes in what was computed of one image in a part of the output.

    Args:
      key: the image.
      rows: of the output.
      columns: likewise.
      predicted: each statistic, float32 [row, column].
    """
    for statistic, values in predicted.items():
      image = self._images.get((key, statistic))
      if image is not None:
        if statistic is Statistic.CROSS_ENTROPY:
          values = visualize.clipped_cross_entropy(values)
        levels = NUM_CLASSES - 1 if statistic in _CLASSES else 65535
        image[rows, columns] = np.rint(np.clip(values, 0, 1) * levels)
    if key in self._scores:
      stack = StackSpec(z_values=(key.z,), channels=(key.channel,))
      truth = self._true_stack(stack, rows, columns)[:, :, 0, 0, 0]
      self._scores[key].add(predicted[Statistic.MEDIAN], truth, predicted[Statistic.CROSS_ENTROPY])

  def scores(self) -> list[tuple[str, metrics.Scores]]:
    """(channel, scores) of each label with ground truth."""
    return [(key.channel, scores.scores()) for key, scores in self._scores.items()]

  def paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
    """Names of the files that `write` writes."""
    return [
      *(folder / f'{panel.value.lower()}_error_panel.png' for panel in self._panels),
      *(self._prediction_path(folder, key, s) for key, s in self._predictions()),
    ]

  def write(self, folder: pathlib.Path) -> None:
    """Writes the error panels and the predictions, each as a 16-bit PNG.

    Raises:
      OSError: a file cannot be written.
    """
    for key, statistic in self._predictions():
      image = self._images[key, statistic]
      if statistic in _CLASSES:
        image = image * np.uint16(65535 // (NUM_CLASSES - 1))
      png_io.write_png(self._prediction_path(folder, key, statistic), image)
    for panel in self._panels:
      keys = self._stacks[panel].keys
      png_io.write_png_strips(
        folder / f'{panel.value.lower()}_error_panel.png',
        self._bands(keys),
        visualize.panel_size(len(keys), *self.size, self._layout),
      )

  def _predictions(self) -> Iterator[tuple[ImageKey, Statistic]]:
    for key in self._stacks[Panel.TARGET].keys:
      for statistic in self._statistics:
        yield key, statistic

  def _prediction_path(
    self, folder: pathlib.Path, key: ImageKey, statistic: Statistic
  ) -> pathlib.Path:
    name = image_io.prediction_name(self.image_set.name, key.channel, statistic.value)
    return folder / 'predictions' / name

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
    true = self._true_stack(stack, rows, columns)
    predicted = {s: self._values(key, s) for s in PANEL_STATISTICS[self._layout]}
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

  def _values(self, key: ImageKey, statistic: Statistic) -> np.ndarray:
    """float32 in [0, 1]."""
    image = self._images[key, statistic]
    return image * (_PER_CLASS if statistic in _CLASSES else np.float32(1 / 65535))
