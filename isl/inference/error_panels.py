"""Error panels of a field of view: gathered part by part, then drawn beside the truth."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from isl.core.channels import ImageKey, StackSpec
from isl.core.experiment import Panel
from isl.core.parts import Part
from isl.core.statistic import AnyStatistic
from isl.data.data_provider import TruthReader
from isl.images import png_io
from isl.inference.prediction_files import PredictionStore
from isl.report import visualize


class ErrorPanel:
  """A sink that gathers what one error panel shows, and draws it.

  The truth that it shows beside the predictions is read from the field of view when it is drawn.

  Attributes:
    panel: which of the error panels this is.
    keys: keys of the images that the panel shows, from top to bottom.
    statistics: statistics of these images that the panel draws.
  """

  def __init__(
    self,
    panel: Panel,
    stack: StackSpec,
    layout: visualize.Layout,
    truth: TruthReader,
    store: PredictionStore,
  ):
    """Makes room in the store for the statistics that are drawn.

    Args:
      panel: which of the error panels this is.
      stack: the images that the panel shows, in the panel's order.
      layout: the panel's columns.
      truth: reads the true images of the field of view.
      store: gathers the predictions; other sinks may gather theirs there.
    """
    self.panel = panel
    self.keys = stack.keys
    self.statistics = layout.statistics
    self._layout = layout
    self._truth = truth
    self._store = store
    for key in self.keys:
      for statistic in self.statistics:
        store.make_room(key, statistic)

  def add(self, part: Part) -> None:
    """Takes in a part of one of the panel's images."""
    shown: dict[AnyStatistic, np.ndarray] = {
      s: visualize.shown(s, part.predicted[s]) for s in self.statistics
    }
    self._store.add(part.key, part.rows, part.columns, shown)

  def path_in(self, folder: pathlib.Path) -> pathlib.Path:
    """The path of the file that `write` writes to a folder."""
    return folder / visualize.panel_file(self.panel)

  def write(self, folder: pathlib.Path) -> None:
    """Writes the panel to a folder as a 16-bit PNG, a band at a time.

    Raises:
      OSError: the file cannot be written.
    """
    size = visualize.panel_size(len(self.keys), *self._store.size, self._layout)
    png_io.write_png_strips(self.path_in(folder), self._bands(), size)

  def picture(self) -> np.ndarray:
    """Draws the panel as a whole: uint16 RGB [row, column, 3]."""
    return visualize.panel(map(self._predicted_image, self.keys), self._layout)

  def _bands(self) -> Iterator[np.ndarray]:
    for key in self.keys:
      yield from visualize.bands(self._predicted_image(key), self._layout)

  def _predicted_image(self, key: ImageKey) -> visualize.PredictedImage:
    rows, columns = (slice(0, n) for n in self._store.size)
    stack = StackSpec(z_values=(key.z,), channels=(key.channel,))
    true = self._truth.stack(stack, rows, columns)
    return visualize.PredictedImage(
      statistics={s: self._store.values(key, s) for s in self.statistics},
      truth=true[:, :, 0, 0, 0],
      mask=true[:, :, 0, 0, 1],
    )
