"""Augmentations against every crop and flip, enumerated in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.data import augment
from rkd_jax.errors import ConfigError


def crops(image, pad):
  """All (2 pad + 1)**2 crops of the zero-padded image, by their definition."""
  height, width, _ = image.shape
  padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
  padded[pad:pad + height, pad:pad + width] = image
  return [padded[top:top + height, left:left + width]
          for top in range(2 * pad + 1) for left in range(2 * pad + 1)]


def batch_of(fn, image, count):
  keys = jax.random.split(jax.random.key(5), count)
  return np.asarray(jax.jit(jax.vmap(fn, (0, None)))(keys, image))


def counts(outputs, candidates):
  """How often each candidate occurs; fails on an output that is none of them."""
  index = {candidate.tobytes(): i for i, candidate in enumerate(candidates)}
  assert len(index) == len(candidates)
  seen = [index[np.ascontiguousarray(output).tobytes()] for output in outputs]
  return np.bincount(seen, minlength=len(candidates))


def image_of(shape=(5, 4, 3), dtype=np.uint8):
  return np.random.default_rng(0).integers(1, 256, shape).astype(dtype)


def assert_uniform(seen):
  """Chi-squared below its mean by six deviations, on a fixed key."""
  expected = seen.sum() / len(seen)
  degrees = len(seen) - 1
  statistic = np.sum((seen - expected)**2) / expected
  assert seen.min() > 0
  assert abs(statistic - degrees) < 6 * np.sqrt(2 * degrees)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_every_crop_is_equally_likely(dtype):
  image = image_of(dtype=dtype)
  fn = lambda key, x: augment.random_crop(key, x, pad=2)
  outputs = batch_of(fn, image, 2500)
  assert outputs.dtype == dtype
  assert_uniform(counts(outputs, crops(image, 2)))


def test_every_crop_and_flip_is_equally_likely():
  image = image_of()
  fn = lambda key, x: augment.random_crop_flip(key, x, pad=1)
  plain = crops(image, 1)
  flipped = [crop[:, ::-1] for crop in plain]
  assert_uniform(counts(batch_of(fn, image, 1800), plain + flipped))


def test_default_pad_is_four():
  image = image_of((9, 9, 1))
  seen = counts(batch_of(data.AUGMENTATIONS['crop_flip'], image, 4000),
                [c for crop in crops(image, 4) for c in (crop, crop[:, ::-1])])
  assert (seen > 0).mean() > 0.99


def test_no_pad_and_none():
  image = image_of()
  key = jax.random.key(0)
  np.testing.assert_array_equal(augment.random_crop(key, image, pad=0), image)
  np.testing.assert_array_equal(data.AUGMENTATIONS['none'](key, image), image)


@pytest.mark.parametrize('name', sorted(data.AUGMENTATIONS))
def test_an_example_does_not_depend_on_its_batch(name):
  fn = jax.jit(data.AUGMENTATIONS[name])
  images = image_of((6, 8, 8, 3))
  keys = jax.random.split(jax.random.key(1), 6)
  batch = jax.jit(jax.vmap(fn))
  whole = batch(keys, images)
  assert whole.dtype == jnp.uint8 and whole.shape == images.shape
  np.testing.assert_array_equal(whole[2:4], batch(keys[2:4], images[2:4]))
  np.testing.assert_array_equal(whole[5], fn(keys[5], images[5]))


@pytest.mark.parametrize('fn', [augment.random_crop, augment.random_crop_flip])
def test_errors(fn):
  with pytest.raises(ConfigError, match='one image.*vmap'):
    fn(jax.random.key(0), jnp.zeros((2, 5, 5, 1)))
  with pytest.raises(ConfigError, match='pad must be >= 0, got -1'):
    fn(jax.random.key(0), jnp.zeros((5, 5, 1)), pad=-1)
