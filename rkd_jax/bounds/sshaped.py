"""S-shaped functions: convex where x <= 0, concave where x >= 0.

Upper line over [lo, hi], lo < 0 < hi (the lower one is that of -f(-x), which is S-shaped
too). Let h(t) = f(t) - f(lo) - f'(t) * (t - lo) for t >= 0: what the tangent at t lies
below f(lo), with the sign turned. h' = -f''(t) * (t - lo) >= 0, so h changes its sign
once, at the point d where the tangent meets f(lo).

- t >= d: the tangent at t is above f(lo), above f on the concave part, hence above
  f(0), and so above f on the convex part, which lies under its chord.
- hi < d: f'(hi) exceeds the slope of the chord from lo to hi, so on the concave part f
  climbs to the chord's end from below: the chord is above f.
- If f - f(0) is odd, d <= -lo, since h(-lo) = 2 * (f(-lo) - f(0) + f'(-lo) * lo) and a
  concave function through the origin lies above its tangent's offset.

None of this is trusted: d comes from bisection, and the offset is right for any
slope s and any t >= 0. Over the convex part f(x) - s * x is greatest at an end, over
the concave part at most f(t) - s * t + (f'(t) - s) * (x - t).
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out


def s_shaped(value, slope, *, ulps, slope_ulps, limit, rising=True, low=-math.inf,
             high=math.inf, saturation=math.inf, scale=None):
  """Rule of a monotone f, convex left of 0 and concave right of it, f - f(0) odd.

  Args:
    value: f.
    slope: its derivative.
    ulps: x -> error of `value` in eps.
    slope_ulps: x -> error of `slope`.
    limit: finfo -> greatest |x| where f, f' and f'' are finite.
    rising: f increases, else decreases.
    low: a constant below f.
    high: a constant above f.
    saturation: |x| past which f' is nothing; tangent points are sought before it.
    scale: (lo, hi) -> distance over which f' changes by its own size; None: 1.
  """
  value = out.with_slope(value, slope)

  def clipped(lo, hi):
    most = limit(jnp.finfo(lo.dtype))
    inside = (lo >= -most) & (hi <= most)
    return inside, jnp.clip(lo, -most, most), jnp.clip(hi, -most, most)

  def interval(lo, hi):
    inside, a, b = clipped(lo, hi)
    if not rising:
      a, b = b, a
    lower = jnp.maximum(out.widen(a, value(a), ulps(a))[0], low)
    upper = jnp.minimum(out.widen(b, value(b), ulps(b))[1], high)
    return jnp.where(inside, lower, low), jnp.where(inside, upper, high)

  def mirrored_value(x):
    return -value(-x)

  def mirrored_slope(x):
    return slope(-x)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    inside, a, b = clipped(lo, hi)
    steep = slope(out.middle(a, b))
    s = out.chord(value(a), value(b), a, b, steep,
                 1 if scale is None else scale(a, b))
    upper = _upper(value, slope, a, b, s, ulps, slope_ulps, saturation, choice_upper)
    lower = _upper(mirrored_value, mirrored_slope, -b, -a, s, lambda x: ulps(-x),
                   lambda x: slope_ulps(-x), saturation, choice_lower)
    return out.finish(interval(lo, hi), (lower[0], -lower[1], inside), (*upper, inside))
  return out.Elementwise(interval, lines)


def _upper(value, slope, lo, hi, chord, ulps, slope_ulps, saturation, choice):
  """(slope, offset) of the upper line; `chord` is the slope of the chord."""
  start = jnp.maximum(lo, 0)
  t = jnp.where(lo < 0, _tangent_point(value, slope, lo, hi, saturation), lo)
  if choice is None:
    t = jnp.maximum(t, out.middle(lo, hi))  # Of the tangents the lowest at the middle.
  else:
    t = t + jnp.asarray(choice, lo.dtype) * (hi - t)
  t = jnp.maximum(jnp.clip(t, start, jnp.maximum(hi, 0)), 0)
  gap = value(hi) - value(lo) - slope(hi) * (hi - lo)
  by_chord = (hi <= 0) | ((lo < 0) & (gap < 0))
  t, = out.settle(jnp.where(by_chord, jnp.maximum(hi, 0), t))
  slope_t = slope(t)
  s = out.flush(jnp.where(by_chord, chord, slope_t))

  g_t, slack_t = out.residual(value(t), ulps(t), s, t)
  rise = out.tangent_rise(slope_t, slope_ulps(t), s, t - start, hi - t)
  g_l, slack_l = out.residual(value(lo), ulps(lo), s, lo)
  g_u, slack_u = out.residual(value(hi), ulps(hi), s, hi)
  offset = jnp.where(hi > 0, g_t + (slack_t + rise), g_u + slack_u)
  return s, jnp.where(lo < 0, jnp.maximum(offset, g_l + slack_l), offset)


def _tangent_point(value, slope, lo, hi, saturation):
  """d for lo < 0 < hi (min(hi, -lo, saturation) if less), 0 otherwise.

  The bisection carries no gradient. The last step adds nothing but the derivative of
  d: from h(d, lo) = 0 it is -(dh/dl) / (dh/dt), with dh/dl = f'(d) - f'(lo).
  """
  fixed_l, fixed_u = lax.stop_gradient((lo, hi))
  first = jnp.where(fixed_l < 0, jnp.clip(jnp.minimum(fixed_u, -fixed_l), 0, saturation),
                    0)
  f_l = value(fixed_l)

  def halve(_, bracket):
    low, high = bracket
    t = 0.5 * (low + high)
    above = value(t) - f_l >= slope(t) * (t - fixed_l)
    return jnp.where(above, low, t), jnp.where(above, t, high)

  steps = -jnp.finfo(lo.dtype).machep + 3
  d = lax.stop_gradient(
      lax.fori_loop(0, steps, halve, (jnp.zeros_like(first), first))[1])
  _, bend = jax.jvp(slope, (d,), (jnp.ones_like(d),))
  h_t = -bend * (d - fixed_l)
  moves = (d > 0) & (d < first) & (h_t > out.tiny(lo))
  h_t = jnp.where(moves, h_t, 1)
  rate = jnp.clip(lax.stop_gradient((slope(fixed_l) - slope(d)) / h_t), -1, 0)
  return d + jnp.where(moves, rate, 0) * (lo - fixed_l)


def _logistic_slope(x):
  e = lax.exp(-jnp.abs(x))
  return e / jnp.square(1 + e)


def _tanh_slope(x):
  return 4 * _logistic_slope(2 * x)


def _gauss(x):
  x = jnp.clip(x, -28, 28)  # exp(-784) is 0 in float64 too.
  return 2 / math.sqrt(math.pi) * lax.exp(-x * x)


def _gauss_ulps(x):
  return 10 + 2 * jnp.square(jnp.clip(x, -28, 28))


def _erfc_ulps(x):
  return 12 + 2 * jnp.square(jnp.clip(x, 0, 28))


def _far(info):
  return float(info.max) / 4


# At least four times the worst error seen of XLA on CPU, float32 and float64, in eps:
# tanh 3.5, logistic 1.3, erf 2.6, their slopes 2.3, exp(-x * x) 0.5 * x**2 + 1.2 by
# the rounding of x**2, and erfc the same for x > 0, below 1.4 elsewhere.
RULES = {
    'logistic': s_shaped(
        lax.logistic, _logistic_slope, ulps=lambda x: 8, slope_ulps=lambda x: 12,
        limit=_far, low=0, high=1, saturation=80.0),
    'tanh': s_shaped(
        lax.tanh, _tanh_slope, ulps=lambda x: 16, slope_ulps=lambda x: 12,
        limit=_far, low=-1, high=1, saturation=40.0),
    'erf': s_shaped(
        lax.erf, _gauss, ulps=lambda x: 12, slope_ulps=_gauss_ulps,
        limit=_far, low=-1, high=1, saturation=9.0),
    'erfc': out.negated(s_shaped(
        lambda x: -lax.erfc(x), _gauss, ulps=_erfc_ulps, slope_ulps=_gauss_ulps,
        limit=_far, low=-2, high=0, saturation=9.0)),
}
