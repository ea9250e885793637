"""Maximum projections: of a z-stack the brightest value at each pixel."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from isl.images import png_io
from isl.images.fields_of_view import ImageSource, Pixels


class MaximumPixels:
  """The projection of images that are read in parts; reads a window of one after the other."""

  def __init__(self, images: Sequence[Pixels]):
    """All of one size and type, at least one."""
    self._images = images

  @property
  def shape(self) -> tuple[int, ...]:
    """(rows, columns)."""
    return self._images[0].shape

  @property
  def dtype(self) -> np.dtype[Any]:
    """uint8, uint16 or float32."""
    return self._images[0].dtype

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    """Never in memory at once: more than two windows."""
    return functools.reduce(np.maximum, (image[window] for image in self._images))


@dataclasses.dataclass(frozen=True)
class ProjectionSource:
  """The projection of images that have a file each.

  Attributes:
    sources: of these, at least one.
  """

  sources: tuple[ImageSource, ...]

  @property
  def path(self) -> pathlib.Path:
    """Of the first."""
    return self.sources[0].path

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of the first."""
    return self.sources[0].size

  def read(self) -> Pixels:
    """Decodes one after the other; what can be read in parts is only opened.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, or not of the others' size and type.
    """
    first, *others = self.sources
    images = [first.read()]
    for source in others:
      image = source.read()
      if image.shape != images[0].shape or image.dtype != images[0].dtype:
        shown = [
          f'{str(s.path)!r} has {png_io.size_text(i.shape)} of {i.dtype}'
          for s, i in ((first, images[0]), (source, image))
        ]
        raise ValueError(f'{", ".join(shown)}; expected one size and type in a z-stack')
      if isinstance(image, np.ndarray) and isinstance(images[0], np.ndarray):
        images[0] = np.maximum(images[0], image)
      else:
        images.append(image)
    return images[0] if len(images) == 1 else MaximumPixels(images)
