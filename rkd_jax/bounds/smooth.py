"""Smooth functions of no simple shape, bounded on a grid: gelu, silu, sin, cos.

Between neighbouring grid points p < q, f differs from its chord by
-f''(z) * (x - p) * (q - x) / 2 for some z, so by at most sup|f''| * (q - p)**2 / 8,
and f(x) - s * x differs from its own chord by the same. So with the values at the
grid points and that allowance the offset is right for any slope s. The allowance is
one-sided: f is above its chord only as far as f'' < 0, and over the cell
|f'' - (f''(p) + f''(q)) / 2| <= sup|f'''| * (q - p) / 2.

Constants (phi, Phi: normal density and distribution; T = tanh(x / 2)):

- sin, cos: |f''|, |f'''| <= 1.
- gelu, x * Phi(x): f'' = phi * (2 - x**2), within 2 * phi(0) = 0.798; f''' = phi * x *
  (x**2 - 4), extreme where x**4 - 7 * x**2 + 4 = 0: |f'''| <= 0.7789. For x > 0,
  0 <= x - f(x) = x * Phi(-x) <= phi(x), and f(-x) = f(x) - x.
- silu, x * (1 + T) / 2: f'' = T' * (2 - x * T) / 2, |f''| <= 1/2, with T' = (1 - T**2) /
  2 (x * T * T' <= 2 * 0.45 bounds the negative part); f''' = T' * (-3 * T + x *
  (T**2 - T')) / 2 with |T * T'| <= 0.1925 and |T**2 - T'| <= 1, so
  |f'''| <= 0.289 + 0.224 < 0.52. For x > 0, 0 <= x - f(x) <= x * exp(-x).
- gelu by tanh: f'' in [-0.108, 0.798] and |f'''| <= 0.7767 at 1.6e6 points 1e-5 apart
  in [-8, 8], with |f''''| < 1.7 (differences) between them: checked, not proven. For
  x > 0, 0 <= x - f(x) <= x * exp(-2 * v), v = sqrt(2 / pi) * (x + 0.044715 * x**3).
"""

import math

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out

CELLS = 32
_TURN = 2 * math.pi


def smooth(value, slope, bend, *, bend_max, bend_rate, ulps, interval,
           core=None, tail=0.0, reach=None):
  """Rule of a smooth function.

  The choice is the share of the slope between the steepest and the flattest line
  that touch f from that side at lo and at hi: 0 for the one at lo, 1 for the one at hi.
  None takes the lower (or upper) of these and the tangent's slope at the middle,
  compared at the middle, where a line's height is its area.

  Args:
    value: f.
    slope: f', for choosing slopes only.
    bend: f''.
    bend_max: bound of |f''|.
    bend_rate: bound of |f'''|.
    ulps: x -> error of `value` in eps.
    interval: (lo, hi) -> range.
    core: the grid covers [-core, core] at most; None: all.
    tail: beyond the core, |f - an asymptote| is at most this.
    reach: widths above it get the constant bounds; None: no limit.
  """
  value = out.with_slope(value, slope)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    near = jnp.ones_like(lo, bool) if reach is None else hi - lo <= reach
    end = jnp.where(near, hi, lo)
    x = _grid(lo, end, core)
    f = value(x)
    above, below = allowance(x)
    steep = slope(out.middle(lo, end))

    def side(sign, bulge, choice):
      """The upper line of sign * f."""
      at_l, at_u = _touching(sign * f, x, sign * steep)
      if choice is not None:
        c = jnp.asarray(choice, lo.dtype)
        candidates = [(1 - c) * at_l + c * at_u]
      else:
        candidates = [at_l, at_u, sign * steep]
      heights = []
      for s in candidates:
        offset = _supremum(sign * f, ulps(x), s, x, bulge)
        heights.append(s * out.middle(lo, end) + offset)
      lowest = jnp.argmin(jnp.stack(heights), axis=0)
      s = out.flush(jnp.take_along_axis(jnp.stack(candidates), lowest[None], 0)[0])
      return s, _supremum(sign * f, ulps(x), s, x, bulge)

    lower = side(-1, below, choice_lower)
    upper = side(1, above, choice_upper)
    return out.finish(interval(lo, hi), (-lower[0], -lower[1], near), (*upper, near))

  def allowance(x):
    """How far f rises above and falls below its chord in each cell."""
    h = jnp.diff(x, axis=0)
    if core is None:
      outside = jnp.zeros_like(h, bool)
    else:
      outside = (x[1:] <= -core) | (x[:-1] >= core)
    h = jnp.where(outside, 0, h)
    c = bend(x if core is None else jnp.clip(x, -core, core))
    mean = 0.5 * (c[:-1] + c[1:])
    # 256 eps for the rounding of `bend`, which is below 1; h errs by eps / 2.
    swing = 0.5 * bend_rate * h + 256 * out.eps(x)
    eighth = (0.125 + 4 * out.eps(x)) * jnp.square(h)
    rise, fall = (jnp.where(outside, tail, jnp.clip(swing + m, 0, bend_max) * eighth)
                  for m in (-mean, mean))
    return rise, fall
  return out.Elementwise(interval, lines)


def _grid(lo, hi, core):
  """[CELLS + 1 (+ 2), ...] rising points from lo to hi, cells within the core even."""
  a, b = lo, hi
  if core is not None:
    a, b = jnp.clip(lo, -core, core), jnp.clip(hi, -core, core)
  share = (jnp.arange(CELLS + 1, dtype=lo.dtype) / CELLS).reshape(-1, *(1,) * lo.ndim)
  inner = jnp.clip(a + share * (b - a), a, b)
  inner = jnp.concatenate([inner[:-1], b[None]])  # The rounded last one may miss b.
  return inner if core is None else jnp.concatenate([lo[None], inner, hi[None]])


def _touching(f, x, steep):
  """Slopes of the least lines above the grid's values through its first, last point.

  Differences over less than a cell's width are rounding noise. On intervals so narrow
  that all are, `steep`, the slope at the middle, is as good.
  """
  width = x[-1] - x[0]
  size = jnp.maximum(jnp.abs(x[0]), jnp.abs(x[-1]))
  narrow = width <= jnp.maximum(2.0**-5, 2.0**-12 * size)
  least = jnp.where(narrow, 0, width / (2 * CELLS))

  def secants(i, others):
    run = x[others] - x[i]
    usable = (jnp.abs(run) > least) & ~narrow
    return usable, out.ratio(jnp.where(usable, f[others] - f[i], 0),
                            jnp.where(usable, run, 1))

  usable, from_l = secants(0, slice(1, None))
  at_l = jnp.max(jnp.where(usable, from_l, -jnp.inf), axis=0)
  usable, from_u = secants(-1, slice(None, -1))
  at_u = jnp.min(jnp.where(usable, from_u, jnp.inf), axis=0)
  return jnp.where(narrow, steep, at_l), jnp.where(narrow, steep, at_u)


def _supremum(f, ulps, s, x, bulge):
  """Upper bound of f(x) - s * x over all cells."""
  g, slack = out.residual(f, ulps, s, x)
  # Points computed twice may differ by eps, f' is below 1.2: see `outward.settle`.
  size = jnp.where(x[-1] > x[0], jnp.maximum(jnp.abs(x[1]), jnp.abs(x[-2])), 0)
  g += slack + 2 * out.eps(x) * size * (1.2 + jnp.abs(s))
  cells = jnp.maximum(g[1:], g[:-1])
  return jnp.max(cells + bulge * (1 + 4 * out.eps(x)) + out.eps(x) * jnp.abs(cells),
                 axis=0)


def _valley(value, ulps, bottom, least):
  """Interval of f that falls up to `bottom`, where it is above `least`, then rises."""
  def interval(lo, hi):
    lo, hi = jnp.maximum(lo, -1e4), jnp.maximum(hi, -1e4)  # Where f is as good as 0.
    low_l, high_l = out.widen(lo, value(lo), ulps(lo))
    low_u, high_u = out.widen(hi, value(hi), ulps(hi))
    near = 1e-4  # Of the bottom, where f is flat.
    inside = (lo < bottom + near) & (hi > bottom - near)
    lower = jnp.minimum(low_l, low_u)
    width = jnp.minimum(hi - lo, 1)
    floor = least - out.eps(lo)
    # An interval this narrow lies within f''/8 * width**2 of its ends.
    lower = jnp.where(inside, jnp.maximum(lower - 0.13 * jnp.square(width) *
                                          (1 + 8 * out.eps(lo)), floor), lower)
    return jnp.where(inside & (hi - lo > 1), floor, lower), jnp.maximum(high_l, high_u)
  return interval


def _wave(value, crest):
  """Interval of a sine with a crest at `crest`; |f''| <= 1 for the narrow ones."""
  def contains(lo, hi, at):
    turns = out.eps(lo) * 4 * (jnp.maximum(jnp.abs(lo), jnp.abs(hi)) / _TURN + 1)
    first = jnp.ceil((lo - at) / _TURN - turns)
    return jnp.floor((hi - at) / _TURN + turns) >= first

  def interval(lo, hi):
    finite = jnp.isfinite(lo) & jnp.isfinite(hi)
    lo, hi = jnp.where(finite, lo, 0), jnp.where(finite, hi, _TURN)
    low_l, high_l = out.widen(lo, value(lo), 8)
    low_u, high_u = out.widen(hi, value(hi), 8)
    width = jnp.minimum(hi - lo, _TURN)
    beyond = (0.125 + 16 * out.eps(lo)) * jnp.square(width)
    upper, lower = jnp.maximum(high_l, high_u), jnp.minimum(low_l, low_u)
    high = jnp.where(contains(lo, hi, crest), upper + beyond, upper)
    low = jnp.where(contains(lo, hi, crest - math.pi), lower - beyond, lower)
    # 2 eps for the rounding of the sum itself.
    high, low = high + 2 * out.eps(lo), low - 2 * out.eps(lo)
    return jnp.maximum(low, -1), jnp.minimum(high, 1)
  return interval


def _density(x):
  return lax.exp(-0.5 * jnp.square(jnp.clip(x, -18, 18))) / math.sqrt(_TURN)


def _gelu(x):
  return 0.5 * x * lax.erfc(-math.sqrt(0.5) * x)


def _gelu_slope(x):
  return 0.5 * lax.erfc(-math.sqrt(0.5) * x) + jnp.clip(x, -18, 18) * _density(x)


def _gelu_ulps(x):
  # 31 at x = -5.8: the tail of erfc, whose argument is rounded.
  return 10 + 4 * jnp.square(jnp.clip(x, -40, 0))


def _silu_slope(x):
  p = lax.logistic(x)
  return p * (1 + jnp.clip(x, -800, 800) * lax.logistic(-x))


def _silu_bend(x):
  e = lax.exp(-jnp.abs(x))
  t = (1 - e) / (1 + e) * jnp.abs(x)  # x * tanh(x / 2)
  return e / jnp.square(1 + e) * (2 - t)


_SQRT_2_PI = math.sqrt(2 / math.pi)
_CUBE = 0.044715


def _gelu_tanh_parts(x):
  """Twice the argument of tanh, its first two derivatives and the logistic of it."""
  x = jnp.clip(x, -40, 40)
  w = 2 * _SQRT_2_PI * (x + _CUBE * lax.integer_pow(x, 3))
  return (x, w, 2 * _SQRT_2_PI * (1 + 3 * _CUBE * jnp.square(x)),
          12 * _SQRT_2_PI * _CUBE * x, lax.logistic(w))


def _gelu_tanh(x):
  return x * _gelu_tanh_parts(x)[-1]


def _gelu_tanh_slope(x):
  x, w, w1, _, p = _gelu_tanh_parts(x)
  return p + x * w1 * p * lax.logistic(-w)


def _gelu_tanh_bend(x):
  x, w, w1, w2, p = _gelu_tanh_parts(x)
  q = lax.logistic(-w)
  return p * q * (2 * w1 + x * w2 + x * jnp.square(w1) * (q - p))


def _gelu_tanh_ulps(x):
  # exp(w) magnifies the rounding of w by |w|.
  return 16 + 8 * jnp.abs(_gelu_tanh_parts(jnp.minimum(x, 0))[1])


def _eight(x):
  return 8.0


# sin and cos of XLA on CPU err by 0.53 eps at any |x| up to 1e30, silu by 1.5.
RULES = {
    'sin': smooth(
        lax.sin, lax.cos, lambda x: -lax.sin(x), bend_max=1, bend_rate=1, ulps=_eight,
        interval=_wave(lax.sin, 0.5 * math.pi), reach=6.5),
    'cos': smooth(
        lax.cos, lambda x: -lax.sin(x), lambda x: -lax.cos(x), bend_max=1, bend_rate=1,
        ulps=_eight, interval=_wave(lax.cos, 0.0), reach=6.5),
    'gelu': smooth(
        _gelu, _gelu_slope, lambda x: _density(x) * (2 - jnp.square(x)), bend_max=0.8,
        bend_rate=0.78, ulps=_gelu_ulps, core=6.0, tail=6.1e-9,
        interval=_valley(out.with_slope(_gelu, _gelu_slope), _gelu_ulps,
                         -0.7517915246935645, -0.16997120747990368)),
    'gelu_tanh': smooth(
        _gelu_tanh, _gelu_tanh_slope, _gelu_tanh_bend, bend_max=0.8, bend_rate=0.79,
        ulps=_gelu_tanh_ulps, core=6.0, tail=1e-9,
        interval=_valley(out.with_slope(_gelu_tanh, _gelu_tanh_slope), _gelu_tanh_ulps,
                         -0.7524614220710163, -0.17004075057125407)),
    'silu': smooth(
        lambda x: x * lax.logistic(x), _silu_slope, _silu_bend, bend_max=0.5,
        bend_rate=0.52, ulps=lambda x: 10.0, core=16.0, tail=1.81e-6,
        interval=_valley(out.with_slope(lambda x: x * lax.logistic(x), _silu_slope),
                         lambda x: 10.0, -1.2784645427610738, -0.2784645427610738)),
}
