"""Fields of view in microscopes' files: TIFF, OME-TIFF, OME-Zarr, CZI and what else bioio reads.

An OME-Zarr's images, which may be larger than the memory, are read in windows; the images of other
files are read plane by plane.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import threading
import weakref
from typing import Any

import numpy as np

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import microscope_scenes
from isl.images.fields_of_view import FieldFiles
from isl.images.microscope_scenes import SUFFIXES, Scene
from isl.images.pixels import MaximumPixels, Pixels
from isl.images.sources import ImageSource

# In bytes: decoded chunks that are kept. Windows overlap, and the depths of one are read one after
# the other; with this, up to 13 depths of four chunks of 1024 x 1024 pixels stay for the next.
_MOST_CHUNKS = 128 << 20
# Scenes' names become parts of files' names, in which commas separate fields.
_UNSAFE = re.compile(r'[\x00-\x1f/\\:,*?"<>|]+')


def is_microscope_file(path: pathlib.Path) -> bool:
  """Whether a path is named like a microscope's file, or is the folder of an OME-Zarr."""
  if path.is_dir():
    return microscope_scenes.is_zarr(path)
  return path.suffix.lower() in SUFFIXES and path.suffix.lower() != '.zarr'


def stem_of(path: pathlib.Path) -> str:
  """A file's name without its suffix: `.ome.tif`, `.tif`, `.ome.zarr`.."""
  suffix = path.suffix if path.suffix.lower() in SUFFIXES else ''
  stem = path.absolute().name.removesuffix(suffix)
  return stem[:-4] if stem.lower().endswith('.ome') else stem


class MicroscopeFile:
  """A microscope's file, opened when something of it is first asked for; threads may share it.

  Attributes:
    path: the file, or the folder of an OME-Zarr.
  """

  def __init__(self, path: pathlib.Path):
    """Takes the file's path; opens nothing yet."""
    self.path = path
    self._lock = threading.Lock()
    self._scenes: tuple[Scene, ...] | None = None
    # Decoded channels, as long as somebody refers to one of their planes.
    self._stacks: weakref.WeakValueDictionary[tuple[int, int], np.ndarray] = (
      weakref.WeakValueDictionary()
    )

  def __reduce__(self) -> tuple[type[MicroscopeFile], tuple[pathlib.Path]]:
    # Another process opens the file itself.
    return MicroscopeFile, (self.path,)

  @property
  def scenes(self) -> tuple[Scene, ...]:
    """The file's scenes; raises OSError or ValueError as `microscope_scenes.open_scenes` does."""
    with self._lock:
      if self._scenes is None:
        self._scenes = microscope_scenes.open_scenes(self.path)
      return self._scenes

  def channel(self, scene: int, channel: int) -> np.ndarray:
    """Decodes all planes of a channel: [z, row, column] of the scene's `dtype`.

    They stay in memory as long as somebody refers to one of them, so that a channel is decoded
    once.

    Args:
      scene: the scene's number, from 0.
      channel: the channel's number, from 0.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged.
    """
    found = self.scenes[scene]
    # Values too large for float32 become inf; neither is an intensity.
    with self._lock, microscope_scenes.explained(self.path), np.errstate(over='ignore'):
      stack = self._stacks.get((scene, channel))
      if stack is None:
        stack = found.read_channel(channel)
        # A plane refers to the array that owns its memory, so that must be the one we remember.
        if stack.base is not None or stack.dtype != found.dtype:
          stack = stack.astype(found.dtype)
        stack.setflags(write=False)
        self._stacks[scene, channel] = stack
      return stack

  def chunk(self, scene: int, index: tuple[int, ...]) -> np.ndarray:
    """Decodes a chunk of an OME-Zarr, or takes it from memory if it was used lately.

    Args:
      scene: the scene's number, from 0.
      index: the chunk's index along [channel, z, row, column].

    Returns:
      The chunk as `Scene.read_chunk` gives it, [channel, z, row, column].

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged.
    """
    found = self.scenes[scene]
    with self._lock, microscope_scenes.explained(self.path):
      return _chunks.get(found, index)


class _Chunks:
  """The chunks of all files that were decoded and used last."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._chunks: collections.OrderedDict[tuple[Scene, tuple[int, ...]], np.ndarray] = (
      collections.OrderedDict()
    )
    self._bytes = 0

  def get(self, scene: Scene, index: tuple[int, ...]) -> np.ndarray:
    """Gives a chunk, from memory or decoded. Threads with the same scene must take turns."""
    key = (scene, index)
    with self._lock:
      if key in self._chunks:
        self._chunks.move_to_end(key)
        return self._chunks[key]
    chunk = scene.read_chunk(index)
    with self._lock:
      self._chunks[key] = chunk
      self._bytes += chunk.nbytes
      while self._bytes > _MOST_CHUNKS and len(self._chunks) > 1:
        self._bytes -= self._chunks.popitem(last=False)[1].nbytes
    return chunk


_chunks = _Chunks()


class _PlaneInWindows:
  """A plane of an OME-Zarr, as Pixels: slicing it decodes only the chunks under the window."""

  def __init__(self, file: MicroscopeFile, scene: int, channel: int, z: int):
    self._file, self._index, self._channel, self._z = file, scene, channel, z
    self._scene = file.scenes[scene]

  @property
  def shape(self) -> tuple[int, ...]:
    return self._scene.size

  @property
  def dtype(self) -> np.dtype[Any]:
    return self._scene.dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    rows, columns = (range(n)[part] for n, part in zip(self.shape, window, strict=True))
    assert rows.step > 0 and columns.step > 0, window
    result = np.empty((len(rows), len(columns)), self.dtype)
    if not result.size:
      return result
    of_channel, of_z, height, width = self._scene.chunk
    for i in range(rows[0] // height, rows[-1] // height + 1):
      for j in range(columns[0] // width, columns[-1] // width + 1):
        index = (self._channel // of_channel, self._z // of_z, i, j)
        chunk = self._file.chunk(self._index, index)[self._channel % of_channel, self._z % of_z]
        to_rows, from_rows = _overlap(rows, i * height, chunk.shape[0])
        to_columns, from_columns = _overlap(columns, j * width, chunk.shape[1])
        with np.errstate(over='ignore'):
          result[to_rows, to_columns] = chunk[from_rows, from_columns]
    return result


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice]:
  """The slices of `wanted`, and of a chunk that begins at `start`, that they have in common."""
  first = max(0, -(-(start - wanted.start) // wanted.step))
  last = min(len(wanted), -(-(start + length - wanted.start) // wanted.step))
  begin = wanted.start + first * wanted.step - start
  return slice(first, last), slice(begin, begin + (last - first) * wanted.step, wanted.step)


@dataclasses.dataclass(frozen=True)
class PlaneSource:
  """A plane of a microscope's file, or a channel's maximum projection.

  Attributes:
    file: the file that the plane is in.
    scene: the number of the scene in the file, from 0.
    channel: the number of the channel in the scene, from 0.
    z: the number of the plane in the channel, from 0; MAXPROJECT: the projection.
  """

  file: MicroscopeFile
  scene: int
  channel: int
  z: int | str

  @property
  def path(self) -> pathlib.Path:
    """The file, or the folder of an OME-Zarr."""
    return self.file.path

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns), from the file's metadata."""
    return self._scene.size

  @property
  def stored_dtype(self) -> np.dtype[Any]:
    """The dtype of the pixels in the file; other than uint8 and uint16, it is read as float32."""
    return self._scene.stored_dtype

  def read(self) -> Pixels:
    """Reads the image; of an OME-Zarr, it only makes Pixels, which read windows when sliced.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged.
    """
    depths = range(self._scene.depths) if self.z == MAXPROJECT else (int(self.z),)
    if self._scene.array is not None:
      planes = [_PlaneInWindows(self.file, self.scene, self.channel, z) for z in depths]
      return planes[0] if len(planes) == 1 else MaximumPixels(planes)
    stack = self.file.channel(self.scene, self.channel)
    return stack[depths[0]] if len(depths) == 1 else stack.max(axis=0)

  @property
  def _scene(self) -> Scene:
    return self.file.scenes[self.scene]


def channel_sources(file: MicroscopeFile, scene: int, channel: int) -> dict[int | str, ImageSource]:
  """A channel's images by z: those of all depths and, at MAXPROJECT, their projection."""
  sources: dict[int | str, ImageSource] = {
    z: PlaneSource(file, scene, channel, z) for z in range(file.scenes[scene].depths)
  }
  return sources | {
    MAXPROJECT: sources[0] if len(sources) == 1 else PlaneSource(file, scene, channel, MAXPROJECT)
  }


def fields_of_file(path: pathlib.Path) -> list[FieldFiles]:
  """Finds the fields of view in a microscope's file: one for each scene.

  Args:
    path: the file, or the folder of an OME-Zarr.

  Returns:
    The fields of view, at least one. They are named like the file without its suffix, or, if there
    are several scenes, `{stem},scene-{scene}`.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is damaged or not of a kind that isl reads, a scene has two channels of one
      name, or a library that reads the file is missing.
  """
  file = MicroscopeFile(path)
  names = [_UNSAFE.sub('-', scene.name) for scene in file.scenes]
  if len(set(names)) < len(names):
    names = [str(index) for index in range(len(names))]
  fields = []
  for index, (name, scene) in enumerate(zip(names, file.scenes, strict=True)):
    twice = [c for c, count in collections.Counter(scene.channels).items() if count > 1]
    if twice:
      raise ValueError(
        f'{str(path)!r} has {scene.channels.count(twice[0])} channels named {twice[0]!r}; expected'
        f' names that differ, or a manifest that says which is which; it has'
        f' {", ".join(scene.channels)}'
      )
    sources = {
      ImageKey(z, channel): source
      for number, channel in enumerate(scene.channels)
      for z, source in channel_sources(file, index, number).items()
    }
    stem = stem_of(path)
    fields.append(
      FieldFiles(
        name=stem if len(names) == 1 else f'{stem},scene-{name}',
        origin=str(path),
        sources=sources,
        pixel_size=scene.pixel_size,
      )
    )
  return fields
