"""Epoch orders, padded evaluation batches, and pixels as floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.data import batches
from rkd_jax.errors import ConfigError


@pytest.mark.parametrize(('num_examples', 'batch_size'), [(12, 4), (13, 4), (5, 5)])
def test_epoch_order_is_part_of_a_permutation(num_examples, batch_size):
  order = batches.epoch_order(jax.random.key(0), 3, num_examples, batch_size)
  steps = num_examples // batch_size
  assert order.shape == (steps, batch_size) and order.dtype == jnp.int32
  seen = np.sort(np.ravel(order))
  assert len(np.unique(seen)) == len(seen)
  assert seen[0] >= 0 and seen[-1] < num_examples
  if num_examples % batch_size == 0:
    np.testing.assert_array_equal(seen, np.arange(num_examples))


def test_epoch_order_depends_on_key_and_epoch_alone():
  key = jax.random.key(7)
  order = lambda key, epoch: np.asarray(batches.epoch_order(key, epoch, 60, 10))
  first = order(key, 0)
  np.testing.assert_array_equal(first, order(key, 0))
  assert (first != order(key, 1)).any()
  assert (first != order(jax.random.key(8), 0)).any()
  traced = jax.jit(lambda epoch: batches.epoch_order(key, epoch, 60, 10))(1)
  np.testing.assert_array_equal(traced, order(key, 1))
  # The batch size cuts the same permutation elsewhere.
  np.testing.assert_array_equal(
      first.ravel(), np.ravel(batches.epoch_order(key, 0, 60, 20)))


def test_every_example_is_left_out_of_some_epoch():
  left_out = [set(range(5)) - set(np.ravel(
      batches.epoch_order(jax.random.key(0), epoch, 5, 4)).tolist())
              for epoch in range(40)]
  assert all(len(left) == 1 for left in left_out)
  assert set().union(*left_out) == set(range(5))


def test_epoch_order_errors():
  with pytest.raises(ConfigError, match='batch_size 8 is more than the 7'):
    batches.epoch_order(jax.random.key(0), 0, 7, 8)
  for fn in (lambda: batches.epoch_order(jax.random.key(0), 0, 7, 0),
             lambda: batches.padded_batches(7, 0)):
    with pytest.raises(ConfigError, match='batch_size must be at least 1, got 0'):
      fn()


@pytest.mark.parametrize(('num_examples', 'batch_size', 'count'), [
    (0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (12, 4, 3), (3, 1, 3)])
def test_padded_batches(num_examples, batch_size, count):
  indices, mask = batches.padded_batches(num_examples, batch_size)
  assert indices.shape == mask.shape == (count, batch_size)
  assert indices.dtype == np.int32 and mask.dtype == np.bool_
  assert indices[mask].tolist() == list(range(num_examples))
  assert not indices[~mask].any()


def test_take():
  random = np.random.default_rng(0)
  split = data.Split(random.integers(0, 256, (7, 3, 2, 1), np.uint8),
                     np.arange(7, dtype=np.int32))
  index = jnp.array([6, 0, 0, 3], jnp.int32)
  taken = jax.jit(batches.take)(split, index)
  assert taken.image.dtype == jnp.uint8 and taken.label.dtype == jnp.int32
  np.testing.assert_array_equal(taken.label, [6, 0, 0, 3])
  np.testing.assert_array_equal(taken.image, split.image[[6, 0, 0, 3]])
  np.testing.assert_array_equal(batches.take(split, index).image, taken.image)


@pytest.mark.parametrize('wrap', [
    lambda fn: fn, jax.jit, jax.vmap, lambda fn: jax.jit(jax.vmap(fn)),
    lambda fn: jax.jit(lambda x: jax.lax.map(fn, x))])
def test_to_float_is_correctly_rounded(wrap):
  levels = np.arange(256, dtype=np.uint8).reshape(4, 4, 16, 1)
  seen = wrap(batches.to_float)(jnp.asarray(levels))
  assert seen.dtype == jnp.float32
  wanted = (levels.astype(np.float64) / 255).astype(np.float32)
  np.testing.assert_array_equal(seen, wanted)
