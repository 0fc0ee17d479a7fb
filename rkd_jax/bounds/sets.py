"""Sets of inputs: what an example may be changed to.

Each is a pytree whose leaves all have the batch axis first, so it may be vmapped,
sharded or passed through jit. What an algorithm needs of a set is its hull (the
smallest box around it) and the minimum of a linear function over it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds import rounding
from rkd_jax.errors import ConfigError

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
    return self.lower, self.upper

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, ...]: [R].

    Exact but for rounding: x is `lower` where the coefficient is positive.
    """
    slack = _slack(rows, self.lower, self.upper)
    return _sum(jnp.where(
        rows > 0, rows * (self.lower - slack),
        jnp.where(rows < 0, rows * (self.upper + slack), 0)))

  def minimizer(self, row: jax.Array) -> jax.Array:
    """Where <row, x> is smallest; for one example, row [...]."""
    return jnp.where(row > 0, self.lower, self.upper)

  def project(self, x: jax.Array) -> jax.Array:
    """A point of the set, x itself if it is one; for one example."""
    return jnp.clip(x, self.lower, self.upper)


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
    return _around(self.center, eps, self.lower, self.upper)

  def project(self, x: jax.Array) -> jax.Array:
    """A point of the set, x itself if it is well inside; for one example.

    The offset is shrunk to the ball, then clipped, which only shortens it.
    """
    offset = x - self.center
    norm = self.norm(offset)
    inner = self.eps * (1 - 2 * rounding.gamma(x.size, x.dtype))
    scale = jnp.where(norm > inner, inner / jnp.where(norm > 0, norm, 1), 1)
    return jnp.clip(self.center + scale * offset, self.lower, self.upper)

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

  def norm(self, offset: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(offset)))

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, ...]: [R].

    By the dual of the norm's constraint: for every m > 0 the minimum is at least
    min over the box of <a, x> + m/2 (||x - c||^2 - eps^2), whose minimiser is
    clip(c - a / m). The m for which that point lies on the sphere makes it exact;
    bisection finds it, and whatever it finds is sound.
    """
    low, high = self.lower - self.center, self.upper - self.center
    n = rows[0].size
    eps = self.eps * (1 + rounding.gamma(n, rows.dtype))
    move = lambda t: jnp.clip(-_over(t, rows) * rows, low, high)
    # t = 1 / m. Without the box the sphere is reached at eps / ||a||, with it later;
    # past `last` each entry that matters is at the border of the box.
    norm = jnp.sqrt(_sum(jnp.square(rows)))
    first = eps / jnp.where(norm > 0, norm, 1)
    inside = lambda t: _sum(jnp.square(move(t))) <= jnp.square(eps)
    low_t, _ = _bisect(lambda low, high: jnp.sqrt(low * high), inside,
                       first, first * 1e6)
    low_t = lax.stop_gradient(jnp.maximum(low_t, jnp.finfo(rows.dtype).tiny))
    offset = move(low_t)
    per_entry = rows * offset + jnp.square(offset) / _over(2 * low_t, rows)
    dual = _sum(per_entry) - jnp.square(eps) / (2 * low_t)
    # Where even the whole move inside the box stays in the ball, m = 0 is exact.
    corner = jnp.where(rows > 0, low, high)
    boxed = _sum(jnp.where(rows == 0, 0, rows * corner))
    best = jnp.maximum(dual, jnp.where(jnp.isfinite(boxed), boxed, -jnp.inf))
    error = rounding.gamma(n, rows.dtype) * (
        _sum(jnp.abs(rows) * (jnp.abs(self.center) + jnp.abs(offset)))
        + _sum(jnp.square(offset)) / (2 * low_t) + jnp.square(eps) / low_t)
    error = error + rounding.gamma(n, rows.dtype) * jnp.where(
        jnp.isfinite(boxed), jnp.abs(boxed), 0)
    return _sum(rows * self.center) + jnp.where(norm > 0, best - error, 0)


class L1Ball(_CutBall):
  """||x - center||_1 <= eps, and lower <= x <= upper."""

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
    room = jnp.minimum(self.eps, jnp.where(
        rows > 0, self.center - self.lower, self.upper - self.center))
    low_m = jnp.zeros(rows.shape[0], rows.dtype)
    high_m = jnp.max(weight.reshape(len(rows), -1), axis=1)
    top = high_m
    over = lambda m: _sum(
        jnp.where(weight > _over(m, rows), room, 0)) > self.eps
    low_m, high_m = _bisect(lambda low, high: (low + high) / 2, over, low_m, high_m)
    multiplier = lax.stop_gradient(jnp.where(high_m < top, high_m, top))
    gain = (_sum(jnp.maximum(weight - _over(multiplier, rows), 0) * room)
            + multiplier * self.eps)
    error = rounding.gamma(n, rows.dtype) * (
        _sum(weight * jnp.abs(self.center)) + _sum(weight * room)
        + 2 * multiplier * self.eps)
    return _sum(rows * self.center) - gain - error


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


def _around(center, eps, lower, upper):
  """[center - eps, center + eps] rounded outwards, cut with [lower, upper]."""
  low = jnp.where(eps > 0, jnp.nextafter(center - eps, -jnp.inf), center)
  high = jnp.where(eps > 0, jnp.nextafter(center + eps, jnp.inf), center)
  return jnp.maximum(low, lower), jnp.minimum(high, upper)


def box(lower: Any, upper: Any) -> Box:
  """All x between two arrays float[B, ...].

  Raises:
    ConfigError: shapes or types differ, not floating point, lower > upper, or NaN.
  """
  lower, upper = _floats('lower', lower), _floats('upper', upper)
  if lower.shape != upper.shape or lower.dtype != upper.dtype:
    raise ConfigError(f'lower {lower.shape} {lower.dtype} and upper {upper.shape} '
                      f'{upper.dtype} must be alike')
  _refuse(lower > upper, f'lower > upper, by up to {_largest(lower, upper)}')
  return Box(lower, upper)


def linf_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
              upper: Any = jnp.inf) -> Box:
  """All x with |x - images| <= eps in every entry, cut with [lower, upper].

  Args:
    images: float[B, ...], within [lower, upper].
    eps: radius >= 0, or one for each example, [B]; may be traced.
    lower: least valid value (0.0 for pixels), number or array like `images`.
    upper: greatest valid value.

  Raises:
    ConfigError: images not floating point, NaN or outside [lower, upper]; eps < 0.
  """
  center, eps, lower, upper = _ball(images, eps, lower, upper)
  return Box(*_around(center, eps.reshape(-1, *(1,) * (center.ndim - 1)),
                      lower, upper))


def l2_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
            upper: Any = jnp.inf) -> L2Ball:
  """All x with ||x - images||_2 <= eps, cut with [lower, upper]; see `linf_ball`."""
  return L2Ball(*_ball(images, eps, lower, upper))


def l1_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
            upper: Any = jnp.inf) -> L1Ball:
  """All x with ||x - images||_1 <= eps, cut with [lower, upper]; see `linf_ball`."""
  return L1Ball(*_ball(images, eps, lower, upper))


def _ball(images, eps, lower, upper):
  center = _floats('images', images)
  eps = _radius(eps, center)
  lower, upper = (jnp.broadcast_to(jnp.asarray(edge, center.dtype), center.shape)
                  for edge in (lower, upper))
  _refuse((center < lower) | (center > upper),
          f'images outside the box, in [{_least(center)}, {_most(center)}]: are they '
          'scaled to [0, 1]?')
  return center, eps, lower, upper


def _floats(name, values):
  values = jnp.asarray(values)
  if not jnp.issubdtype(values.dtype, jnp.floating) or values.ndim < 1:
    raise ConfigError(f'{name} must be floating point with a batch axis, got '
                      f'{values.dtype} {values.shape}; divide pixels by 255')
  _refuse(jnp.isnan(values), f'{name} has NaN')
  return values


def _radius(eps, center):
  """float[B], rounded up."""
  if not isinstance(eps, jax.Array):
    exact = np.asarray(eps, np.float64)
    eps = exact.astype(center.dtype)
    eps = jnp.asarray(np.where(
        eps.astype(np.float64) < exact, np.nextafter(eps, np.inf, dtype=eps.dtype),
        eps))
  eps = jnp.asarray(eps, center.dtype)
  if eps.shape not in ((), center.shape[:1]):
    raise ConfigError(f'eps must be one number or one for each example, '
                      f'({center.shape[0]},), got shape {eps.shape}')
  _refuse(~(eps >= 0), f'eps must be >= 0, got {eps}')
  return jnp.broadcast_to(eps, center.shape[:1])


def _refuse(wrong, message):
  """Raises where values are known; traced ones are the caller's business."""
  if not isinstance(wrong, jax.core.Tracer) and bool(jnp.any(wrong)):
    raise ConfigError(message)


def _value(function, *arrays):
  try:
    return float(function(*arrays))
  except jax.errors.ConcretizationTypeError:
    return None


def _least(values):
  return _value(jnp.min, values)


def _most(values):
  return _value(jnp.max, values)


def _largest(lower, upper):
  return _value(lambda: jnp.max(lower - upper))
