"""The files that predictions are written as: PNGs, an OME-TIFF, or OME-Zarrs."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from isl.core.channels import ImageKey
from isl.core.experiment import PredictionFormat
from isl.core.parts import Part
from isl.core.statistic import NUM_CLASSES, AnyStatistic, Statistic, is_class
from isl.images import ome_tiff_io, ome_zarr_io, png_folders, png_io
from isl.images.placement import Placement
from isl.system import files

_FOLDER = 'predictions'
# In float32, as the network's own: a quotient would differ in the last bit.
_PER_CLASS = np.float32(1 / (NUM_CLASSES - 1))
_UINT16_MAX = 65535


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
  """What is written of a field of view. Sizes are in pixels.

  Attributes:
    folder: folder that the files are written to.
    field: name of the field of view.
    keys: keys of the labels.
    statistics: statistics of each label that are written.
    size: (rows, columns) of the prediction.
    tile: (rows, columns) of the parts in which the prediction arrives.
    placement: where the prediction lies in the microscope's image.
    margin: rows and columns at each border whose prediction depends on padding; 0: none.
  """

  folder: pathlib.Path
  field: str
  keys: tuple[ImageKey, ...]
  statistics: tuple[AnyStatistic, ...]
  size: tuple[int, int]
  tile: tuple[int, int]
  placement: Placement
  margin: int

  @property
  def pictures(self) -> tuple[tuple[ImageKey, AnyStatistic], ...]:
    """The (label, statistic) of each picture, in the files' order; a DISTRIBUTION is no picture."""
    return tuple(
      (key, statistic)
      for key in self.keys
      for statistic in self.statistics
      if statistic is not Statistic.DISTRIBUTION
    )

  @property
  def channels(self) -> tuple[str, ...]:
    """The names of the pictures, as channels of OME files."""
    return tuple(f'{key.channel}/{statistic.value}' for key, statistic in self.pictures)

  @property
  def attributes(self) -> dict[str, Any]:
    """Facts about the prediction that OME's metadata have no place for, by name."""
    return {
      # Names of files may be any bytes.
      'field': self.field.encode('utf-8', 'backslashreplace').decode(),
      'offset_in_pixels': list(self.placement.offset),
      'padded_margin_in_pixels': self.margin,
    }


class PredictionFiles(abc.ABC):
  """A sink that writes a field of view's predictions; a context manager, too.

  All parts are added in the `with` block. When the block ends well, all files are there; after an
  exception, none of them is.

  Attributes:
    keys: keys of the labels.
    statistics: statistics of each label that are written.
  """

  def __init__(self, contents: Contents, store: PredictionStore):
    """Takes what is to be written, and the store, in which subclasses make room for it."""
    self.keys = contents.keys
    self.statistics = contents.statistics
    self._contents = contents
    self._store = store

  @property
  @abc.abstractmethod
  def paths(self) -> list[pathlib.Path]:
    """The paths of the files that are written."""

  def __enter__(self) -> Self:
    """Checks that the files can be written, or begins to write them.

    Raises:
      OSError: a file cannot be written.
    """
    self._block = self._writing()
    self._block.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Finishes the files; after an exception, removes what was written of them.

    Raises:
      OSError: a file cannot be written.
    """
    self._block.__exit__(kind, error, traceback)

  @abc.abstractmethod
  def _writing(self) -> contextlib.AbstractContextManager[None]:
    """The context in which all parts are added; at its end the files are written."""

  @abc.abstractmethod
  def add(self, part: Part) -> None:
    """Takes in a part of a label."""


class _StoredFiles(PredictionFiles):
  """Files that are written from the store, when all parts are in it."""

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    for path in self.paths:
      files.check_writable(path)
    yield
    self._write()

  def add(self, part: Part) -> None:
    pictures: dict[AnyStatistic, np.ndarray] = {
      s: part.predicted[s] for s in self.statistics if s is not Statistic.DISTRIBUTION
    }
    self._store.add(part.key, part.rows, part.columns, pictures)

  @abc.abstractmethod
  def _write(self) -> None:
    """Writes the files from the store."""


class _Pngs(_StoredFiles):
  """A 16-bit PNG for each label and statistic, named as in the published data set."""

  def __init__(self, contents: Contents, store: PredictionStore):
    super().__init__(contents, store)
    for key, statistic in contents.pictures:
      store.make_room(key, statistic)

  def _path(self, key: ImageKey, statistic: AnyStatistic) -> pathlib.Path:
    name = png_folders.prediction_name(self._contents.field, key.channel, statistic.value)
    return self._contents.folder / _FOLDER / name

  @property
  def paths(self) -> list[pathlib.Path]:
    return [self._path(*picture) for picture in self._contents.pictures]

  def _write(self) -> None:
    for picture in self._contents.pictures:
      png_io.write_png(self._path(*picture), self._store.in_16_bit(*picture))


class _OmeTiff(_StoredFiles):
  """One OME-TIFF of floats, with a channel for each label and statistic."""

  def __init__(self, contents: Contents, store: PredictionStore):
    super().__init__(contents, store)
    for key, statistic in contents.pictures:
      store.make_room(key, statistic, exact=True)

  @property
  def paths(self) -> list[pathlib.Path]:
    return [self._contents.folder / f'{_FOLDER}.ome.tif'] if self._contents.pictures else []

  def _write(self) -> None:
    for path in self.paths:
      ome_tiff_io.write_ome_tiff(
        path,
        (self._store.values(*picture) for picture in self._contents.pictures),
        size=self._contents.size,
        channels=self._contents.channels,
        dtype=np.float32,
        placement=self._contents.placement,
        description=json.dumps(self._contents.attributes),
      )


class _OmeZarrs(PredictionFiles):
  """One OME-Zarr of floats for all pictures, and one for each label's distributions.

  They are written as the parts arrive, so that no image is in memory as a whole.
  """

  def __init__(self, contents: Contents, store: PredictionStore):
    super().__init__(contents, store)
    ome_zarr_io.require()
    self._channels = {picture: i for i, picture in enumerate(contents.pictures)}
    self._pictures: ome_zarr_io.OmeZarrImage | None = None
    self._distributions: dict[ImageKey, ome_zarr_io.OmeZarrImage] = {}

  @property
  def _pictures_path(self) -> pathlib.Path:
    return self._contents.folder / f'{_FOLDER}.ome.zarr'

  def _distribution_path(self, key: ImageKey) -> pathlib.Path:
    return self._contents.folder / f'{key.channel}_distribution.ome.zarr'

  @property
  def paths(self) -> list[pathlib.Path]:
    paths = [self._pictures_path] if self._channels else []
    if Statistic.DISTRIBUTION in self.statistics:
      paths += [self._distribution_path(key) for key in self.keys]
    return paths

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
      if self._channels:
        image = self._image(self._pictures_path, self._contents.channels, np.float32)
        self._pictures = stack.enter_context(image)
      if Statistic.DISTRIBUTION in self.statistics:
        for key in self.keys:
          names = tuple(f'{key.channel}/CLASS_{k}' for k in range(NUM_CLASSES))
          image = self._image(self._distribution_path(key), names, np.float16)
          self._distributions[key] = stack.enter_context(image)
      yield

  def _image(
    self, path: pathlib.Path, channels: tuple[str, ...], dtype: type
  ) -> ome_zarr_io.OmeZarrImage:
    return ome_zarr_io.OmeZarrImage(
      path,
      size=self._contents.size,
      channels=channels,
      dtype=dtype,
      tile=self._contents.tile,
      placement=self._contents.placement,
      attributes=self._contents.attributes,
    )

  def add(self, part: Part) -> None:
    for statistic in self.statistics:
      values = part.predicted[statistic]
      if statistic is Statistic.DISTRIBUTION:
        self._distributions[part.key].write(
          slice(None), part.rows, part.columns, np.moveaxis(values, -1, 0).astype(np.float16)
        )
      else:
        assert self._pictures is not None
        channel = self._channels[part.key, statistic]
        self._pictures.write(channel, part.rows, part.columns, np.clip(values, 0, 1))


_WRITERS: dict[PredictionFormat, Callable[[Contents, PredictionStore], PredictionFiles]] = {
  PredictionFormat.PNG: _Pngs,
  PredictionFormat.OME_TIFF: _OmeTiff,
  PredictionFormat.OME_ZARR: _OmeZarrs,
}


def prediction_files(
  prediction_format: PredictionFormat, contents: Contents, store: PredictionStore
) -> PredictionFiles:
  """Makes the sink that writes files of a format.

  Raises:
    ValueError: a library that the format needs is not installed.
  """
  return _WRITERS[prediction_format](contents, store)


class PredictionStore:
  """Gathers statistics of a field of view's pixels: classes in 8 bit, others in 16 or as floats.

  Attributes:
    size: (rows, columns) of each image, in pixels.
  """

  def __init__(self, size: tuple[int, int]):
    """Makes a store without images.

    Args:
      size: (rows, columns) of each image, in pixels.
    """
    self.size = size
    self._images: dict[tuple[ImageKey, AnyStatistic], np.ndarray] = {}

  def make_room(self, key: ImageKey, statistic: AnyStatistic, *, exact: bool = False) -> None:
    """Makes room for a statistic of an image; from now on `add` takes it.

    Args:
      key: key of the image.
      statistic: statistic of the image's pixels.
      exact: whether the statistic is kept as floats, because 16 bit are too few.
    """
    dtype = np.uint8 if is_class(statistic) else np.float32 if exact else np.uint16
    if (key, statistic) not in self._images or exact:
      self._images[key, statistic] = np.zeros(self.size, dtype)

  def add(
    self,
    key: ImageKey,
    rows: slice,
    columns: slice,
    predicted: Mapping[AnyStatistic, np.ndarray],
  ) -> None:
    """Takes in a part of an image.

    Args:
      key: key of the image.
      rows: rows of the part in the image, in pixels.
      columns: columns of the part in the image, in pixels.
      predicted: the part's statistics, for which there is room, each float32 [row, column].
    """
    for statistic, values in predicted.items():
      image = self._images[key, statistic]
      if image.dtype == np.float32:
        image[rows, columns] = np.clip(values, 0, 1)
      else:
        levels = NUM_CLASSES - 1 if image.dtype == np.uint8 else _UINT16_MAX
        image[rows, columns] = np.rint(np.clip(values, 0, 1) * np.float32(levels))

  def values(self, key: ImageKey, statistic: AnyStatistic) -> np.ndarray:
    """Gives a statistic of an image as float32 in [0, 1], [row, column]."""
    image = self._images[key, statistic]
    if image.dtype == np.float32:
      return image
    return image * (_PER_CLASS if image.dtype == np.uint8 else np.float32(1 / _UINT16_MAX))

  def in_16_bit(self, key: ImageKey, statistic: AnyStatistic) -> np.ndarray:
    """Gives a statistic of an image as uint16, [row, column]; 65535 stands for 1."""
    image = self._images[key, statistic]
    if image.dtype == np.float32:
      return np.rint(image * np.float32(_UINT16_MAX)).astype(np.uint16)
    if image.dtype == np.uint8:
      return image * np.uint16(_UINT16_MAX // (NUM_CLASSES - 1))
    return image
