"""Where an image of a field of view is read from: a PNG, another file's part, or a projection.

`ImageSource` is for all that read images. Planes of microscopes' files are sources, too: see
`microscope_files.PlaneSource`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from isl.images import png_io
from isl.images.pixels import MaximumPixels, Pixels


class ImageSource(Protocol):
  """Where one image of a field of view is read from.

  Attributes:
    path: the image's file, which may contain other images, too.
  """

  @property
  def path(self) -> pathlib.Path:
    """The image's file, or the folder of an OME-Zarr."""

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) in pixels, without decoding the image; raises as `read` does."""

  def read(self) -> Pixels:
    """Decodes the image, or opens it if it can be read in parts.

    Raises:
      OSError: the file cannot be read; the error names it.
      ValueError: the file is damaged or not of a kind that isl reads; the error names it.
    """


@dataclasses.dataclass(frozen=True)
class PngSource:
  """An image that is a PNG of its own.

  Attributes:
    path: the PNG.
  """

  path: pathlib.Path

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) in pixels, from the file's header."""
    return png_io.read_size(self.path)

  def read(self) -> np.ndarray:
    """Decodes the image: uint8 or uint16 [row, column], see `png_io.read_png`."""
    return png_io.read_png(self.path)


@dataclasses.dataclass(frozen=True)
class EncodedSource:
  """An image that is a PNG within another file.

  Attributes:
    path: the file that the PNG is in.
    shown: name of the image in errors.
    load: reads the PNG's bytes; raises OSError or ValueError.
  """

  path: pathlib.Path
  shown: str
  load: Callable[[], bytes]

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) in pixels, from the PNG's header."""
    return png_io.decode_size(self.load(), self.shown)

  def read(self) -> np.ndarray:
    """Decodes the image: uint8 or uint16 [row, column], see `png_io.decode_plain_png`."""
    return png_io.decode_plain_png(self.load(), self.shown)


@dataclasses.dataclass(frozen=True)
class ProjectionSource:
  """The maximum projection of images that have a source each.

  Attributes:
    sources: sources of the images, at least one.
  """

  sources: tuple[ImageSource, ...]

  @property
  def path(self) -> pathlib.Path:
    """The file of the first image."""
    return self.sources[0].path

  @property
  def size(self) -> tuple[int, int]:
    """(rows, columns) of the first image, in pixels."""
    return self.sources[0].size

  def read(self) -> Pixels:
    """Decodes one image after the other; those that can be read in parts are only opened.

    Returns:
      The projection, as an array or, of images that are only opened, as Pixels.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, or the images differ in size or dtype.
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
