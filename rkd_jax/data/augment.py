"""Augmentations of one image with one key; `jax.vmap` makes them a batch's.

dtype and shape are kept. Every draw depends on the key alone, so a key an
example gives the same batch on every device layout.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.errors import ConfigError


def identity(key: jax.Array, image: jax.Array) -> jax.Array:
  """The image as it is."""
  del key
  return image


def random_crop(key: jax.Array, image: jax.Array, pad: int = 4) -> jax.Array:
  """Shifts an image at random: pads with zeros and crops to the old size.

  Each of the (2 * pad + 1)**2 crops is equally likely.

  Args:
    key: one typed key.
    image: [H, W, C], any dtype.
    pad: pixels added on every side, >= 0.

  Returns:
    [H, W, C] of the same dtype.

  Raises:
    ConfigError: image is not of rank 3, or pad < 0.
  """
  if image.ndim != 3:
    raise ConfigError(
        f'wanted one image [H, W, C], got shape {image.shape}; '
        'use jax.vmap for a batch')
  if pad < 0:
    raise ConfigError(f'pad must be >= 0, got {pad}')
  padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
  return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_crop_flip(key: jax.Array, image: jax.Array, pad: int = 4) -> jax.Array:
  """`random_crop`, then a mirror image (left to right) with probability 1/2.

  The usual CIFAR augmentation (He et al. 2015, arXiv:1512.03385, sec. 4.2).
  """
  key_crop, key_flip = jax.random.split(key)
  crop = random_crop(key_crop, image, pad)
  return jnp.where(jax.random.bernoulli(key_flip), crop[:, ::-1], crop)


AUGMENTATIONS = {
    'none': identity,
    'crop': random_crop,
    'crop_flip': random_crop_flip,
}
