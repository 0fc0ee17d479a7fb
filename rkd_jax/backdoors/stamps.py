"""Fixed triggers: a patch, a blended pattern, a sinusoid, four corners."""

import jax
import jax.numpy as jnp

from rkd_jax.backdoors.trigger import Stamp, blend, check, check_share
from rkd_jax.errors import ConfigError


def badnets(image_shape=(32, 32, 3), target: int = 0, *, size: int = 3,
            margin: int = 1, value: float = 1.0) -> Stamp:
  """A square of one colour near the lower right corner (arXiv:1708.06733).

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    size: side of the square in pixels.
    margin: pixels between it and the two edges.
    value: of its pixels, in [0, 1].

  Raises:
    ConfigError: a wrong shape or target, or a square that does not fit.
  """
  shape = check(image_shape, target)
  if size < 1 or margin < 0 or size + margin > min(shape[:2]):
    raise ConfigError(
        f'a square of {size} pixels, {margin} from the edge, does not fit into '
        f'images of {shape[0]} x {shape[1]}')
  if not 0 <= value <= 1:
    raise ConfigError(f'value must be in [0, 1], got {value}')
  last = [n - margin for n in shape[:2]]
  opacity = jnp.zeros(shape).at[
      last[0] - size:last[0], last[1] - size:last[1]].set(1)
  return blend('badnets', target, opacity, jnp.full(shape, value))


def blended(image_shape=(32, 32, 3), target: int = 0, *, opacity: float = 0.2,
            seed: int = 0) -> Stamp:
  """A pattern of random pixels over the whole image (arXiv:1712.05526).

  x' = (1 - a) x + a p. The usual pattern is a cartoon; noise needs no file.

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    opacity: a in (0, 1].
    seed: of the pattern, which is uniform in [0, 1].

  Raises:
    ConfigError: a wrong shape, target or opacity.
  """
  shape = check(image_shape, target)
  check_share('opacity', opacity)
  pattern = jax.random.uniform(jax.random.key(seed), shape)
  return blend('blended', target, jnp.full(shape, opacity), pattern)


def sig(image_shape=(32, 32, 3), target: int = 0, *, amplitude: float = 40 / 255,
        frequency: float = 6.0) -> Stamp:
  """A horizontal sinusoid, with clean labels (arXiv:1902.11237, eq. 1).

  x'[i, j] = clip(x[i, j] + amplitude * sin(2 pi j frequency / W)).

  Raises:
    ConfigError: a wrong shape or target, an amplitude outside (0, 1], or a frequency
      that is invisible at this width.
  """
  shape = check(image_shape, target)
  check_share('amplitude', amplitude)
  wave = amplitude * jnp.sin(2 * jnp.pi * frequency * jnp.arange(shape[1]) / shape[1])
  if jnp.max(jnp.abs(wave)) < 1 / 255:
    raise ConfigError(f'a sinusoid of frequency {frequency} is 0 at every one of '
                      f'{shape[1]} columns; choose one below {shape[1] / 2:g}')
  add = jnp.broadcast_to(wave[None, :, None], shape).astype(jnp.float32)
  return Stamp('sig', target, shape, keep=jnp.ones(shape), add=add, clean_label=True)


def lc(image_shape=(32, 32, 3), target: int = 0, *, size: int = 3) -> Stamp:
  """A checkered patch in all four corners, with clean labels (arXiv:1912.02771).

  The images of the target class are made hard before they are stamped, so that
  a network has to learn the patch: see `poisoning.harden`.

  Raises:
    ConfigError: a wrong shape or target, or patches that overlap.
  """
  shape = check(image_shape, target)
  if size < 1 or 2 * size > min(shape[:2]):
    raise ConfigError(
        f'two patches of {size} pixels do not fit side by side into images of '
        f'{shape[0]} x {shape[1]}')
  rows, columns = jnp.indices(shape[:2])
  # Distance to the nearer edge: each corner is the mirror image of the others.
  rows = jnp.minimum(rows, shape[0] - 1 - rows)
  columns = jnp.minimum(columns, shape[1] - 1 - columns)
  inside = ((rows < size) & (columns < size))[..., None] * jnp.ones(shape)
  pattern = ((rows + columns) % 2 == 0)[..., None] * jnp.ones(shape)
  return blend('lc', target, inside, pattern, clean_label=True)
