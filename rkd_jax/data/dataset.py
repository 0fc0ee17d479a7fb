"""What a data set is: uint8 images and int32 labels, checked once when read."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from rkd_jax.errors import DataError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Images and labels in one order; a pytree, so `jax.device_put` takes it.

  Attributes:
    image: uint8[N, H, W, C], C-contiguous, 0..255.
    label: int32[N], 0..num_classes - 1.
  """

  image: np.ndarray | jax.Array
  label: np.ndarray | jax.Array

  def __len__(self) -> int:
    return len(self.label)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """A data set in its stored order, before a validation split is taken."""

  train: Split
  test: Split
  class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set ready for training; see `rkd_jax.data.load`.

  Attributes:
    name: the name it was loaded by.
    num_classes: K.
    class_names: K names, in the order of the labels.
    image_shape: (H, W, C).
    train: what is trained on.
    validation: a held-out part of the stored training examples; may be empty.
    test: for evaluation only.
  """

  name: str
  num_classes: int
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  train: Split
  validation: Split
  test: Split

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the content, 64 hexadecimal digits.

    Two data sets have the same fingerprint exactly when their class names and the
    images and labels of their three splits are equal and stand in the same order.
    Paths, file times and the name by which a data set was loaded do not count. It is
    computed once, at more than 1 GB/s.
    """
    digest = hashlib.sha256(repr(tuple(map(str, self.class_names))).encode(
        errors='surrogatepass'))
    for split in (self.train, self.validation, self.test):
      image = np.ascontiguousarray(split.image, np.uint8)
      digest.update(repr(image.shape).encode())
      digest.update(image)
      digest.update(np.ascontiguousarray(split.label, '<i4'))
    return digest.hexdigest()


def make_split(image, label, *, num_classes: int, where: str) -> Split:
  """Checks arrays and makes a `Split` of them.

  Args:
    image: uint8[N, H, W, C], or uint8[N, H, W] for one channel.
    label: integers [N] or [N, 1], 0..num_classes - 1.
    num_classes: K.
    where: file or folder and split, for the errors.

  Raises:
    DataError: another dtype or rank, different lengths, nothing in it, or a
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
  """Joins two splits; raises DataError when their images differ in shape."""
  if train.image.shape[1:] != test.image.shape[1:]:
    raise DataError(
        f'{where}: training images are {train.image.shape[1:]}, test images '
        f'{test.image.shape[1:]} (height, width, channels); they must match')
  return Stored(train, test, tuple(class_names))


def _checked_images(image: np.ndarray, where: str) -> np.ndarray:
  if image.dtype != np.uint8:
    seen = str(image.dtype)
    if np.issubdtype(image.dtype, np.floating) and np.isnan(image).any():
      seen += ' with NaN'
    raise DataError(
        f'{where}: images are {seen}; they must be uint8, 0..255. Floats in '
        '[0, 1] are stored as np.round(image * 255).astype(np.uint8)')
  if image.ndim == 3:
    image = image[..., None]
  if image.ndim != 4 or 0 in image.shape[1:]:
    raise DataError(
        f'{where}: images have shape {image.shape}; wanted [N, H, W] or '
        '[N, H, W, C]')
  if image.shape[1] in (1, 3) and image.shape[3] > 4:
    raise DataError(
        f'{where}: images have shape {image.shape}, which looks like '
        '[N, C, H, W]; store image.transpose(0, 2, 3, 1)')
  return image


def _checked_labels(label: np.ndarray, where: str) -> np.ndarray:
  if label.ndim == 2 and label.shape[1] == 1:
    label = label[:, 0]
  if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
    raise DataError(
        f'{where}: labels are {label.dtype}{list(label.shape)}; wanted one '
        'integer an image, 0..num_classes - 1 (no one-hot rows)')
  return label
