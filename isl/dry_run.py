"""--dry_run: prints what was found, what would be read of it, and what would be written."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from isl.checkpoints.checkpoint import CHECKPOINT_NAME, STATE_FILE, Checkpoint, find_newest
from isl.checkpoints.training_record import check_stretch_targets
from isl.core.channels import MAXPROJECT, ImageKey, StackSpec
from isl.core.experiment import Experiment, Geometry, Metric, Mode
from isl.data import data_provider, field_reading
from isl.images.fields_of_view import FieldFiles, parts_of, recorded_channels
from isl.images.placement import Placement
from isl.inference import field_labeling, prediction_files, run_results
from isl.inference.prediction_files import PredictionStore
from isl.report import visualize
from isl.training.start import find_start

_INDENT = '  '


def run(experiment: Experiment) -> list[str]:
  """Prints what the run would read and write.

  Returns:
    A line on each field of view that could not be used, if there are several.

  Raises:
    ValueError: the checkpoint or the only field of view is missing, damaged or does not fit.
    OSError: a file cannot be read.
  """
  found = field_reading.fields_of(experiment)
  network = _Network(experiment)
  print('\n'.join(network.lines()))
  failed = []
  for title, field in field_reading.numbered(found):
    print(f'{title.capitalize()}: {field.name}')
    try:
      lines = list(network.field_lines(field, alone=len(found) == 1))
    except (ValueError, OSError) as e:
      if len(found) == 1:
        raise
      lines = [f'problem: {e}']
      failed.append(f'field of view {field.name!r} cannot be used: {e}')
    print('\n'.join(_INDENT + line for line in lines))
  print(f'Would write to {network.folder}:')
  print('\n'.join(_INDENT + line for line in network.run_files()))
  return failed


class _Network:
  """The network and the folder that a run would use.

  Attributes:
    folder: the folder that the run would write to.
  """

  def __init__(self, experiment: Experiment):
    """Opens the checkpoint, if there is one; raises OSError or ValueError as the run would."""
    self._experiment = experiment
    self._labeler: field_labeling.FieldLabeler | None = None
    if experiment.mode is Mode.TRAIN:
      start = find_start(experiment)
      self._inputs, self._targets, plan = start.inputs, start.targets, start.plan
      checkpoint, self.folder = start.checkpoint, experiment.train_directory
    else:
      checkpoint = Checkpoint(find_newest(experiment.checkpoint_directory))
      description = checkpoint.describe()
      plan = field_labeling.make_network_plan(experiment, checkpoint)
      self._inputs, self._targets = description.inputs, description.targets
      self.folder = experiment.evaluation_directory
      if experiment.metric is not Metric.LOSS:
        self._labeler = field_labeling.FieldLabeler(checkpoint, plan, experiment.inference)
        self._targets = self._labeler.targets
      if experiment.metric is Metric.INFER_FULL:
        self.folder /= f'{description.global_step:08d}'
    check_stretch_targets(experiment.stretch_targets, self._targets)
    self._plan, self._checkpoint = plan, checkpoint

  @property
  def _geometry(self) -> Geometry:
    return self._plan.spec.geometry

  def lines(self) -> Iterator[str]:
    """Yields lines about the checkpoint and the network."""
    if self._checkpoint is None:
      yield 'Checkpoint: none, random weights'
    else:
      step = self._checkpoint.describe().global_step
      yield f'Checkpoint: {self._checkpoint.prefix}, step {step}'
    num_positions = len(self._inputs.z_values)
    yield (
      f'Network: {self._plan.spec.name}, reads {num_positions} z positions of'
      f' {", ".join(self._inputs.channels)} and predicts {", ".join(self._targets.channels)}'
    )

  def field_lines(self, field: FieldFiles, *, alone: bool) -> Iterator[str]:
    """Yields lines about a field of view, and about what would be written of it.

    Args:
      field: the field of view.
      alone: whether it is the run's only one, whose files are in the run's folder itself.

    Raises:
      ValueError: the field of view does not fit the network, or is damaged.
      OSError: a file cannot be read.
    """
    selected = field.select(self._inputs.channels, self._targets.channels)
    sizes = {source.size for source in selected.sources.values()}
    if len(sizes) > 1:
      raise ValueError(
        f'its images are of several sizes: {", ".join(map(str, sorted(sizes)))}; expected one'
      )
    (size,) = sizes
    yield f'size: {size[0]} rows x {size[1]} columns'
    if field.pixel_size:
      yield f'pixel: {field.pixel_size[0]:g} x {field.pixel_size[1]:g} micrometers'
    for channel in self._inputs.channels:
      yield from _input_lines(selected, self._inputs, channel)
    yield from self._label_lines(field, selected)
    if self._labeler is not None:
      grid = self._labeler.grid(field.name, size)
      yield (
        f'prediction: {grid.output_size[0]} rows x {grid.output_size[1]} columns, from pixel'
        f' ({grid.offset}, {grid.offset})'
      )
      if self._experiment.metric is Metric.INFER_FULL:
        folder = pathlib.Path() if alone else pathlib.Path(field.name or 'unnamed')
        yield f'would write: {", ".join(self._files(field.name, folder, grid.output_size))}'

  def _label_lines(self, field: FieldFiles, selected: FieldFiles) -> Iterator[str]:
    having = [c for c in self._targets.channels if data_provider.is_recorded(c, selected.sources)]
    missing = [c for c in self._targets.channels if c not in having]
    yield f'labels: {", ".join(having) or "none"}'
    if missing:
      yield f'missing labels: {", ".join(missing)}'
    for channel in having:
      for part in parts_of(channel):
        if part == channel:
          yield f'{_INDENT}{channel}: {selected.sources[ImageKey(MAXPROJECT, part)].path}'
    read = {key.channel for key in selected.sources}
    unused = [channel for channel in field.channels if channel not in read]
    if unused:
      yield f'not used: {", ".join(unused)}'

  def _files(self, name: str, folder: pathlib.Path, size: tuple[int, int]) -> list[str]:
    inference = self._experiment.inference
    contents = prediction_files.Contents(
      folder=folder,
      field=name,
      keys=self._targets.keys,
      statistics=inference.statistics,
      size=size,
      tile=size,
      placement=Placement(),
      margin=0,
    )
    # Nothing is gathered in this store: it has no pixels.
    written = prediction_files.prediction_files(
      inference.prediction_format, contents, PredictionStore((0, 0))
    )
    panels = [folder / visualize.panel_file(panel) for panel in inference.panels]
    return [str(path) for path in (*panels, *written.paths, folder / 'field.json')]

  def run_files(self) -> tuple[str, ...]:
    """The names of the files that would be written for the run as a whole."""
    if self._experiment.mode is Mode.TRAIN:
      return (
        f'{CHECKPOINT_NAME}-*',
        STATE_FILE,
        'channels.json',
        'run.json',
        'events.out.tfevents.*',
      )
    if self._experiment.inference.calibrate:
      return (str(self._experiment.checkpoint_directory / 'calibration.json'),)
    if self._experiment.metric is Metric.INFER_FULL:
      return run_results.TABLES
    return ('events.out.tfevents.*',)


def _input_lines(selected: FieldFiles, inputs: StackSpec, channel: str) -> Iterator[str]:
  """Yields lines on which depths of an input channel fill which of the network's positions."""
  names = recorded_channels(channel)
  keys = [k for k in selected.sources if isinstance(k.z, int) and k.channel in names]
  shown = channel if keys[0].channel == channel else f'{channel} ({keys[0].channel})'
  yield f'{shown}: {len(keys)} depths'
  filled: dict[int, list[str]] = {}
  for z in inputs.z_values:
    depth = data_provider.depth_at(float(z), len(keys))
    filled.setdefault(depth, []).append(str(z))
  for key in keys:
    assert isinstance(key.z, int)
    positions = ', '.join(filled.get(key.z, [])) or 'none'
    yield f'{_INDENT}z {key.z} fills {positions}: {selected.sources[key].path}'
