"""Convex and concave functions: a chord on one side, a tangent on the other.

With f convex and any slope s, f(x) - s * x is greatest at an end of [lo, hi], and
above f(t) - s * t + (f'(t) - s) * (x - t) for every t. The tangent at the middle
has the least area: no line below f is higher there.
"""

import math

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out


def convex(value, slope, *, ulps=8, slope_ulps=8, rising=True, low=None, high=None,
           defined=None, scale=None, above=None, zero_floor=None, interval=None):
  """Rule of a convex function.

  Args:
    value: f.
    slope: its derivative.
    ulps: error of `value` in eps, a number or a function of x.
    slope_ulps: error of `slope`.
    rising: f increases, else decreases (without effect if `interval` is given).
    low: finfo -> least x where f, f' and f'' are finite; None: -inf.
    high: finfo -> greatest such x; None: inf.
    defined: x -> whether f is defined at and right of x; None: everywhere.
    scale: (lo, hi) -> distance over which f' changes by its own size; None: 1.
    above: a constant below f, or None.
    zero_floor: finfo -> least tangent point. Nearer to 0 f' or f'' is infinite or f
      underflows; below it the constant bounds are close enough.
    interval: (lo, hi) -> range; None: from the ends of a monotone f.
  """
  value = out.with_slope(value, slope)
  value_ulps = ulps if callable(ulps) else lambda x: ulps

  def ends(lo, hi):
    info = jnp.finfo(lo.dtype)
    least = -info.max if low is None else low(info)
    most = info.max if high is None else high(info)
    known = jnp.ones_like(lo, bool) if defined is None else defined(lo)
    a = jnp.clip(jnp.where(known, lo, max(least, 1)), least, most)
    b = jnp.clip(jnp.where(known, hi, max(least, 1)), least, most)
    return known, known & (lo >= least), known & (hi <= most), a, b

  def monotone(lo, hi):
    known, low_ok, high_ok, a, b = ends(lo, hi)
    f_a = out.widen(a, value(a), value_ulps(a))
    f_b = out.widen(b, value(b), value_ulps(b))
    if rising:
      lower = jnp.where(low_ok | (known & (above is not None)), f_a[0], -jnp.inf)
      upper = jnp.where(high_ok, f_b[1], jnp.inf)
    else:
      lower = jnp.where(high_ok, f_b[0], -jnp.inf)
      upper = jnp.where(low_ok, f_a[1], jnp.inf)
    if above is not None:
      lower = jnp.where(known, jnp.maximum(lower, above), lower)
    return lower, upper

  interval = interval or monotone

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    del choice_upper  # The chord is the only good upper line.
    lo, hi = out.settle(lo, hi)
    known, low_ok, high_ok, a, b = ends(lo, hi)
    if zero_floor is not None:
      floor = zero_floor(jnp.finfo(lo.dtype))
      known &= hi >= floor
      low_ok &= hi >= floor
      t_least = jnp.maximum(out.eps(lo) * b, floor)
    else:
      t_least = a
    t, = out.settle(jnp.maximum(out.between(a, b, choice_lower), t_least))
    slope_t = out.flush(slope(t))
    g_t, slack_t = out.residual(value(t), value_ulps(t), slope_t, t)
    # The negated tangent of -f, which is concave.
    drop = out.tangent_rise(-slope_t, slope_ulps, -slope_t, t - lo, hi - t)
    steep = slope(jnp.maximum(out.middle(a, b), t_least))
    s = out.chord(value(a), value(b), a, b, steep,
                 1 if scale is None else scale(a, b))
    g_a, slack_a = out.residual(value(a), value_ulps(a), s, a)
    g_b, slack_b = out.residual(value(b), value_ulps(b), s, b)
    return out.finish(
        interval(lo, hi), (slope_t, g_t - (slack_t + drop), known),
        (s, jnp.maximum(g_a + slack_a, g_b + slack_b), low_ok & high_ok))
  return out.Elementwise(interval, lines)


def concave(value, slope, *, rising=True, **options):
  """Rule of a concave function; the options are those of -f."""
  return out.negated(convex(lambda x: -value(x), lambda x: -slope(x),
                           rising=not rising, **options))


def _log_max(info):  # Leaves room for f * x and the like.
  return math.log(float(info.max)) - 6


def _softplus(x):
  return jnp.maximum(x, 0) + lax.log1p(lax.exp(-jnp.abs(x)))


def _log1p_ulps(x):
  # XLA's float64 log1p loses 117 eps near -0.414; its float32 stays below 1.8.
  return 500 if x.dtype == jnp.float64 else 8


# `ulps` is at least four times the worst error seen of XLA on CPU, float32 and
# float64, in units of eps: exp 0.9, expm1 3.3, log 1.0, softplus 1.8; exp2 is
# exp(x * log 2), so its error grows with |x|: 0.37 * |x| + 1.
RULES = {
    'exp': convex(lax.exp, lax.exp, above=0, high=_log_max),
    'exp2': convex(
        lax.exp2, lambda x: 0.6931471805599453 * lax.exp2(x), above=0,
        ulps=lambda x: 8 + 2 * jnp.minimum(jnp.abs(x), 2048), slope_ulps=2100,
        high=lambda info: _log_max(info) / 0.6931471805599453),
    'expm1': convex(lax.expm1, lax.exp, ulps=16, above=-1, high=_log_max),
    'log': concave(
        lax.log, lambda x: 1 / x, defined=lambda x: x >= 4 * out.tiny(x),
        low=lambda info: 16 * float(info.tiny)**0.5, scale=lambda lo, hi: lo),
    'log1p': concave(
        lax.log1p, lambda x: 1 / (1 + x), ulps=_log1p_ulps, defined=lambda x: x > -1,
        low=lambda info: -1 + float(info.eps) / 2,
        scale=lambda lo, hi: jnp.minimum(1 + lo, 1)),
    'softplus': convex(_softplus, lax.logistic, above=0),
}
