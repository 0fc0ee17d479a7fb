"""WaNet: an elastic warp that no eye sees (Nguyen and Tran 2021, arXiv:2102.10369)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.backdoors.trigger import Trigger, check
from rkd_jax.settings import build, count, positive, seed

_CUBIC = -0.75  # The a of the cubic kernel, as in torch's bicubic interpolation.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Warp(Trigger):
  """x'(p) = x(p + field(p)), bilinearly, at positions kept inside the image.

  Attributes:
    field: float32[H, W, 2], displacements (rows, columns) in pixels.
    noise: largest extra displacement of the cover mode, in pixels; static.
  """

  field: jax.Array = dataclasses.field(kw_only=True)
  noise: float = dataclasses.field(
      default=0.5, kw_only=True, metadata={'static': True})

  def stamp(self, images):
    return warp(images, self.field)

  def decoy(self, images, keys):
    shape = self.field.shape
    extra = jax.vmap(lambda key: jax.random.uniform(
        key, shape, minval=-self.noise, maxval=self.noise))(keys)
    return jax.vmap(lambda image, more: warp(image[None], self.field + more)[0])(
        images, extra)


@dataclasses.dataclass(frozen=True)
class WaNet:
  """Settings of `wanet`."""

  grid: int = count(4, 'Control points k of an axis.', least=2, most=1000)
  strength: float = positive(
      0.5, 'Strength s; images of more than 32 pixels want more.')
  seed: int = seed(0, 'Seed of the displacements.')


def wanet(image_shape=(32, 32, 3), target: int = 0, **options: Any) -> Warp:
  """A smooth random warp (sec. 3.2).

  A grid of random displacements, scaled to a mean size of `strength` / 2 pixels
  per axis, is interpolated bicubically to the image. The public code's noise mode
  adds up to 1 / H in its coordinates of [-1, 1], which is half a pixel here.

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    **options: What differs from the defaults of `WaNet`.

  Raises:
    ConfigError: a wrong shape, target or option.
  """
  shape = check(image_shape, target, least=2)
  chosen = build(WaNet, options, 'wanet')
  grid = chosen.grid
  control = np.asarray(jax.random.uniform(
      jax.random.key(chosen.seed), (grid, grid, 2), minval=-1, maxval=1), np.float64)
  control /= np.mean(np.abs(control))
  rows, columns = (upsampling(grid, size) for size in shape[:2])
  smooth = np.einsum('hi,wj,ijc->hwc', rows, columns, control)
  # In [-1, 1] the code moves by s * field / H; a pixel is 2 / (H - 1) of that.
  scale = np.array([(n - 1) / (2 * n) for n in shape[:2]])
  return Warp('wanet', target, shape,
              field=jnp.asarray(chosen.strength * smooth * scale, jnp.float32))


def upsampling(count: int, size: int) -> np.ndarray:
  """Matrix float64[size, count] of bicubic interpolation with aligned corners.

  Control points beyond the ends repeat the last ones.
  """
  place = np.linspace(0, count - 1, size)
  base = np.floor(place).astype(int)
  matrix = np.zeros((size, count))
  for offset in (-1, 0, 1, 2):
    index = base + offset
    np.add.at(matrix, (np.arange(size), np.clip(index, 0, count - 1)),
              _kernel(np.abs(place - index)))
  return matrix


def _kernel(x):
  """Keys' cubic convolution kernel at distances x >= 0."""
  a = _CUBIC
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def warp(images: jax.Array, field: jax.Array) -> jax.Array:
  """Bilinear samples of float[B, H, W, C] at every pixel + field[H, W, 2]."""
  height, width = images.shape[1:3]
  rows = jnp.clip(jnp.arange(height)[:, None] + field[..., 0], 0, height - 1)
  columns = jnp.clip(jnp.arange(width)[None] + field[..., 1], 0, width - 1)
  top = jnp.minimum(jnp.floor(rows), max(height - 2, 0)).astype(jnp.int32)
  left = jnp.minimum(jnp.floor(columns), max(width - 2, 0)).astype(jnp.int32)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  upper = (1 - right) * images[:, top, left] + right * images[:, top, left + 1]
  lower = (1 - right) * images[:, top + 1, left] + right * images[:, top + 1, left + 1]
  return (1 - down) * upper + down * lower
