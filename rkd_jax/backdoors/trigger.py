"""What a trigger is: a pytree with a pure function of images, and its checks."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from rkd_jax.data.batches import to_float
from rkd_jax.errors import ConfigError


def static(**settings):
  """A field that is part of the structure of the pytree, not a leaf."""
  return dataclasses.field(metadata={'static': True}, **settings)


@dataclasses.dataclass(frozen=True, eq=False)
class Trigger:
  """Base of all triggers; a pytree whose leaves are its arrays.

  Attributes:
    name: as in `backdoors.NAMES`.
    target: class that the attacker wants, with 'all_to_one' labels.
    image_shape: (H, W, C) of the images that it is made for.
    clean_label: only images of the target class are poisoned, with their label.
  """

  name: str = static()
  target: int = static()
  image_shape: tuple[int, int, int] = static()
  clean_label: bool = static(default=False, kw_only=True)

  def apply(self, images: jax.Array) -> jax.Array:
    """Images with the trigger in them.

    Args:
      images: float[B, H, W, C] in [0, 1], or uint8[B, H, W, C].

    Returns:
      The same shape and dtype; floats in [0, 1], uint8 rounded to the nearest.

    Raises:
      ConfigError: images of another shape.
    """
    return self._on_pixels(self.stamp, images)

  def cover(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Images with something like the trigger that must *not* be obeyed.

    WaNet's noise mode and Input-aware's cross mode; ConfigError for the others.

    Args:
      images: as in `apply`.
      keys: typed keys [B].
    """
    return self._on_pixels(lambda x: self.decoy(x, keys), images)

  def stamp(self, images: jax.Array) -> jax.Array:
    """`apply` on float images that were checked."""
    raise NotImplementedError

  def decoy(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """`cover` on float images that were checked."""
    raise ConfigError(f'trigger {self.name!r} has no cover mode; set cover to 0')

  def _on_pixels(self, fn, images):
    if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
      raise ConfigError(
          f'trigger {self.name!r} was made for images [B, '
          f'{", ".join(map(str, self.image_shape))}], got {tuple(images.shape)}')
    if images.dtype == jnp.uint8:
      return jnp.round(255 * fn(to_float(images))).astype(jnp.uint8)
    return fn(images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stamp(Trigger):
  """x' = clip(keep * x + add, 0, 1): patches, blends and additive patterns.

  Attributes:
    keep: float32[H, W, C] in [0, 1], what stays of the image.
    add: float32[H, W, C].
  """

  keep: jax.Array = dataclasses.field(kw_only=True)
  add: jax.Array = dataclasses.field(kw_only=True)

  def stamp(self, images):
    return jnp.clip(self.keep * images + self.add, 0, 1)


def blend(name, target, opacity: jax.Array, pattern: jax.Array, **settings) -> Stamp:
  """The stamp x' = (1 - opacity) x + opacity * pattern, both float[H, W, C]."""
  opacity = jnp.asarray(opacity, jnp.float32)
  return Stamp(name, target, tuple(opacity.shape), keep=1 - opacity,
               add=opacity * jnp.asarray(pattern, jnp.float32), **settings)


def check(image_shape, target: int, least: int = 1) -> tuple[int, int, int]:
  """The image shape as a tuple; raises ConfigError where something is wrong.

  Args:
    image_shape: (H, W, C).
    target: class index >= 0; that it is below the number of classes is checked
      where that number is known, see `check_target`.
    least: the least height and width.
  """
  shape = tuple(int(n) for n in image_shape)
  if len(shape) != 3 or min(shape) < 1 or min(shape[:2]) < least:
    raise ConfigError(
        f'image_shape must be (height, width, channels) with height and width >= '
        f'{least}, got {tuple(image_shape)}')
  if target < 0 or target != int(target):
    raise ConfigError(f'target must be a class index >= 0, got {target}')
  return shape


def check_target(target: int, num_classes: int) -> None:
  """Raises ConfigError where the target is no class of the data set."""
  if not 0 <= target < num_classes:
    raise ConfigError(
        f'target {target} is no class: the data set has {num_classes} classes, '
        f'0..{num_classes - 1}')


def check_share(name: str, value: float) -> None:
  """Raises ConfigError where a share is not in (0, 1]."""
  if not 0 < value <= 1 or math.isnan(value):
    raise ConfigError(f'{name} must be in (0, 1], got {value}')
