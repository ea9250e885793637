"""Tests of png_io.py."""

import errno
import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from isl.images import png_io
from tests.support.program import python_process

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# So that its PNG has several IDAT chunks.
_NOISE = np.random.default_rng(0).integers(0, 1 << 16, (100, 150), dtype=np.uint16)


def _chunk(kind: bytes, body: bytes) -> bytes:
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def _png(
  *,
  rows: int = 2,
  columns: int = 3,
  bits: int = 8,
  color: int = _GRAY,
  interlaced: int = 0,
  pixels: bytes | None = None,
  ancillary: bytes = b'',
) -> bytes:
  """A PNG written by hand, valid unless the arguments contradict each other."""
  samples = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}.get(color, 1)
  row = b'\0' + bytes((columns * bits * samples + 7) // 8)
  header = struct.pack('>IIBBBBB', columns, rows, bits, color, 0, 0, interlaced)
  palette = _chunk(b'PLTE', bytes(6)) if color == _PALETTE else b''
  data = zlib.compress(row * rows) if pixels is None else pixels
  before, after = _SIGNATURE + _chunk(b'IHDR', header), _chunk(b'IEND', b'')
  return before + ancillary + palette + _chunk(b'IDAT', data) + after


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', [(1, 1), (3, 5), (64, 17)])
def test_written_image_is_read_back(tmp_path, dtype, shape):
  image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
  png_io.write_png(tmp_path / 'image.png', image)
  result = png_io.read_png(tmp_path / 'image.png')
  assert result.dtype == dtype
  np.testing.assert_array_equal(result, image)


def test_part_of_an_image_is_written(tmp_path):
  part = _NOISE[3:9, 5:50:2]
  png_io.write_png(tmp_path / 'image.png', part)
  np.testing.assert_array_equal(png_io.read_png(tmp_path / 'image.png'), part)


@pytest.mark.parametrize(
  'image',
  [np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)],
)
def test_no_such_image_is_written(tmp_path, image):
  with pytest.raises(ValueError, match=r'image.png.*expected an image of uint8 or uint16'):
    png_io.write_png(tmp_path / 'image.png', image)
  assert not list(tmp_path.iterdir())


def test_chunks_beside_the_pixels_change_nothing(tmp_path, capfd):
  ancillary = [_chunk(b'gAMA', struct.pack('>I', 200000)), _chunk(b'tRNS', b'\0\0')]
  ancillary += [_chunk(b'iCCP', b'broken profile'), _chunk(b'tEXt', b'no separator')]
  path = tmp_path / 'image.png'
  path.write_bytes(_png(ancillary=b''.join(ancillary)) + b'something behind the end')
  np.testing.assert_array_equal(png_io.read_png(path), np.zeros((2, 3), np.uint8))
  assert capfd.readouterr() == ('', '')


def test_interlaced_image_is_read(tmp_path):
  # Adam7: of an image of 1 x 1 the first pass alone has a pixel.
  path = tmp_path / 'image.png'
  path.write_bytes(_png(rows=1, columns=1, interlaced=1, pixels=zlib.compress(b'\0\x07')))
  np.testing.assert_array_equal(png_io.read_png(path), [[7]])


_ZEROS = zlib.compress(bytes(8))


@pytest.mark.parametrize(
  ('data', 'problem'),
  [
    (b'', 'is empty'),
    (b'notes on the\nexperiment', "is not a PNG, it starts with b'notes on'"),
    (_SIGNATURE, 'is truncated at 8 bytes'),
    (_png(color=_RGB), 'is RGB'),
    (_png(color=_RGBA, bits=16), 'is RGBA'),
    (_png(color=_PALETTE), 'is palette'),
    (_png(color=_GRAY_ALPHA), 'is gray with alpha'),
    (_png(color=5), 'is of color type 5'),
    (_png(bits=1), 'has 1 bits per pixel'),
    (_png(bits=4), 'has 4 bits per pixel'),
    (_png(rows=0), 'is damaged, its header cannot be'),
    (_png(interlaced=9), 'is damaged, its header cannot be'),
    (_SIGNATURE + _chunk(b'IEND', b''), 'is damaged, it has no header'),
    (_png(rows=1 << 30, columns=1 << 30, pixels=_ZEROS), 'is damaged, its pixels are not'),
    (_png(pixels=b''), 'is damaged, its pixels are not 2 rows x 3 columns'),
    (_png(pixels=zlib.compress(bytes(7))), 'is damaged, its pixels are not'),
    (_png(pixels=zlib.compress(bytes(9))), 'is damaged, its pixels are not'),
    (_png(pixels=_ZEROS[:-1]), 'is damaged, its pixels are not'),
    (_png(pixels=_ZEROS[:-1] + b'\xff'), 'is damaged (Error -3'),
    (_png(pixels=zlib.compress(b'\x09' * 8)), 'cannot be decoded'),
  ],
)
def test_no_such_png_is_read(tmp_path, data, problem):
  path = tmp_path / 'image.png'
  path.write_bytes(data)
  with pytest.raises(ValueError) as raised:
    png_io.read_png(path)
  message = str(raised.value)
  assert message.startswith(f"'{path}' {problem}")
  assert 'expected a' in message
  assert '\n' not in message


@pytest.fixture(scope='module')
def noise_png(tmp_path_factory) -> bytes:
  path = tmp_path_factory.mktemp('noise') / 'image.png'
  png_io.write_png(path, _NOISE)
  data = path.read_bytes()
  assert data.count(b'IDAT') > 1
  return data


@pytest.mark.parametrize('share', [0.001, 0.3, 0.5, 0.9, 0.9999])
def test_truncated_png_is_an_error(tmp_path, noise_png, share, capfd):
  path = tmp_path / 'image.png'
  path.write_bytes(noise_png[: int(share * len(noise_png))])
  with pytest.raises(ValueError, match=r"image.png' is truncated at \d+ bytes"):
    png_io.read_png(path)
  assert capfd.readouterr() == ('', '')


def test_any_flipped_byte_is_an_error(tmp_path, noise_png, capfd):
  path = tmp_path / 'image.png'
  for position in np.linspace(0, len(noise_png) - 1, 100).astype(int):
    data = bytearray(noise_png)
    data[position] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"image.png' (is damaged|is truncated|is not a PNG)"):
      png_io.read_png(path)
  assert capfd.readouterr() == ('', '')


def test_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'image\.png'):
    png_io.read_png(tmp_path / 'image.png')


@pytest.mark.parametrize('heights', [[7], [1, 2, 4], [3, 0, 4]])
def test_strips_make_the_picture(tmp_path, heights):
  picture = np.random.default_rng(0).integers(0, 1 << 16, (7, 5, 3), dtype=np.uint16)
  strips = np.split(picture, np.cumsum(heights)[:-1])
  png_io.write_png_strips(tmp_path / 'panel.png', iter(strips), (7, 5))
  # OpenCV's colours are in the order BGR.
  result = cv2.imread(str(tmp_path / 'panel.png'), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(result, picture[:, :, ::-1])


@pytest.mark.parametrize(
  ('strip', 'size', 'problem'),
  [
    (np.zeros((2, 3, 3), np.uint16), (3, 3), 'strips of 3 rows in all, got 2'),
    (np.zeros((4, 3, 3), np.uint16), (3, 3), 'strips of 3 rows in all, got 4'),
    (np.zeros((3, 4, 3), np.uint16), (3, 3), r'uint16 \[row, 3, 3\], got uint16 \[3, 4, 3\]'),
    (np.zeros((3, 3, 3), np.uint8), (3, 3), r'uint16 \[row, 3, 3\], got uint8 \[3, 3, 3\]'),
    (np.zeros((0, 3, 3), np.uint16), (0, 3), 'at least one pixel, got 0 rows x 3 columns'),
  ],
)
def test_strips_of_another_picture_are_refused(tmp_path, strip, size, problem):
  with pytest.raises(ValueError, match=f"panel.png': expected.*{problem}"):
    png_io.write_png_strips(tmp_path / 'panel.png', [strip], size)
  assert not list(tmp_path.iterdir())


_WRITE_STRIPS = """if True:
  import sys
  import numpy as np
  from isl.images import png_io

  def strips():
    for i in range(50):
      if i == 30:
        print('writing', flush=True)
        sys.stdin.read()
      # Incompressible, and thirty of them are larger than the writer's buffers.
      yield np.random.default_rng(i).integers(0, 1 << 16, (40, 300, 3), dtype=np.uint16)

  png_io.write_png_strips(sys.argv[1], strips(), (2000, 300))
"""


def test_kill_amid_the_strips_leaves_no_final_file(tmp_path):
  final, partial = tmp_path / 'panel.png', tmp_path / 'panel.png.partial'
  process = python_process(_WRITE_STRIPS, final)
  assert process.stdout
  assert process.stdout.readline() == 'writing\n'
  process.kill()
  process.communicate(timeout=60)
  assert list(tmp_path.iterdir()) == [partial]
  assert partial.read_bytes()[:8] == _SIGNATURE

  # The next run is not disturbed by what is left.
  png_io.write_png_strips(final, [np.zeros((1, 1, 3), np.uint16)], (1, 1))
  assert list(tmp_path.iterdir()) == [final]


def test_full_disk_names_the_final_file(tmp_path):
  code = """if True:
    import resource, sys
    import numpy as np
    from isl.images import png_io
    noise = np.random.default_rng(0).integers(0, 1 << 16, (100, 300, 3), dtype=np.uint16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    for write in (
      lambda: png_io.write_png(sys.argv[1], noise[:, :, 0]),
      lambda: png_io.write_png_strips(sys.argv[1], [noise] * 20, (2000, 300)),
    ):
      try:
        write()
      except OSError as error:
        print(error)
  """
  final = tmp_path / 'image.png'
  process = python_process(code, final)
  printed, _ = process.communicate(timeout=60)
  assert printed == f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{final}'\n" * 2
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_size_is_in_the_header(tmp_path, dtype):
  path = tmp_path / 'a.png'
  png_io.write_png(path, np.zeros((3, 70), dtype))
  assert png_io.read_size(path) == (3, 70)
  # All after the header may be missing.
  path.write_bytes(path.read_bytes()[:33])
  assert png_io.read_size(path) == (3, 70)


@pytest.mark.parametrize(
  ('contents', 'what'),
  [(b'', 'is empty'), (b'GIF89a', 'is not a PNG'), (b'\x89PNG\r\n\x1a\n\0\0', 'is truncated')],
)
def test_no_size_without_a_header(tmp_path, contents, what):
  path = tmp_path / 'a.png'
  path.write_bytes(contents)
  with pytest.raises(ValueError, match=what):
    png_io.read_size(path)
