"""Functions of several bounded values: product, max, min, and max over axes.

All are such that f(x, y) - s * x - t * y is greatest (for products also least) at a
corner of the box, for any s and t: the product is linear in each operand, the
maximum convex. So slopes are free and offsets come from the corners.
"""

import math

import jax.numpy as jnp

from rkd_jax.bounds import outward as out


def _corner_residuals(value, ulps, slopes, corners):
  """(value, slack) of f - s * x - t * y, stacked over `corners`."""
  values, slacks = [], []
  for x, y in corners:
    f = value(x, y)
    first, second = slopes[0] * x, slopes[1] * y
    values.append(f - first - second)
    # Two products and two differences: 2 eps of each term, and the sum with slack.
    slacks.append(out.eps(x) * ((ulps + 3) * jnp.abs(f) + 3 * jnp.abs(first)
                               + 3 * jnp.abs(second)) + out.underflow(x))
  return jnp.stack(values), jnp.stack(slacks)


def _finish(interval, lower, upper):
  """BinaryLines from two (slopes, offset); the constant bound where not finite."""
  offsets = out.settle(lower[1], upper[1])
  lower, upper = (lower[0], offsets[0]), (upper[0], offsets[1])

  def one(bound, slopes, offset):
    usable = jnp.isfinite(slopes[0]) & jnp.isfinite(slopes[1]) & jnp.isfinite(offset)
    return (tuple(jnp.where(usable, s, 0) for s in slopes),
            jnp.where(usable, offset, bound))
  return out.BinaryLines(*one(interval[0], *lower), *one(interval[1], *upper))


def _corners(lx, ux, ly, uy):
  return (lx, ly), (lx, uy), (ux, ly), (ux, uy)


def _product_interval(lx, ux, ly, uy):
  ends = [out.widen(x, x * y, 1) for x, y in _corners(lx, ux, ly, uy)]
  return (jnp.min(jnp.stack([e[0] for e in ends]), axis=0),
          jnp.max(jnp.stack([e[1] for e in ends]), axis=0))


def _product_lines(lx, ux, ly, uy, choice_lower=None, choice_upper=None):
  """McCormick's planes; a choice goes from the first of a side to the second.

  Below: ly * x + lx * y - lx * ly (0) and uy * x + ux * y - ux * uy (1). Above:
  uy * x + lx * y - lx * uy (0) and ly * x + ux * y - ux * ly (1). All between have the
  same mean height; None is the middle, with the slopes of the tangent plane.
  """
  lx, ux, ly, uy = out.settle(lx, ux, ly, uy)
  corners = _corners(lx, ux, ly, uy)

  def between(a, b, choice):
    c = jnp.asarray(0.5 if choice is None else choice, a.dtype)
    return (1 - c) * a + c * b

  lower = tuple(map(out.flush, (between(ly, uy, choice_lower),
                               between(lx, ux, choice_lower))))
  g, slack = _corner_residuals(jnp.multiply, 1, lower, corners)
  below = jnp.min(g - slack, axis=0)
  upper = tuple(map(out.flush, (between(uy, ly, choice_upper),
                               between(lx, ux, choice_upper))))
  g, slack = _corner_residuals(jnp.multiply, 1, upper, corners)
  above = jnp.max(g + slack, axis=0)
  return _finish(_product_interval(lx, ux, ly, uy), (lower, below), (upper, above))


def _max_interval(lx, ux, ly, uy):
  return jnp.maximum(lx, ly), jnp.maximum(ux, uy)


def _max_lines(lx, ux, ly, uy, choice_lower=None, choice_upper=None):
  """Below: c * x + (1 - c) * y with the choice c, None: the one of greater middle.

  Above: y + the chord of relu(x - y). Exact where one operand dominates.
  """
  del choice_upper
  lx, ux, ly, uy = out.settle(lx, ux, ly, uy)
  x_wins, y_wins = lx >= uy, ly >= ux
  one_wins = x_wins | y_wins
  if choice_lower is None:
    share = jnp.where(out.middle(lx, ux) >= out.middle(ly, uy), 1.0, 0.0).astype(lx.dtype)
  else:
    share = jnp.broadcast_to(jnp.asarray(choice_lower, lx.dtype), lx.shape)
  share = out.flush(jnp.where(x_wins, 1, jnp.where(y_wins, 0, share)))
  lower = (share, out.flush(1 - share))
  # Exact unless mixed: max(x, y) >= s * x + (1 - s) * y, but 1 - s rounds.
  size = jnp.maximum(jnp.maximum(jnp.abs(lx), jnp.abs(ux)),
                     jnp.maximum(jnp.abs(ly), jnp.abs(uy)))
  mixed = (share > 0) & (share < 1)
  below = jnp.where(mixed, -2 * out.eps(lx) * size - out.underflow(lx), 0)

  rise, fall = ux - ly, uy - lx
  wide = ~one_wins & (rise + fall > out.least_width(lx))
  s = out.ratio(jnp.where(wide, rise, 0.5), jnp.where(wide, rise + fall, 1))
  s = out.flush(jnp.where(x_wins, 1, jnp.where(y_wins, 0, s)))
  upper = (s, out.flush(1 - s))
  g, slack = _corner_residuals(jnp.maximum, 0, upper, _corners(lx, ux, ly, uy))
  above = jnp.where(one_wins, 0, jnp.max(g + slack, axis=0))
  return _finish(_max_interval(lx, ux, ly, uy), (lower, below), (upper, above))


def _min_interval(lx, ux, ly, uy):
  return jnp.minimum(lx, ly), jnp.minimum(ux, uy)


def _min_lines(lx, ux, ly, uy, choice_lower=None, choice_upper=None):
  """-max(-x, -y)."""
  found = _max_lines(-ux, -lx, -uy, -ly, choice_upper, choice_lower)
  # -x has slope s in the lines of -f, so x has slope s in those of f.
  return out.BinaryLines(found.upper_slopes, -found.upper_offset,
                        found.lower_slopes, -found.lower_offset)


def reduce_max_lines(lo, hi, axes) -> out.Lines:
  """Lines of the maximum over `axes`: sum of slope * x over them, plus offset.

  Below: the entry of greatest middle. Above, with i the entry of greatest hi and M the
  greatest hi of the others: max(x) <= max(x_i, M), a convex function of x_i, hence
  below its chord on [l_i, u_i]. That is nowhere above the constant max hi, it is x_i
  itself where l_i >= M, and no sum of s_k * (x_k - l_k) with s in [0, 1] has less
  area: over the box max(x) - sum s_k * (x_k - l_k) has the supremum v = max_k (u_k -
  s_k * w_k), w = hi - lo, so the mean height is v + sum s_k * w_k / 2 >= v + sum
  relu(u_k - v) / 2, which falls in v until v reaches M (or max lo, where s = 1).

  Args:
    lo: float[...].
    hi: float[...], of the same shape.
    axes: the axes reduced, a tuple of ints.

  Returns:
    Lines with slopes of the shape of lo and offsets of the reduced shape.
  """
  axes = tuple(axis % lo.ndim for axis in axes)
  if not axes or 0 in (lo.shape[axis] for axis in axes):
    return _reduce_nothing(lo, hi, axes)
  kept = [axis for axis in range(lo.ndim) if axis not in axes]
  order = kept + list(axes)
  reduced = tuple(lo.shape[axis] for axis in kept)
  entries = math.prod(lo.shape[axis] for axis in axes)
  moved = tuple(lo.shape[axis] for axis in order)

  def last(x):
    return jnp.transpose(x, order).reshape(*reduced, entries)

  def back(x):
    return jnp.transpose(x.reshape(moved), [order.index(i) for i in range(len(order))])

  lo, hi = out.settle(last(lo), last(hi))
  lower, chosen = out.settle(
      _one_hot(jnp.argmax(out.middle(lo, hi), axis=-1), lo),
      _one_hot(jnp.argmax(hi, axis=-1), hi))
  l_i, u_i = jnp.sum(chosen * lo, axis=-1), jnp.max(hi, axis=-1)
  others = jnp.max(jnp.where(chosen > 0, -jnp.inf, hi), axis=-1)
  exact = l_i >= others
  others = jnp.where(exact, l_i, others)
  wide = ~exact & (u_i - l_i > out.least_width(l_i))
  s = out.ratio(jnp.where(wide, u_i - others, 0), jnp.where(wide, u_i - l_i, 1))
  s = out.flush(jnp.where(exact, 1, s))
  g_l, slack_l = out.residual(others, 0, s, l_i)
  g_u, slack_u = out.residual(u_i, 0, s, u_i)
  above, = out.settle(jnp.where(exact, 0, jnp.maximum(g_l + slack_l, g_u + slack_u)))
  usable = jnp.isfinite(above) & jnp.isfinite(s)
  above = jnp.where(usable, above, u_i)
  s = jnp.where(usable, s, 0)
  zero = jnp.zeros(reduced, lo.dtype)
  return out.Lines(back(lower), zero, back(chosen * s[..., None]), above)


def _reduce_nothing(lo, hi, axes):
  """No axes: the identity. An empty window has the maximum -inf."""
  del hi
  shape = tuple(n for axis, n in enumerate(lo.shape) if axis not in axes)
  offset = jnp.full(shape, -jnp.inf if axes else 0, lo.dtype)
  slope = jnp.ones_like(lo)
  return out.Lines(slope, offset, slope, offset)


def _one_hot(index, like):
  return (jnp.arange(like.shape[-1]) == index[..., None]).astype(like.dtype)


def reduce_min_lines(lo, hi, axes) -> out.Lines:
  """Lines of the minimum over `axes`, as `reduce_max_lines`."""
  found = reduce_max_lines(-hi, -lo, axes)
  return out.Lines(found.upper_slope, -found.upper_offset,
                  found.lower_slope, -found.lower_offset)


RULES = {
    'mul': out.Binary(_product_interval, _product_lines),
    'max': out.Binary(_max_interval, _max_lines),
    'min': out.Binary(_min_interval, _min_lines),
}
