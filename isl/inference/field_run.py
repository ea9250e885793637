"""One field of view of a run of INFER_FULL: from its images to all its files."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from absl import logging

from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import ImageKey, StackSpec
from isl.core.experiment import Experiment
from isl.core.parts import Sink
from isl.core.version import __version__
from isl.data import field_reading
from isl.data.data_provider import TruthReader
from isl.images import finding
from isl.images.fields_of_view import FieldFiles, FieldOfView
from isl.images.placement import Placement
from isl.inference import field_labeling, prediction_files
from isl.inference.error_panels import ErrorPanel
from isl.inference.prediction_files import PredictionFiles, PredictionStore
from isl.inference.tiling import Grid
from isl.report import field_record, reliability, thumbnails, visualize
from isl.report.field_record import FieldRecord, LabelRecord
from isl.report.metrics import RunningScores
from isl.report.thumbnails import Thumbnail, Thumbnails
from isl.system import files

# Longest side of the report's pictures, in pixels; half of that from this number of fields of view
# on, with which a browser would find the page heavy.
_THUMBNAIL = 512
_MANY_FIELDS = 48
# Rows of the input that are read at once for its picture.
_BAND = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What all fields of view of a run have in common; it can be sent to other processes.

  Attributes:
    experiment: the run.
    prefix: prefix of the checkpoint.
    checkpoint_fingerprint: fingerprint of the checkpoint's contents.
    temperatures: temperatures of the labels' distributions, by channel; None: all are 1.
    num_fields: number of fields of view in the run.
  """

  experiment: Experiment
  prefix: pathlib.Path
  checkpoint_fingerprint: str
  temperatures: Mapping[str, float] | None
  num_fields: int


class FieldRun:
  """Labels fields of view with one checkpoint, one after the other.

  Attributes:
    labeler: labels fields of view with the network.
    folder: the run's folder.
  """

  def __init__(self, settings: Settings, checkpoint: Checkpoint | None = None):
    """Checks that flags and checkpoint fit, before anything is computed.

    Args:
      settings: settings of the run.
      checkpoint: the checkpoint at `settings.prefix`, if it is open already; None: it is opened.

    Raises:
      ValueError: the flags do not fit the checkpoint, or the checkpoint is damaged.
    """
    experiment = settings.experiment
    self._experiment = experiment
    self._num_fields = settings.num_fields
    self._longest = _THUMBNAIL if settings.num_fields < _MANY_FIELDS else _THUMBNAIL // 2
    simplified = experiment.inference.simplify_panels
    self._layout = visualize.Layout.SIMPLIFIED if simplified else visualize.Layout.FULL
    checkpoint = checkpoint or Checkpoint(settings.prefix)
    self.labeler = field_labeling.FieldLabeler(
      checkpoint,
      field_labeling.make_network_plan(experiment, checkpoint),
      experiment.inference,
      settings.temperatures,
    )
    self.folder = experiment.evaluation_directory / f'{self.labeler.description.global_step:08d}'
    self._settings = {
      'isl': __version__,
      'checkpoint': settings.checkpoint_fingerprint,
      'inference': dataclasses.asdict(
        dataclasses.replace(experiment.inference, overwrite=False, calibrated=False)
      ),
      'stretch_targets': sorted(experiment.stretch_targets),
      'input_range': experiment.input_range and dataclasses.asdict(experiment.input_range),
      'temperatures': settings.temperatures,
    }

  def folder_of(self, name: str) -> pathlib.Path:
    """The folder of a field of view's files; the run's own folder if there is no other field."""
    # Files whose names identify nothing are a field of view, too.
    return self.folder / (name or 'unnamed') if self._num_fields > 1 else self.folder

  def label(self, field: FieldFiles, title: str | None) -> FieldRecord:
    """Labels a field of view, unless that is done already.

    Args:
      field: the field of view's images on disk.
      title: title under which the progress is shown; None: it is not shown.

    Raises:
      ValueError: an image is missing, damaged or does not fit, or the machine lacks the memory.
      OSError: a file cannot be read or written.
    """
    folder, description = self.folder_of(field.name), self.labeler.description
    selected = field.select(description.inputs.channels, self.labeler.targets.channels)
    fingerprint = field_record.fingerprint(
      self._settings, field.name, finding.contents_fingerprint(selected)
    )
    record = None if self._experiment.inference.overwrite else field_record.read(folder)
    if record is not None and record.fingerprint == fingerprint:
      if title:
        logging.info('%s is done already; --overwrite does it again', title.capitalize())
      return record
    # While the files are replaced, the older record is not true of them.
    field_record.path_in(folder).unlink(missing_ok=True)
    return self._compute(selected, folder, fingerprint, title)

  def _compute(
    self,
    field: FieldFiles,
    folder: pathlib.Path,
    fingerprint: str,
    title: str | None,
  ) -> FieldRecord:
    start = time.monotonic()
    field_of_view = field_reading.read_selected(self._experiment, field)
    inference, targets = self._experiment.inference, self.labeler.targets
    grid = self.labeler.grid(field_of_view.name, field_of_view.size)
    size = grid.output_size
    truth = TruthReader(field_of_view, grid.offset, size)
    store = PredictionStore(size)
    panels = [
      ErrorPanel(panel, self.labeler.stack(panel), self._layout, truth, store)
      for panel in inference.panels
    ]
    written = self._prediction_files(field_of_view, grid, folder, store)
    scores = {
      key: RunningScores(key, columns=size[1]) for key in targets.keys if truth.is_known(key)
    }
    pictures = [Thumbnails(key, size, self._longest) for key in targets.keys]
    panel_paths = [panel.path_in(folder) for panel in panels]
    for path in panel_paths:
      files.check_writable(path)
    sinks: list[Sink] = [*panels, written, *scores.values(), *pictures]
    with written:
      self.labeler.compute(field_of_view, sinks, title)
    for panel in panels:
      panel.write(folder)
    record = FieldRecord(
      field=field_of_view.name,
      fingerprint=fingerprint,
      image_size=field_of_view.size,
      output_size=size,
      output_offset=(grid.offset, grid.offset),
      padded_margin=grid.padded_margin,
      pixel_size=field_of_view.pixel_size,
      seconds=round(time.monotonic() - start, 3),
      files=tuple(str(path.relative_to(folder)) for path in (*panel_paths, *written.paths)),
      input=_write_thumbnail(
        folder, 'input', input_picture(truth, self.labeler.description.inputs, self._longest)
      ),
      labels=tuple(
        _write_label(folder, of_label, scores.get(key))
        for key, of_label in zip(targets.keys, pictures, strict=True)
      ),
    )
    record.write(folder)
    return record

  def _prediction_files(
    self, field_of_view: FieldOfView, grid: Grid, folder: pathlib.Path, store: PredictionStore
  ) -> PredictionFiles:
    inference = self._experiment.inference
    contents = prediction_files.Contents(
      folder=folder,
      field=field_of_view.name,
      keys=self.labeler.targets.keys,
      statistics=inference.statistics,
      size=grid.output_size,
      tile=self.labeler.tile_size(grid),
      placement=Placement(pixel_size=field_of_view.pixel_size, offset=(grid.offset, grid.offset)),
      margin=grid.padded_margin,
    )
    return prediction_files.prediction_files(inference.prediction_format, contents, store)


def input_picture(truth: TruthReader, inputs: StackSpec, longest: int) -> np.ndarray:
  """Draws a small picture of the first input channel at the middle depth, read band by band.

  Args:
    truth: reads the images of the field of view.
    inputs: the images that the network reads.
    longest: the most pixels that the picture's longer side may have.

  Returns:
    uint8 [row, column]: the part of the image that the outputs cover.
  """
  key = ImageKey(inputs.z_values[len(inputs.z_values) // 2], inputs.channels[0])
  rows, columns = (slice(0, n) for n in truth.size)
  thumbnail = Thumbnail(truth.size, longest)
  for first in range(0, rows.stop, _BAND):
    band = slice(first, min(first + _BAND, rows.stop))
    thumbnail.add(band, columns, truth.image(key, band, columns))
  return thumbnail.picture()


def _write_label(
  folder: pathlib.Path, pictures: Thumbnails, running: RunningScores | None
) -> LabelRecord:
  """Writes a label's small pictures and diagram.

  Args:
    folder: folder of the field of view.
    pictures: the label's pictures.
    running: the label's scores; None: the truth is unknown.

  Returns:
    The label's part of the field of view's record.
  """
  (key,), predicted = pictures.keys, pictures.prediction.picture()
  channel = key.channel
  record = LabelRecord(
    channel=channel, prediction=_write_thumbnail(folder, f'{channel}_prediction', predicted)
  )
  if pictures.truth is None or running is None:
    return record
  truth = pictures.truth.picture()
  error = visualize.subtractive_error(_floats(predicted), _floats(truth))
  diagram = f'reliability_{channel}.png'
  with files.whole_file(folder / diagram) as partial:
    partial.write_bytes(reliability.diagram_png(running.reliability(), channel))
  return dataclasses.replace(
    record,
    truth=_write_thumbnail(folder, f'{channel}_truth', truth),
    error=_write_thumbnail(folder, f'{channel}_error', np.rint(error * 255).astype(np.uint8)),
    reliability=diagram,
    scores=field_record.as_scores(dataclasses.asdict(running.scores())),
    calibration=dataclasses.asdict(running.reliability()),
  )


def _floats(picture: np.ndarray) -> np.ndarray:
  return picture * np.float32(1 / 255)


def _write_thumbnail(folder: pathlib.Path, name: str, picture: np.ndarray) -> str:
  """Writes a small picture; returns its path, relative to the folder."""
  path = pathlib.Path('thumbnails') / f'{name}.jpg'
  with files.whole_file(folder / path) as partial:
    partial.write_bytes(thumbnails.encode(picture))
  return str(path)
