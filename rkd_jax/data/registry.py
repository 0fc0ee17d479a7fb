"""The data sets by name, and the one function that loads them."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

from rkd_jax import errors, files
from rkd_jax.data import digits, folder, npz, prepared, splits
from rkd_jax.data.dataset import Dataset, Stored


@dataclasses.dataclass(frozen=True)
class _Source:
  line: str
  read: Callable[[pathlib.Path | None], Stored]


def _tfds(name: str, line: str) -> _Source:
  return _Source(line, functools.partial(prepared.read, name))


_SOURCES = {
    'mnist': _tfds('mnist', '60,000 / 10,000 digits, 28x28x1, 10 classes (TFDS)'),
    'fashion_mnist': _tfds(
        'fashion_mnist', '60,000 / 10,000 clothes, 28x28x1, 10 classes (TFDS)'),
    'cifar10': _tfds(
        'cifar10', '50,000 / 10,000 photographs, 32x32x3, 10 classes (TFDS)'),
    'cifar100': _tfds(
        'cifar100', '50,000 / 10,000 photographs, 32x32x3, 100 classes (TFDS)'),
    'svhn_cropped': _tfds(
        'svhn_cropped',
        '73,257 / 26,032 house numbers, 32x32x3, 10 classes (TFDS)'),
    'digits': _Source(
        '1,438 / 359 digits, 8x8x1, 10 classes; comes with scikit-learn',
        digits.read),
    'tiny_imagenet': _Source(
        '100,000 / 10,000 photographs, 64x64x3, 200 classes; data_dir: '
        'tiny-imagenet-200', folder.read_tiny_imagenet),
    'folder': _Source(
        'image files in data_dir/train/<class>/ and data_dir/test/<class>/ '
        '(or val)', folder.read),
    'npz': _Source(
        'data_dir: a .npz file with x_train, y_train, x_test, y_test '
        '(uint8 images)', npz.read),
}


def names() -> tuple[str, ...]:
  """Every name that `load` takes."""
  return tuple(_SOURCES)


def describe() -> dict[str, str]:
  """One line about each data set, by name: train / test, shape, origin."""
  return {name: source.line for name, source in _SOURCES.items()}


def load(name: str, *, data_dir: str | os.PathLike | None = None,
         validation: float = 0.1, train_examples: int | None = None,
         test_examples: int | None = None) -> Dataset:
  """Loads a data set as uint8 arrays on the host.

  The validation split is a fixed part of the stored training examples: the
  first ones of a fixed class-balanced order, the same whatever the training
  seed and `train_examples`. The training split is the rest of that order. The
  test split keeps its stored order.

  Args:
    name: one of `names()`.
    data_dir: TFDS data sets: the directory with the prepared data sets (None:
      TFDS_DATA_DIR, else ~/tensorflow_datasets). 'folder', 'tiny_imagenet': the
      folder with train/. 'npz': the file. 'digits' does not use it.
    validation: fraction of the training examples to hold out, in [0, 1).
    train_examples: train on the first so many of what remains; None: all.
    test_examples: keep a fixed class-balanced subset of so many test examples;
      None: all.

  Returns:
    A `Dataset`.

  Raises:
    ConfigError: unknown name, or a setting out of range.
    DataError: the data set is missing, incomplete or corrupt.
  """
  if not isinstance(name, str) or name not in _SOURCES:
    raise errors.unknown_name('data set', name, _SOURCES)
  if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
    raise errors.ConfigError(f'data_dir must be a path, got {data_dir!r}')
  path = None if data_dir is None else files.local_path(data_dir, 'data_dir')
  splits.check(validation, train_examples, test_examples)
  try:
    stored = _SOURCES[name].read(path)
  except OSError as error:  # Such as a folder on the way that may not be entered.
    raise errors.DataError(f'{error.filename or path} cannot be read: '
                           f'{error.strerror or error}') from error
  except MemoryError as error:
    raise errors.DataError(
        f'the data set {name!r} does not fit into the memory that is free') from error
  train, held_out = splits.hold_out(stored.train, validation)
  return Dataset(
      name=name,
      num_classes=len(stored.class_names),
      class_names=stored.class_names,
      image_shape=stored.train.image.shape[1:],
      train=splits.first_train(train, train_examples),
      validation=held_out,
      test=splits.some_test(stored.test, test_examples))
