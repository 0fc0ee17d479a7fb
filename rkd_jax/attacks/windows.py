"""Windows of an image whose size is data: where a square lies and what fills it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.attacks import ball

_TILES = 5  # A side of the grid of the first bumps.
_FALLS = {'l2': 2, 'l1': 4}  # By which power of the distance bumps fall off.


class Window(NamedTuple):
  """A rectangle, in the same place in all images.

  Attributes:
    top, left: int32[], of the first row and column.
    height, width: int32[], may be traced.
    shape: (rows, columns) of the images.
  """

  top: jax.Array
  left: jax.Array
  height: jax.Array
  width: jax.Array
  shape: tuple[int, int]

  @classmethod
  def at(cls, place, sides, shape) -> 'Window':
    """At a share [2] of the free rows and columns, in [0, 1), of images [B, H, W, C]."""
    height, width = sides
    free = jnp.stack([shape[1] - height + 1, shape[2] - width + 1])
    corner = jnp.minimum((place * free).astype(jnp.int32), free - 1)
    return cls(corner[0], corner[1], height, width, shape[1:3])

  def counted(self):
    """(row int32[H, 1], column int32[1, W]) counted from the window's corner."""
    rows, columns = (jnp.arange(n) for n in self.shape)
    return rows[:, None] - self.top, columns[None] - self.left

  def mask(self):
    """bool[H, W]."""
    rows, columns = self.counted()
    return ((rows >= 0) & (rows < self.height)
            & (columns >= 0) & (columns < self.width))


def bumps(window: Window, keys, norm: str):
  """float32[B, H, W]: two bumps of opposite sign that fill the window, 0 outside.

  Eq. 2 of arXiv:1912.00049, the window cut in two across or, by a coin of each of the
  keys [B], along. Both have length 1 in the norm; in 'l1' they fall off steeply, which
  keeps them sparse.
  """
  rows, columns = window.counted()
  height, width = window.height, window.width
  across = jax.vmap(jax.random.bernoulli)(keys)[:, None, None]
  first = jnp.where(across, height, width) // 2
  along = jnp.where(across, rows, columns)
  low, count = along < first, jnp.where(across, height, width)
  other, other_count = (jnp.where(across, columns, rows),
                        jnp.where(across, width, height))
  upper = _bump(along, other, first, other_count, window.shape, norm)
  lower = _bump(along - first, other, count - first, other_count, window.shape, norm)
  return jnp.where(window.mask(), jnp.where(low, upper, -lower), 0)


def _bump(along, other, length, width, shape, norm):
  """`sum_{k=0}^{M} 1 / (n + 1 - k)^2` with M = n - the distance to the centre.

  In 'l1' to the fourth power, as in the code that goes with arXiv:2103.01208.
  """
  table = jnp.asarray(_sums(max(shape) + 1, _FALLS[norm]), jnp.float32)
  apart = jnp.maximum(jnp.abs(along - length // 2), jnp.abs(other - width // 2))
  highest = jnp.maximum(length, width) // 2
  apart = jnp.clip(apart, 0, highest + 1)
  value = table[highest + 1] - table[apart]
  inside = (along >= 0) & (along < length) & (other >= 0) & (other < width)
  total = ball.length(jnp.where(inside, value, 0), norm)
  return value / jnp.maximum(total, 1e-12)[:, None, None]


def _sums(count, power):
  """[count + 1]: the partial sums of 1 / k^power, from the empty one."""
  return np.concatenate([[0], np.cumsum(1 / np.arange(1.0, count + 1)**power)])


def stripes(keys, shape):
  """float32[B, H, W, C] of +-1, one sign a column and channel."""
  draw = lambda key: jax.random.rademacher(key, shape[2:], jnp.float32)
  return jnp.broadcast_to(jax.vmap(draw)(keys)[:, None], shape)


def tiles(keys, shape, norm: str):
  """float32[B, H, W, C]: a grid of up to 5 x 5 bumps, one sign a tile and channel."""
  rows, columns = shape[1:3]
  height, width = max(rows // _TILES, 1), max(columns // _TILES, 1)
  down, right = rows // height, columns // width

  def one(key):
    signs, coins = jax.random.split(key)
    signs = jax.random.rademacher(signs, (down, right, shape[3]), jnp.float32)
    coins = jax.random.split(coins, down * right)
    window = Window(0, 0, height, width, (height, width))
    tile = bumps(window, coins, norm).reshape(down, right, height, width, 1)
    filled = (tile * signs[:, :, None, None]).transpose(0, 2, 1, 3, 4)
    filled = filled.reshape(down * height, right * width, shape[3])
    return jnp.pad(filled, ((0, rows - down * height), (0, columns - right * width),
                            (0, 0)))

  return jax.vmap(one)(keys)
