"""Manifests: tables that say which image of which field of view is in which file.

field,z,channel,path
well A4,0,BRIGHTFIELD,images/a4_bf_0.tif
well A4,1,BRIGHTFIELD,images/a4_bf_1.tif
well A4,MAXPROJECT,DAPI_CONFOCAL,images/a4_fluo.ome.tif#Hoechst
well B2,,BRIGHTFIELD,images/b2.czi#0
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import microscope_files, microscope_scenes, png_folders
from isl.images.fields_of_view import FieldFiles
from isl.images.microscope_files import MicroscopeFile
from isl.images.sources import ImageSource, PngSource, ProjectionSource

SUFFIX = '.csv'
COLUMNS = ('field', 'z', 'channel', 'path')
# Relative: pixel sizes that differ by less count as the same size, differently rounded.
_SAME_SIZE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """A line of a manifest."""

  manifest: pathlib.Path
  line: int
  field: str
  z: str
  channel: str
  path: str

  @property
  def where(self) -> str:
    """The manifest's path and the line's number, as errors name the line."""
    return f'{str(self.manifest)!r} line {self.line}'


def read_manifest(path: str | os.PathLike[str]) -> list[FieldFiles]:
  """Reads a manifest: a CSV in UTF-8 with the columns `COLUMNS`, in any order.

  `z` is a whole number, MAXPROJECT, or empty; empty stands for all depths of the file, and their
  projection. `path` is relative to the manifest's folder. A `#channel` behind it names a channel of
  the file, by name or, if none has that name, by number from 0; without it, the file's only channel
  is read, or the one named like the row's. A channel for which no line gives MAXPROJECT gets the
  projection of its depths.

  Args:
    path: the manifest.

  Returns:
    The fields of view, at least one, sorted by name.

  Raises:
    OSError: the manifest or a file that it names cannot be read.
    ValueError: something in the manifest is wrong; the message names the line.
  """
  path = pathlib.Path(path)
  files: dict[pathlib.Path, MicroscopeFile] = {}
  sources: dict[str, dict[ImageKey, ImageSource]] = collections.defaultdict(dict)
  lines: dict[tuple[str, ImageKey], int] = {}
  for row in _rows(path):
    for z, source in _sources(path.parent, row, files).items():
      key = ImageKey(z, row.channel)
      if (row.field, key) in lines:
        raise ValueError(
          f'{row.where}: {row.channel} at z {z} of field {row.field!r} is on line'
          f' {lines[row.field, key]}, too; expected each image once'
        )
      lines[row.field, key] = row.line
      sources[row.field][key] = source
  if not sources:
    raise ValueError(f'{str(path)!r} has no line below its header; expected one for each image')
  return [
    FieldFiles(
      name=name,
      origin=str(path),
      sources=_with_projections(sources[name]),
      pixel_size=_pixel_size(sources[name]),
    )
    for name in sorted(sources)
  ]


def _rows(path: pathlib.Path) -> Iterator[_Row]:
  """Yields the lines below the header that are not empty, after checking the header."""
  shown = repr(str(path))
  try:
    # utf-8-sig also reads what has no byte order mark.
    with path.open(newline='', encoding='utf-8-sig') as stream:
      reader = csv.reader(stream, strict=True)
      header = _header(shown, next(reader, []))
      for cells in reader:
        cells = [cell.strip() for cell in cells]
        if any(cells):
          yield _row(path, reader.line_num, header, cells)
  except UnicodeDecodeError as error:
    raise ValueError(f'{shown} is not a text in UTF-8 ({error.reason}); expected a CSV') from error
  except csv.Error as error:
    raise ValueError(f'{shown} line {reader.line_num}: {error}; expected a CSV') from error


def _header(shown: str, cells: list[str]) -> list[str]:
  header = [cell.strip() for cell in cells]
  if sorted(header) != sorted(COLUMNS):
    raise ValueError(
      f'{shown} line 1: the columns must be {",".join(COLUMNS)}, separated by commas, in any order;'
      f' got {",".join(header)!r}'
    )
  return header


def _row(path: pathlib.Path, line: int, header: list[str], cells: list[str]) -> _Row:
  if len(cells) != len(header):
    raise ValueError(
      f'{str(path)!r} line {line}: expected {len(header)} cells ({",".join(header)}), got'
      f' {len(cells)}'
    )
  row = _Row(manifest=path, line=line, **dict(zip(header, cells, strict=True)))
  for column in ('field', 'channel', 'path'):
    if not getattr(row, column):
      raise ValueError(f'{row.where}: {column} is empty; only z may be')
  if re.search(r'[\x00-\x1f/\\]', row.field):
    raise ValueError(
      f'{row.where}: field must be fit for the name of a file, without slashes, got {row.field!r}'
    )
  if row.z not in ('', MAXPROJECT) and not re.fullmatch('[0-9]{1,9}', row.z):
    raise ValueError(
      f'{row.where}: z must be a whole number, {MAXPROJECT}, or empty for all of a file, got'
      f' {row.z!r}'
    )
  return row


def _sources(
  folder: pathlib.Path, row: _Row, files: dict[pathlib.Path, MicroscopeFile]
) -> dict[int | str, ImageSource]:
  """The images that a line names, by z; files opened for earlier lines are taken from `files`."""
  path, wanted = _existing(folder, row)
  if path.suffix.lower() == png_folders.EXTENSION:
    if wanted is not None:
      raise ValueError(f'{row.where}: {str(path)!r} is a PNG, which has no channel {wanted!r}')
    found: dict[int | str, ImageSource] = {0: PngSource(path), MAXPROJECT: PngSource(path)}
  elif microscope_files.is_microscope_file(path):
    file = files.setdefault(path, MicroscopeFile(path))
    try:
      found = microscope_files.channel_sources(file, 0, _channel(row, file, wanted))
    except (OSError, ValueError) as error:
      raise ValueError(f'{row.where}: {error}') from error
  else:
    raise ValueError(
      f'{row.where}: {str(path)!r} is not named like an image; expected {png_folders.EXTENSION},'
      f' {", ".join(microscope_scenes.SUFFIXES)}'
    )
  return _at(row, path, found)


def _at(
  row: _Row, path: pathlib.Path, found: dict[int | str, ImageSource]
) -> dict[int | str, ImageSource]:
  """Picks the images that a line's `z` asks for from a channel's images, by z."""
  if not row.z:
    return found
  if row.z == MAXPROJECT:
    return {MAXPROJECT: found[MAXPROJECT]}
  z, depths = int(row.z), len(found) - 1
  if depths == 1:
    return {z: found[0]}
  if z >= depths:
    raise ValueError(f'{row.where}: {str(path)!r} has the depths 0 to {depths - 1}, got z {z}')
  return {z: found[z]}


def _existing(folder: pathlib.Path, row: _Row) -> tuple[pathlib.Path, str | None]:
  """The file that a line names, and the name of the channel behind '#'; None if there is none."""
  name, wanted = row.path, None
  # The longest name of an existing file wins: files and channels may have a '#' in their names.
  while True:
    path = _seen_from(folder, name)
    if path.exists():
      return path, wanted
    if '#' not in name:
      break
    name, _, last = name.rpartition('#')
    wanted = last if wanted is None else f'{last}#{wanted}'
  missing = _seen_from(folder, row.path.rpartition('#')[0] or row.path)
  raise FileNotFoundError(f'{row.where}: {str(missing)!r} does not exist')


def _seen_from(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of a file that a line names: relative to the manifest's folder, or from the home."""
  # expanduser raises RuntimeError for the home of somebody unknown.
  with contextlib.suppress(RuntimeError):
    return folder / pathlib.Path(name).expanduser()
  return folder / name


def _channel(row: _Row, file: MicroscopeFile, wanted: str | None) -> int:
  """The number of a line's channel in its file; ValueError if it is not there exactly once."""
  if len(file.scenes) > 1:
    raise ValueError(
      f'{str(file.path)!r} has {len(file.scenes)} scenes; expected one in a manifest'
    )
  names = file.scenes[0].channels
  if wanted is None and len(names) == 1:
    return 0
  name = row.channel if wanted is None else wanted.strip()
  if names.count(name) == 1:
    return names.index(name)
  number = wanted is not None and name not in names and re.fullmatch('[0-9]{1,9}', name)
  if number and int(name) < len(names):
    return int(name)
  problem = 'several channels' if name in names else 'no channel'
  raise ValueError(
    f'{str(file.path)!r} has {problem} {name!r}; expected PATH#CHANNEL with one of'
    f' {", ".join(names)}, or its number from 0 to {len(names) - 1}'
  )


def _with_projections(sources: dict[ImageKey, ImageSource]) -> dict[ImageKey, ImageSource]:
  """Adds a maximum projection for each channel that has none."""
  result = dict(sources)
  for channel in {key.channel for key in sources}:
    stack = tuple(source for key, source in sources.items() if key.channel == channel)
    projection = stack[0] if len(stack) == 1 else ProjectionSource(stack)
    result.setdefault(ImageKey(MAXPROJECT, channel), projection)
  return result


def _pixel_size(sources: dict[ImageKey, ImageSource]) -> tuple[float, float] | None:
  """The pixel size on which all files that state one agree, in micrometres; else None."""
  files = {s.file for s in sources.values() if isinstance(s, microscope_files.PlaneSource)}
  sizes = [file.scenes[0].pixel_size for file in files]
  known = [size for size in sizes if size is not None]
  for size in known:
    if not all(math.isclose(*ab, rel_tol=_SAME_SIZE) for ab in zip(size, known[0], strict=True)):
      return None
  return known[0] if known else None
