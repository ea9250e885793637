"""Fields of view: their images on disk, in whatever files, and their images as read."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from isl.core.channels import (
  MAXPROJECT,
  RECORDED_AS,
  SYNTHETIC_CHANNELS,
  TRANSMISSION,
  TRANSMITTED_LIGHT_CHANNELS,
  ImageKey,
)
from isl.images import png_io
from isl.images.pixels import DiskImages, Pixels, intensity
from isl.images.sources import ImageSource

# In bytes: the images of a field of view that take more are kept in a temporary file.
_MOST_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Percentiles:
  """The 0.1 and 99.9 percentiles of a whole field of view, for a reader of a part of it.

  Attributes:
    inputs: by input channel, the percentiles over all its depths, as intensities.
    targets: by label, synthetic ones included, its percentiles, as intensities.
  """

  inputs: Mapping[str, tuple[float, float]]
  targets: Mapping[str, tuple[float, float]]


def recorded_channels(channel: str) -> tuple[str, ...]:
  """The recorded channels of which a field of view has one for an input channel.

  For most input channels, this is the channel itself; TRANSMISSION may be recorded in several ways.
  """
  return RECORDED_AS.get(channel, (channel,))


def parts_of(channel: str) -> tuple[str, ...]:
  """The recorded channels that a target channel is made from: itself unless it is synthetic."""
  return SYNTHETIC_CHANNELS.get(channel, (channel,))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FieldOfView:
  """A field of view as read: its images, and the ranges of intensity that the network sees.

  Attributes:
    name: name that identifies the field of view.
    images: images by key, as on disk: uint8, uint16 or float32 [row, column], all of one size.
      Input channels are at z 0, 1, .., any recorded target channels at z MAXPROJECT.
    ranges: by target channel, synthetic ones included, the (low, high) intensities that become 0
      and 1; a channel that is not in it keeps its intensities.
    input_ranges: by recorded input channel, the (low, high) intensities that become 0 and 1; a
      channel that is not in it keeps its intensities.
    pixel_size: a pixel's (height, width) in micrometres; None: unknown.
    percentiles: percentiles of the whole field of view that this is a part of; None: this is the
      whole.
    presence: uint8 [row, column], 1 where there are pixels, 0 where all images are padded; None:
      nothing is padded.
  """

  name: str
  images: Mapping[ImageKey, Pixels]
  ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  input_ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  pixel_size: tuple[float, float] | None = None
  percentiles: Percentiles | None = None
  presence: np.ndarray | None = None

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of each image, in pixels."""
    rows, columns = next(iter(self.images.values())).shape
    return rows, columns

  @functools.cached_property
  def input_keys(self) -> tuple[ImageKey, ...]:
    """Keys of the input channels' images, sorted by channel and then by z."""
    keys = [key for key in self.images if isinstance(key.z, int)]
    return tuple(sorted(keys, key=lambda key: (key.channel, key.z)))

  def recorded_as(self, channel: str) -> str:
    """The one of an input channel's `recorded_channels` that this field of view has."""
    having = {key.channel for key in self.input_keys}
    return next(name for name in recorded_channels(channel) if name in having)

  @property
  def transmitted_light(self) -> str:
    """The kind of transmitted light that was recorded: BRIGHTFIELD, for example."""
    return self.recorded_as(TRANSMISSION)

  def num_depths(self, channel: str = TRANSMISSION) -> int:
    """The number of z depths of an input channel."""
    recorded = self.recorded_as(channel)
    return sum(key.channel == recorded for key in self.input_keys)

  def input_image(self, key: ImageKey, rows: slice, columns: slice) -> np.ndarray:
    """Reads a window of an input channel's image: float32 [row, column], intensities in [0, 1]."""
    return self.in_range(key, intensity(self.images[key][rows, columns]))

  def in_range(self, key: ImageKey, values: np.ndarray) -> np.ndarray:
    """Stretches float32 intensities of an input channel so that its range becomes [0, 1].

    Intensities outside the range are clipped; a channel without a range keeps its intensities.
    """
    if key.channel not in self.input_ranges:
      return values
    low, high = (np.float32(end) for end in self.input_ranges[key.channel])
    return np.clip((values - low) / (high - low), 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldFiles:
  """A field of view on disk: where each of its images is.

  Attributes:
    name: name that identifies the field of view: of PNGs, the identifying fields of their names.
    origin: the folder or file that the field of view was found in, as errors name it.
    sources: by key, where the image is. Where a file contains the z-stack of a channel, the stack's
      maximum projection is among the sources, too.
    pixel_size: a pixel's (height, width) in micrometres; None: unknown.
    problem: why the file could not be opened; None: it could be opened.
    percentiles: percentiles of the whole field of view that this is a part of; None: this is the
      whole.
  """

  name: str
  origin: str
  sources: Mapping[ImageKey, ImageSource]
  pixel_size: tuple[float, float] | None = None
  problem: str | None = None
  percentiles: Percentiles | None = None

  @property
  def paths(self) -> dict[ImageKey, pathlib.Path]:
    """The file of each image."""
    return {key: source.path for key, source in self.sources.items()}

  @property
  def channels(self) -> tuple[str, ...]:
    """The names of all channels, sorted."""
    return tuple(sorted({key.channel for key in self.sources}))

  def other_targets(self, inputs: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The channels at z MAXPROJECT that are neither targets nor projections of inputs, sorted.

    Args:
      inputs: the network's input channels.
      targets: the network's target channels, synthetic ones included.
    """
    known = {part for channel in targets for part in parts_of(channel)}
    # A projection of transmitted light is no label that somebody forgot to name.
    known |= {name for channel in inputs for name in recorded_channels(channel)}
    known |= set(recorded_channels(TRANSMISSION))
    return tuple(
      sorted(k.channel for k in self.sources if k.z == MAXPROJECT and k.channel not in known)
    )

  def select(self, inputs: Sequence[str], targets: Sequence[str]) -> FieldFiles:
    """Keeps only the images that a network reads, and those of its targets that there are.

    Args:
      inputs: the network's input channels.
      targets: the network's target channels, synthetic ones included.

    Returns:
      This field of view with only these sources.

    Raises:
      ValueError: an input channel is missing, was recorded in two ways, or has a gap in z; or there
        is a `problem`.
    """
    if self.problem is not None:
      raise ValueError(self.problem)
    sources: dict[ImageKey, ImageSource] = {}
    for channel in inputs:
      recorded = self._recorded(channel)
      keys = [k for k in self.sources if k.channel == recorded and isinstance(k.z, int)]
      sources |= {key: self.sources[key] for key in sorted(keys, key=lambda key: key.z)}
    for part in dict.fromkeys(part for channel in targets for part in parts_of(channel)):
      key = ImageKey(MAXPROJECT, part)
      if key in self.sources:
        sources[key] = self.sources[key]
    return dataclasses.replace(self, sources=sources)

  def _recorded(self, channel: str) -> str:
    """The one of its channels that a network reads for an input channel.

    Raises:
      ValueError: there is no such channel, there are two, or the z-stack has a gap.
    """
    shown = f'{self.origin!r}: field of view {self.name!r}'
    wanted = recorded_channels(channel)
    depths = {
      name: {k.z for k in self.sources if k.channel == name and isinstance(k.z, int)}
      for name in wanted
    }
    having = [name for name in wanted if depths[name]]
    if not having:
      what = 'transmitted-light image' if channel == TRANSMISSION else f'image of {channel}'
      names = TRANSMITTED_LIGHT_CHANNELS if channel == TRANSMISSION else wanted
      raise ValueError(
        f'{shown} has no {what}; expected a z-stack (z_depth-0, z_depth-1, ..) of'
        f' {"one of " * (len(names) > 1)}{", ".join(names)}; it has'
        f' {", ".join(self.channels)}'
      )
    if len(having) > 1:
      raise ValueError(f'{shown} has both {" and ".join(sorted(having))}; expected one of them')
    found = depths[having[0]]
    gap = next((z for z in range(len(found)) if z not in found), None)
    if gap is not None:
      raise ValueError(
        f'{shown} has {len(found)} depths of {having[0]} but not z_depth-{gap}; expected depths'
        ' from 0 on without gaps'
      )
    return having[0]

  def read(self) -> FieldOfView:
    """Decodes every image once; those that can be read in parts are only opened.

    The images are read-only. Many or large ones are kept in a temporary file instead of memory.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged or not of a kind that isl reads, or the images differ in size.
    """
    sizes = (source.size for source in self.sources.values())
    # As if all were decoded, of 16 bit: floats are rare, and what is only opened takes nothing.
    in_bytes = sum(2 * rows * columns for rows, columns in sizes)
    on_disk = DiskImages() if in_bytes > _MOST_BYTES else None

    def read(source: ImageSource) -> Pixels:
      image = source.read()
      return on_disk.add(image) if on_disk and isinstance(image, np.ndarray) else image

    # OpenCV lets other threads run while it decodes.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
      images = dict(zip(self.sources, pool.map(read, self.sources.values()), strict=True))
    first = next(iter(images))
    for key, image in images.items():
      if image.shape != images[first].shape:
        shown = [
          f'{str(self.sources[k].path)!r} has {png_io.size_text(images[k].shape)}'
          for k in (first, key)
        ]
        raise ValueError(f'{", ".join(shown)}; expected one size in a field of view')
      if isinstance(image, np.ndarray):
        image.setflags(write=False)
    return FieldOfView(
      name=self.name, images=images, pixel_size=self.pixel_size, percentiles=self.percentiles
    )
