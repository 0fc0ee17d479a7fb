"""scikit-learn's 1,797 handwritten digits of 8x8 pixels; nothing to download."""

import pathlib

import numpy as np

from rkd_jax.data.checks import make_split, make_stored
from rkd_jax.data.dataset import Stored
from rkd_jax.data.splits import stratified_order
from rkd_jax.errors import DataError

_TEST_SEED = 1797
_TEST_FRACTION = 0.2


def to_uint8(levels: np.ndarray) -> np.ndarray:
  """Maps the levels 0..16 to 0..255: 255 * level / 16, halves rounded up.

  The 17 values stay distinct, 0 and 16 become 0 and 255, and
  round(16 * value / 255) gives the level back.
  """
  return ((levels.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)


def read(data_dir: pathlib.Path | None = None) -> Stored:
  """Reads the digits: 1,438 for training, 359 for test, 10 classes.

  The test split is a fixed class-balanced fifth (`stratified_order`); both
  splits keep scikit-learn's order. `data_dir` is not used.

  Raises:
    DataError: scikit-learn is not installed.
  """
  del data_dir
  try:
    from sklearn.datasets import load_digits  # Over a second: only when asked.
  except ImportError as error:
    raise DataError(
        "the data set 'digits' comes with scikit-learn, which cannot be "
        f'imported ({error}): pip install scikit-learn') from error
  bunch = load_digits()
  image, label = to_uint8(bunch.images), bunch.target
  order = stratified_order(label, _TEST_SEED)
  count = round(_TEST_FRACTION * len(order))
  test, train = np.sort(order[:count]), np.sort(order[count:])
  parts = [
      make_split(image[index], label[index], num_classes=10, where='digits')
      for index in (train, test)]
  return make_stored(*parts, [str(name) for name in bunch.target_names], 'digits')
