"""A data set in one .npz file."""

import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from rkd_jax import untrusted
from rkd_jax.data.checks import check_names, check_size, make_split, make_stored
from rkd_jax.data.dataset import Stored
from rkd_jax.errors import ConfigError, DataError

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')
_NAMES = 'class_names'
_HOW = (
    "make it with np.savez('name.npz', x_train=..., y_train=..., x_test=..., "
    'y_test=...): images uint8 [N, H, W] or [N, H, W, C], labels integers [N]')
_MOST_DEFLATED = 1032  # No deflated byte stands for more bytes than this.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}


def read(path: pathlib.Path | None) -> Stored:
  """Reads a .npz file with x_train, y_train, x_test, y_test.

  An optional array `class_names` gives the classes; without it there are
  max(y_train) + 1 and every one must occur in y_train. Pickled objects are not
  read. What the headers claim is compared with the sizes in the archive, and with the
  memory of the machine, before an array is made.

  Raises:
    ConfigError: no path.
    DataError: no such file, not a .npz file or damaged, keys are missing, or
      the arrays are not what they should be.
  """
  if path is None:
    raise ConfigError("the data set 'npz' needs data_dir: the path of a .npz file")
  arrays = _arrays(path)
  class_names = check_names(_named_classes(arrays, path), str(path))
  parts = [
      make_split(arrays[f'x_{part}'], arrays[f'y_{part}'],
                 num_classes=len(class_names), where=f'{path} x_{part}, y_{part}')
      for part in ('train', 'test')]
  for part, split in zip(('x_train', 'x_test'), parts, strict=True):
    if split.image.max() <= 1:
      raise DataError(
          f'{path} {part}: all pixels are 0 or 1 of 255, which shows as black; were '
          'floats in [0, 1] stored without np.round(image * 255)?')
  return make_stored(*parts, class_names, str(path))


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  looked = lambda text: DataError(f'looked for a .npz file: {text}; {_HOW}')
  with untrusted.open_file(path, looked) as stream:
    if not zipfile.is_zipfile(stream):
      kind = untrusted.describe(path)
      raise DataError(
          f'{path} cannot be read as a .npz file: it is '
          f'{kind or "no zip archive, as np.savez writes it, or cut off"}; {_HOW}')
    try:
      with zipfile.ZipFile(stream) as archive:
        return {name: _array(archive, entry, f'{path} {name}')
                for name, entry in _members(archive, path).items()}
    except DataError:
      raise
    except Exception as error:  # Broken archives and headers raise almost anything.
      line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
      raise DataError(
          f'{path} cannot be read as a .npz file ({line}); is it complete? {_HOW}'
      ) from error


def _members(archive: zipfile.ZipFile, path) -> Mapping[str, zipfile.ZipInfo]:
  """Entries that are wanted, by the name of their array; their sizes can be true."""
  entries = archive.infolist()
  members = {entry.filename.removesuffix('.npy'): entry for entry in entries}
  if len(members) < len(entries):
    raise ValueError('two of its arrays have one name')
  missing = [key for key in _KEYS if key not in members]
  if missing:
    raise DataError(
        f'{path} lacks {", ".join(missing)}; it has '
        f'{", ".join(sorted(members)[:9]) or "nothing"}; {_HOW}')
  wanted = {name: members[name] for name in (*_KEYS, _NAMES) if name in members}
  for entry in wanted.values():
    if entry.file_size > _MOST_DEFLATED * entry.compress_size + 64:
      raise ValueError(f'{entry.filename} claims {entry.file_size:,} bytes, packed into '
                       f'{entry.compress_size:,}')
  check_size(sum(entry.file_size for entry in wanted.values()), f'{path}: its arrays')
  return wanted


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> np.ndarray:
  """One array, whose header fits the size that the archive gives."""
  with archive.open(entry) as member:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
      raise ValueError(f'{entry.filename} has version {version} of the format')
    shape, _, dtype = _HEADERS[version](member)
    if dtype.hasobject:
      raise DataError(
          f'{where} holds Python objects, which are never read because a pickle can run '
          'any program (allow_pickle=False); store plain numbers or text')
    size = dtype.itemsize
    for length in shape:
      size *= length
    if min(shape, default=0) < 0 or member.tell() + size != entry.file_size:
      raise ValueError(
          f'the header of {entry.filename} claims {dtype}{list(shape)}, {size:,} bytes, '
          f'but {entry.file_size - member.tell():,} are stored')
  with archive.open(entry) as member:
    return np.lib.format.read_array(member, allow_pickle=False)


def _named_classes(arrays: Mapping[str, np.ndarray], path) -> list[str]:
  names = arrays.get(_NAMES)
  if names is None:
    return _counted_classes(arrays['y_train'], f'{path} y_train')
  if names.ndim != 1 or names.dtype.kind not in 'SUiu':
    raise DataError(f'{path}: class_names is {names.dtype}{list(names.shape)}; wanted '
                    'one name a class, as text')
  if names.dtype.kind == 'S':
    return [name.decode(errors='surrogateescape') for name in names.tolist()]
  return [str(name) for name in names]


def _counted_classes(label: np.ndarray, where: str) -> list[str]:
  if label.dtype.kind in 'SU':
    raise DataError(
        f'{where}: labels are text ({label.dtype}); number the classes with '
        'class_names, y = np.unique(labels, return_inverse=True)')
  if label.dtype.kind not in 'iu' or not label.size or label.min() < 0:
    raise DataError(
        f'{where}: wanted integers from 0, got {label.dtype}{list(label.shape)}'
        + (f' from {label.min()}' if label.size and label.dtype.kind in 'iufb' else ''))
  count = int(label.max()) + 1
  seen = np.unique(label)
  if len(seen) < count:
    absent = next(n for n, value in enumerate([*seen[:count], count]) if n != value)
    raise DataError(
        f'{where}: labels go up to {count - 1}, but {count - len(seen)} of those '
        f'classes have no example (first {absent}); do the labels start at 1? '
        'If it is meant so, store an array class_names too')
  return [str(i) for i in range(count)]
