"""One encoded image: the right pixels, or a message that says what is wrong with it."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rkd_jax.data import images
from rkd_jax.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 3), np.uint8)
GREY = RGB[..., 0]


def encoded(pixels, form='PNG', mode=None, **options):
  stream = io.BytesIO()
  image = Image.fromarray(pixels)
  image = image if mode is None else image.convert(mode)
  image.save(stream, form, **options)
  return stream.getvalue()


def chunk(kind, content):
  return (struct.pack('>I', len(content)) + kind + content
          + struct.pack('>I', zlib.crc32(kind + content)))


def png(width, height, depth, colour, rows, *more):
  """A PNG from its definition, not by Pillow."""
  return (b'\x89PNG\r\n\x1a\n'
          + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
          + b''.join(more) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def plain_rows(pixels):
  return b''.join(b'\0' + row.tobytes() for row in pixels)


def netpbm(kind, most, values, shape):
  return b'%b\n# made by hand\n%d %d\n%d\n' % (kind, shape[1], shape[0], most) + values


OPAQUE = np.concatenate([RGB, np.full((6, 5, 1), 255, np.uint8)], axis=-1)
BY_HAND = png(5, 6, 8, 2, plain_rows(RGB))


@pytest.mark.parametrize(('content', 'wanted', 'colour'), [
    (BY_HAND, RGB, True),
    (png(5, 6, 8, 0, plain_rows(GREY)), GREY, False),
    (encoded(RGB), RGB, True), (encoded(RGB, 'BMP'), RGB, True),
    (encoded(RGB, 'PPM'), RGB, True), (encoded(GREY, 'PPM'), GREY, False),
    (encoded(RGB, 'WEBP', lossless=True), RGB, True),
    (encoded(OPAQUE), RGB, True),
    (encoded(np.stack([GREY, np.full_like(GREY, 255)], -1)), GREY, False),
    (netpbm(b'P3', 255, ' '.join(map(str, RGB.ravel())).encode(), (6, 5)), RGB, True),
    (netpbm(b'P2', 255, ' '.join(map(str, GREY.ravel())).encode(), (6, 5)), GREY, False),
    (encoded(RGB, mode='P'), np.asarray(Image.fromarray(RGB).convert('P').convert('RGB')),
     True),
    (encoded(GREY, mode='1'), np.asarray(Image.fromarray(GREY).convert('1').convert('L')),
     False),
    (png(5, 6, 8, 2, plain_rows(RGB), chunk(b'tEXt', b'Comment\0hello')), RGB, True),
    (png(5, 6, 8, 2, plain_rows(RGB) + b'more than is wanted'), RGB, True),
    (BY_HAND + b'more after the end', RGB, True),
], ids=str)
def test_right_pixels(content, wanted, colour):
  pixels, seen = images.decode(content, 'x')
  if wanted.ndim == 2:
    wanted = np.repeat(wanted[..., None], 3, axis=-1)
  np.testing.assert_array_equal(pixels, wanted)
  assert seen is colour and pixels.dtype == np.uint8


@pytest.mark.parametrize(('orientation', 'undo'), [
    (1, lambda x: x), (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]),
    (4, lambda x: x[::-1]), (5, lambda x: x.transpose(1, 0, 2)),
    (6, lambda x: np.rot90(x, -1)), (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
    (8, np.rot90)])
@pytest.mark.parametrize('form', ['PNG', 'WEBP'])
def test_exif_orientation(orientation, undo, form):
  """Table of the EXIF standard (CIPA DC-008, tag 274): what row 0, column 0 are."""
  exif = Image.Exif()
  exif[274] = orientation
  options = {'lossless': True} if form == 'WEBP' else {}
  pixels, _ = images.decode(encoded(RGB, form, exif=exif, **options), 'x')
  np.testing.assert_array_equal(pixels, undo(RGB))


def transparent(at, value):
  pixels = OPAQUE.copy()
  pixels[at][3] = value
  return pixels


def animated(form):
  stream = io.BytesIO()
  first, second = (Image.fromarray(pixels) for pixels in (RGB, RGB[::-1].copy()))
  first.save(stream, form, save_all=True, append_images=[second])
  return stream.getvalue()


def cmyk():
  return encoded(np.full((8, 8, 3), 200, np.uint8), 'JPEG', mode='CMYK')


def forged_png(width, height):
  """A header that claims a size, with the data of another."""
  return png(width, height, 8, 2, plain_rows(RGB))


def flip(content, at):
  return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


SIXTEEN = struct.pack('>30H', *range(0, 60_000, 2_000))
BAD = {
    'empty': (b'', ['empty']),
    'one byte': (b'\x89', ['cannot read']),
    'text': (b'hello, world', ['cannot read']),
    'html': (b'\n<!DOCTYPE html><html><body>404', ['HTML page']),
    'lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', ['Git LFS']),
    'zeros': (bytes(4000), ['nothing but zeros']),
    'gif': (encoded(RGB, 'GIF'), ['GIF']),
    'tiff': (encoded(RGB, 'TIFF'), ['cannot read']),
    'eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n', ['PostScript']),
    'pdf': (b'%PDF-1.7\n', ['PDF']),
    'zip': (b'PK\x03\x04' + bytes(40), ['zip']),
    'pickle': (b'\x80\x04\x95' + bytes(40), ['pickle']),
    'npy': (b'\x93NUMPY\x01\x00' + bytes(100), ['.npy']),
    'svg': (b'<?xml version="1.0"?><svg/>', ['XML']),
    'png cut in the signature': (BY_HAND[:5], ['cannot read']),
    'png without chunks': (BY_HAND[:8], ['ends too early']),
    'png cut in the header': (BY_HAND[:20], ['ends too early']),
    'png cut in the data': (BY_HAND[:70], ['ends too early']),
    'png without its end': (BY_HAND[:-12], ['ends too early']),
    'png without the last byte': (BY_HAND[:-1], ['ends too early']),
    'png pixel flipped': (flip(BY_HAND, 60), ['checksum', 'IDAT']),
    'png width flipped': (flip(BY_HAND, 19), ['checksum', 'IHDR']),
    'png crc flipped': (flip(BY_HAND, 29), ['checksum', 'IHDR']),
    'png chunk name flipped': (flip(BY_HAND, 37), ['checksum']),
    'png length of a chunk': (BY_HAND[:33] + b'\xff\xff\xff\xff' + BY_HAND[37:],
                              ['ends too early']),
    'png begins with its end': (BY_HAND[:8] + chunk(b'IEND', b''), ['no header']),
    'png without data': (BY_HAND[:33] + chunk(b'IEND', b''), ['cannot read']),
    'png of size 0': (forged_png(0, 6), ['cannot read']),
    'png with too few rows': (forged_png(5, 7), ['96 of 112 bytes']),
    'png of another colour type': (png(5, 6, 8, 6, plain_rows(RGB)), ['of 126 bytes']),
    'png of no zlib stream': (BY_HAND[:33] + chunk(b'IDAT', bytes(50))
                              + chunk(b'IEND', b''), ['no zlib stream']),
    'png bomb': (forged_png(20_000, 20_000), ['exceeds limit']),
    'png bomb that only warns': (forged_png(10_000, 10_000), ['exceeds limit']),
    'png of most pixels': (forged_png(2**31 - 1, 2**31 - 1), ['cannot read']),
    'png text bomb': (png(5, 6, 8, 2, plain_rows(RGB), chunk(
        b'zTXt', b'k\0\0' + zlib.compress(bytes(10**7)))), ['cannot read']),
    'png 16 bit grey': (png(5, 6, 16, 0, plain_rows(np.frombuffer(
        SIXTEEN, np.uint8).reshape(6, 10))), ['more than 8 bits', '16']),
    'png 16 bit colour': (png(5, 6, 16, 2, b''.join(
        b'\0' + bytes(range(30)) for _ in range(6))), ['more than 8 bits', '16']),
    'png 16 bit alpha': (png(5, 6, 16, 6, b''.join(
        b'\0' + bytes(40) for _ in range(6))), ['more than 8 bits', '16']),
    'pgm 16 bit': (netpbm(b'P5', 65535, SIXTEEN, (6, 5)), ['more than 8 bits', '16']),
    'pgm 9 bit': (netpbm(b'P5', 256, SIXTEEN, (6, 5)), ['more than 8 bits', '9']),
    'ppm 16 bit': (netpbm(b'P6', 65535, SIXTEEN * 3, (6, 5)), ['more than 8 bits']),
    'ppm 16 bit text': (netpbm(b'P3', 65535, b'1 ' * 90, (6, 5)), ['more than 8 bits']),
    'ppm cut': (encoded(RGB, 'PPM')[:-1], ['cannot read']),
    'ppm bomb': (netpbm(b'P6', 255, b'', (99_999, 99_999)), ['exceeds limit']),
    'ppm of negative size': (b'P6\n-5 6\n255\n' + RGB.tobytes(), ['cannot read']),
    'ppm of no size': (b'P6\n', ['cannot read']),
    'ppm text out of range': (netpbm(b'P3', 255, b'999 ' * 90, (6, 5)), ['cannot read']),
    'bmp cut': (encoded(RGB, 'BMP')[:-20], ['cannot read']),
    'bmp cut in the header': (encoded(RGB, 'BMP')[:30], ['cannot read']),
    'webp cut': (encoded(RGB, 'WEBP', lossless=True)[:-20], ['cannot read']),
    'jpeg cut': (encoded(RGB, 'JPEG')[:-60], ['cannot read']),
    'jpeg cut in the header': (encoded(RGB, 'JPEG')[:30], ['cannot read']),
    'jpeg signature alone': (b'\xff\xd8\xff', ['cannot read']),
    'one pixel transparent': (encoded(transparent((2, 3), 0)), ['transparent']),
    'nearly opaque': (encoded(transparent((5, 4), 254)), ['transparent']),
    'grey with alpha': (encoded(np.stack([GREY, GREY], -1)), ['transparent']),
    'webp with alpha': (encoded(transparent((2, 3), 9), 'WEBP', lossless=True),
                        ['transparent']),
    'palette with transparency': (encoded(RGB, mode='P', transparency=int(np.asarray(
        Image.fromarray(RGB).convert('P'))[0, 0])), ['transparent']),
    'colour key': (png(5, 6, 8, 2, plain_rows(RGB), chunk(
        b'tRNS', struct.pack('>3H', *RGB[0, 0]))), ['transparent']),
    'animated png': (animated('PNG'), ['animation of 2 pictures']),
    'animated webp': (animated('WEBP'), ['animation of 2 pictures']),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_image_is_named(name):
  content, words = BAD[name]
  with images.limited(), pytest.raises(DataError) as error:
    images.decode(content, 'folder/cat.png')
  text = str(error.value)
  assert '\n' not in text and len(text) < 400 and 'object at 0x' not in text
  for word in ['folder/cat.png', *words]:
    assert word in text


def test_cmyk_is_the_colour_that_it_shows():
  """200 grey as CMY (55, 55, 55) and K 0, by subtraction."""
  pixels, colour = images.decode(cmyk(), 'x')
  assert colour and abs(pixels.astype(int) - 200).max() <= 3


def test_pixels_are_not_taken_by_halves():
  """Pillow reads 16 bits as 8 without a word, which is what is refused above."""
  content = BAD['png 16 bit colour'][0]
  assert np.asarray(Image.open(io.BytesIO(content))).dtype == np.uint8


def test_no_program_is_run_for_a_postscript_image(monkeypatch):
  def run(*args, **kwargs):
    raise AssertionError('a program was started')
  monkeypatch.setattr('subprocess.check_call', run)
  monkeypatch.setattr('subprocess.Popen', run)
  content, _ = BAD['eps']
  with pytest.raises(DataError, match='PostScript'):
    images.decode(content + b'%%EndComments\n%%EOF\n', 'x.png')


def test_warnings_are_as_before():
  before = list(warnings.filters)
  with images.limited():
    pass
  assert warnings.filters == before
