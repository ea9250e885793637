"""The names of image files: which image of which field of view they say that it is."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

from isl.core.channels import MAXPROJECT, ImageKey

EXTENSION = '.png'
# All other fields of a name identify the field of view.
_NOT_IDENTIFYING = ('z_depth', 'depth_computation', 'channel', 'is_mask', 'kind', 'statistic')
EXAMPLES = (
  "'well-A4,z_depth-3,channel-PHASE_CONTRAST,is_mask-false.png' or"
  " 'well-A4,depth_computation,value-MAXPROJECT,channel,value-DAPI_CONFOCAL,is_mask-false.png'"
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
  elif projection is not None and projection != MAXPROJECT:
    problem = f'has depth_computation-{projection}, not {MAXPROJECT}'
  else:
    return ImageKey(MAXPROJECT if depth is None else int(depth), channel)
  raise ValueError(f'{file_name!r} {problem}; expected a name like {EXAMPLES}')


def prediction_name(field: str, channel: str, statistic: str) -> str:
  """The name of a predicted image, in the published dialect.

  Args:
    field: the field of view, as `parse_name` gives it (and gives it back).
    channel: the predicted label, DAPI_CONFOCAL say.
    statistic: of the pixel's distribution, MEDIAN say.
  """
  return ','.join(
    ([field] if field else [])
    + [f'depth_computation,value-{MAXPROJECT}', f'channel,value-{channel}']
    + [f'statistic,value-{statistic}', 'kind,value-PREDICTED.png']
  )
