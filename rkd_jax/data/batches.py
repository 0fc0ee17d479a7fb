"""Batches as index arrays, for data that lies on the device as a whole."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError

_HIGH = 257 / 2**16
_LOW = 1 / (255 * 2**16)


def epoch_order(key: jax.Array, epoch: int | jax.Array, num_examples: int,
                batch_size: int) -> jax.Array:
  """The examples of one epoch in random order, as full batches.

  A permutation of all examples that depends on key and epoch only; the last
  num_examples % batch_size of it are left out this epoch.

  Args:
    key: one typed key, the same for every epoch.
    epoch: number of the epoch, may be traced.
    num_examples: static, >= batch_size.
    batch_size: static, >= 1.

  Returns:
    int32[num_examples // batch_size, batch_size].

  Raises:
    ConfigError: batch_size < 1, or more than num_examples.
  """
  _check_batch_size(batch_size)
  if num_examples < batch_size:
    raise ConfigError(
        f'batch_size {batch_size} is more than the {num_examples} training '
        'examples, so an epoch has no full batch; choose a smaller batch_size')
  order = jax.random.permutation(
      jax.random.fold_in(key, epoch), jnp.arange(num_examples, dtype=jnp.int32))
  steps = num_examples // batch_size
  return order[:steps * batch_size].reshape(steps, batch_size)


def padded_batches(num_examples: int,
                   batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Every example once, in order, in batches of one size.

  Args:
    num_examples: >= 0.
    batch_size: >= 1.

  Returns:
    (indices int32[n, batch_size], mask bool[n, batch_size]) with
    n = ceil(num_examples / batch_size). Places after the last example repeat
    index 0 and have mask False: they must not count.

  Raises:
    ConfigError: batch_size < 1.
  """
  _check_batch_size(batch_size)
  count = -(-num_examples // batch_size)
  place = np.arange(count * batch_size, dtype=np.int32).reshape(count, batch_size)
  mask = place < num_examples
  return np.where(mask, place, 0).astype(np.int32), mask


def take(split: Split, indices: jax.Array) -> Split:
  """The examples at `indices`, in that order, images still uint8.

  Args:
    split: arrays on the device (or on the host, which copies them there).
    indices: int32[B], 0..N - 1.
  """
  return jax.tree.map(
      lambda array: jnp.take(array, indices, axis=0, mode='clip'), split)


def to_float(image: jax.Array) -> jax.Array:
  """uint8 pixels as float32 in [0, 1]: image / 255, correctly rounded.

  The same bits as NumPy's and torch's float32 division, under jit or not.
  """
  # XLA turns a division by a constant into a product with its rounded reciprocal,
  # one ulp off for half of the values. Instead 1/255 = 257 / 2**16 + the rest:
  # the first product is exact, so only the sum is rounded.
  pixels = image.astype(jnp.float32)
  return pixels * _HIGH + pixels * _LOW


def _check_batch_size(batch_size: int) -> None:
  if batch_size < 1:
    raise ConfigError(f'batch_size must be at least 1, got {batch_size}')
