"""Piecewise linear functions and steps: relu and its kin, clamp, floor, sign.

What is exact in floating point stays exact: a neuron that does not cross its kink
gets the function itself, without slack, and so does a line through a kink at 0.
"""

import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out


def _constant(value, like):
  return jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)


def leaky_relu(slope) -> out.Elementwise:
  """x for x >= 0, slope * x below; `slope` is a real constant broadcastable to x.

  Any slope: above 1 the function is concave. On an interval across 0 one side is the
  chord, the other a line through the origin whose slope is the choice, from `slope`
  (0) to 1 (1); None takes the one of least area, 1 if hi > -lo else `slope`.
  """
  return _kink(slope, 1.0)


def _kink(left, right):
  """left * x for x <= 0, right * x for x >= 0."""
  def value(x):
    return jnp.where(x >= 0, _constant(right, x), _constant(left, x)) * x

  def scaled(x):
    exact = x >= 0 if _is(right, 1, -1, 0) else jnp.zeros_like(x, bool)
    if _is(left, 1, -1, 0):
      exact |= x <= 0
    f_x = value(x)
    lower, upper = out.widen(x, f_x, 1)
    return jnp.where(exact, f_x, lower), jnp.where(exact, f_x, upper)

  def interval(lo, hi):
    low_l, high_l = scaled(lo)
    low_u, high_u = scaled(hi)
    lower, upper = jnp.minimum(low_l, low_u), jnp.maximum(high_l, high_u)
    across = (lo < 0) & (hi > 0)
    return (jnp.where(across, jnp.minimum(lower, 0), lower),
            jnp.where(across, jnp.maximum(upper, 0), upper))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    a, b = _constant(left, lo), _constant(right, lo)
    across = (lo < 0) & (hi > 0)
    stable = jnp.where(lo >= 0, b, a)
    f_l, f_u = value(lo), value(hi)
    wide = across & (hi - lo > out.least_width(lo))
    s = out.ratio(jnp.where(wide, f_u - f_l, 0), jnp.where(wide, hi - lo, 1))
    s = out.flush(jnp.where(wide, s, 0.5 * (a + b)))
    g_l, slack_l = out.residual(f_l, 1, s, lo)
    g_u, slack_u = out.residual(f_u, 1, s, hi)

    def side(choice, outer, sign):
      """The line on the side `sign` (1 above); a chord if `outer`."""
      through = jnp.where(hi > -lo, b, a) if choice is None else jnp.clip(
          a + jnp.asarray(choice, lo.dtype) * (b - a), jnp.minimum(a, b),
          jnp.maximum(a, b))
      ends = jnp.maximum(sign * g_l + slack_l, sign * g_u + slack_u)
      slope = jnp.where(outer, s, through)
      offset = jnp.where(outer, sign * ends, 0)
      return (jnp.where(across, slope, stable), jnp.where(across, offset, 0),
              jnp.ones_like(across))

    return out.finish(interval(lo, hi), side(choice_lower, a > b, -1),
                     side(choice_upper, a <= b, 1))
  return out.Elementwise(interval, lines)


def _is(constant, *values):
  return isinstance(constant, int | float) and constant in values


def clamp(low, high) -> out.Elementwise:
  """min(max(x, low), high) for constants low <= high broadcastable to x.

  Lines through a kink: where [lo, hi] covers both kinks, the upper line turns around
  (high, high) from flat (choice 0) to the one through f(lo) (choice 1), the lower one
  around (low, low); where it covers one, around that.
  """
  def value(x):
    return jnp.minimum(jnp.maximum(x, _constant(low, x)), _constant(high, x))

  def interval(lo, hi):
    return value(lo), value(hi)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    least, most = _constant(low, lo), _constant(high, lo)
    upper = _clamp_upper(lo, hi, least, most, choice_upper)
    # min(max(x, least), most) = -min(max(-x, -most), -least).
    slope, offset = _clamp_upper(-hi, -lo, -most, -least, choice_lower)
    every = jnp.ones_like(lo, bool)
    return out.finish(interval(lo, hi), (slope, -offset, every), (*upper, every))
  return out.Elementwise(interval, lines)


def _clamp_upper(lo, hi, least, most, choice):
  """(slope, offset) of the upper line of min(max(x, least), most).

  f is linear between lo, least, most and hi, cut to [lo, hi], so f(x) - s * x is
  greatest at one of them, for any s.
  """
  below, above = lo < least, hi > most
  f_l, f_u = jnp.clip(lo, least, most), jnp.clip(hi, least, most)
  # The steepest line that turns around the upper kink, or the chord without one.
  end = jnp.where(above, most, hi)
  rising = end - lo > out.least_width(lo)
  steep = out.ratio(jnp.where(rising, f_u - f_l, 0), jnp.where(rising, end - lo, 1))
  steep = jnp.clip(jnp.where(below, steep, 1), 0, 1)
  # Flat is lower at the middle iff the middle is past the kink.
  if choice is None:
    turned = jnp.where(out.middle(lo, hi) >= most, 0, steep)
  else:
    turned = jnp.asarray(choice, lo.dtype) * steep
  s = out.flush(jnp.where(above, turned, steep))
  corners = jnp.stack([lo, jnp.clip(least, lo, hi), jnp.clip(most, lo, hi), hi])
  g, slack = out.residual(jnp.clip(corners, least, most), 0, s, corners)
  offset = jnp.max(g + slack, axis=0)

  identity, at_low, at_high = (lo >= least) & (hi <= most), hi <= least, lo >= most
  flat = at_low | at_high
  offset = jnp.where(flat, jnp.where(at_high, most, least), offset)
  offset = jnp.where(identity, 0, offset)
  # Around a kink at 0 nothing rounds: the line is s * x.
  pivot = above & (lo >= least) & (most == 0) & ~flat
  return (jnp.where(identity, 1, jnp.where(flat, 0, s)),
          jnp.where(pivot, 0, offset))


def max_const(c) -> out.Elementwise:
  """max(x, c) for a constant c broadcastable to x; relu is c = 0.

  On an interval across c the upper line is the chord and the lower one turns around
  (c, c): choice 0 is flat, 1 has slope 1; None is 1 if it has less area, else 0.
  """
  return _one_kink(c, largest=True)


def min_const(c) -> out.Elementwise:
  """min(x, c); the mirror image of `max_const`."""
  return _one_kink(c, largest=False)


def _one_kink(c, largest):
  def bounds(x):
    far = jnp.full_like(x, float(jnp.finfo(x.dtype).max))
    return (_constant(c, x), far) if largest else (-far, _constant(c, x))

  def interval(lo, hi):
    extreme = jnp.maximum if largest else jnp.minimum
    return extreme(lo, _constant(c, lo)), extreme(hi, _constant(c, hi))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    return clamp(*bounds(lo)).lines(lo, hi, choice_lower, choice_upper)
  return out.Elementwise(interval, lines)


def step(*values) -> out.Elementwise:
  """A monotone step function, by constants; several `values` are all enclosed."""
  def interval(lo, hi):
    lower, upper = values[0](lo), values[0](hi)
    for value in values[1:]:
      lower = jnp.minimum(lower, value(lo))
      upper = jnp.maximum(upper, value(hi))
    return lower, upper

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    del choice_lower, choice_upper
    lower, upper = interval(lo, hi)
    return out.Lines(jnp.zeros_like(lo), lower, jnp.zeros_like(hi), upper)
  return out.Elementwise(interval, lines)


RULES = {
    'abs': _kink(-1.0, 1.0),
    'sign': step(jnp.sign),
    'floor': step(jnp.floor),
    'ceil': step(jnp.ceil),
    # Both rounding methods of the primitive, which differ at halves.
    'round': step(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
                  lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)),
}
