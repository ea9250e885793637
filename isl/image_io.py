"""Fields of view on disk: file names and folders of images."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from isl import experiment, png_io
from isl.experiment import ImageKey

_EXTENSION = '.png'
# All other fields of a name identify the field of view.
_NOT_IDENTIFYING = ('z_depth', 'depth_computation', 'channel', 'is_mask', 'kind', 'statistic')
_EXAMPLES = (
  "'well-A4,z_depth-3,channel-PHASE_CONTRAST,is_mask-false.png' or"
  " 'well-A4,depth_computation,value-MAXPROJECT,channel,value-DAPI_CONFOCAL,is_mask-false.png'"
)
_RECORDED_CHANNELS = frozenset(experiment.TARGET_CHANNELS) - frozenset(
  experiment.SYNTHETIC_CHANNELS
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageName:
  """What a file's name says.

  Attributes:
    field: the field of view: the identifying fields of the name, in its order, joined by commas.
    key: which of its images.
    is_mask: it is a mask, not an image.
    is_prediction: a network made it, not a microscope.
  """

  field: str
  key: ImageKey
  is_mask: bool
  is_prediction: bool


def parse_name(file_name: str) -> ImageName:
  """Reads a file name of either dialect: comma-separated `key-value` fields.

  `name,value-X` is the same as `name-X`; nothing else collapses.

  Args:
    file_name: with or without folders in front.

  Raises:
    ValueError: the name has no channel or no z, or says one of its fields twice or wrongly.
  """
  base = pathlib.PurePath(file_name).name
  stem = base[: -len(_EXTENSION)] if base.lower().endswith(_EXTENSION) else base
  identifying, said = [], {}
  for token in _collapsed(stem.split(',')):
    name, _, value = token.partition('-')
    if name not in _NOT_IDENTIFYING:
      identifying.append(token)
    elif name in said:
      raise ValueError(f'{file_name!r} says {name} twice; expected a name like {_EXAMPLES}')
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
  """`name,value-X` as `name-X`, all else as it is."""
  collapsed: list[str] = []
  for token in tokens:
    if token.startswith('value-') and collapsed and '-' not in collapsed[-1]:
      collapsed[-1] += token.removeprefix('value')
    else:
      collapsed.append(token)
  return collapsed


def _key(file_name: str, said: Mapping[str, str]) -> ImageKey:
  """Which image, from the fields of the name that do not identify the field of view."""
  depth, projection, channel = (said.get(n) for n in ('z_depth', 'depth_computation', 'channel'))
  if depth is None and projection is None:
    problem = 'has no z_depth or depth_computation' + ('' if channel else ' and no channel')
  elif depth is not None and projection is not None:
    problem = 'has both z_depth and depth_computation'
  elif not channel:
    problem = 'has no channel'
  elif depth is not None and not re.fullmatch('[0-9]{1,9}', depth):
    problem = f'has z_depth-{depth}, not a whole number'
  elif projection is not None and projection != experiment.MAXPROJECT:
    problem = f'has depth_computation-{projection}, not {experiment.MAXPROJECT}'
  else:
    return ImageKey(experiment.MAXPROJECT if depth is None else int(depth), channel)
  raise ValueError(f'{file_name!r} {problem}; expected a name like {_EXAMPLES}')


def prediction_name(field: str, channel: str, statistic: str) -> str:
  """The name of a predicted image, in the published dialect.

  Args:
    field: the field of view, as `parse_name` gives it (and gives it back).
    channel: the predicted label, DAPI_CONFOCAL say.
    statistic: of the pixel's distribution, MEDIAN say.
  """
  return ','.join(
    ([field] if field else [])
    + [f'depth_computation,value-{experiment.MAXPROJECT}', f'channel,value-{channel}']
    + [f'statistic,value-{statistic}', 'kind,value-PREDICTED.png']
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
  """A field of view.

  Attributes:
    name: the fields of its images' names that identify it.
    images: as on disk: uint8 or uint16 [row, column], all of one size. Transmitted light of one
      kind at z 0..num_depths-1, and any of the recorded target channels at z MAXPROJECT.
    ranges: (low, high) of the target channels, synthetic ones included, whose intensities from low
      to high stand for 0 to 1.
  """

  name: str
  images: Mapping[ImageKey, np.ndarray]
  ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of each image, in pixels."""
    rows, columns = next(iter(self.images.values())).shape
    return rows, columns

  @property
  def transmitted_light(self) -> str:
    """Which of TRANSMITTED_LIGHT_CHANNELS it has."""
    return next(key.channel for key in self.images if _is_transmitted_light(key))

  @property
  def num_depths(self) -> int:
    """The number of transmitted-light images."""
    return sum(_is_transmitted_light(key) for key in self.images)


def intensity(image: np.ndarray) -> np.ndarray:
  """As float32 in [0, 1]: divided by the type's maximum."""
  return image / np.float32(np.iinfo(image.dtype).max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFiles:
  """A field of view on disk; `find_image_sets` makes and checks it.

  Attributes:
    name: the fields of its images' names that identify it.
    paths: the images that an `ImageSet` has.
    unknown_targets: channels at z MAXPROJECT that it lacks, because isl knows no such label.
  """

  name: str
  paths: Mapping[ImageKey, pathlib.Path]
  unknown_targets: tuple[str, ...] = ()

  def read(self) -> ImageSet:
    """Decodes every image, once.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is not an 8- or 16-bit single-channel PNG, or not of the others' size.
    """
    # OpenCV lets other threads run while it decodes.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
      images = dict(zip(self.paths, pool.map(png_io.read_png, self.paths.values()), strict=True))
    first = next(iter(images))
    for key, image in images.items():
      if image.shape != images[first].shape:
        shown = [
          f'{str(self.paths[k])!r} has {png_io.size_text(images[k].shape)}' for k in (first, key)
        ]
        raise ValueError(f'{", ".join(shown)}; expected one size in a field of view')
      image.setflags(write=False)
    return ImageSet(name=self.name, images=images)


def find_image_sets(directory: str | os.PathLike[str]) -> list[ImageFiles]:
  """Finds the fields of view in a folder, from its file names; reads no image.

  Masks, predictions and channels that isl does not know are left out, with a log line of each kind.
  Files that are not named `*.png`, hidden files and subfolders are none of its business.

  Returns:
    At least one, sorted by name.

  Raises:
    OSError: `directory` is missing, or not a folder, or cannot be read.
    ValueError: there is no image in it, a name cannot be parsed, or a field of view has no
      transmitted light or two kinds of it, a gap in z, or an image twice.
  """
  fields: dict[str, dict[ImageKey, pathlib.Path]] = collections.defaultdict(dict)
  unused: dict[str, set[ImageKey]] = collections.defaultdict(set)
  for path, name in _images(pathlib.Path(directory)).items():
    paths, key = fields[name.field], name.key
    if key in paths:
      raise ValueError(
        f'{str(paths[key])!r} and {path.name!r} are both {key.channel} at z {key.z} of the same'
        ' field of view; expected one of them'
      )
    if _is_transmitted_light(key) or _is_target(key):
      paths[key] = path
    else:
      unused[name.field].add(key)
  if unused:
    shown = {
      key.channel + (f' at z {key.z}' if isinstance(key.z, str) else ' at single z')
      for key in set().union(*unused.values())
    }
    logging.warning(
      '%r: ignoring what is neither input nor target: %s.', str(directory), ', '.join(sorted(shown))
    )
  for field, paths in fields.items():
    _check_transmitted_light(f'{str(directory)!r}: field of view {field!r}', paths)
  return [
    ImageFiles(
      name=field,
      paths=fields[field],
      unknown_targets=tuple(sorted(key.channel for key in filter(_is_unknown, unused[field]))),
    )
    for field in sorted(fields)
  ]


def _images(directory: pathlib.Path) -> dict[pathlib.Path, ImageName]:
  """The folder's images and what their names say; masks and predictions are left out."""
  names = {path: parse_name(str(path)) for path in _png_paths(directory)}
  masks = sum(name.is_mask for name in names.values())
  predictions = sum(name.is_prediction and not name.is_mask for name in names.values())
  if masks + predictions == len(names):
    raise ValueError(
      f'{str(directory)!r} has no images in it, only masks ({masks}) and predictions'
      f' ({predictions}); expected names like {_EXAMPLES}'
    )
  if masks + predictions:
    logging.info('%r: skipping masks (%d), predictions (%d).', str(directory), masks, predictions)
  return {p: name for p, name in names.items() if not name.is_mask and not name.is_prediction}


def _png_paths(directory: pathlib.Path) -> list[pathlib.Path]:
  """The folder's PNGs, by their names, sorted."""
  if not directory.exists():
    raise FileNotFoundError(f'{str(directory)!r} does not exist; expected a folder of PNGs')
  if not directory.is_dir():
    raise NotADirectoryError(f'{str(directory)!r} is not a folder; expected a folder of PNGs')
  # Hidden files, because archives from a Mac hold a ._ file beside each image.
  paths = sorted(
    path
    for path in directory.iterdir()
    if path.suffix.lower() == _EXTENSION and not path.name.startswith('.') and not path.is_dir()
  )
  if not paths:
    raise ValueError(f'{str(directory)!r} has no PNG in it; expected names like {_EXAMPLES}')
  return paths


def _is_transmitted_light(key: ImageKey) -> bool:
  return key.channel in experiment.TRANSMITTED_LIGHT_CHANNELS and key.z != experiment.MAXPROJECT


def _is_target(key: ImageKey) -> bool:
  return key.channel in _RECORDED_CHANNELS and key.z == experiment.MAXPROJECT


def _is_unknown(key: ImageKey) -> bool:
  known = (*experiment.TARGET_CHANNELS, *experiment.TRANSMITTED_LIGHT_CHANNELS)
  return key.channel not in known and key.z == experiment.MAXPROJECT


def _check_transmitted_light(shown: str, keys: Iterable[ImageKey]) -> None:
  """A z-stack of one kind without gaps; `shown` says of what."""
  depths = collections.defaultdict(set)
  for key in filter(_is_transmitted_light, keys):
    depths[key.channel].add(key.z)
  if not depths:
    raise ValueError(
      f'{shown} has no transmitted-light image; expected a z-stack (z_depth-0, z_depth-1, ..) of'
      f' one of {", ".join(experiment.TRANSMITTED_LIGHT_CHANNELS)}'
    )
  if len(depths) > 1:
    raise ValueError(f'{shown} has both {" and ".join(sorted(depths))}; expected one of them')
  ((channel, found),) = depths.items()
  gap = next((z for z in range(len(found)) if z not in found), None)
  if gap is not None:
    raise ValueError(
      f'{shown} has {len(found)} depths of {channel} but not z_depth-{gap}; expected depths from 0'
      ' on without gaps'
    )
