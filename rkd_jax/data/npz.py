"""A data set in one .npz file."""

import pathlib
import zipfile
import zlib

import numpy as np

from rkd_jax.data.dataset import Stored, make_split, make_stored
from rkd_jax.errors import ConfigError, DataError

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')
_HOW = (
    "make it with np.savez('name.npz', x_train=..., y_train=..., x_test=..., "
    'y_test=...): images uint8 [N, H, W] or [N, H, W, C], labels integers [N]')


def read(path: pathlib.Path | None) -> Stored:
  """Reads a .npz file with x_train, y_train, x_test, y_test.

  An optional array `class_names` gives the classes; without it there are
  max(y_train) + 1 and every one must occur in y_train. Pickled objects are not
  read.

  Raises:
    ConfigError: no path.
    DataError: no such file, not a .npz file or damaged, keys are missing, or
      the arrays are not what they should be.
  """
  if path is None:
    raise ConfigError("the data set 'npz' needs data_dir: the path of a .npz file")
  if not path.is_file():
    kind = 'a folder, not a file' if path.is_dir() else 'not there'
    raise DataError(f'looked for a .npz file at {path}: it is {kind}; {_HOW}')
  arrays = _arrays(path)
  class_names = arrays.get('class_names')
  if class_names is None:
    class_names = _counted_classes(arrays['y_train'], f'{path} y_train')
  elif class_names.ndim != 1:
    raise DataError(
        f'{path}: class_names has shape {class_names.shape}; wanted one name a class')
  num_classes = len(class_names)
  train = make_split(arrays['x_train'], arrays['y_train'],
                     num_classes=num_classes, where=f'{path} x_train, y_train')
  test = make_split(arrays['x_test'], arrays['y_test'],
                    num_classes=num_classes, where=f'{path} x_test, y_test')
  return make_stored(train, test, [str(name) for name in class_names], str(path))


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    if not zipfile.is_zipfile(path):
      raise ValueError('not a zip archive, as np.savez writes it')
    with np.load(path, allow_pickle=False) as file:
      missing = [key for key in _KEYS if key not in file]
      if missing:
        raise DataError(
            f'{path} lacks {", ".join(missing)}; it has '
            f'{", ".join(sorted(file)) or "nothing"}; {_HOW}')
      wanted = [*_KEYS, *({'class_names'} & set(file))]
      return {key: file[key] for key in wanted}
  except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile,
          zlib.error) as error:
    raise DataError(
        f'{path} cannot be read as a .npz file ({error}); is it complete? {_HOW}'
    ) from error


def _counted_classes(label: np.ndarray, where: str) -> list[str]:
  if label.dtype.kind not in 'iu' or not label.size or label.min() < 0:
    raise DataError(
        f'{where}: wanted integers from 0, got {label.dtype}{list(label.shape)}'
        + (f' from {label.min()}' if label.size else ''))
  count = int(label.max()) + 1
  absent = np.setdiff1d(np.arange(count), label)
  if len(absent):
    raise DataError(
        f'{where}: labels go up to {count - 1}, but {len(absent)} of those '
        f'classes have no example (first {absent[0]}); do the labels start at 1? '
        'If it is meant so, store an array class_names too')
  return [str(i) for i in range(count)]
