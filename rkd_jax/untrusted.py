"""Files that other people made: opened without a wait, and told apart by their content.

A path from a configuration or a folder may lead to anything: a named pipe that never
ends, a link in a circle, a web page that was saved under the name of a weight file.
"""

import os
import stat
from collections.abc import Callable
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: 'a folder', stat.S_IFIFO: 'a named pipe', stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device', stat.S_IFBLK: 'a device'}
_HEAD = 512
_STARTS = (  # (first bytes, what such a file is)
    (b'version https://git-lfs', 'a Git LFS pointer, whose content was not downloaded: '
                                 'run `git lfs pull` where it came from'),
    (b'\x89PNG\r\n', 'a PNG image'), (b'\xff\xd8\xff', 'a JPEG image'),
    (b'GIF8', 'a GIF image'), (b'%PDF', 'a PDF document'), (b'%!PS', 'PostScript'),
    (b'PK\x03\x04', 'a zip archive, such as torch.save and np.savez write'),
    (b'PK\x05\x06', 'a zip archive with nothing in it'),
    (b'\x80\x02', 'a Python pickle'), (b'\x80\x03', 'a Python pickle'),
    (b'\x80\x04', 'a Python pickle'), (b'\x80\x05', 'a Python pickle'),
    (b'\x89HDF\r\n', 'an HDF5 file'), (b'\x93NUMPY', 'one NumPy array (.npy)'),
    (b'\x1f\x8b', 'a gzip archive'), (b'BZh', 'a bzip2 archive'),
    (b'\xfd7zXZ', 'an xz archive'), (b'{', 'JSON text'), (b'<?xml', 'an XML document'))


def check_file(path: str | os.PathLike, error: Callable[[str], Exception],
               most_bytes: int | None = None) -> None:
  """Refuses a path that leads to no regular file, or to one that is too large.

  Args:
    path: Path of the file. Links are followed.
    error: Type of the exception to raise.
    most_bytes: Largest size accepted; None accepts any.

  Raises:
    error: Nothing is there, a link leads nowhere or in a circle, or there is a folder, a
      named pipe, a socket or a device. The message names the path and what it is.
  """
  try:
    found = os.stat(path)
  except (OSError, ValueError) as reason:
    raise error(f'{path} {_absent(path, reason)}') from reason
  kind = stat.S_IFMT(found.st_mode)
  if kind != stat.S_IFREG:
    raise error(f'{path} is {_KINDS.get(kind, "something else")}, not a file')
  if most_bytes is not None and found.st_size > most_bytes:
    raise error(f'{path} has {found.st_size:,} bytes; no more than {most_bytes:,} are '
                'read from such a file')


def open_file(path: str | os.PathLike, error: Callable[[str], Exception],
              most_bytes: int | None = None) -> BinaryIO:
  """Opens a regular file to read bytes from it; arguments and errors of `check_file`.

  Raises:
    error: As `check_file`, or the file may not be read.
  """
  check_file(path, error, most_bytes)
  try:
    return open(path, 'rb')
  except OSError as reason:
    raise error(f'{path} {_absent(path, reason)}') from reason


def read_bytes(path: str | os.PathLike, error: Callable[[str], Exception],
               most_bytes: int) -> bytes:
  """Content of a regular file; arguments and errors of `open_file`."""
  with open_file(path, error, most_bytes) as file:
    try:
      return file.read()
    except OSError as reason:
      raise error(f'{path} cannot be read: {reason.strerror or reason}') from reason


def describe(path: str | os.PathLike) -> str:
  """What a file seems to be by its first bytes, such as 'an HTML page ...'.

  Empty where that cannot be told.
  """
  try:
    with open_file(path, OSError) as file:
      return describe_bytes(file.read(_HEAD))
  except OSError:
    return ''


def describe_bytes(head: bytes) -> str:
  """`describe` for the first bytes of a file, at least 512 where it has them."""
  if not head:
    return 'empty (0 bytes)'
  if not head.strip(b'\0'):
    return 'nothing but zeros at its start: a download or copy that broke off'
  text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if text.startswith((b'<!doctype html', b'<html', b'<head', b'<!--')):
    return ('an HTML page: a login, error or preview page that was saved in place of the '
            'file')
  for start, kind in _STARTS:
    if head.startswith(start):
      return kind
  if head[257:262] == b'ustar':
    return 'a tar archive'
  if head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') < 2**40:
    return 'a safetensors file'
  return ''


def _absent(path, reason) -> str:
  if isinstance(reason, ValueError):
    return f'is no path: {reason}'
  if isinstance(reason, FileNotFoundError):
    return ('is a link that leads nowhere' if os.path.islink(path)
            else 'is not there (no such file)')
  if isinstance(reason, PermissionError):
    return 'may not be read by this account'
  if isinstance(reason, NotADirectoryError):
    return 'is not there: what should be a folder on the way is a file'
  if os.path.islink(path):
    return 'is a link that leads in a circle'
  return f'cannot be read: {reason.strerror or reason}'
