"""Tangent, the inverse trigonometric and the hyperbolic functions.

All but cosh and acosh are S-shaped (see `sshaped`), or become so with the sign turned:
convex on one side of 0, concave on the other, and odd up to a constant. The error of
XLA on CPU against NumPy in extended precision, float32 and float64, in eps: tan 0.6,
atan 0.7, asin 1.4, acos 1.6, sinh and cosh 12.7, asinh 1.9, acosh 2.4, atanh 1.5
(float64: 73); the derivatives below 1.8. The constants are at least four times that.
"""

import math

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out
from rkd_jax.bounds.convex import concave, convex
from rkd_jax.bounds.sshaped import s_shaped

_POLE = 1.57  # Just below pi / 2, where tan and its first two derivatives are tame.
_SQUARED = 1e9  # Past it 1 + x**2 is x**2 in float64, too.


def within(rule: out.Elementwise, low: float, high: float) -> out.Elementwise:
  """A rule whose function exists on [low, high] alone: infinite bounds elsewhere."""
  def undefined(lo, hi):
    return ~((lo >= low) & (hi <= high))

  def interval(lo, hi):
    gone = undefined(lo, hi)
    lower, upper = rule.interval(lo, hi)
    return jnp.where(gone, -jnp.inf, lower), jnp.where(gone, jnp.inf, upper)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    gone = undefined(lo, hi)
    found = rule.lines(jnp.where(gone, 0, lo), jnp.where(gone, 0, hi), choice_lower,
                       choice_upper)
    vacuous = (0, -jnp.inf, 0, jnp.inf)
    return out.Lines(*(jnp.where(gone, v, f) for v, f in zip(vacuous, found)))
  return out.Elementwise(interval, lines)


def _turned(value, slope, **options):
  """The rule of a rising f that is concave left of 0 and convex right of it."""
  return out.negated(s_shaped(lambda x: -value(x), lambda x: -slope(x), rising=False,
                              **options))


def _tan():
  """tan rises between its poles; lines where the interval lies around 0.

  The pole at (k + 1/2) pi is not in [lo, hi] if x / pi + 1/2, moved outwards by far
  more than it rounds, has the same whole part at both ends.
  """
  turned = _turned(lax.tan, lambda x: 1 / jnp.square(lax.cos(x)), ulps=lambda x: 4,
                   slope_ulps=lambda x: 8, limit=lambda info: _POLE)

  def interval(lo, hi):
    branch = lambda x: x / math.pi + 0.5
    slack = 8 * out.eps(lo) * (1 + jnp.maximum(jnp.abs(lo), jnp.abs(hi)))
    one = jnp.floor(branch(lo) - slack) == jnp.floor(branch(hi) + slack)
    one &= slack < 0.25
    return (jnp.where(one, out.widen(lo, lax.tan(lo), 4)[0], -jnp.inf),
            jnp.where(one, out.widen(hi, lax.tan(hi), 4)[1], jnp.inf))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    found = turned.lines(lo, hi, choice_lower, choice_upper)
    near = (lo >= -_POLE) & (hi <= _POLE)
    flat = (0, interval(lo, hi)[0], 0, interval(lo, hi)[1])
    return out.Lines(*(jnp.where(near, f, c) for f, c in zip(found, flat)))
  return out.Elementwise(interval, lines)


def _cosh_interval(lo, hi):
  """cosh falls, then rises: greatest at the end further from 0, least at the nearer."""
  most = _hyperbolic_most(jnp.finfo(lo.dtype))
  far = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
  near = jnp.maximum(jnp.maximum(lo, -hi), 0)
  lower = out.widen(lo, lax.cosh(jnp.minimum(near, most)), 52)[0]
  upper = out.widen(lo, lax.cosh(jnp.minimum(far, most)), 52)[1]
  return jnp.maximum(lower, 1), jnp.where(far <= most, upper, jnp.inf)


def _hyperbolic_most(info):
  return math.log(float(info.max)) - 6


def _unit(info):
  """Largest |x| < 1 at which 1 / (1 - x**2) and its root are accurate."""
  return 1 - 8 * float(info.eps)


def _inside_unit(x):
  return (1 - x) * (1 + x)


def _asinh_slope(x):
  square = jnp.square(jnp.minimum(jnp.abs(x), _SQUARED))
  return jnp.where(jnp.abs(x) < _SQUARED, lax.rsqrt(1 + square),
                   1 / jnp.maximum(jnp.abs(x), 1))


def _atan_slope(x):
  return jnp.square(_asinh_slope(x))


def _far(info):
  return float(info.max) / 4


def _size(lo, hi):
  return jnp.maximum(1, jnp.minimum(jnp.abs(lo), jnp.abs(hi)))


RULES = {
    'tan': _tan(),
    'atan': s_shaped(
        lax.atan, _atan_slope, ulps=lambda x: 4, slope_ulps=lambda x: 12, limit=_far,
        low=-1.5707964, high=1.5707964, scale=_size),
    'asin': within(_turned(
        lax.asin, lambda x: lax.rsqrt(_inside_unit(x)), ulps=lambda x: 8,
        slope_ulps=lambda x: 10, limit=_unit, low=-1.5707964, high=1.5707964), -1, 1),
    'acos': within(s_shaped(
        lax.acos, lambda x: -lax.rsqrt(_inside_unit(x)), rising=False,
        ulps=lambda x: 8, slope_ulps=lambda x: 10, limit=_unit, low=0,
        high=3.1415928), -1, 1),
    'sinh': _turned(
        lax.sinh, lax.cosh, ulps=lambda x: 52, slope_ulps=lambda x: 52,
        limit=_hyperbolic_most),
    'cosh': convex(
        lax.cosh, lax.sinh, ulps=52, slope_ulps=52, above=1, interval=_cosh_interval,
        low=lambda info: -_hyperbolic_most(info), high=_hyperbolic_most),
    'asinh': s_shaped(
        lax.asinh, _asinh_slope, ulps=lambda x: 10, slope_ulps=lambda x: 10, limit=_far,
        scale=_size),
    'acosh': concave(
        lax.acosh, lambda x: lax.rsqrt(jnp.maximum(x - 1, out.tiny(x))) * lax.rsqrt(
            jnp.maximum(x + 1, 1)), ulps=12, slope_ulps=12,
        defined=lambda x: x >= 1, low=lambda info: 1 + 16 * float(info.eps),
        scale=lambda lo, hi: jnp.clip(lo - 1, out.eps(lo), None)),
    'atanh': _turned(
        lax.atanh, lambda x: 1 / _inside_unit(x),
        ulps=lambda x: 300 if x.dtype == jnp.float64 else 8,
        slope_ulps=lambda x: 10, limit=_unit),
}
