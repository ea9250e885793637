"""Folders of PNGs, whose names say which images of which fields of view they are.

`find_png_fields` finds the fields of view in a folder. `parse_name` reads a file's name;
`image_name`, `field_name` and `prediction_name` make names: the first two for programs that write
sample images, the last for predictions. Two dialects are in use, `z_depth-3` and `z_depth,value-3`.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images.fields_of_view import FieldFiles, parts_of, recorded_channels
from isl.images.sources import PngSource

EXTENSION = '.png'

# All other fields of a name identify the field of view.
_NOT_IDENTIFYING = ('z_depth', 'depth_computation', 'channel', 'is_mask', 'kind', 'statistic')

EXAMPLES = (
  "'well-A4,z_depth-3,channel-PHASE_CONTRAST,is_mask-false.png' or"
  " 'well-A4,depth_computation,value-MAXPROJECT,channel,value-DAPI_CONFOCAL,is_mask-false.png'"
)
SAMPLE = 'sample'
PUBLISHED = 'published'
# By dialect, the beginning of the names that `image_name` makes.
_LAB = {
  SAMPLE: 'lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0',
  PUBLISHED: 'lab-Finkbeiner,condition-kevan_0_8,acquisition_date,year-2015,month-10,day-5',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageName:
  """What a PNG's file name says of it.

  Attributes:
    field: the field of view's name: the identifying fields of the file's name, in order, joined by
      commas.
    key: the key of the image in its field of view.
    is_mask: whether the file is a mask, not an image.
    is_prediction: whether a network made the image, not a microscope.
  """

  field: str
  key: ImageKey
  is_mask: bool
  is_prediction: bool


def parse_name(file_name: str) -> ImageName:
  """Reads a file name of either dialect: `name-value` fields, separated by commas.

  `name,value-X` is the same as `name-X`; no other fields are joined.

  Args:
    file_name: the file's name, with or without folders in front.

  Raises:
    ValueError: the name has no channel or no z, or says one of its fields twice or wrongly.
  """
  base = pathlib.PurePath(file_name).name
  stem = base[: -len(EXTENSION)] if base.lower().endswith(EXTENSION) else base
  identifying, said = [], {}
  for token in _collapsed(stem.split(',')):
    name, _, value = token.partition('-')
    if name not in _NOT_IDENTIFYING:
      identifying.append(token)
    elif name in said:
      raise ValueError(f'{file_name!r} says {name} twice; expected a name like {EXAMPLES}')
    else:
      said[name] = value
  mask = said.get('is_mask', 'false').lower()
  if mask not in ('true', 'false'):
    raise ValueError(f"{file_name!r} has is_mask-{mask}; expected 'true' or 'false'")
  return ImageName(
    field=','.join(identifying),
    key=_key(file_name, said),
    is_mask=mask == 'true',
    is_prediction=said.get('kind', '').upper() == 'PREDICTED' or 'statistic' in said,
  )


def _collapsed(tokens: Iterable[str]) -> list[str]:
  """Joins `name,value-X` to `name-X` and leaves all other fields as they are."""
  collapsed: list[str] = []
  for token in tokens:
    if token.startswith('value-') and collapsed and '-' not in collapsed[-1]:
      collapsed[-1] += token.removeprefix('value')
    else:
      collapsed.append(token)
  return collapsed


def _key(file_name: str, said: Mapping[str, str]) -> ImageKey:
  """The image's key, from the fields of the name that do not identify the field of view.

  Raises:
    ValueError: the fields do not give one z and one channel.
  """
  depth, projection, channel = (said.get(n) for n in ('z_depth', 'depth_computation', 'channel'))
  if depth is None and projection is None:
    problem = 'has no z_depth or depth_computation' + ('' if channel else ' and no channel')
  elif depth is not None and projection is not None:
    problem = 'has both z_depth and depth_computation'
  elif not channel:
    problem = 'has no channel'
  elif depth is not None and not re.fullmatch('[0-9]{1,9}', depth):
    problem = f'has z_depth-{depth}, not a whole number'
  elif projection is not None and projection != MAXPROJECT:
    problem = f'has depth_computation-{projection}, not {MAXPROJECT}'
  else:
    return ImageKey(MAXPROJECT if depth is None else int(depth), channel)
  raise ValueError(f'{file_name!r} {problem}; expected a name like {EXAMPLES}')


def prediction_name(field: str, channel: str, statistic: str) -> str:
  """Makes the file name of a predicted image, in the published dialect.

  Args:
    field: the field of view's name, which `parse_name` reads again from the result.
    channel: the predicted label: DAPI_CONFOCAL, for example.
    statistic: name of the statistic of the predicted distributions: MEDIAN, for example.
  """
  return ','.join(
    ([field] if field else [])
    + [f'depth_computation,value-{MAXPROJECT}', f'channel,value-{channel}']
    + [f'statistic,value-{statistic}', 'kind,value-PREDICTED.png']
  )


def log_unused(
  origin: str, fields: Sequence[FieldFiles], inputs: Sequence[str], targets: Sequence[str]
) -> None:
  """Logs which images are neither input nor target of a network.

  Args:
    origin: the folder or file of the fields of view, for the log line.
    fields: the fields of view.
    inputs: the network's input channels.
    targets: the network's target channels, synthetic ones included.
  """
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


def _is_read_otherwise(field: FieldFiles, key: ImageKey, read: set[str]) -> bool:
  """Whether an image is of a z-stack whose projection is read, or a projection of one read.

  Files of z-stacks give both, of which a network needs one.
  """
  other = ImageKey(0 if key.z == MAXPROJECT else MAXPROJECT, key.channel)
  return (
    key.channel in read
    and other in field.sources
    and field.sources[other].path == field.sources[key].path
  )


def find_png_fields(directory: pathlib.Path) -> list[FieldFiles]:
  """Finds the fields of view in a folder of PNGs, from its file names; reads no image.

  Masks and predictions are left out, with a log line. Files that are not named `*.png`, hidden
  files and subfolders are ignored.

  Returns:
    The fields of view, at least one, sorted by name, each with all its images.

  Raises:
    OSError: `directory` is missing, or not a folder, or cannot be read.
    ValueError: there is no image in `directory`, a name cannot be parsed, or two files are the same
      image.
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
    FieldFiles(name=name, origin=str(directory), sources=fields[name]) for name in sorted(fields)
  ]


def _images(directory: pathlib.Path) -> dict[pathlib.Path, ImageName]:
  """The images in a folder and what their names say; masks and predictions are left out."""
  names = {path: parse_name(str(path)) for path in _existing_pngs(directory)}
  masks = sum(name.is_mask for name in names.values())
  predictions = sum(name.is_prediction and not name.is_mask for name in names.values())
  if masks + predictions == len(names):
    raise ValueError(
      f'{str(directory)!r} has no images in it, only masks ({masks}) and predictions'
      f' ({predictions}); expected names like {EXAMPLES}'
    )
  if masks + predictions:
    logging.info('%r: skipping masks (%d), predictions (%d).', str(directory), masks, predictions)
  return {p: name for p, name in names.items() if not name.is_mask and not name.is_prediction}


def _existing_pngs(directory: pathlib.Path) -> list[pathlib.Path]:
  """The PNGs in a folder, sorted; raises OSError or ValueError if there are none."""
  if not directory.exists():
    raise FileNotFoundError(f'{str(directory)!r} does not exist; expected a folder of PNGs')
  if not directory.is_dir():
    raise NotADirectoryError(f'{str(directory)!r} is not a folder; expected a folder of PNGs')
  paths = png_paths(directory)
  if not paths:
    raise ValueError(f'{str(directory)!r} has no PNG in it; expected names like {EXAMPLES}')
  return paths


def png_paths(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files in a folder that are named `*.png`, sorted; hidden ones are left out."""
  # Archives from a Mac have a hidden ._ file beside each image.
  return sorted(
    path
    for path in directory.iterdir()
    if path.suffix.lower() == EXTENSION and not path.name.startswith('.') and not path.is_dir()
  )


def field_name(well: str, dialect: str = SAMPLE) -> str:
  """The name that isl gives to the field of view of `image_name`'s images of a well."""
  return f'{_LAB[dialect]},well-{well}' + (
    ',tile_computation-STITCHED' if dialect == SAMPLE else ''
  )


def image_name(
  well: str, z: int | str, channel: str, *, dialect: str = SAMPLE, is_mask: bool = False
) -> str:
  """Makes the file name of an image in a folder of PNGs.

  Args:
    well: name of the well, which tells fields of view apart.
    z: number of the depth, from 0, or MAXPROJECT.
    channel: the image's channel.
    dialect: SAMPLE or PUBLISHED.
    is_mask: whether the file is a mask, not an image.
  """
  mask = f'is_mask-{"true" if is_mask else "false"}'
  if dialect == SAMPLE:
    depth = f'depth_computation-{z}' if z == MAXPROJECT else f'z_depth-{z}'
    return f'{field_name(well, dialect)},{depth},channel-{channel},{mask}.png'
  depth = f'depth_computation,value-{z}' if z == MAXPROJECT else f'z_depth,value-{z}'
  return (
    f'{field_name(well, dialect)},{depth},channel,value-{channel},{mask},kind,value-ORIGINAL.png'
  )
