"""Where an image of a field of view is: a PNG, one within another file, or a projection."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from isl.images import png_io
from isl.images.pixels import MaximumPixels, Pixels


class ImageSource(Protocol):
  """Where one image of a field of view is.

  Attributes:
    path: of its file, which may hold other images, too.
  """

  @property
  def path(self) -> pathlib.Path:
    """The file, or the folder of an OME-Zarr."""

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns), without decoding it; raises OSError or ValueError like `read`."""

  def read(self) -> Pixels:
    """Opens or decodes it; raises OSError or ValueError, which name the file."""


@dataclasses.dataclass(frozen=True)
class PngSource:
  """An image that is a PNG of its own.

  Attributes:
    path: the file.
  """

  path: pathlib.Path

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns), from the file's header."""
    return png_io.read_size(self.path)

  def read(self) -> np.ndarray:
    """Decodes it, see `png_io.read_png`."""
    return png_io.read_png(self.path)


@dataclasses.dataclass(frozen=True)
class EncodedSource:
  """An image that is a PNG within another file.

  Attributes:
    path: that file.
    shown: how errors name the image.
    load: gives the PNG's contents; raises OSError or ValueError.
  """

  path: pathlib.Path
  shown: str
  load: Callable[[], bytes]

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns), from the PNG's header."""
    return png_io.decode_size(self.load(), self.shown)

  def read(self) -> np.ndarray:
    """Decodes it, see `png_io.decode_png`."""
    return png_io.decode_plain_png(self.load(), self.shown)


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
