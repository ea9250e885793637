"""Finds fields of view, wherever they are: in folders of images, microscopes' files, manifests."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

from absl import logging

from isl.images import manifest, microscope_files, microscope_scenes, png_folders
from isl.images.fields_of_view import FieldFiles
from isl.images.microscope_files import PlaneSource
from isl.images.sources import EncodedSource, ImageSource, ProjectionSource

_OTHERS = (
  f'or a folder of microscope files ({", ".join(microscope_scenes.SUFFIXES)}), one such file, or a'
  f' manifest ({manifest.SUFFIX} with the columns {",".join(manifest.COLUMNS)})'
)
# In bytes: how much of a file is in memory at once.
_PIECE = 1 << 20


def find_fields(path: str | os.PathLike[str]) -> list[FieldFiles]:
  """Finds the fields of view of one folder, file or manifest, with all their images.

  No pixel is read. In a folder with PNGs, only these are looked at. In a folder of microscopes'
  files, a file that cannot be opened becomes a field of view with a `problem`.

  Args:
    path: a folder of PNGs, a folder of microscopes' files, a microscope's file (an OME-Zarr is a
      folder), or a manifest.

  Returns:
    The fields of view, at least one, sorted by name.

  Raises:
    OSError: `path` does not exist or cannot be read.
    ValueError: there are no images at `path`, their names are not as expected, a file is damaged, a
      manifest is wrong, two fields of view have one name, or a library is missing.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() == manifest.SUFFIX and not path.is_dir():
    return manifest.read_manifest(path)
  if path.exists() and microscope_files.is_microscope_file(path):
    return _sorted(path, microscope_files.fields_of_file(path))
  files = _microscope_files(path) if path.is_dir() else []
  if path.is_dir() and png_folders.png_paths(path):
    if files:
      logging.warning(
        '%r: reading the PNGs in it alone, not %d other files.', str(path), len(files)
      )
    return png_folders.find_png_fields(path)
  if files:
    microscope_scenes.check_installed()
    return _sorted(path, [field for file in files for field in _fields(file)])
  try:
    return png_folders.find_png_fields(path)
  except (OSError, ValueError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise type(error)(f'{error}; {_OTHERS}') from error


def contents_fingerprint(field: FieldFiles) -> str:
  """Computes a fingerprint that is the same for the same images, wherever their files lie.

  Args:
    field: the field of view, with only the images that count.

  Returns:
    A SHA-256 in hexadecimal of which images there are, what is in their files (all of it, each
    read once), and which part of its file an image is. Names and times of files are not in it; in
    an OME-Zarr, the names of its files are.

  Raises:
    OSError: a file cannot be read.
  """
  digests: dict[pathlib.Path, str] = {}
  result = hashlib.sha256()
  for key in sorted(field.sources, key=str):
    result.update(f'{key}\n'.encode())
    for source in _parts(field.sources[key]):
      if isinstance(source, EncodedSource):
        result.update(f'{hashlib.sha256(source.load()).hexdigest()}\n'.encode())
        continue
      if source.path not in digests:
        digests[source.path] = _digest(source.path)
      part = ''
      if isinstance(source, PlaneSource):
        part = f'scene {source.scene}, channel {source.channel}, z {source.z}'
      result.update(f'{digests[source.path]} {part}\n'.encode())
  return result.hexdigest()


def _microscope_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The microscopes' files in a folder, sorted; archives from a Mac have hidden ones, left out."""
  return sorted(
    path
    for path in folder.iterdir()
    if not path.name.startswith('.') and microscope_files.is_microscope_file(path)
  )


def _fields(file: pathlib.Path) -> list[FieldFiles]:
  """A file's fields of view, or one with a `problem` where the file cannot be opened."""
  try:
    return microscope_files.fields_of_file(file)
  except (OSError, ValueError) as error:
    name = microscope_files.stem_of(file)
    return [FieldFiles(name=name, origin=str(file), sources={}, problem=str(error))]


def _sorted(path: pathlib.Path, fields: list[FieldFiles]) -> list[FieldFiles]:
  """Sorts fields of view by name; raises ValueError if two have the same name."""
  counts = collections.Counter(field.name for field in fields)
  for name, count in counts.items():
    if count > 1:
      origins = sorted(repr(field.origin) for field in fields if field.name == name)
      raise ValueError(
        f'{str(path)!r} has {count} fields of view named {name!r}, in {", ".join(origins)};'
        ' expected names that differ'
      )
  return sorted(fields, key=lambda field: field.name)


def _parts(source: ImageSource) -> Iterator[ImageSource]:
  """Yields the images that an image is the projection of, or the image itself."""
  if isinstance(source, ProjectionSource):
    for part in source.sources:
      yield from _parts(part)
  else:
    yield source


def _digest(path: pathlib.Path) -> str:
  """A SHA-256 of a file's contents, or of a folder's files and their names."""
  result = hashlib.sha256()
  if path.is_dir():
    inside = {file.relative_to(path).as_posix(): file for file in path.rglob('*')}
    for name in sorted(inside):
      if inside[name].is_file():
        result.update(f'{name}\n{_digest(inside[name])}\n'.encode(errors='surrogateescape'))
  else:
    with path.open('rb') as stream:
      while piece := stream.read(_PIECE):
        result.update(piece)
  return result.hexdigest()


def find_all(directories: Iterable[pathlib.Path]) -> list[FieldFiles]:
  """Finds the fields of view of several folders, files and manifests.

  Where several of them have a field of view of the same name, these get the folder's name in theirs
  as `folder-NAME`, since results are named by fields of view.

  Args:
    directories: the folders, files and manifests, each as `find_fields` takes it.

  Raises:
    OSError: one of them is missing or cannot be read.
    ValueError: one of them is not as `find_fields` expects it, or a field of view is in two folders
      of the same name.
  """
  found = [(folder, field) for folder in directories for field in find_fields(folder)]
  counts = collections.Counter(field.name for _, field in found)
  fields: dict[str, FieldFiles] = {}
  for folder, field in found:
    name = field.name
    if counts[name] > 1:
      name = ','.join(filter(None, (name, f'folder-{folder.resolve().name}')))
    if name in fields:
      raise ValueError(
        f'field of view {field.name!r} is in several folders named {folder.resolve().name!r}; their'
        ' results would have the same names'
      )
    fields[name] = dataclasses.replace(field, name=name)
  return list(fields.values())
