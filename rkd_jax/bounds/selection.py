"""Tests of a bounded value, and what is chosen by them: functions that jump.

A test is a value that is 0 or 1. Where the bounds of what is compared leave it open, the
choice is within the hull of both sides.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rkd_jax.bounds import outward as out


def step(threshold, strict: bool) -> out.Elementwise:
  """1 where x > threshold (or >=, unless `strict`), 0 elsewhere.

  For s >= 0 the supremum of step(x) - s x over [lo, hi] is that at lo, -s lo, or the one
  at the threshold c, 1 - s c; the infimum is -s c or, at hi, 1 - s hi. The choice goes
  from flat (0) to the line through the threshold (1); None takes the lower one at the
  middle.
  """
  def known(lo, hi):
    c = jnp.broadcast_to(jnp.asarray(threshold, lo.dtype), lo.shape)
    return (c, lo > c, hi <= c) if strict else (c, lo >= c, hi < c)

  def interval(lo, hi):
    _, above, below = known(lo, hi)
    return (jnp.where(above, 1, 0).astype(lo.dtype),
            jnp.where(below, 0, 1).astype(lo.dtype))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    lo, hi = out.settle(lo, hi)
    c, above, below = known(lo, hi)
    open_ = ~(above | below)
    right_of_middle = out.middle(lo, hi) < c

    def slope(room, choice, default):
      steep = open_ & (room > out.least_width(lo))
      share = default.astype(lo.dtype) if choice is None else choice
      s = share * out.ratio(jnp.ones_like(lo), jnp.where(steep, room, 1))
      return out.flush(jnp.where(steep & jnp.isfinite(room), s, 0))

    rising = slope(c - lo, choice_upper, right_of_middle)
    climbing = slope(hi - c, choice_lower, ~right_of_middle)
    ends = []
    for s, pairs, sign in ((rising, ((0, lo), (1, c)), 1),
                           (climbing, ((0, c), (1, hi)), -1)):
      values = []
      for f, x in pairs:
        x = jnp.where(s == 0, 0, x)  # It may be infinite.
        g, slack = out.residual(jnp.full_like(lo, f), 0, s, x)
        values.append(sign * g + slack)
      ends.append(sign * jnp.where(s == 0, sign * jnp.asarray(
          interval(lo, hi)[sign > 0]), jnp.maximum(*values)))
    every = jnp.ones_like(open_)
    return out.finish(interval(lo, hi), (climbing, ends[1], every),
                      (rising, ends[0], every))
  return out.Elementwise(interval, lines)


def equals(threshold) -> out.Elementwise:
  """1 where x is the threshold, 0 elsewhere; its lines are its bounds."""
  def interval(lo, hi):
    c = jnp.broadcast_to(jnp.asarray(threshold, lo.dtype), lo.shape)
    surely = (lo == c) & (hi == c)
    never = (lo > c) | (hi < c)
    return (jnp.where(surely, 1, 0).astype(lo.dtype),
            jnp.where(never, 0, 1).astype(lo.dtype))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    del choice_lower, choice_upper
    lower, upper = interval(lo, hi)
    flat = jnp.zeros_like(lo)
    return out.Lines(flat, lower, flat, upper)
  return out.Elementwise(interval, lines)


Ends = tuple[jax.Array, jax.Array]


def choose_interval(p: Ends, f: Ends, t: Ends) -> Ends:
  """Range of f where p = 0 and t where p = 1; p is nothing else."""
  on, off = p[0] > 0, p[1] < 1
  pick = lambda a, b, hull: jnp.where(on, b, jnp.where(off, a, hull(a, b)))
  return pick(f[0], t[0], jnp.minimum), pick(f[1], t[1], jnp.maximum)


def choose_lines(p: Ends, f: Ends, t: Ends, bounded: Sequence[bool],
                 choice_lower=None, choice_upper=None):
  """Planes below and above: ((s_p, s_f, s_t), offset) each, with p open or decided.

  Below, each true at p = 0, where y = f, and at p = 1, where y = t:

    C: y >= lf + (lt - lf) p
    T: y >= t - (1 - p) max(ut - lf, 0)
    F: y >= f - p max(uf - lt, 0)

  and so are their mixtures. Where f = 0 these are McCormick's planes of p t. The choice
  goes from C (0) to the better of T and F (1); None takes the higher at the middle, half
  of each if they are alike. Whatever the slopes, y - s_p p - s_f f - s_t t is linear in f
  and t for either p, hence least at a corner: the offset comes from those.

  Args:
    p, f, t: (lower, upper) each, all of one shape.
    bounded: whether f and t are bounded values; a constant gets no slope.
    choice_lower, choice_upper: in [0, 1], or None.
  """
  flat = out.settle(*p, *f, *t)
  p, f, t = flat[:2], flat[2:4], flat[4:]
  below = _below(p, f, t, bounded, choice_lower)
  minus = lambda ends: (-ends[1], -ends[0])
  (s_p, s_f, s_t), offset = _below(p, minus(f), minus(t), bounded, choice_upper)
  lower, upper = choose_interval(p, f, t)
  offsets = out.settle(below[1], -offset)

  def usable(slopes, offset, bound):
    good = jnp.isfinite(sum(map(jnp.abs, slopes)) + offset)
    return (tuple(jnp.where(good, s, 0) for s in slopes),
            jnp.where(good, offset, bound))

  return (usable(below[0], offsets[0], lower),
          usable((-s_p, s_f, s_t), offsets[1], upper))


def _below(p, f, t, bounded, choice):
  on, off = p[0] > 0, p[1] < 1
  zero, one = jnp.zeros_like(f[0]), jnp.ones_like(f[0])
  gain, loss = jnp.maximum(t[1] - f[0], 0), jnp.maximum(f[1] - t[0], 0)
  constant = (t[0] - f[0], zero, zero), 0.5 * f[0] + 0.5 * t[0]
  by_t = (gain, zero, one), out.middle(*t) - 0.5 * gain
  by_f = (-loss, one, zero), out.middle(*f) - 0.5 * loss
  if all(bounded):
    first = by_t[1] >= by_f[1]
    best = (tuple(jnp.where(first, a, b) for a, b in zip(by_t[0], by_f[0])),
            jnp.maximum(by_t[1], by_f[1]))
  else:
    best = by_f if bounded[0] else by_t
  if choice is None:
    near = 1e-5 * (jnp.abs(best[1]) + jnp.abs(constant[1]) + gain + loss)
    apart = best[1] - constant[1]
    choice = jnp.where(jnp.abs(apart) <= near, 0.5, jnp.where(apart > 0, 1.0, 0.0))
  c = jnp.asarray(choice, zero.dtype)
  decided = on | off
  slopes = tuple(
      out.flush(jnp.where(on, yes, jnp.where(off, no, jnp.where(
          c == 0, a, jnp.where(c == 1, b, (1 - c) * a + c * b)))))
      for a, b, yes, no in zip(constant[0], best[0], (0, 0, 1 if bounded[1] else 0),
                               (0, 1 if bounded[0] else 0, 0)))
  offset = _corner(slopes, f, t, bounded)
  plain = jnp.where(on, t[0] if not bounded[1] else 0, f[0] if not bounded[0] else 0)
  return slopes, jnp.where(decided, plain, offset)


def _corner(slopes, f, t, bounded):
  """Least y - s_p p - s_f f - s_t t over p in {0, 1} and the corners, rounded down."""
  s_p, s_f, s_t = slopes
  least = []
  for at_f in f if bounded[0] else f[:1]:
    for at_t in t if bounded[1] else t[:1]:
      for value, jump in ((at_f, jnp.zeros_like(s_p)), (at_t, s_p)):
        terms = [value, -jump]
        terms += [-s_f * at_f] if bounded[0] else []
        terms += [-s_t * at_t] if bounded[1] else []
        slack = 4 * out.eps(value) * sum(map(jnp.abs, terms)) + out.underflow(value)
        least.append(sum(terms) - slack)
  return jnp.min(jnp.stack(least), axis=0)


def choose_unstable(p: Ends, f: Ends, t: Ends) -> tuple[jax.Array, ...]:
  """Where tighter bounds of p, f and t would help."""
  open_ = ~((p[0] > 0) | (p[1] < 1))
  return open_, open_ & (f[0] < f[1]), open_ & (t[0] < t[1])


def with_constants(function: Callable, inputs: Sequence, is_bounded: Sequence[bool]
                   ) -> Callable:
  """`function` of bounds of the bounded inputs alone: a constant is its own bounds."""
  def full(*bounds):
    given, shape = iter(bounds), bounds[0][0]
    return function(*(next(given) if b else (jnp.broadcast_to(
        jnp.asarray(c, shape.dtype), shape.shape),) * 2
        for c, b in zip(inputs, is_bounded)))
  return full
