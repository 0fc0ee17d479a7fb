"""One encoded image as pixels, refused where another program would see other pixels."""

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np

from rkd_jax.errors import DataError
from rkd_jax.untrusted import describe_bytes

MOST_BYTES = 2**28  # Of one encoded image.
# Pillow knows more formats, and one of them (EPS) runs another program.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'PPM')
_MOST_PIXELS = 2**26  # Of which the rows of a PNG are counted.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # By the colour type of PNG.
_PNG = b'\x89PNG\r\n\x1a\n'
# PPM, PGM: the size and the greatest value, between white space and comments.
_NETPBM = re.compile(rb'P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+'
                     rb'(?:\s|#[^\n]*\n)+(\d+)')


@contextlib.contextmanager
def limited() -> Iterator[None]:
  """Refuses images beyond Pillow's limit of 89 million pixels, where it only warns."""
  from PIL import Image
  with warnings.catch_warnings():
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    yield


def decode(content: bytes, where: str) -> tuple[np.ndarray, bool]:
  """Pixels of a PNG, JPEG, BMP, WebP, PGM or PPM image.

  The EXIF orientation is applied, as viewers do. Palettes and CMYK become RGB. The
  checksums of PNG are verified; the other formats have none.

  Args:
    content: Encoded image. Its bytes decide about the format, not a suffix.
    where: What to call it in errors.

  Returns:
    (uint8[H, W, 3], colour): `colour` is False for an image that is stored as grey,
    whose three channels are equal.

  Raises:
    DataError: The image is damaged, of another format, animated, partly transparent,
      larger than Pillow's limit, or has more than 8 bits a channel.
  """
  from PIL import Image, ImageOps  # Lazily: most data sets are read from the cache.
  _check_container(content, where)
  try:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
      _check_kind(image, where)
      colour = image.mode not in ('1', 'L', 'LA')
      upright = ImageOps.exif_transpose(image)
      if image.mode in ('LA', 'PA', 'RGBA') or 'transparency' in image.info:
        pixels = _opaque(np.asarray(upright.convert('RGBA')), where)
      else:
        pixels = np.asarray(upright.convert('RGB'))
  except DataError:
    raise
  except Exception as error:  # Pillow's decoders raise many types on bad bytes.
    kind = describe_bytes(content[:512])
    raise DataError(f'cannot read the image {where}: {kind and f"it is {kind}; "}'
                    f'{_one_line(error)}') from error
  return pixels, colour


def _one_line(error):
  # Pillow names the object that it read from, which says nothing.
  text = re.sub(r' ?<_io\.BytesIO[^>]*>', ' its bytes', str(error))
  return (text.strip().splitlines() or [type(error).__name__])[0]


def _check_container(content, where):
  """What Pillow passes over in silence: checksums, and channels of 16 bits."""
  depth = 8
  if content.startswith(_PNG):
    _check_png(content, where)
    depth = content[24]
  elif match := _NETPBM.match(content[:4096]):
    depth = len(bin(int(match[1][:9]))) - 2
  if depth > 8:
    raise DataError(f'the image {where} has more than 8 bits a channel ({depth}); '
                    'convert it to 8 bits first')


def _check_png(content, where):
  """Compares the CRC-32 of every chunk, and the rows that are there with the header."""
  at, kind, packed = len(_PNG), b'', []
  view = memoryview(content)
  refused = lambda why: DataError(f'cannot read the image {where}: {why}')
  while kind != b'IEND':
    if at + 12 > len(content):
      raise refused('the PNG ends too early')
    length, = struct.unpack_from('>I', content, at)
    kind, end = content[at + 4:at + 8], at + 8 + length
    if end + 4 > len(content):
      raise refused('the PNG ends too early')
    if zlib.crc32(view[at + 4:end]) != struct.unpack_from('>I', content, end)[0]:
      raise refused('a checksum of the PNG is wrong, the file is damaged (chunk '
                    f'{kind.decode("latin-1")!r})')
    if at == len(_PNG) and (kind != b'IHDR' or length != 13):
      raise refused('the PNG has no header')
    if kind == b'IDAT':
      packed.append(view[at + 8:end])
    at = end + 4
  _check_rows(content, b''.join(packed), refused)


def _check_rows(content, packed, refused):
  """Pillow would fill up rows that are missing."""
  width, height, depth, colour, _, _, interlaced = struct.unpack_from('>IIBBBBB', content,
                                                                      16)
  if interlaced or width * height > _MOST_PIXELS:
    return  # Pillow refuses what is too large, in `limited`.
  wanted = height * (1 + -(-width * depth * _CHANNELS.get(colour, 1) // 8))
  try:
    found = len(zlib.decompressobj().decompress(packed, max(wanted, 1)))
  except zlib.error as error:
    raise refused(f'its data are no zlib stream: {error}') from error
  if found < wanted:
    raise refused(f'it holds {found:,} of {wanted:,} bytes of pixels')


def _check_kind(image, where):
  if image.mode.startswith(('I', 'F')):
    raise DataError(
        f'the image {where} has more than 8 bits a channel (mode {image.mode}); '
        'convert it to 8 bits first')
  # A JPEG with several pictures holds previews of the first.
  if image.format != 'MPO' and getattr(image, 'is_animated', False):
    raise DataError(f'the image {where} is an animation of {image.n_frames} pictures; '
                    'store the one that is meant')


def _opaque(pixels, where):
  if pixels[..., 3].min() < 255:
    raise DataError(
        f'the image {where} is partly transparent, and what lies behind it is not '
        'known: paint it on a background first')
  return pixels[..., :3]
