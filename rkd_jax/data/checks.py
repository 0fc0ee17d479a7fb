"""Arrays from outside become a `Split` only if they can be meant as images and labels."""

import os
from collections.abc import Sequence

import numpy as np

from rkd_jax.data.dataset import Split, Stored
from rkd_jax.errors import DataError

_FLOAT_HINTS = (  # (least, most, what the pixels would be)
    (0, 1, 'np.round(image * 255).astype(np.uint8)'),
    (-1, 1, 'np.round((image + 1) * 127.5).astype(np.uint8)'),
    (0, 255, 'np.round(image).astype(np.uint8)'))


def make_split(image, label, *, num_classes: int, where: str) -> Split:
  """Checks arrays and makes a `Split` of them.

  Args:
    image: uint8[N, H, W, C], or uint8[N, H, W] for one channel.
    label: Integers [N] or [N, 1], 0..num_classes - 1.
    num_classes: Number of classes K.
    where: File or folder and split, for the errors.

  Raises:
    DataError: Another dtype or rank, different lengths, nothing in it, or a
      label out of range.
  """
  image = _checked_images(np.asarray(image), where)
  label = _checked_labels(np.asarray(label), where)
  if len(image) != len(label):
    raise DataError(f'{where}: {len(image)} images but {len(label)} labels')
  if not len(image):
    raise DataError(f'{where}: no examples')
  outside = np.flatnonzero((label < 0) | (label >= num_classes))
  if len(outside):
    raise DataError(
        f'{where}: label {label[outside[0]]} of example {outside[0]} is not in '
        f'0..{num_classes - 1} ({len(outside)} such labels); '
        'do the labels start at 1?')
  return Split(np.ascontiguousarray(image), label.astype(np.int32))


def make_stored(train: Split, test: Split, class_names: Sequence[str],
                where: str) -> Stored:
  """Joins two splits.

  Raises:
    DataError: Their images differ in shape, there are fewer than two classes, or a
      class name is empty, doubled or not printable.
  """
  if train.image.shape[1:] != test.image.shape[1:]:
    raise DataError(
        f'{where}: training images are {train.image.shape[1:]}, test images '
        f'{test.image.shape[1:]} (height, width, channels); they must match')
  return Stored(train, test, check_names(class_names, where))


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
  """The class names as a tuple, if `make_stored` would take them."""
  names = tuple(names)
  if len(names) < 2:
    raise DataError(f'{where}: two or more classes are wanted, got {list(names)}')
  bad = [name for name in names
         if not isinstance(name, str) or not name.strip() or not name.isprintable()]
  if bad:
    raise DataError(f'{where}: {bad[0]!r} cannot name a class: wanted visible text in '
                    'UTF-8, without line breaks')
  if len(set(names)) < len(names):
    double = next(name for name in names if names.count(name) > 1)
    raise DataError(f'{where}: two classes are called {double!r}')
  return names


def allocate(shape: Sequence[int], where: str) -> np.ndarray:
  """An uninitialised uint8 array.

  Raises:
    DataError: This machine has less memory than that; nothing was allocated.
  """
  size = 1
  for length in shape:
    size *= int(length)  # Exact: a forged length may be of any size.
  check_size(size, f'{where}: arrays of shape {list(shape)}')
  return np.empty(tuple(shape), np.uint8)


def check_size(size: int, what: str) -> None:
  """Refuses more bytes than this machine has memory."""
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if size > memory:
    raise DataError(f'{what} need {size / 1e9:,.1f} GB, this machine has '
                    f'{memory / 1e9:,.1f} GB of memory; data sets are held in it')


def _checked_images(image: np.ndarray, where: str) -> np.ndarray:
  if image.dtype != np.uint8:
    raise DataError(f'{where}: images are {image.dtype}; they must be uint8, 0..255. '
                    + _hint(image))
  if image.ndim == 3:
    image = image[..., None]
  if image.ndim != 4 or 0 in image.shape[1:]:
    raise DataError(
        f'{where}: images have shape {image.shape}; wanted [N, H, W] or '
        '[N, H, W, C]')
  _, first, second, last = image.shape
  # Square planes after a shorter axis are no rows of wide pixels.
  if last > 4 and (first <= 4 or first < second == last):
    raise DataError(
        f'{where}: images have shape {image.shape}, which looks like '
        '[N, C, H, W]; store image.transpose(0, 2, 3, 1)')
  return image


def _hint(image: np.ndarray) -> str:
  """How images of another dtype become uint8, from the values that they have."""
  if image.dtype.kind not in 'biuf' or not image.size:
    return f'Wanted numbers, got an array of {image.dtype}'
  least, most = image.min(), image.max()
  if not (np.isfinite(least) and np.isfinite(most)):
    return 'Some are NaN or infinite: find out which images are damaged'
  if image.dtype.kind == 'b':
    return 'Black and white are stored as image.astype(np.uint8) * 255'
  seen = f'They lie in [{least:g}, {most:g}]: '
  if image.dtype.kind in 'iu':
    if 0 <= least and most <= 255:
      return f'{seen}image.astype(np.uint8) changes none of them'
    return f'{seen}scale them to 0..255 first, by the range that they were made with'
  for low, high, how in _FLOAT_HINTS:
    if low <= least and most <= high:
      return f'{seen}stored as {how}'
  return f'{seen}undo the normalisation (image * std + mean) before they are stored'


def _checked_labels(label: np.ndarray, where: str) -> np.ndarray:
  if label.ndim == 2 and label.shape[1] == 1:
    label = label[:, 0]
  if label.dtype.kind in 'SU':
    raise DataError(
        f'{where}: labels are text ({label.dtype}); number the classes with '
        'class_names, y = np.unique(labels, return_inverse=True)')
  if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
    raise DataError(
        f'{where}: labels are {label.dtype}{list(label.shape)}; wanted one '
        'integer an image, 0..num_classes - 1 (no one-hot rows)')
  return label
