"""What a caller may pass to an attack, checked before anything is computed."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.errors import ConfigError


def check_images(images, labels):
  """Images as float32[B, ...] and labels as int[B] or None.

  Raises:
    ConfigError: integer images, no batch axis, or labels of another shape.
  """
  images = jnp.asarray(images)
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ConfigError(
        f'images must be floating point, got {images.dtype}; divide uint8 pixels '
        'by 255 first')
  if images.ndim < 1:
    raise ConfigError('images must have a leading batch axis, got a scalar')
  if labels is not None:
    labels = jnp.asarray(labels)
    if labels.shape != images.shape[:1]:
      raise ConfigError(
          f'labels {labels.shape} do not match the batch of images '
          f'{images.shape}; wanted {images.shape[:1]}, class numbers, not one-hot')
    if not jnp.issubdtype(labels.dtype, jnp.integer):
      raise ConfigError(f'labels must be integers, got {labels.dtype}')
  return images.astype(jnp.float32), labels


def check_size(name: str, value):
  """A scalar >= 0 as float32; the sign of a traced one is not checked.

  Raises:
    ConfigError: not a scalar, negative or not finite.
  """
  if np.ndim(value):
    raise ConfigError(f'{name} must be one number, got shape {np.shape(value)}')
  if not isinstance(value, jax.core.Tracer) and not 0 <= value < float('inf'):
    raise ConfigError(f'{name} must be finite and >= 0, got {value}')
  return jnp.asarray(value, jnp.float32)


def check_count(name: str, value, least: int) -> None:
  """Refuses what is not an integer of at least `least`; a traced one passes."""
  if isinstance(value, jax.core.Tracer):
    return
  if not isinstance(value, numbers.Integral) or isinstance(value, bool):
    raise ConfigError(f'{name} must be a Python int (it shapes the program), got '
                      f'{type(value).__name__}')
  if value < least:
    raise ConfigError(f'{name} must be >= {least}, got {value}')


def check_box(lower: float, upper: float) -> None:
  """Refuses an empty box of valid pixels."""
  if not lower <= upper:
    raise ConfigError(f'lower {lower} must be <= upper {upper}')


def example_keys(key, batch: int, start: str):
  """One typed key an example, [B], or None for an attack that draws nothing.

  Args:
    key: one typed key, which is folded with the position in the batch, or one
      key an example. May be None where `start` is 'none'.
    batch: B.
    start: as `threat.random_start` takes it.

  Raises:
    ConfigError: not a typed key, another number of them, or none where the start
      is random.
  """
  if start == 'none':
    return None
  if key is None:
    raise ConfigError(f'start {start!r} draws random numbers: give key='
                      "jax.random.key(seed), or start='none'")
  if not jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
    raise ConfigError(f'key must be a typed key, jax.random.key(seed), got {key!r}')
  if key.ndim == 0:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
  if key.shape != (batch,):
    raise ConfigError(f'key must be one key or one an image, ({batch},), got '
                      f'{key.shape}')
  return key
