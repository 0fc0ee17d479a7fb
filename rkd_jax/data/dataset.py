"""What a data set is: uint8 images and int32 labels, checked once when read."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np


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
