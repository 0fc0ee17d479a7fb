"""Which rows (or columns) of a layer a window of the images reaches, exactly.

A window has few places, so the reach of each is worked out in NumPy when a program is
read; while it runs a place looks its number up.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
  """Along one axis: for every place of the window, `size` neighbouring positions.

  Attributes:
    first: int[P], the first of them; all lie within the axis.
    size: how many.
    length: of the axis.
  """

  first: np.ndarray
  size: int
  length: int

  @classmethod
  def window(cls, size: int, length: int) -> 'Span':
    """The window itself, at places 0 to length - size."""
    return cls(np.arange(length - size + 1), size, length)

  @classmethod
  def around(cls, low: np.ndarray, high: np.ndarray, length: int) -> 'Span':
    """The smallest size that holds positions low to high of every place."""
    low, high = np.clip(low, 0, length - 1), np.clip(high, 0, length - 1)
    size = max(int(np.max(high - low)) + 1, 1)
    return cls(np.clip(low, 0, length - size), size, length)

  def slid(self, kernel: int, stride: int, padding: int, length: int) -> 'Span':
    """What a sliding window of a layer, `length` positions in all, sees of it."""
    low = -((kernel - 1 - padding - self.first) // stride)  # Rounded up.
    return Span.around(low, (self.first + self.size - 1 + padding) // stride, length)

  def joined(self, other: 'Span') -> 'Span':
    """What holds both."""
    last = np.maximum(self.first + self.size, other.first + other.size) - 1
    return Span.around(np.minimum(self.first, other.first), last, self.length)


def look_up(table: np.ndarray, place):
  """The number of a place; a Python int where all places have the same."""
  return int(table[0]) if (table == table[0]).all() else jnp.asarray(
      table, jnp.int32)[place]


def fits(offsets: np.ndarray, count: int, size: int) -> bool:
  """Whether `count` values lie within `size` ones at all offsets."""
  return offsets.min() >= 0 and offsets.max() + count <= size


def shift(values: jax.Array, axis: int, offsets: np.ndarray, size: int, place):
  """Values put at an offset of a place into `size` zeros; what does not fit is cut."""
  count = values.shape[axis]
  before = max(int(offsets.max()), 0)
  after = max(size - count - int(offsets.min()), 0)
  edges = [(0, 0, 0)] * values.ndim
  edges[axis] = (before, after, 0)
  padded = jax.lax.pad(values, jnp.zeros((), values.dtype), edges)
  start = look_up(before - offsets, place)
  return jax.lax.dynamic_slice_in_dim(padded, start, size, axis)
