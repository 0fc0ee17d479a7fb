"""Powers of x with a constant exponent, square roots and reciprocals among them.

Errors of XLA on CPU, in eps: sqrt 0.5, rsqrt 1.4, pow 0.5, integer_pow 2.8 for x**7
and less than |y| / 2 by its |y| - 1 products; the constants below are four times that.
"""

import functools

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import convex as convexity
from rkd_jax.bounds import outward as out
from rkd_jax.bounds.convex import concave, convex
from rkd_jax.bounds.sshaped import s_shaped
from rkd_jax.errors import ConfigError


def even_power(y):
  """x**y for even y >= 2."""
  def value(x):
    return lax.integer_pow(x, y)

  def high(info):
    return (float(info.max) / (16 * y + 16))**(1 / y)

  def interval(lo, hi):
    big = high(jnp.finfo(lo.dtype))
    far = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
    near = jnp.maximum(jnp.maximum(lo, -hi), 0)
    lower = out.widen(lo, value(jnp.minimum(near, big)), 2 * y + 4)[0]
    upper = out.widen(lo, value(jnp.minimum(far, big)), 2 * y + 4)[1]
    return jnp.maximum(lower, 0), jnp.where(far <= big, upper, jnp.inf)

  return convex(value, lambda x: y * lax.integer_pow(x, y - 1), ulps=2 * y + 4,
                slope_ulps=2 * y + 4, low=lambda info: -high(info), high=high,
                scale=lambda lo, hi: jnp.maximum(jnp.abs(lo), jnp.abs(hi)),
                interval=interval)


def odd_power(y):
  """x**y for odd y >= 3: minus an S-shaped function."""
  return out.negated(s_shaped(
      lambda x: -lax.integer_pow(x, y), lambda x: -y * lax.integer_pow(x, y - 1),
      ulps=lambda x: 2 * y + 4, slope_ulps=lambda x: 2 * y + 4, rising=False,
      limit=lambda info: (float(info.max) / (16 * y + 16))**(1 / y),
      scale=lambda lo, hi: jnp.maximum(jnp.abs(lo), jnp.abs(hi))))


def positive_power(p):
  """x**p on x > 0 (x >= 0 for p > 0), any p but 0 and 1, rounded to x's dtype."""
  def value(x):
    if p == 0.5:
      power = lax.sqrt
    elif p == -0.5:
      power = lax.rsqrt
    elif p == int(p):
      power = lambda x: lax.integer_pow(x, int(p))
    else:
      power = lambda x: lax.pow(x, jnp.asarray(p, x.dtype))
    if p < 0:
      return power(x)
    zero = x < out.tiny(x)
    return jnp.where(zero, 0, power(jnp.where(zero, 1, x)))

  def slope(x):
    zero = x < out.tiny(x)
    safe = jnp.where(zero, 1, x)
    return jnp.where(zero, 0, p * (value(safe) / safe))

  options = dict(ulps=8 + 2 * abs(p), slope_ulps=12 + 2 * abs(p),
                 scale=lambda lo, hi: lo)
  if p < 0:
    # f'' is about x**(p - 2) and must not overflow.
    return convex(
        value, slope, rising=False, above=0, defined=lambda x: x >= 4 * out.tiny(x),
        low=lambda info: 16 * float(info.tiny)**(1 / (2 - p)), **options)
  options |= dict(defined=lambda x: x >= 0, low=lambda info: 0.0,
                  zero_floor=lambda info: max(float(info.tiny)**0.4,
                                              (16 * float(info.tiny))**(1 / p)))
  if p < 1:
    return concave(value, slope, **options)
  return convex(value, slope, above=0, **options,
                high=lambda info: (float(info.max) / (16 * p + 16))**(1 / p))


@functools.cache
def power(p) -> out.Elementwise:
  """x**p for a constant p, on x > 0 unless p is an integer.

  `p` counts as the nearest number in the dtype of the bounds. Intervals where x**p
  is undefined (0 for p < 0, negative for a fractional p) give infinite bounds.
  """
  if not isinstance(p, int | float) or not abs(p) < 1e3:
    raise ConfigError(f'the exponent must be a Python number below 1000 in '
                      f'magnitude, got {p!r}; is it a traced value?')
  if p == int(p):
    y = int(p)
    if y in (0, 1):
      return _straight(y)
    if y < 0:
      return out.by_sign(positive_power(y), odd=bool(y % 2))
    return odd_power(y) if y % 2 else even_power(y)
  return positive_power(float(p))


def integer_pow(y: int) -> out.Elementwise:
  """x**y for any integer y. For y < 0, intervals that hold 0 give infinite bounds."""
  if y != int(y):
    raise ConfigError(f'integer_pow needs an integer exponent, got {y!r}; '
                      'use power for others')
  return power(int(y))


def _straight(y):
  """x**0 = 1 and x**1 = x, exactly."""
  def interval(lo, hi):
    return (lo, hi) if y else (jnp.ones_like(lo), jnp.ones_like(hi))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    del hi, choice_lower, choice_upper
    slope, offset = jnp.full_like(lo, y), jnp.full_like(lo, 1 - y)
    return out.Lines(slope, offset, slope, offset)
  return out.Elementwise(interval, lines)


def _of_log(rule: out.Elementwise) -> out.Elementwise:
  """exp(y log(x)): unknown, not just positive, where nothing is known of log(x)."""
  def unknown(lo, hi):
    return ~((lo > -jnp.inf) | (hi < jnp.inf))

  def interval(lo, hi):
    gone = unknown(lo, hi)
    lower, upper = rule.interval(lo, hi)
    return jnp.where(gone, -jnp.inf, lower), jnp.where(gone, jnp.inf, upper)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    gone = unknown(lo, hi)
    found = rule.lines(lo, hi, choice_lower, choice_upper)
    return out.Lines(*(jnp.where(gone, vacuous, part) for vacuous, part in zip(
        (0, -jnp.inf, 0, jnp.inf), found)))
  return out.Elementwise(interval, lines)


RULES = {
    'exp_of_log': _of_log(convexity.RULES['exp']),
    'sqrt': positive_power(0.5),
    'rsqrt': positive_power(-0.5),
    'square': even_power(2),
    'reciprocal': out.by_sign(positive_power(-1), odd=True),
}
