"""The cube root, whose slope at 0 is infinite.

For a slope s > 0 and x >= 0, cbrt(x) - s x is at most (2 / 3) t with t = (3 s)**(-1/2):
it is greatest where the derivative x**(-2/3) / 3 is s, at x = t**3, and there it is
t - s t**3 = t - t / 3. On x <= 0 cbrt is convex, so cbrt(x) - s x is greatest at an end
of the interval. So the line of slope s above [lo, hi] has the offset
max(cbrt(lo) - s lo, (2 / 3) t) where 0 < hi, for every s > 0. Below, the mirror image.
"""

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out
from rkd_jax.bounds.convex import concave

_ULPS = 12  # XLA on CPU: 0.8 eps in float32, 2.7 in float64.


def _slope(x):
  x = jnp.maximum(x, _least(jnp.finfo(x.dtype)))
  return lax.cbrt(x) / x / 3  # 3 x may overflow.


def _least(info):
  """Least tangent point: nearer to 0 the second derivative overflows."""
  return float(info.tiny)**0.4


_root = out.with_slope(lax.cbrt, lambda x: _slope(jnp.abs(x)))


def _positive():
  """cbrt on x >= 0: concave."""
  return concave(
      _root, _slope, ulps=_ULPS, slope_ulps=_ULPS, scale=lambda lo, hi: lo,
      defined=lambda x: x >= 0, low=lambda info: 0.0,
      zero_floor=_least)


def _interval(lo, hi):
  return (out.widen(lo, _root(lo), _ULPS)[0], out.widen(hi, _root(hi), _ULPS)[1])


def _above(lo, hi, choice):
  """(slope, offset) of an upper line where lo < 0 < hi."""
  most = float(jnp.finfo(lo.dtype).max) / 4
  lo, hi = jnp.clip(lo, -most, most), jnp.clip(hi, -most, most)
  f_l, f_u = _root(lo), _root(hi)
  width = jnp.maximum(hi - lo, out.least_width(lo))
  chord = (f_u - f_l) / width
  # The tangent from (lo, f(lo)) touches at -lo / 8: it is the chord if hi is nearer.
  first = -lo / 8
  if choice is None:
    t = jnp.maximum(first, out.middle(lo, hi))  # The lowest tangent at the middle.
  else:
    t = first + jnp.asarray(choice, lo.dtype) * (hi - first)
  s = jnp.where(hi < first, chord, _slope(jnp.clip(t, jnp.minimum(first, hi), hi)))
  s = out.flush(jnp.maximum(s, 4 * out.tiny(lo)))
  g_l, slack_l = out.residual(f_l, _ULPS, s, lo)
  g_u, slack_u = out.residual(f_u, _ULPS, s, hi)
  peak = (2 / 3) * lax.rsqrt(3 * s) * (1 + 16 * out.eps(lo))
  # Left of its peak cbrt(x) - s x rises, so an end before it is the greatest.
  before = 3 * s * jnp.square(f_u) < 0.999
  right = jnp.where(before, jnp.minimum(g_u + slack_u, peak), peak)
  return s, jnp.maximum(g_l + slack_l, right + out.underflow(lo))


def _cbrt():
  positive = out.by_sign(_positive(), odd=True)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    across = (lo < 0) & (hi > 0)
    a, b = jnp.where(across, lo, -1), jnp.where(across, hi, 1)
    upper = _above(a, b, choice_upper)
    lower = _above(-b, -a, choice_lower)
    whole = (jnp.abs(a) < 1e37) & (jnp.abs(b) < 1e37)
    both = out.finish(_interval(lo, hi), (lower[0], -lower[1], whole), (*upper, whole))
    one = positive.lines(jnp.where(across, 0, lo), jnp.where(across, 0, hi),
                         choice_lower, choice_upper)
    return out.Lines(*(jnp.where(across, x, y) for x, y in zip(both, one)))
  return out.Elementwise(_interval, lines)


RULES = {'cbrt': _cbrt()}
