"""Sets of inputs: what an example may be changed to.

Each is a pytree whose leaves all have the batch axis first, so it may be vmapped,
sharded or passed through jit. What an algorithm needs of a set is its hull (the
smallest box around it) and the minimum of a linear function over it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds import rounding

_BISECTIONS = 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Box:
  """All x with lower <= x <= upper; float[B, ...] each."""

  lower: jax.Array
  upper: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.lower.shape

  @property
  def dtype(self):
    return self.lower.dtype

  def hull(self) -> tuple[jax.Array, jax.Array]:
    return rounding.normal(self.lower, self.upper)

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, ...]: [R].

    Exact but for rounding: x is `lower` where the coefficient is positive.
    """
    lower, upper = self.hull()
    slack = _slack(rows, lower, upper)
    # What is neither positive nor negative is zero, or NaN and has to stay that.
    return _known(_sum(jnp.where(
        rows > 0, rows * (lower - slack),
        jnp.where(rows < 0, rows * (upper + slack), lax.stop_gradient(rows)))
                       ) - _flushed(rows))

  def minimizer(self, row: jax.Array) -> jax.Array:
    """Where <row, x> is smallest; for one example, row [...]."""
    return jnp.where(row > 0, self.lower, self.upper)

  def project(self, x: jax.Array) -> jax.Array:
    """A point of the set, x itself if it is one; for one example."""
    return jnp.clip(x, self.lower, self.upper)

  def contains(self, x: np.ndarray) -> bool:
    """Whether a point is in the set, exactly; for one example of NumPy arrays."""
    return bool(np.all((self.lower <= x) & (x <= self.upper)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _CutBall:
  """A ball around `center`, cut with the box [lower, upper].

  Attributes:
    center: float[B, ...], inside the box.
    eps: float[B], radius.
    lower, upper: float[B, ...], may be infinite.
  """

  center: jax.Array
  eps: jax.Array
  lower: jax.Array
  upper: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.center.shape

  @property
  def dtype(self):
    return self.center.dtype

  def hull(self) -> tuple[jax.Array, jax.Array]:
    """Exact: each entry alone may move by eps."""
    eps = self.eps.reshape(self.eps.shape + (1,) * (self.center.ndim - self.eps.ndim))
    return around(self.center, eps, self.lower, self.upper)

  def project(self, x: jax.Array) -> jax.Array:
    """A point of the set, x itself if it is well inside; for one example.

    The offset is shrunk to the ball, then clipped, which only shortens it. Adding it to
    the center rounds each entry, hence the room that is left.
    """
    offset = x - self.center
    norm = self.norm(offset)
    room = 2 * rounding.unit_roundoff(x.dtype) * self.norm(self.center)
    inner = self.eps * (1 - 2 * rounding.gamma(x.size, x.dtype)) - room
    inner = jnp.maximum(inner, 0)
    scale = jnp.where(norm > inner, inner / jnp.where(norm > 0, norm, 1), 1)
    return jnp.clip(self.center + scale * offset, self.lower, self.upper)

  def contains(self, x: np.ndarray) -> bool:
    """Whether a point is in the set, in float64 or better; for one example of NumPy
    arrays."""
    offset = np.asarray(x, np.longdouble) - self.center
    norm = np.linalg.norm(offset.reshape(-1).astype(np.float64), self.order)
    return bool(np.all((self.lower <= x) & (x <= self.upper))
                and norm <= self.eps.astype(np.float64))

  def minimizer(self, row: jax.Array) -> jax.Array:
    """A point of the set where <row, x> is small; for one example, row [...]."""
    step = jnp.where(row > 0, self.lower - self.center, self.upper - self.center)
    size = jnp.max(jnp.abs(row))
    bounded = -row * self.eps / jnp.where(size > 0, size, 1)
    step = jnp.where(jnp.isfinite(step), step, bounded)
    return self.project(self.center + jnp.where(
        jnp.abs(bounded) < jnp.abs(step), bounded, step))


class L2Ball(_CutBall):
  """||x - center||_2 <= eps, and lower <= x <= upper."""

  order = 2

  def norm(self, offset: jax.Array) -> jax.Array:
    # Squares of the entries themselves may underflow or overflow.
    k = rounding.exponent(jnp.max(jnp.abs(offset)))
    return rounding.scaled(jnp.sqrt(jnp.sum(jnp.square(
        rounding.scaled(offset, -k)))), k)

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, ...]: [R].

    By the dual of the norm's constraint: for every m > 0 the minimum is at least
    min over the box of <a, x> + m/2 (||x - c||^2 - eps^2), whose minimiser is
    clip(c - a / m). The m for which that point lies on the sphere makes it exact;
    bisection finds it, and whatever it finds is sound. Rows and offsets from the center
    are in units of powers of two, so that no square underflows or overflows.
    """
    n, size = rows[0].size, jnp.max(jnp.abs(rows.reshape(len(rows), -1)), axis=1)
    row_unit, unit = rounding.exponent(size), rounding.exponent(self.eps)
    a = rounding.scaled(rows, _over(-row_unit, rows))
    low, high = (rounding.scaled(edge - self.center, -unit)
                 for edge in (self.lower, self.upper))
    finite = jnp.isfinite(self.eps)
    eps = rounding.scaled(jnp.where(finite, self.eps, 1), -unit) * (
        1 + rounding.gamma(n, rows.dtype))
    move = lambda t: jnp.clip(-_over(t, rows) * a, low, high)
    # t = 1 / m. Without the box the sphere is reached at eps / ||a||, with it later;
    # past `last` each entry that matters is at the border of the box.
    norm = jnp.sqrt(_sum(jnp.square(a)))
    first = eps / jnp.where(norm > 0, norm, 1)
    inside = lambda t: _sum(jnp.square(move(t))) <= jnp.square(eps)
    low_t, _ = _bisect(lambda low, high: jnp.sqrt(low * high), inside,
                       first, first * 1e6)
    low_t = lax.stop_gradient(jnp.maximum(low_t, jnp.finfo(rows.dtype).tiny))
    offset = move(low_t)
    per_entry = a * offset + jnp.square(offset) / _over(2 * low_t, rows)
    dual = _sum(per_entry) - jnp.square(eps) / (2 * low_t)
    dual = jnp.where(finite, dual, -jnp.inf)
    # Where even the whole move inside the box stays in the ball, m = 0 is exact.
    corner = jnp.where(a > 0, low, high)
    boxed = _sum(jnp.where(a == 0, 0, a * corner))
    best = jnp.maximum(dual, jnp.where(jnp.isfinite(boxed), boxed, -jnp.inf))
    error = rounding.gamma(n, rows.dtype) * (
        _sum(jnp.abs(a) * jnp.abs(offset))
        + _sum(jnp.square(offset)) / (2 * low_t) + jnp.square(eps) / low_t)
    error = error + rounding.gamma(n, rows.dtype) * jnp.where(
        jnp.isfinite(boxed), jnp.abs(boxed), 0) + 4 * _flushed(a)
    gain = rounding.scaled(best - error, row_unit + unit)
    gain = jnp.where((size == 0) | (self.eps == 0), 0, gain)
    return _known(_at_center(rows, self.center) + gain)


class L1Ball(_CutBall):
  """||x - center||_1 <= eps, and lower <= x <= upper."""

  order = 1

  def norm(self, offset: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(offset))

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, ...]: [R].

    A fractional knapsack: entry i may gain |a_i| a unit on `room_i` units, eps units
    in all. Its dual, sound for every m >= 0, is
    <a, c> - sum_i max(|a_i| - m, 0) room_i - m eps, and exact for the m at which the
    entries with |a_i| > m just fill the budget, which bisection finds.
    """
    n = rows[0].size
    weight = jnp.abs(rows)
    room = jnp.where(rows == 0, 0, jnp.minimum(self.eps, jnp.where(
        rows > 0, self.center - self.lower, self.upper - self.center)))
    low_m = jnp.zeros(rows.shape[0], rows.dtype)
    high_m = jnp.max(weight.reshape(len(rows), -1), axis=1)
    top = high_m
    over = lambda m: _sum(
        jnp.where(weight > _over(m, rows), room, 0)) > self.eps
    low_m, high_m = _bisect(lambda low, high: low / 2 + high / 2, over, low_m, high_m)
    multiplier = lax.stop_gradient(jnp.where(high_m < top, high_m, top))
    # Without a limit of the sum, each entry may go as far as the box lets it.
    multiplier = jnp.where(jnp.isfinite(self.eps), multiplier, 0)
    budget = jnp.where(multiplier > 0, multiplier * self.eps, 0)
    above = jnp.maximum(weight - _over(multiplier, rows), 0)
    gain = _sum(jnp.where(room == 0, 0, above * room)) + budget
    error = rounding.gamma(n, rows.dtype) * (
        _sum(jnp.where(room == 0, 0, weight * room)) + 2 * budget)
    error = error + 4 * jnp.finfo(rows.dtype).tiny * _sum(room)
    return _known(_at_center(rows, self.center) - gain - error)


jax.tree_util.register_dataclass(
    L2Ball, data_fields=['center', 'eps', 'lower', 'upper'], meta_fields=[])
jax.tree_util.register_dataclass(
    L1Ball, data_fields=['center', 'eps', 'lower', 'upper'], meta_fields=[])

InputSet = Box | L2Ball | L1Ball


def _bisect(middle, below, low, high):
  """The interval around where `below` changes from true to false, entry by entry."""
  def step(_, ends):
    point = middle(*ends)
    true = below(point)
    return jnp.where(true, point, ends[0]), jnp.where(true, ends[1], point)

  return lax.fori_loop(0, _BISECTIONS, step, lax.stop_gradient((low, high)))


def _sum(values):
  return jnp.sum(values.reshape(len(values), -1), axis=1)


def _over(per_row, rows):
  return per_row.reshape(-1, *(1,) * (rows.ndim - 1))


def _slack(rows, lower, upper):
  """By how much each entry is widened to cover the rounding of the sum."""
  largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
  n = rows[0].size
  return rounding.gamma(n, rows.dtype) * largest + rounding.tiny(n, rows.dtype)


def _at_center(rows, center):
  """At most <row, center>, with what the rounding of offsets from the center costs."""
  size = _sum(jnp.abs(rows) * jnp.abs(center))
  least = _sum(jnp.abs(rows) * float(jnp.finfo(rows.dtype).tiny))
  return (_sum(rows * center) - rounding.gamma(rows[0].size, rows.dtype) * size
          - 4 * (least + _flushed(rows)))


def _flushed(rows):
  """What a sum over the entries of a row may lose to underflow."""
  return rounding.tiny(rows[0].size, rows.dtype)


def _known(lower):
  """Without NaN, and without the infinity of an overflow: then nothing is known."""
  return jnp.where(lower < jnp.inf, lower, -jnp.inf)


def around(center: jax.Array, eps: jax.Array, lower: jax.Array,
           upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[center - eps, center + eps] rounded outwards, cut with [lower, upper]."""
  lower, upper = rounding.normal(lower, upper)
  low, high = rounding.normal(center, center)
  low = jnp.where(eps > 0, rounding.down(low - eps), low)
  high = jnp.where(eps > 0, rounding.up(high + eps), high)
  return jnp.maximum(low, lower), jnp.minimum(high, upper)
