"""Slopes of lines below and above an equation, and how rows pass them.

Elementwise (`Diagonal`), of a reduction (`Reduced`), or of an equation that mixes along
one axis (`Matrix`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rkd_jax.bounds import rounding


class Diagonal(NamedTuple):
  """Lines of an elementwise equation: slopes of the result's shape, per operand."""

  lower: tuple[jax.Array, ...]
  upper: tuple[jax.Array, ...]

  def pull(self, rows: jax.Array) -> list[jax.Array]:
    """Rows [R, ...] on the result, as rows on the operands: the line below where
    the coefficient is positive, the one above where it is negative."""
    return [jnp.where(rows > 0, rows * low, rows * high)
            for low, high in zip(self.lower, self.upper)]

  def push(self, functions):
    """(coefficients, lower and upper [n, ...] of each operand) -> of the result."""
    return (sum(jnp.where(s > 0, s * low, s * high)
                for s, (low, high) in zip(self.lower, functions)),
            sum(jnp.where(s > 0, s * high, s * low)
                for s, (low, high) in zip(self.upper, functions)))

  def rounding(self, magnitudes, ulps):
    """What `pull` may lose by rounding, divided by |row|; of the result's shape."""
    return sum(_product(ulps * steepest(low, high), largest)
               for low, high, largest in zip(self.lower, self.upper, magnitudes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reduced:
  """Lines of a reduction over `axes`: slopes of the operand's shape."""

  lower: jax.Array
  upper: jax.Array
  axes: tuple[int, ...] = dataclasses.field(metadata={'static': True})

  def pull(self, rows):
    rows = jnp.expand_dims(rows, tuple(a + 1 for a in self.axes))
    return [jnp.where(rows > 0, rows * self.lower, rows * self.upper)]

  def push(self, functions):
    (low, high), = functions
    axes = tuple(a + 1 for a in self.axes)
    return (jnp.sum(jnp.where(self.lower > 0, self.lower * low, self.lower * high), axes),
            jnp.sum(jnp.where(self.upper > 0, self.upper * high, self.upper * low), axes))

  def rounding(self, magnitudes, ulps):
    slope = ulps * steepest(self.lower, self.upper)
    return jnp.sum(_product(slope, magnitudes[0]), axis=self.axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
  """Lines of an equation that mixes along one axis: slopes [*shape, operand index]."""

  lower: jax.Array
  upper: jax.Array
  axis: int = dataclasses.field(metadata={'static': True})

  def pull(self, rows):
    moved = jnp.moveaxis(rows, self.axis + 1, -1)
    low, high = (jnp.moveaxis(s, self.axis, -2) for s in (self.lower, self.upper))
    product = lambda a, b: jnp.einsum(
        'r...o,...ok->r...k', a, b, precision=jax.lax.Precision.HIGHEST)
    pulled = (product(jnp.maximum(moved, 0), low)
              + product(jnp.minimum(moved, 0), high))
    return [jnp.moveaxis(pulled, -1, self.axis + 1)]

  def push(self, functions):
    (low, high), = functions
    low, high = (jnp.moveaxis(c, self.axis + 1, -1) for c in (low, high))

    def side(slopes, below, above):
      slopes = jnp.moveaxis(slopes, self.axis, -2)
      product = lambda s, c: jnp.einsum(
          '...ok,n...k->n...o', s, c, precision=jax.lax.Precision.HIGHEST)
      found = (product(jnp.maximum(slopes, 0), below)
               + product(jnp.minimum(slopes, 0), above))
      return jnp.moveaxis(found, -1, self.axis + 1)

    return side(self.lower, low, high), side(self.upper, high, low)

  def rounding(self, magnitudes, ulps):
    slope = steepest(self.lower, self.upper)
    length = slope.shape[-1]
    largest = jnp.moveaxis(magnitudes[0], self.axis, -1)
    largest = jnp.expand_dims(largest, self.axis)
    total = jnp.sum(_product(slope, largest), axis=-1)
    return (ulps + rounding.gamma(2 * length, slope.dtype)) * total


def steepest(low: jax.Array, high: jax.Array) -> jax.Array:
  """The larger absolute value of two slopes."""
  return jnp.maximum(jnp.abs(low), jnp.abs(high))


def _product(slope, magnitude):
  """Also where the magnitude is infinite: lines are flat there."""
  return jnp.where(slope == 0, 0, slope * magnitude)
