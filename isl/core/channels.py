"""Which images a field of view has, and which of them the network reads and predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

MAXPROJECT = 'MAXPROJECT'
TRANSMISSION = 'TRANSMISSION'

# A field of view has one of these; the network sees it as TRANSMISSION.
TRANSMITTED_LIGHT_CHANNELS = ('BRIGHTFIELD', 'PHASE_CONTRAST', 'DIC')

# What a field of view may have for an input channel that is one of several recorded ones.
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

# A channel that no microscope records: the mean of these, masked by the geometric mean of theirs.
SYNTHETIC_CHANNELS = {'NEURITE_CONFOCAL': ('NFH_CONFOCAL', 'MAP2_CONFOCAL')}


@dataclasses.dataclass(frozen=True)
class ImageKey:
  """Which image of a field of view.

  Attributes:
    z: on disk, the depth's index (an int) or MAXPROJECT; for the network, the position in [0, 1]
      (a float) or MAXPROJECT.
    channel: what was recorded, DAPI_CONFOCAL say.
  """

  z: int | float | str
  channel: str

  def __str__(self) -> str:
    """`{z}/{channel}` as in the checkpoint's variable names: Python prints the z, so 0.0, 0.04."""
    return f'{self.z}/{self.channel}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackSpec:
  """The images that the network reads or predicts, synthetic channels included.

  Attributes:
    z_values: positions in [0, 1], or MAXPROJECT alone.
    channels: channels at each of these.
  """

  z_values: tuple[float | str, ...]
  channels: tuple[str, ...]

  @property
  def keys(self) -> tuple[ImageKey, ...]:
    """Every image's key in the canonical order: z slowest."""
    return tuple(ImageKey(z, channel) for z in self.z_values for channel in self.channels)


def input_stack(num_z_values: int, channels: Sequence[str] = (TRANSMISSION,)) -> StackSpec:
  """The z-stack at `num_z_values` evenly spaced positions in [0, 1].

  Args:
    num_z_values: how many.
    channels: what is read at each. They are put in order by name, which is all that a checkpoint's
      variables say of them: weights depend on the order.
  """
  last = max(num_z_values - 1, 1)
  # Rounded, because the variables' names hold these numbers as Python prints them.
  return StackSpec(
    z_values=tuple(round(i / last, 4) for i in range(num_z_values)),
    channels=tuple(sorted(channels)),
  )


def target_stack(channels: Sequence[str] = TARGET_CHANNELS) -> StackSpec:
  """The fluorescent labels, all at z MAXPROJECT."""
  return StackSpec(z_values=(MAXPROJECT,), channels=tuple(channels))
