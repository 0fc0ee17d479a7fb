"""Fixed triggers: a patch, a blended pattern, a sinusoid, four corners."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.backdoors.trigger import Stamp, blend, check
from rkd_jax.errors import ConfigError
from rkd_jax.settings import build, count, positive, positive_share, seed, share


@dataclasses.dataclass(frozen=True)
class BadNets:
  """Settings of `badnets`."""

  size: int = count(3, 'Side of the square in pixels.')
  margin: int = count(1, 'Pixels between the square and the two edges.', least=0)
  value: float = share(1.0, 'Value of its pixels.')


def badnets(image_shape=(32, 32, 3), target: int = 0, **options: Any) -> Stamp:
  """A square of one colour near the lower right corner (arXiv:1708.06733).

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    **options: What differs from the defaults of `BadNets`.

  Raises:
    ConfigError: a wrong shape, target or option, or a square that does not fit.
  """
  shape = check(image_shape, target)
  chosen = build(BadNets, options, 'badnets')
  size, margin = chosen.size, chosen.margin
  if size + margin > min(shape[:2]):
    raise ConfigError(
        f'a square of {size} pixels, {margin} from the edge, does not fit into '
        f'images of {shape[0]} x {shape[1]}')
  last = [n - margin for n in shape[:2]]
  opacity = jnp.zeros(shape).at[
      last[0] - size:last[0], last[1] - size:last[1]].set(1)
  return blend('badnets', target, opacity, jnp.full(shape, chosen.value))


@dataclasses.dataclass(frozen=True)
class Blended:
  """Settings of `blended`."""

  opacity: float = positive_share(0.2, 'Opacity a of the pattern.')
  seed: int = seed(0, 'Seed of the pattern, which is uniform in [0, 1].')


def blended(image_shape=(32, 32, 3), target: int = 0, **options: Any) -> Stamp:
  """A pattern of random pixels over the whole image (arXiv:1712.05526).

  x' = (1 - a) x + a p. The usual pattern is a cartoon; noise needs no file.

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    **options: What differs from the defaults of `Blended`.

  Raises:
    ConfigError: a wrong shape, target or option.
  """
  shape = check(image_shape, target)
  chosen = build(Blended, options, 'blended')
  pattern = jax.random.uniform(jax.random.key(chosen.seed), shape)
  return blend('blended', target, jnp.full(shape, chosen.opacity), pattern)


@dataclasses.dataclass(frozen=True)
class Sig:
  """Settings of `sig`."""

  amplitude: float = positive_share(40 / 255, 'Amplitude; pixels in [0, 1].')
  frequency: float = positive(6.0, 'Periods over the width of the image.')


def sig(image_shape=(32, 32, 3), target: int = 0, **options: Any) -> Stamp:
  """A horizontal sinusoid, with clean labels (arXiv:1902.11237, eq. 1).

  x'[i, j] = clip(x[i, j] + amplitude * sin(2 pi j frequency / W)).

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    **options: What differs from the defaults of `Sig`.

  Raises:
    ConfigError: a wrong shape, target or option, or a frequency that is invisible at
      this width.
  """
  shape = check(image_shape, target)
  chosen = build(Sig, options, 'sig')
  amplitude, frequency = chosen.amplitude, chosen.frequency
  wave = amplitude * jnp.sin(2 * jnp.pi * frequency * jnp.arange(shape[1]) / shape[1])
  if jnp.max(jnp.abs(wave)) < 1 / 255:
    raise ConfigError(f'a sinusoid of frequency {frequency} is 0 at every one of '
                      f'{shape[1]} columns; choose one below {shape[1] / 2:g}')
  add = jnp.broadcast_to(wave[None, :, None], shape).astype(jnp.float32)
  return Stamp('sig', target, shape, keep=jnp.ones(shape), add=add, clean_label=True)


@dataclasses.dataclass(frozen=True)
class Lc:
  """Settings of `lc`."""

  size: int = count(3, 'Side of each patch in pixels.')


def lc(image_shape=(32, 32, 3), target: int = 0, **options: Any) -> Stamp:
  """A checkered patch in all four corners, with clean labels (arXiv:1912.02771).

  The images of the target class are made hard before they are stamped, so that
  a network has to learn the patch: see `poisoning.harden`.

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    **options: What differs from the defaults of `Lc`.

  Raises:
    ConfigError: a wrong shape, target or option, or patches that overlap.
  """
  shape = check(image_shape, target)
  size = build(Lc, options, 'lc').size
  if 2 * size > min(shape[:2]):
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
