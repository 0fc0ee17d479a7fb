"""What a caller may pass to an attack, checked before anything is computed.

Values can only be checked where they are known: under `jit` shapes and types are.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.errors import ConfigError, RkdError

_MOST = 10**8  # Steps or queries; a typing error, or a year.


def known(value: Any) -> bool:
  """Whether the value is there: not traced, and on devices of this process."""
  return not isinstance(value, jax.core.Tracer) and getattr(
      value, 'is_fully_addressable', True)


def check_images(images, labels, *, lower: float = 0.0, upper: float = 1.0,
                 labelled: bool = True):
  """Images as float32[B, ...] and labels as int32[B].

  Args:
    images: float[B, ...] within [lower, upper].
    labels: int[B], at least 0; None only where `labelled` is False.
    lower: Least valid pixel.
    upper: Greatest valid pixel.
    labelled: Whether the attack compares with labels.

  Raises:
    ConfigError: integer images, no batch axis, pixels that are not finite or outside
      the box, or labels of another shape, type or sign.
  """
  images = _array('images', images)
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ConfigError(
        f'images must be floating point, got {images.dtype}; divide uint8 pixels '
        'by 255 first')
  if images.ndim < 1:
    raise ConfigError('images must have a leading batch axis, got a scalar')
  if known(images):
    _check_pixels(np.asarray(images, np.float32), lower, upper)
  if labels is None:
    if labelled:
      raise ConfigError('this attack compares with labels, got None')
    return jnp.asarray(images, jnp.float32), None
  return (jnp.asarray(images, jnp.float32),
          check_classes('labels', labels, images.shape))


def check_classes(name: str, labels, shape: tuple[int, ...]) -> jax.Array:
  """Class numbers as int32[B] for images of a shape; refused as in `check_images`."""
  labels = _array(name, labels)
  if labels.shape != shape[:1]:
    raise ConfigError(
        f'{name} {labels.shape} do not match the batch of images '
        f'{shape}; wanted {shape[:1]}, class numbers, not one-hot')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ConfigError(
        f'{name} must be integers, got {labels.dtype}; wanted class numbers')
  if known(labels) and labels.size:
    values = np.asarray(labels)
    bad = (values < 0) | (values >= 2**31)
    if bad.any():
      raise ConfigError(f'{name[:-1]} {values[bad][0]} of example {np.argmax(bad)} is no '
                        'class: classes are counted from 0')
  if isinstance(labels, jax.Array):
    return labels.astype(jnp.int32)
  return labels.astype(np.int32)  # Not JAX's: under `jit` that would hide the values.


def check_below(name: str, values, classes: int) -> None:
  """Refuses class numbers that a network with so many logits does not have.

  Args:
    name: 'labels' or 'targets'.
    values: int[B]; not checked where their values are not known.
    classes: K.
  """
  if not known(values):
    return
  values = np.asarray(values)
  bad = (values < 0) | (values >= classes)
  if bad.any():
    example = int(np.argmax(bad))
    raise ConfigError(
        f'{name[:-1]} {values[example]} of example {example} is no class: fn has '
        f'{classes} logits, so {name} are 0 to {classes - 1}')


def check_size(name: str, value, *, above_zero: bool = False):
  """A scalar >= 0 as float32; the sign of a traced one is not checked.

  Args:
    name: Name of the argument, for the error.
    value: The argument.
    above_zero: Whether 0 is refused as well.

  Raises:
    ConfigError: not a number, negative or not finite.
  """
  if isinstance(value, jax.core.Tracer):
    if value.ndim:
      raise ConfigError(f'{name} must be one number, got shape {value.shape}')
    return jnp.asarray(value, jnp.float32)
  number = check_number(name, value)
  wanted = '> 0' if above_zero else '>= 0'
  if not 0 <= number < math.inf or above_zero and not number:
    raise ConfigError(f'{name} must be finite and {wanted}, got {number}')
  return jnp.asarray(number, jnp.float32)


def check_number(name: str, value) -> float:
  """One real number as a float; refuses text, booleans and whole arrays."""
  if np.ndim(value):
    raise ConfigError(f'{name} must be one number, got shape {np.shape(value)}')
  kind = getattr(value, 'dtype', None)
  plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not plain and (kind is None or not jnp.issubdtype(kind, jnp.number)
                    or jnp.issubdtype(kind, jnp.complexfloating)):
    raise ConfigError(f'{name} must be a number, got {value!r}')
  return float(value)


def check_radius(name: str, value, norm: str, shape: tuple[int, ...], *,
                 lower: float = 0.0, upper: float = 1.0) -> None:
  """Refuses a length that no two images in the box are apart: 8 instead of 8 / 255.

  Args:
    name: Name of the argument, for the error.
    value: Length, not negative; a traced one passes.
    norm: 'linf', 'l2' or 'l1'; another one passes.
    shape: Shape of the images, [B, ...].
    lower: Least valid pixel.
    upper: Greatest valid pixel.
  """
  pixels = max(math.prod(shape[1:]), 1)
  lengths = {'linf': 1.0, 'l2': math.sqrt(pixels), 'l1': float(pixels)}
  longest = lengths.get(norm, math.inf) * (upper - lower)
  if known(value) and float(value) > longest * (1 + 1e-6) > 0:
    raise ConfigError(
        f'{name} {float(value):g} is more than any two images in [{lower:g}, {upper:g}] '
        f'are apart ({longest:g} in {norm}): it is in the units of the images, so for '
        f'pixels in [0, 1] a length of 8 levels is 8 / 255')


def check_count(name: str, value, least: int) -> None:
  """Refuses what is not an integer of at least `least`; a traced one passes."""
  if isinstance(value, jax.core.Tracer):
    return
  if not isinstance(value, numbers.Integral) or isinstance(value, bool):
    raise ConfigError(f'{name} must be a Python int (it shapes the program), got '
                      f'{type(value).__name__}')
  if value < least:
    raise ConfigError(f'{name} must be >= {least}, got {value}')
  if value > _MOST:
    raise ConfigError(f'{name} must be <= {_MOST:,}, got {value:,}')


def check_box(lower: float, upper: float) -> None:
  """Refuses an empty box of valid pixels."""
  if not check_number('lower', lower) <= check_number('upper', upper):
    raise ConfigError(f'lower {lower} must be <= upper {upper}')


def check_finite(finite, attack: str) -> None:
  """Refuses a result, bool[B], where the network was not finite; traced ones pass."""
  if known(finite) and not np.asarray(finite).all():
    raise ConfigError(
        f'fn returned logits or gradients that are not finite near example '
        f'{np.argmin(np.asarray(finite))} ({attack}): is a NaN among the weights, or an '
        'overflow? No attack can judge such a network')


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
  kind = getattr(key, 'dtype', None)
  if kind is None or not jnp.issubdtype(kind, jax.dtypes.prng_key):
    raise ConfigError(f'key must be a typed key, jax.random.key(seed), got {key!r:.200}')
  if key.ndim == 0:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
  if key.shape != (batch,):
    raise ConfigError(f'key must be one key or one an image, ({batch},), got '
                      f'{key.shape}')
  return key


def _array(name, value):
  """As an array of its own type: NumPy's, where it is not JAX's."""
  if isinstance(value, jax.Array):
    return value
  try:
    array = np.asarray(value)
    jnp.dtype(array.dtype)
    if array.dtype.kind in 'OSUV' and not jnp.issubdtype(array.dtype, jnp.floating):
      raise TypeError(f'an array of {array.dtype}')
    return array
  except RkdError:
    raise
  except Exception as error:  # Whatever the conversion of a foreign object raises.
    raise ConfigError(f'{name} cannot be an array: got {type(value).__name__} ({error})'
                      ) from error


def _check_pixels(images, lower, upper):
  if not images.size:
    return
  least, most = images.min(), images.max()
  if not (least >= lower and most <= upper):  # Also where they are NaN.
    raise ConfigError(
        f'images must be in [{lower:g}, {upper:g}], got values from {least:g} to '
        f'{most:g}; normalise inside fn, so that eps is in pixel units')
