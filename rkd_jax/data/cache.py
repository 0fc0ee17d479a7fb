"""Decoded data sets on disk, so that images are decompressed once.

One folder an entry, `<name>-<version>-<fingerprint>`, under RKD_CACHE_DIR or
~/.cache/rkd_jax: four .npy files and meta.json with the class names and each
file's CRC-32. The fingerprint changes with the source files, so an old entry is
never read for new data; old entries may be deleted at any time.
"""

import hashlib
import json
import os
import pathlib
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from rkd_jax.data.dataset import Stored, make_split, make_stored
from rkd_jax.errors import DataError

_FORMAT = 1  # Part of the fingerprint: raise it when the decoded arrays change.
_FILES = ('train_image', 'train_label', 'test_image', 'test_label')


def directory() -> pathlib.Path:
  """Where entries are kept: RKD_CACHE_DIR, else ~/.cache/rkd_jax."""
  chosen = os.environ.get('RKD_CACHE_DIR')
  return pathlib.Path(chosen or '~/.cache/rkd_jax').expanduser()


def fingerprint(root: pathlib.Path, files: Iterable[pathlib.Path],
                text: str = '') -> str:
  """16 hexadecimal digits from the names, sizes and times of files.

  Args:
    root: names are taken relative to it.
    files: the source files.
    text: more that the content depends on.
  """
  digest = hashlib.sha256(f'{_FORMAT}\n{text}\n'.encode())
  for file in sorted(files):
    stat = file.stat()
    digest.update(
        f'{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n'
        .encode(errors='surrogateescape'))
  return digest.hexdigest()[:16]


def through(key: str, decode: Callable[[], Stored]) -> Stored:
  """Returns the cached data set, or decodes it and writes the entry.

  A damaged entry is decoded again and replaced. Where the cache cannot be
  written, a warning says so and the decoded data set is returned all the same.

  Args:
    key: folder name of the entry.
    decode: makes the data set; its errors pass through, nothing is written then.
  """
  entry = directory() / key
  replace = os.path.exists(entry)
  if os.path.isfile(entry / 'meta.json'):
    try:
      return _read(entry)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
      warnings.warn(
          f'the cached data set {entry} is damaged ({error}); decoding again',
          stacklevel=2)
  stored = decode()
  try:
    _write(entry, stored, replace)
  except OSError as error:
    warnings.warn(
        f'cannot keep the decoded data set in {entry.parent} ({error}): every '
        'run will decode it again. Set RKD_CACHE_DIR to a writable folder',
        stacklevel=2)
  return stored


def _read(entry: pathlib.Path) -> Stored:
  meta = json.loads((entry / 'meta.json').read_text())
  arrays = {}
  for name in _FILES:
    file = entry / f'{name}.npy'
    if _crc32(file) != meta['crc32'][name]:
      raise ValueError(f'checksum of {file.name} differs')
    arrays[name] = np.load(file)
  train, test = (
      make_split(arrays[f'{part}_image'], arrays[f'{part}_label'],
                 num_classes=len(meta['class_names']), where=f'{entry} {part}')
      for part in ('train', 'test'))
  return make_stored(train, test, meta['class_names'], str(entry))


def _write(entry: pathlib.Path, stored: Stored, replace: bool) -> None:
  """Writes beside the entry and renames, so that readers see all or nothing."""
  entry.parent.mkdir(parents=True, exist_ok=True)
  fresh = entry.with_name(f'.{entry.name}.{uuid.uuid4().hex}')
  old = fresh.with_name(f'{fresh.name}.old')
  try:
    fresh.mkdir()
    arrays = (stored.train.image, stored.train.label,
              stored.test.image, stored.test.label)
    checksums = {}
    for name, array in zip(_FILES, arrays, strict=True):
      np.save(fresh / f'{name}.npy', array)
      checksums[name] = _crc32(fresh / f'{name}.npy')
    meta = {'class_names': list(stored.class_names), 'crc32': checksums}
    (fresh / 'meta.json').write_text(json.dumps(meta, indent=1))
    if replace:
      entry.rename(old)
    if not entry.exists():  # Else another process was first, with the same data.
      fresh.rename(entry)
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _crc32(file: pathlib.Path) -> int:
  checksum = 0
  with file.open('rb') as stream:
    while block := stream.read(1 << 22):
      checksum = zlib.crc32(block, checksum)
  return checksum
