"""Ranges and lines of softmax, log-softmax and logsumexp along one axis.

With p_i = softmax(x)_i and y_i = log p_i = x_i - LSE(x) = -log(sum_j exp(x_j - x_i)):

- Ranges: p_i and y_i fall in every x_j - x_i, so they are least at x_i = l_i and
  x_j = u_j, and LSE rises in every x_j. Hence corners, and exact.
- LSE is convex: its tangent lies below it. C(x), the sum over j of the chords of exp
  on [l_j, u_j], is affine and >= sum exp(x_j) > 0, so LSE <= log C, which is concave:
  its tangent lies above. This gives both lines of LSE, and of y_i = x_i - LSE.
- p_i from below: exp(x_i) / C(x) <= p_i is the exponential of the convex x_i - log C,
  so convex: the tangent. (L^LSE of Wei et al. 2023, arXiv:2303.01713. L^ER, with
  chords of exp(x_j - x_i) and their reciprocal, is convex, too, and better where x_i
  leads: taken where c_i > all other u_j. That test is exact, which a comparison of the
  two would not be: see `_Box.line`.)
- p_i from above: p_i = exp(y_i) is below the chord of exp on the range of y_i, which
  rises in y_i, and y_i is below its tangent (U^LSE of the same paper).

All tangents touch at the centre of the box, where a line's height is its mean.

Rounding: slopes are what they are; any chord slope a has its own offset, max of
exp(x) - a * x at the ends, rounded up and from then on exact. For what is left, a value
v at the centre and a gradient, relative errors are counted: `_ULPS` + K eps for a sum
of K products of values known to a few eps, and |e| eps more for exp(e) of a rounded
difference e. An error d_k of a slope moves the line by |d_k| * |x_k - c_k|. Finally
v - s . c costs (K + 16) eps of the sum of |s_k * c_k|: logits of size 1e4 have lines
that are off by 0.02 in float32, because a line s * x + b has no more digits there.

Infinite ends give vacuous bounds. The sizes of numbers never matter: every exponential
is of a difference to the largest.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import outward as out

# XLA on CPU errs by 1 eps in exp and log and 3.3 in expm1 (see `convex`).
_ULPS = 32


class MatrixLines(NamedTuple):
  """For the entry at o along the axis, other positions alike:

  sum_k lower_slopes[.., o, .., k] * x[.., k, ..] + lower_offset[.., o, ..] <= f(x)[.., o,
  ..]; and so above. Slopes are [*shape, K], the operand's index last.
  """
  lower_slopes: jax.Array
  lower_offset: jax.Array
  upper_slopes: jax.Array
  upper_offset: jax.Array


def softmax_interval(lo, hi, axis):
  """Range of softmax over the box [lo, hi]: two arrays of the shape of lo, in [0, 1]."""
  lo, hi, known = _boxes(lo, hi, axis)
  low, high = (_share(d) for d in _differences(lo, hi))
  slack = _eps(lo) * (_ULPS + 2 * lo.shape[-1])
  low = jnp.maximum(low - slack * low - 8 * out.tiny(lo), 0)
  high = jnp.minimum(high + slack * high + 8 * out.tiny(lo), 1)
  return _back(jnp.where(known, low, 0), jnp.where(known, high, 1), axis=axis)


def log_softmax_interval(lo, hi, axis):
  """Range of log-softmax, of the shape of lo; at most 0."""
  lo, hi, known = _boxes(lo, hi, axis)
  low, high = _log_range(lo, hi)
  return _back(jnp.where(known, low, -jnp.inf), jnp.where(known, high, 0), axis=axis)


def logsumexp_interval(lo, hi, axes):
  """Range of logsumexp, of the shape of lo without the axes (an integer or several)."""
  lo, hi, known = _boxes(*(_merged(x, axes) for x in (lo, hi)), -1)
  known = known[..., 0]
  low, high = _logsumexp(lo), _logsumexp(hi)
  return (jnp.where(known, low[0] - low[1], -jnp.inf),
          jnp.where(known, high[0] + high[1], jnp.inf))


def softmax_lines(lo, hi, axis) -> MatrixLines:
  """Lines of softmax over the box [lo, hi]; see the head of this file.

  Args:
    lo: float[...].
    hi: float[...], of the same shape.
    axis: the one that softmax goes along.
  """
  lo, hi, known = _boxes(lo, hi, axis)
  box = _Box(lo, hi)
  by_sum, by_ratio = _below_by_sum(box), _below_by_ratio(box)
  leads = box.c > _greatest_other(hi)
  below = _Tangent(*(
      jnp.where(leads if a.ndim == leads.ndim else leads[..., None], a, b)
      for a, b in zip(by_ratio, by_sum)))
  lines = (*box.line(-1, below), *box.line(1, _above(box)))
  return _finished(lines, known, 0, 1, axis)


def _greatest_other(x):
  """max over j != i of x_j; -inf where there is none."""
  same = jnp.eye(x.shape[-1], dtype=bool)
  return jnp.max(jnp.where(same, -jnp.inf, x[..., None, :]), axis=-1)


def log_softmax_lines(lo, hi, axis) -> MatrixLines:
  """Lines of log-softmax; arguments as in `softmax_lines`."""
  lo, hi, known = _boxes(lo, hi, axis)
  box = _Box(lo, hi)
  lines = (*box.line(-1, box.log_share(*box.sum_above())),
           *box.line(1, box.log_share(*box.sum_below())))
  return _finished(lines, known, -jnp.inf, 0, axis)


def logsumexp_lines(lo, hi, axes) -> out.Lines:
  """Lines of logsumexp: slopes of the shape of lo, offsets without the axes."""
  shape = lo.shape
  lo, hi, known = _boxes(*(_merged(x, axes) for x in (lo, hi)), -1)
  box, good = _Box(lo, hi), known[..., 0]
  lines = []
  for sign, (top, rest) in ((-1, box.sum_below()), (1, box.sum_above())):
    rounding = 2 * _eps(lo) * (jnp.abs(top) + jnp.abs(rest.value))
    slope, offset = box.line(sign, rest._replace(
        value=top + rest.value, slack=rest.slack + rounding))
    lines += [_unmerged(jnp.where(known, slope, 0), shape, axes),
              jnp.where(good, offset, sign * jnp.inf)]
  return out.Lines(*lines)


def _order(rank, axes):
  axes = sorted(a % rank for a in ((axes,) if isinstance(axes, int) else axes))
  return [a for a in range(rank) if a not in axes], axes


def _merged(x, axes):
  """[..., K]: the axes as one, the last."""
  kept, axes = _order(x.ndim, axes)
  return jnp.transpose(x, kept + axes).reshape(
      *(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axes))


def _unmerged(x, shape, axes):
  kept, axes = _order(len(shape), axes)
  order = kept + axes
  return jnp.transpose(x.reshape([shape[a] for a in order]),
                       [order.index(a) for a in range(len(shape))])


def _eps(x):
  return out.eps(x)


class _Box:
  """A box [..., K] with its centre, and the pieces that bounds are made of."""

  def __init__(self, lo, hi):
    self.lo, self.hi = lo, hi
    self.c = out.middle(lo, hi)
    self.reach = jnp.maximum(hi - self.c, self.c - lo) * (1 + _eps(lo))
    self.ulps = _eps(lo) * (_ULPS + 2 * lo.shape[-1])
    self.one = jnp.eye(lo.shape[-1], dtype=lo.dtype)
    # exp is in units of exp(top).
    self.top = lax.stop_gradient(jnp.max(hi, axis=-1, keepdims=True))

  def sum_below(self):
    """Tangent of LSE: a number m, value - m and the rest of a `_Tangent`."""
    top = lax.stop_gradient(jnp.max(self.c, axis=-1))
    log, slack = _log_of_sum(self.c, top)
    e = jnp.abs(self.c - top[..., None])
    slope = jax.nn.softmax(self.c, axis=-1)
    return top, _Tangent(log, slack, slope, self.ulps + _eps(e) * e, slope)

  def chords(self):
    """(a, b): C(x) = sum of a_k * (x_k - c_k) + b_k, in units of exp(top)."""
    return _chords(self.lo - self.top, self.hi - self.top,
                   self.c - self.lo, self.hi - self.c)

  def sum_above(self):
    """Tangent of log C, likewise."""
    a, b = self.chords()
    total = jnp.sum(b, axis=-1)
    log = jnp.log(total)
    slope = a / total[..., None]
    return self.top[..., 0], _Tangent(
        log, self.ulps + 2 * _eps(log) * jnp.abs(log), slope,
        jnp.full_like(slope, self.ulps), slope)

  def log_share(self, top, tangent):
    """x_i minus a line of LSE, for every i."""
    e = self.c - top[..., None]
    log, slack = tangent.value[..., None], tangent.slack[..., None]
    slope = tangent.slope[..., None, :]
    return _Tangent(
        e - log, slack + 2 * _eps(e) * (jnp.abs(e) + jnp.abs(log)), self.one - slope,
        tangent.relative[..., None, :] + 0 * self.one, self.one + slope)

  def line(self, sign, tangent):
    """(slopes, offset) of the tangent, moved up (sign 1) or down (-1).

    The compiler may evaluate the slopes twice, for the result and for the offset, and
    round differently (different fusions; on CPU a barrier does not prevent it). The
    difference is at most K / 2 + 8 eps of their terms.
    """
    value, slack, slope, relative, size = tangent
    c, reach = self.c, self.reach
    if slope.ndim > c.ndim:
      c, reach = c[..., None, :], reach[..., None, :]
    slope = out.flush(slope)
    ulp, terms = _eps(c), c.shape[-1] + 16
    slack = (slack + jnp.sum(relative * size * reach, axis=-1) * (1 + terms * ulp)
             + ulp * (terms * jnp.sum(size * jnp.abs(c), axis=-1) + 4 * jnp.abs(value))
             + 8 * out.tiny(c) * (terms + jnp.sum(reach, axis=-1)))
    offset = value - jnp.sum(slope * c, axis=-1)
    return slope, offset + sign * (1 + 8 * ulp) * slack


class _Tangent(NamedTuple):
  """Of a function f at the centre.

  Attributes:
    value: of f, [...].
    slack: bound of its error.
    slope: gradient, [..., K].
    relative: bound of its error, as a share of `size`.
    size: sum of the absolute values of what each slope is the sum of, [..., K].
  """
  value: jax.Array
  slack: jax.Array
  slope: jax.Array
  relative: jax.Array
  size: jax.Array


def _below_by_sum(box):
  """exp(x_i) / C(x)."""
  a, b = box.chords()
  total = jnp.sum(b, axis=-1, keepdims=True)
  e = box.c - box.top
  value = jnp.exp(e) / total
  relative = box.ulps + _eps(e) * jnp.abs(e)
  share = (a / total)[..., None, :]
  return _Tangent(
      value, relative * value, value[..., None] * (box.one - share),
      relative[..., None] + 0 * box.one, value[..., None] * (box.one + share))


def _below_by_ratio(box):
  """1 / (1 + sum of the chords of exp(x_j - x_i)), in units of exp(-m_i)."""
  lo, hi = box.lo, box.hi
  others = box.one == 0
  low = lo[..., None, :] - hi[..., None]
  high = hi[..., None, :] - lo[..., None]
  m = lax.stop_gradient(jnp.max(jnp.where(others, high, 0), axis=-1, keepdims=True))
  # Outwards, so that the chords hold although the ends were rounded.
  low, high = low - _eps(lo) * jnp.abs(low), high + _eps(lo) * jnp.abs(high)
  d = box.c[..., None, :] - box.c[..., None]  # Rounding is monotone: within the ends.
  a, b = _chords(jnp.where(others, low - m, -m), jnp.where(others, high - m, -m),
                 jnp.where(others, d - low, 0), jnp.where(others, high - d, 0))
  a = jnp.where(others, a, 0)
  b = b + _eps(lo) * a * jnp.abs(d)  # At the exact c_j - c_i instead of d.
  total = jnp.sum(b, axis=-1)
  value = jnp.exp(-m[..., 0]) / total
  share = a / total[..., None]
  own = jnp.sum(share, axis=-1, keepdims=True) * box.one
  return _Tangent(value, box.ulps * value, value[..., None] * (own - share),
                  jnp.full_like(share, box.ulps), value[..., None] * (own + share))


def _above(box):
  """The chord of exp on the range of y_i, at the tangent of y_i."""
  low, high = _log_range(box.lo, box.hi)
  p_low, p_high = jnp.exp(low), jnp.exp(high)
  a = p_high * _chord_factor(high - low)
  eps = _eps(low)
  # Both ends of exp(y) - a * y.
  base = jnp.maximum(*(p - a * y + eps * 8 * p
                       for p, y in ((p_low, low), (p_high, high))))
  base = base + 16 * eps * a * jnp.abs(low)
  y = box.log_share(*box.sum_below())
  slack = (a * y.slack + 4 * eps * (jnp.abs(base) + a * jnp.abs(y.value))
           + 8 * out.tiny(low))
  a_k = a[..., None]
  return _Tangent(base + a * y.value, slack, a_k * y.slope, y.relative + 4 * eps,
                  a_k * y.size)


def _chords(low, high, left, right):
  """Chords a * (x - c) + b >= exp(x) on [low, high], by slope and height at c.

  Args:
    low, high: ends, as computed: off by eps / 2 of their size.
    left: c - low, off by eps.
    right: high - c, off by eps.
  """
  at_low, at_high = jnp.exp(low), jnp.exp(high)
  eps = _eps(low)
  a = at_high * _chord_factor(left + right)
  up = lambda e: 12 + jnp.abs(e)
  b = jnp.maximum(
      at_low + a * left + eps * (up(low) * at_low + 12 * a * left),
      at_high - a * right + eps * (up(high) * at_high + 12 * a * right))
  return a, b + 8 * out.tiny(low)


def _chord_factor(width):
  """(1 - exp(-w)) / w: the slope of the chord of exp over that at its upper end."""
  small = width < 0.03
  w = jnp.where(small, 1, width)
  v, series = jnp.where(small, width, 0), 1
  for k in range(9, 1, -1):  # To all digits of float64.
    series = 1 - v / k * series
  return jnp.where(small, series, -jnp.expm1(-w) / w)


def _differences(lo, hi):
  """x_j - x_i [..., i, j] where p_i is least, and where it is greatest."""
  same = jnp.eye(lo.shape[-1], dtype=bool)
  most = jnp.where(same, 0, hi[..., None, :] - lo[..., None])
  least = jnp.where(same, 0, lo[..., None, :] - hi[..., None])
  return (most + _eps(lo) * jnp.abs(most), least - _eps(lo) * jnp.abs(least))


def _share(d):
  """1 / sum_j exp(d_j)."""
  m = lax.stop_gradient(jnp.max(d, axis=-1, keepdims=True))
  return jnp.exp(-m[..., 0]) / jnp.sum(jnp.exp(d - m), axis=-1)


def _log_range(lo, hi):
  (most, slack_most), (least, slack_least) = map(_logsumexp, _differences(lo, hi))
  return -(most + slack_most), jnp.minimum(-least + slack_least, 0)


def _logsumexp(x):
  """(value, slack) along the last axis."""
  top = lax.stop_gradient(jnp.max(x, axis=-1))
  log, slack = _log_of_sum(x, top)
  return top + log, slack + 2 * _eps(x) * (jnp.abs(top) + log)


def _log_of_sum(x, top):
  """(value, slack) of LSE(x) - max x.

  The rounding of e = x - max x loses at most |e| * eps / 2 of each term, and the mean
  of |e|, weighted by exp(e), is at most log K.
  """
  log = jnp.log(jnp.sum(jnp.exp(x - top[..., None]), axis=-1))
  return log, _eps(x) * (_ULPS + 2 * x.shape[-1] + 2 * log)


def _boxes(lo, hi, axis):
  """Ends with the axis last, and where all along it are finite (others become 0)."""
  lo, hi = jnp.moveaxis(lo, axis, -1), jnp.moveaxis(hi, axis, -1)
  most = float(jnp.finfo(lo.dtype).max) / 16  # Differences must not overflow.
  known = jnp.all((lo >= -most) & (hi <= most), axis=-1, keepdims=True)
  return jnp.where(known, lo, 0), jnp.where(known, hi, 0), known


def _back(*arrays, axis):
  return tuple(jnp.moveaxis(x, -1, axis) for x in arrays)


def _finished(lines, known, least, most, axis):
  s_low, b_low, s_high, b_high = lines
  axis = axis % (s_low.ndim - 1)
  slopes = [jnp.moveaxis(jnp.where(known[..., None], s, 0), -2, axis)
            for s in (s_low, s_high)]
  low, high = _back(jnp.where(known, b_low, least), jnp.where(known, b_high, most),
                    axis=axis)
  return MatrixLines(slopes[0], low, slopes[1], high)
