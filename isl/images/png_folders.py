"""Folders of PNGs, whose names say which images of which fields of view they are."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence

from absl import logging

from isl.core.channels import MAXPROJECT, TARGET_CHANNELS, TRANSMISSION, ImageKey
from isl.images import image_names
from isl.images.fields_of_view import ImageFiles, PngSource, parts_of, recorded_channels


def find_image_sets(directory: str | os.PathLike[str]) -> list[ImageFiles]:
  """Finds the fields of view in a folder of PNGs that the original's networks can read.

  Channels that these do not know are left out, with a log line of each kind.

  Returns:
    At least one, sorted by name.

  Raises:
    OSError: `directory` is missing, or not a folder, or cannot be read.
    ValueError: there is no image in it, a name cannot be parsed, or a field of view has no
      transmitted light or two kinds of it, a gap in z, or an image twice.
  """
  fields = find_png_fields(pathlib.Path(directory))
  log_unused(str(directory), fields, (TRANSMISSION,), TARGET_CHANNELS)
  return [field.select((TRANSMISSION,), TARGET_CHANNELS) for field in fields]


def log_unused(
  origin: str, fields: Sequence[ImageFiles], inputs: Sequence[str], targets: Sequence[str]
) -> None:
  """Says which images no network with these channels reads."""
  light = {name for channel in inputs for name in recorded_channels(channel)}
  labels = {part for channel in targets for part in parts_of(channel)}
  shown = {
    key.channel + (f' at z {key.z}' if isinstance(key.z, str) else ' at single z')
    for field in fields
    for key in field.sources
    if key.channel not in (labels if key.z == MAXPROJECT else light)
    and not _is_read_otherwise(field, key, light | labels)
  }
  if shown:
    logging.warning(
      '%r: ignoring what is neither input nor target: %s.', origin, ', '.join(sorted(shown))
    )


def _is_read_otherwise(field: ImageFiles, key: ImageKey, read: set[str]) -> bool:
  """Whether it is a file's stack whose projection is read, or the other way round."""
  other = ImageKey(0 if key.z == MAXPROJECT else MAXPROJECT, key.channel)
  return (
    key.channel in read
    and other in field.sources
    and field.sources[other].path == field.sources[key].path
  )


def find_png_fields(directory: pathlib.Path) -> list[ImageFiles]:
  """Finds the fields of view in a folder of PNGs, from its file names; reads no image.

  Masks and predictions are left out, with a log line. Files that are not named `*.png`, hidden
  files and subfolders are none of its business.

  Returns:
    At least one, sorted by name, with all its images.

  Raises:
    OSError: `directory` is missing, or not a folder, or cannot be read.
    ValueError: there is no image in it, a name cannot be parsed, or an image is there twice.
  """
  fields: dict[str, dict[ImageKey, PngSource]] = collections.defaultdict(dict)
  for path, name in _images(directory).items():
    sources, key = fields[name.field], name.key
    if key in sources:
      raise ValueError(
        f'{str(sources[key].path)!r} and {path.name!r} are both {key.channel} at z {key.z} of the'
        ' same field of view; expected one of them'
      )
    sources[key] = PngSource(path)
  return [
    ImageFiles(name=name, origin=str(directory), sources=fields[name]) for name in sorted(fields)
  ]


def _images(directory: pathlib.Path) -> dict[pathlib.Path, image_names.ImageName]:
  """The folder's images and what their names say; masks and predictions are left out."""
  names = {path: image_names.parse_name(str(path)) for path in _existing_pngs(directory)}
  masks = sum(name.is_mask for name in names.values())
  predictions = sum(name.is_prediction and not name.is_mask for name in names.values())
  if masks + predictions == len(names):
    raise ValueError(
      f'{str(directory)!r} has no images in it, only masks ({masks}) and predictions'
      f' ({predictions}); expected names like {image_names.EXAMPLES}'
    )
  if masks + predictions:
    logging.info('%r: skipping masks (%d), predictions (%d).', str(directory), masks, predictions)
  return {p: name for p, name in names.items() if not name.is_mask and not name.is_prediction}


def _existing_pngs(directory: pathlib.Path) -> list[pathlib.Path]:
  """The folder's PNGs, by their names, sorted."""
  if not directory.exists():
    raise FileNotFoundError(f'{str(directory)!r} does not exist; expected a folder of PNGs')
  if not directory.is_dir():
    raise NotADirectoryError(f'{str(directory)!r} is not a folder; expected a folder of PNGs')
  paths = png_paths(directory)
  if not paths:
    raise ValueError(
      f'{str(directory)!r} has no PNG in it; expected names like {image_names.EXAMPLES}'
    )
  return paths


def png_paths(directory: pathlib.Path) -> list[pathlib.Path]:
  """A folder's PNGs, by their names, sorted."""
  # Hidden files, because archives from a Mac hold a ._ file beside each image.
  return sorted(
    path
    for path in directory.iterdir()
    if path.suffix.lower() == image_names.EXTENSION
    and not path.name.startswith('.')
    and not path.is_dir()
  )
