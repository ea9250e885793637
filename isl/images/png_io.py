"""Reading and writing PNGs: microscopes' images, predictions, and pictures larger than memory."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import png

from isl.system import files

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# The last chunk, whole: it has no contents.
_END = b'\0\0\0\0IEND\xaeB`\x82'
# In bytes: of the signature and the header chunk.
_HEADER_END = len(_SIGNATURE) + 12 + 13
_COLOR_TYPES = {2: 'RGB', 3: 'palette', 4: 'gray with alpha', 6: 'RGBA'}
_WANTED = 'expected an 8- or 16-bit single-channel PNG'
# Of zlib. On error panels level 2 was as fast as level 1, and half again as fast as level 4, whose
# files are 5% smaller.
_COMPRESSION = 2


def read_png(path: str | os.PathLike[str]) -> np.ndarray:
  """Reads a microscope's image.

  Returns:
    uint8 or uint16 [row, column], as stored.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not an 8- or 16-bit single-channel PNG, or it is damaged.
  """
  return decode_png(pathlib.Path(path).read_bytes(), repr(str(path)))


def decode_png(data: bytes, shown: str) -> np.ndarray:
  """Decodes a microscope's image.

  Args:
    data: the file's contents.
    shown: how errors name it.

  Returns:
    uint8 or uint16 [row, column], as stored.

  Raises:
    ValueError: it is not an 8- or 16-bit single-channel PNG, or it is damaged.
  """
  _check_signature(data, shown)
  chunks = list(_chunks(shown, memoryview(data)))
  _check_header(shown, chunks[0])
  _check_pixels(shown, chunks)
  # Only what the pixels need: libpng comments on odd colour profiles and the like on stderr.
  needed = (chunk.whole for chunk in chunks if chunk.kind in (b'IHDR', b'IDAT', b'IEND'))
  encoded = np.frombuffer(b''.join([_SIGNATURE, *needed]), np.uint8)
  try:
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
  except cv2.error as error:
    raise ValueError(f'{shown} cannot be decoded ({error.err}); {_WANTED}') from error
  if image is None or image.ndim != 2:
    raise ValueError(f'{shown} cannot be decoded; {_WANTED}')
  return image


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
  """The size of a microscope's image, from its header alone: (rows, columns).

  Raises:
    OSError: the file cannot be read.
    ValueError: it does not begin like an 8- or 16-bit single-channel PNG.
  """
  with pathlib.Path(path).open('rb') as stream:
    return decode_size(stream.read(_HEADER_END), repr(str(path)))


def decode_size(data: bytes, shown: str) -> tuple[int, int]:
  """The size of a microscope's image, (rows, columns), from the beginning of the file's contents.

  Raises:
    ValueError: it does not begin like an 8- or 16-bit single-channel PNG.
  """
  _check_signature(data, shown)
  header = next(_chunks(shown, memoryview(data)[:_HEADER_END]))
  _check_header(shown, header)
  columns, rows = struct.unpack('>II', header.body[:8])
  return rows, columns


def _check_signature(data: bytes, shown: str) -> None:
  if not data:
    raise ValueError(f'{shown} is empty; {_WANTED}')
  if not data.startswith(_SIGNATURE):
    raise ValueError(f'{shown} is not a PNG, it starts with {data[:8]!r}; {_WANTED}')


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """A piece of a PNG: its four-letter kind, its contents, and these with length and checksum."""

  kind: bytes
  body: memoryview
  whole: memoryview


def _chunks(shown: str, data: memoryview) -> Iterator[_Chunk]:
  """A PNG's chunks up to the last, IEND.

  OpenCV's versions differ in what they make of a damaged file (an error, part of the image), so
  that isl finds out itself (PNG specification, section 5.3).

  Raises:
    ValueError: the file ends early or a checksum is wrong; `shown` is the file's name.
  """
  start, kind = len(_SIGNATURE), b''
  while kind != b'IEND':
    end = start + 12 + int.from_bytes(data[start : start + 4], 'big')
    if start + 12 > len(data) or end > len(data):
      raise ValueError(f'{shown} is truncated at {len(data)} bytes; expected a whole PNG')
    kind = bytes(data[start + 4 : start + 8])
    if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], 'big'):
      raise ValueError(f'{shown} is damaged, the checksum at byte {end - 4} is wrong; {_WANTED}')
    yield _Chunk(kind, data[start + 8 : end - 4], data[start:end])
    start = end


def _check_header(shown: str, header: _Chunk) -> None:
  """ValueError unless the PNG is of a kind that we read."""
  if header.kind != b'IHDR' or len(header.body) != 13:
    raise ValueError(f'{shown} is damaged, it has no header; {_WANTED}')
  columns, rows, bits, color = struct.unpack('>IIBB', header.body[:10])
  if color != 0:
    raise ValueError(f'{shown} is {_COLOR_TYPES.get(color, f"of color type {color}")}; {_WANTED}')
  if bits not in (8, 16):
    raise ValueError(f'{shown} has {bits} bits per pixel; {_WANTED}')
  if not rows or not columns or bytes(header.body[10:12]) != b'\0\0' or header.body[12] > 1:
    raise ValueError(f'{shown} is damaged, its header cannot be; {_WANTED}')


def _check_pixels(shown: str, chunks: Iterable[_Chunk]) -> None:
  """ValueError unless the compressed pixels are whole: to libpng that is only worth a warning."""
  header, *others = chunks
  columns, rows, bits = struct.unpack('>IIB', header.body[:9])
  interlaced = header.body[12]
  inflate, size = zlib.decompressobj(), 0
  step = 1 << 16
  try:
    for body in (chunk.body for chunk in others if chunk.kind == b'IDAT'):
      for start in range(0, len(body), step):
        size += len(inflate.decompress(body[start : start + step]))
  except zlib.error as error:
    raise ValueError(f'{shown} is damaged ({error}); {_WANTED}') from error
  if not inflate.eof or (size != rows * (1 + columns * bits // 8) and not interlaced):
    raise ValueError(
      f'{shown} is damaged, its pixels are not {size_text((rows, columns))}; {_WANTED}'
    )


def size_text(shape: tuple[int, ...]) -> str:
  """An image's size in pixels as errors say it."""
  return f'{shape[0]} rows x {shape[1]} columns'


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
  """Writes an image as a single-channel PNG.

  Args:
    path: the file's name; see `files.whole_file`.
    image: uint8 or uint16 [row, column].

  Raises:
    OSError: the file cannot be written.
    ValueError: `image` is not such an image.
  """
  if image.ndim != 2 or not image.size or image.dtype not in (np.uint8, np.uint16):
    raise ValueError(
      f'{str(path)!r}: expected an image of uint8 or uint16 [row, column], got {image.dtype}'
      f' {list(image.shape)}'
    )
  # To memory first: OpenCV does not say why it could not write a file.
  with files.whole_file(path) as partial:
    partial.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
  """The contents of a single-channel PNG, of uint8 or uint16 [row, column]."""
  _, encoded = cv2.imencode('.png', image)
  return encoded.tobytes()


def encode_plain_png(image: np.ndarray, compression: int) -> bytes:
  """The contents of a PNG whose rows are not filtered, which `decode_plain_png` is quick to read.

  Args:
    image: uint16 [row, column].
    compression: zlib's, from 0 (none, the quickest) to 9.
  """
  assert image.dtype == np.uint16 and image.ndim == 2, (image.dtype, image.shape)
  rows, columns = image.shape
  packed = np.zeros((rows, 1 + 2 * columns), np.uint8)
  packed[:, 1:] = np.ascontiguousarray(image, '>u2').view(np.uint8)
  header = struct.pack('>IIBBBBB', columns, rows, 16, 0, 0, 0, 0)
  pixels = zlib.compress(packed.data, compression)
  chunks = ((b'IHDR', header), (b'IDAT', pixels), (b'IEND', b''))
  return b''.join([_SIGNATURE, *(_chunk(kind, body) for kind, body in chunks)])


def _chunk(kind: bytes, body: bytes) -> bytes:
  checksum = zlib.crc32(body, zlib.crc32(kind))
  return b''.join([struct.pack('>I', len(body)), kind, body, struct.pack('>I', checksum)])


def decode_plain_png(data: bytes, shown: str) -> np.ndarray:
  """`decode_png`, but several times faster for what `encode_plain_png` made."""
  end = len(data) - len(_END)
  body = _HEADER_END + 8
  # One IDAT with nothing before or behind it. Whether its pixels are whole, zlib's checksum says.
  is_plain = (
    data[_HEADER_END + 4 : body] == b'IDAT'
    and data[end:] == _END
    and body + int.from_bytes(data[_HEADER_END : _HEADER_END + 4], 'big') + 4 == end
  )
  if not is_plain:
    return decode_png(data, shown)
  rows, columns = decode_size(data, shown)
  try:
    pixels = zlib.decompress(memoryview(data)[body : end - 4], bufsize=rows * (1 + 2 * columns))
  except zlib.error as error:
    raise ValueError(f'{shown} is damaged ({error}); {_WANTED}') from error
  if len(pixels) != rows * (1 + 2 * columns):
    return decode_png(data, shown)
  packed = np.frombuffer(pixels, np.uint8).reshape(rows, 1 + 2 * columns)
  if packed[:, 0].any():
    return decode_png(data, shown)
  return packed[:, 1:].view('>u2').astype(np.uint16)


def write_png_strips(
  path: str | os.PathLike[str], strips: Iterable[np.ndarray], size: tuple[int, int]
) -> None:
  """Writes a 16-bit RGB PNG strip by strip, so that the whole picture is never in memory.

  Args:
    path: the file's name; see `files.whole_file`.
    strips: uint16 [row, column, color], from the top down, each of any number of rows.
    size: (rows, columns) of the picture, in pixels.

  Raises:
    OSError: the file cannot be written.
    ValueError: the strips do not make a picture of this size.
  """
  rows, columns = size
  if rows < 1 or columns < 1:
    raise ValueError(f'{str(path)!r}: expected at least one pixel, got {size_text(size)}')
  writer = png.Writer(
    width=columns, height=rows, greyscale=False, bitdepth=16, compression=_COMPRESSION
  )
  with files.whole_file(path) as partial:
    with partial.open('wb') as stream:
      written = writer.write_packed(stream, _packed_rows(str(path), strips, columns))
    if written != rows:
      raise ValueError(f'{str(path)!r}: expected strips of {rows} rows in all, got {written}')


def _packed_rows(path: str, strips: Iterable[np.ndarray], columns: int) -> Iterator[bytes]:
  """The bytes of each row as a PNG has them: big-endian."""
  for strip in strips:
    if strip.dtype != np.uint16 or strip.shape[1:] != (columns, 3):
      raise ValueError(
        f'{path!r}: expected strips of uint16 [row, {columns}, 3], got {strip.dtype}'
        f' {list(strip.shape)}'
      )
    for row in strip.astype('>u2'):
      yield row.tobytes()
