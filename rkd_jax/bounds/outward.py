"""What a relaxation is, and how one stays true in floating point.

A line may have any slope s. Only its offset must be right: the supremum (for the
upper line) or infimum (lower) of f(x) - s * x over [lo, hi]. So slopes are chosen by
whatever formula is tight, and offsets come from an extremal principle that holds
for every s, moved outward by a bound of their rounding error.

The offset must be that of the very slope returned. XLA computes an array again in
every fused kernel that uses it, and rounds (or, after a comparison, selects)
differently in each, so what an offset hangs on goes through `settle` first.

Subnormal numbers count as zero, as they do on most accelerators and in XLA on CPU.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Lines(NamedTuple):
  """lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset."""
  lower_slope: jax.Array
  lower_offset: jax.Array
  upper_slope: jax.Array
  upper_offset: jax.Array


class BinaryLines(NamedTuple):
  """The same for f(x, y): slopes are pairs (for x, for y)."""
  lower_slopes: tuple[jax.Array, jax.Array]
  lower_offset: jax.Array
  upper_slopes: tuple[jax.Array, jax.Array]
  upper_offset: jax.Array


@dataclasses.dataclass(frozen=True)
class Elementwise:
  """Relaxation of a function of one bounded operand.

  Attributes:
    interval: (lo, hi) -> (lower, upper), the range of f over [lo, hi].
    lines: (lo, hi, choice_lower=None, choice_upper=None) -> Lines. A choice in
      [0, 1], broadcastable to lo, picks among the good lines of its side (where
      there are several); None is the one of least area or close to it.

  Both are sound for all real x in [lo, hi], arrays of any shape and float dtype, and
  where f is undefined or overflows they are infinite, never NaN. An infinite end stands
  for numbers of any size; `lines` is not asked there, see `relaxations`.
  """
  interval: Callable
  lines: Callable


@dataclasses.dataclass(frozen=True)
class Binary:
  """Relaxation of a function of two bounded operands of one shape.

  Attributes:
    interval: (lx, ux, ly, uy) -> (lower, upper).
    lines: (lx, ux, ly, uy, choice_lower=None, choice_upper=None) -> BinaryLines.
  """
  interval: Callable
  lines: Callable


def eps(x) -> float:
  return float(jnp.finfo(x.dtype).eps)


def tiny(x) -> float:
  return float(jnp.finfo(x.dtype).tiny)


def least_width(x) -> float:
  """Widths below it are not divided by: their squares underflow in derivatives."""
  return 16 * tiny(x)**0.5


@jax.custom_jvp
def settle(*arrays):
  """The arrays, computed once: every use sees the same numbers. Returns a tuple.

  An optimisation barrier does that where it lasts until kernels are fused, as on
  GPU. XLA on CPU drops it earlier; the result of a loop it must store.
  """
  if not arrays[0].size:
    return arrays
  return lax.platform_dependent(*arrays, cpu=_stored, default=_barred)


@settle.defjvp
def _settle_jvp(primals, tangents):
  return settle(*primals), tangents


def _barred(*arrays):
  return lax.optimization_barrier(arrays)


def _stored(*arrays):
  # False whatever the number, which XLA does not know, so the loop stays.
  runs = jnp.square(arrays[0].ravel()[0]) < -1
  return lax.while_loop(
      lambda carry: carry[0],
      lambda carry: (~carry[0], tuple(0.5 * x for x in carry[1])), (runs, arrays))[1]


def underflow(x) -> float:
  """What flushing to zero costs a value: silu(-87) = -87 * exp(-87) is 73 * tiny."""
  return 1024 * tiny(x)


def flush(slope):
  """The slope, settled. Subnormal ones become zero here, not unnoticed later."""
  return settle(jnp.where(jnp.abs(slope) < tiny(slope), 0, slope))[0]


def middle(lo, hi):
  return jnp.clip(0.5 * lo + 0.5 * hi, lo, hi)


def between(lo, hi, choice):
  """The point lo + choice * (hi - lo), the middle for None, never outside [lo, hi]."""
  if choice is None:
    return middle(lo, hi)
  return jnp.clip(lo + jnp.asarray(choice, lo.dtype) * (hi - lo), lo, hi)


@jax.custom_jvp
def ratio(a, b):
  """a / b for b above `least_width`; the derivative is finite for large b too."""
  return a / b


@ratio.defjvp
def _ratio_jvp(primals, tangents):
  quotient = ratio(*primals)
  return quotient, tangents[0] / primals[1] - quotient / primals[1] * tangents[1]


def with_slope(value, slope):
  """`value`, differentiated by `slope`: finite wherever `slope` is."""
  wrapped = jax.custom_jvp(value)
  wrapped.defjvp(lambda primals, tangents: (
      value(*primals), slope(*primals) * tangents[0]))
  return wrapped


def chord(f_l, f_u, lo, hi, slope_middle, scale):
  """Slope of the chord; `slope_middle` where the width is lost in rounding.

  At a width of sqrt(eps) * scale the rounding of f and its bending weigh the same.
  """
  width = hi - lo
  narrow = width <= jnp.maximum(eps(lo)**0.5 * scale, least_width(lo))
  quotient = ratio(jnp.where(narrow, 0, f_u - f_l), jnp.where(narrow, 1, width))
  return flush(jnp.where(narrow, slope_middle, quotient))


def residual(f_x, ulps, slope, x):
  """f(x) - slope * x and a bound of its error.

  Args:
    f_x: computed f(x), off by at most `ulps * eps * |f_x|` (or by subnormals).
    ulps: that bound.
    slope: taken as exact.
    x: taken as exact.

  Returns:
    (value, slack): the exact value is within value +- slack, and it stays so when
    value +- slack is rounded once more. Product and difference err by eps / 2 of
    their size each and so does that last sum: 1.5 eps of |slope * x|, ulps + 1 of
    |f_x|.
  """
  line = slope * x
  slack = (eps(x) * (ulps + 2) * jnp.abs(f_x) + 2 * eps(x) * jnp.abs(line)
           + underflow(x))
  return f_x - line, slack


def tangent_rise(slope_t, ulps, slope, left, right):
  """Upper bound of (f'(t) - slope) * (x - t) for x - t in [-left, right].

  Args:
    slope_t: computed f'(t), off by at most `ulps * eps * |slope_t|`.
    ulps: that bound.
    slope: the slope of the line, taken as exact.
    left: t - lo, as computed.
    right: hi - t, as computed.
  """
  reach = jnp.maximum(jnp.abs(left), jnp.abs(right))
  off = slope_t - slope
  rise = jnp.maximum(off * right, -off * left)
  relative = (eps(slope) * (ulps + 2) * jnp.abs(slope_t)
              + 4 * eps(slope) * jnp.abs(slope))
  return rise + (relative + underflow(slope)) * reach


def finish(interval, lower, upper):
  """Lines from two (slope, offset, usable); the constant bound where unusable."""
  offsets = settle(lower[1], upper[1])
  lower, upper = ((s, o, usable) for (s, _, usable), o in zip((lower, upper), offsets))

  def one(bound, slope, offset, usable):
    usable = usable & jnp.isfinite(slope) & jnp.isfinite(offset)
    return jnp.where(usable, slope, 0), jnp.where(usable, offset, bound)
  return Lines(*one(interval[0], *lower), *one(interval[1], *upper))


def widen(x, value, ulps):
  """(value - slack, value + slack) for a value with an error of `ulps` eps."""
  slack = eps(x) * (ulps + 1) * jnp.abs(value) + underflow(x)
  slack = jnp.where(jnp.isinf(value), 0, slack)
  return value - slack, value + slack


def negated(rule: Elementwise) -> Elementwise:
  """The rule of -f from the rule of f."""
  def interval(lo, hi):
    lower, upper = rule.interval(lo, hi)
    return -upper, -lower

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    return Lines(*(-x for x in _swapped(rule.lines(lo, hi, choice_upper, choice_lower))))
  return Elementwise(interval, lines)


def _swapped(lines):
  return lines[2:] + lines[:2]


def by_sign(rule: Elementwise, odd: bool) -> Elementwise:
  """Extends a rule for x > 0 to f(-x) = -f(x) (odd) or f(x) (even), x != 0."""
  def interval(lo, hi):
    negative = hi < 0
    lower, upper = rule.interval(*_mirrored(lo, hi, negative))
    if not odd:
      return lower, upper
    return jnp.where(negative, -upper, lower), jnp.where(negative, -lower, upper)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    negative = hi < 0
    mirrored = lambda c: None if c is None else jnp.where(negative, 1 - c, c)
    first, second = mirrored(choice_lower), mirrored(choice_upper)
    if odd:  # On the negative side the lower line comes from the upper one.
      first, second = _exchange(negative, first, second)
    found = rule.lines(*_mirrored(lo, hi, negative), first, second)
    if odd:
      back = Lines(found[2], -found[3], found[0], -found[1])
    else:
      back = Lines(-found[0], found[1], -found[2], found[3])
    return Lines(*(jnp.where(negative, b, f) for b, f in zip(back, found)))
  return Elementwise(interval, lines)


def _mirrored(lo, hi, negative):
  return jnp.where(negative, -hi, lo), jnp.where(negative, -lo, hi)


def _exchange(negative, first, second):
  if first is None and second is None:
    return None, None
  first = 0.5 if first is None else first
  second = 0.5 if second is None else second
  return jnp.where(negative, second, first), jnp.where(negative, first, second)
