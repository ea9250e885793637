"""Predictions from Python: a checkpoint's network for z-stacks in memory.

    import isl

    with isl.Predictor('checkpoints') as predictor:
      predicted = predictor.predict(stack, statistics=['MEDIAN', 'QUANTILE_5', 'QUANTILE_95'])
    predicted['DAPI_CONFOCAL']['MEDIAN']  # float32 [row, column] in [0, 1]

The same numbers as INFER_FULL's, without flags or files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core import statistic
from isl.core.channels import ImageKey
from isl.core.experiment import Inference, InferMethod, InputRange, Padding, PredictionFormat
from isl.core.parts import Part
from isl.core.statistic import NUM_CLASSES, AnyStatistic, Statistic
from isl.data import data_provider
from isl.images.fields_of_view import FieldOfView
from isl.inference import calibration
from isl.inference.field_labeling import FieldLabeler


class Predictor:
  """A checkpoint's network, ready for z-stacks of any size.

  It has a graph and a session of its own: TensorFlow's global state, eager execution included,
  stays as it is. Not to be used from several threads at once.

  Attributes:
    labels: names of the labels that the network predicts.
    input_channels: names of the channels that the network reads, for most TRANSMISSION alone.
    margin: rows and columns that an unpadded prediction lacks at each border of the stack.
  """

  def __init__(
    self,
    checkpoint_directory: str | os.PathLike[str],
    *,
    calibrated: bool = False,
    tile_size: int = 16,
  ):
    """Opens the newest checkpoint of a folder.

    Args:
      checkpoint_directory: the folder.
      calibrated: whether distributions are corrected by the temperatures in its calibration.json.
      tile_size: side of the tiles that are computed at once, in blocks of 8 x 8 pixels; more is
        faster and takes more memory.

    Raises:
      ValueError: there is no checkpoint, or it is damaged, or is not calibrated.
    """
    if tile_size < 1:
      raise ValueError(f'tile_size must be at least 1, got {tile_size}')
    self._checkpoint = Checkpoint(find_newest(checkpoint_directory))
    description = self._checkpoint.describe()
    self._plan = description.plan()
    self._tile_size = tile_size
    self._temperatures: dict[str, float] | None = None
    if calibrated:
      fitted = calibration.load(self._checkpoint.prefix.parent)
      fitted.check_checkpoint(self._checkpoint.fingerprint())
      self._temperatures = dict(fitted.temperatures)
    self.labels = description.targets.channels
    self.input_channels = description.inputs.channels
    self.margin = self._plan.spec.geometry.margin
    self._made: tuple[tuple[object, ...], FieldLabeler] | None = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Frees the network's memory."""
    if self._made is not None:
      self._made[1].close()
      self._made = None

  def predict(
    self,
    stack: np.ndarray | Mapping[str, np.ndarray],
    *,
    statistics: Sequence[str] = ('MEDIAN',),
    labels: Sequence[str] | None = None,
    padding: str = 'NONE',
    input_range: tuple[float, float] | str | None = None,
    progress: str | None = None,
  ) -> dict[str, dict[str, np.ndarray]]:
    """Predicts labels, tile by tile: beside the stack and the results, memory is constant.

    Args:
      stack: [z, row, column], of any number of depths: uint8 or uint16, whose largest number is the
        intensity 1, or floats in [0, 1]. For a network that reads several channels, a stack for
        each of them, by its name.
      statistics: what is reported of each pixel's distribution: MODE, MEDIAN, MEAN,
        STANDARD_DEVIATION, PROBABILITY_NONZERO, ENTROPY, QUANTILE_<percent>, DISTRIBUTION.
      labels: names of the labels to predict; None: all.
      padding: NONE: the prediction lacks `margin` pixels at each border, and up to 7 more at the
        bottom and right; REFLECT, ZERO: it has the stack's size.
      input_range: (low, high), what becomes 0 and 1, as in the stack; 'auto': its 0.1 and 99.9
        percentiles; None: the type's range.
      progress: title under which the progress is shown; None: it is not shown.

    Returns:
      By label and statistic, float32 [row, column] in [0, 1]; DISTRIBUTION has a further axis for
      the 256 classes.

    Raises:
      ValueError: the stack is of another kind or too small, or a name is unknown.
    """
    ends = InputRange.parse(input_range)
    field_of_view = data_provider.prepared(self._field_of_view(stack, ends), ends, ())
    wanted = statistic.parse_all(statistics)
    labeler = self._labeler(labels, padding)
    patch = self._plan.spec.geometry.patch
    if padding == Padding.NONE.name and min(field_of_view.size) < patch:
      raise ValueError(
        f'a stack must have at least {patch} x {patch} pixels without padding, got'
        f' {field_of_view.size[0]} rows x {field_of_view.size[1]} columns'
      )
    grid = labeler.grid(field_of_view.name, field_of_view.size)
    arrays = _Arrays(labeler.targets.keys, wanted, grid.output_size)
    labeler.compute(field_of_view, [arrays], progress)
    return arrays.by_label()

  def _field_of_view(
    self, stack: np.ndarray | Mapping[str, np.ndarray], input_range: InputRange | None
  ) -> FieldOfView:
    if isinstance(stack, Mapping):
      stacks = {str(channel): np.asarray(images) for channel, images in stack.items()}
    elif len(self.input_channels) == 1:
      stacks = {self.input_channels[0]: np.asarray(stack)}
    else:
      raise ValueError(
        f'this network reads {", ".join(self.input_channels)}; give a stack for each, by its name'
      )
    if set(stacks) != set(self.input_channels):
      raise ValueError(
        f'stacks are named {", ".join(sorted(stacks))}; this network reads'
        f' {", ".join(self.input_channels)}'
      )
    images: dict[ImageKey, np.ndarray] = {}
    for channel, of_channel in stacks.items():
      if of_channel.ndim != 3 or not of_channel.size:
        raise ValueError(f'a stack must be [z, row, column], got the shape {of_channel.shape}')
      if of_channel.dtype.kind == 'f':
        of_channel = of_channel.astype(np.float32, copy=False)
        is_ranged = input_range is not None
        data_provider.check_floats('the stack', of_channel, is_ranged, 'an input_range')
      elif of_channel.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'a stack must be of uint8, uint16 or floats, got {of_channel.dtype}')
      images |= {ImageKey(z, channel): image for z, image in enumerate(of_channel)}
    if len({image.shape for image in images.values()}) > 1:
      raise ValueError('all stacks must have the same rows and columns')
    return FieldOfView(name='stack', images=images)

  def _labeler(self, labels: Sequence[str] | None, padding: str) -> FieldLabeler:
    """Makes the network for these labels, or gives that of the call before, if it will do."""
    if padding not in Padding.__members__:
      raise ValueError(f'padding must be one of {", ".join(Padding.__members__)}, got {padding!r}')
    unknown = [label for label in labels or () if label not in self.labels]
    if unknown:
      raise ValueError(
        f'labels has {", ".join(map(str, unknown))}; this network predicts {", ".join(self.labels)}'
      )
    settings = tuple(labels or self.labels), padding
    if self._made is not None and self._made[0] == settings:
      return self._made[1]
    self.close()
    inference = Inference(
      crop_size=0,
      tile_size=self._tile_size,
      method=InferMethod.DENSE,
      panels=(),
      simplify_panels=True,
      statistics=(),
      channels=settings[0],
      padding=Padding[padding],
      prediction_format=PredictionFormat.PNG,
      calibrate=False,
      calibrated=False,
      overwrite=False,
    )
    labeler = FieldLabeler(self._checkpoint, self._plan, inference, self._temperatures)
    self._made = settings, labeler
    return labeler


class _Arrays:
  """A sink that gathers predictions in arrays."""

  def __init__(
    self,
    keys: tuple[ImageKey, ...],
    statistics: tuple[AnyStatistic, ...],
    size: tuple[int, int],
  ):
    """Makes arrays for the statistics of some labels, each of `size` (rows, columns), in pixels."""
    self.keys = keys
    self.statistics = statistics
    shapes = {s: (*size, NUM_CLASSES) if s is Statistic.DISTRIBUTION else size for s in statistics}
    self._arrays = {
      key: {s: np.zeros(shape, np.float32) for s, shape in shapes.items()} for key in keys
    }

  def add(self, part: Part) -> None:
    """Copies a part into the arrays."""
    for wanted, array in self._arrays[part.key].items():
      # Rounding may leave a little more than 1, or less than 0.
      array[part.rows, part.columns] = np.clip(part.predicted[wanted], 0, 1)

  def by_label(self) -> dict[str, dict[str, np.ndarray]]:
    """The arrays, by names of labels and of statistics."""
    return {
      key.channel: {wanted.value: array for wanted, array in arrays.items()}
      for key, arrays in self._arrays.items()
    }
