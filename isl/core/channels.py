"""Names and order of a field of view's images: what the network reads and what it predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

MAXPROJECT = 'MAXPROJECT'
TRANSMISSION = 'TRANSMISSION'

# A field of view has one of these; the network sees it as TRANSMISSION.
TRANSMITTED_LIGHT_CHANNELS = ('BRIGHTFIELD', 'PHASE_CONTRAST', 'DIC')

# By input channel, the recorded channels of which a field of view has one in its place.
RECORDED_AS = {TRANSMISSION: (*TRANSMITTED_LIGHT_CHANNELS, TRANSMISSION)}

# In the canonical order. NEURITE_CONFOCAL is made from two others, see SYNTHETIC_CHANNELS.
TARGET_CHANNELS = (
  'DAPI_CONFOCAL',
  'DAPI_WIDEFIELD',
  'CELLMASK_CONFOCAL',
  'TUJ1_WIDEFIELD',
  'NFH_CONFOCAL',
  'MAP2_CONFOCAL',
  'ISLET_WIDEFIELD',
  'DEAD_CONFOCAL',
  'NEURITE_CONFOCAL',
)

# Channels that no microscope records, each the mean of these recorded ones. Its mask is the
# geometric mean of their masks.
SYNTHETIC_CHANNELS = {'NEURITE_CONFOCAL': ('NFH_CONFOCAL', 'MAP2_CONFOCAL')}


@dataclasses.dataclass(frozen=True)
class ImageKey:
  """Identifies one image of a field of view: its z depth and its channel.

  Attributes:
    z: on disk, the depth's index (an int) or MAXPROJECT; for the network, the position in [0, 1]
      (a float) or MAXPROJECT.
    channel: the name of what was recorded: DAPI_CONFOCAL, for example.
  """

  z: int | float | str
  channel: str

  def __str__(self) -> str:
    """Formats the key as `{z}/{channel}`, as in checkpoints' variable names: 0.04/TRANSMISSION."""
    return f'{self.z}/{self.channel}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackSpec:
  """The images that the network reads or predicts, synthetic channels included.

  Attributes:
    z_values: positions in [0, 1] from the lowest to the highest plane, or MAXPROJECT alone.
    channels: names of the channels at each of these z values.
  """

  z_values: tuple[float | str, ...]
  channels: tuple[str, ...]

  @property
  def keys(self) -> tuple[ImageKey, ...]:
    """Every image's key in the canonical order: z slowest."""
    return tuple(ImageKey(z, channel) for z in self.z_values for channel in self.channels)


def input_stack(num_z_values: int, channels: Sequence[str] = (TRANSMISSION,)) -> StackSpec:
  """Describes the input: a z-stack at `num_z_values` evenly spaced positions in [0, 1].

  Args:
    num_z_values: the number of z depths.
    channels: the channels read at each depth. They are sorted by name, because the weights depend
      on their order, and a checkpoint's variables tell the channels' names but not their order.
  """
  last = max(num_z_values - 1, 1)
  # Rounded to 4 places: checkpoints' variable names contain these numbers as Python prints them.
  return StackSpec(
    z_values=tuple(round(i / last, 4) for i in range(num_z_values)),
    channels=tuple(sorted(channels)),
  )


def target_stack(channels: Sequence[str] = TARGET_CHANNELS) -> StackSpec:
  """Describes the target: the fluorescent labels, all at z MAXPROJECT."""
  return StackSpec(z_values=(MAXPROJECT,), channels=tuple(channels))
