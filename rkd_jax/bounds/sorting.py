"""Sorted values: bounds and lines of the k-th smallest of several numbers.

It rises with each of them, so its bounds are the k-th smallest lower bound and the k-th
smallest upper bound. Above, it is at most the greatest of any k entries, for which the
k with the smallest upper bounds are taken: with i the last of these and M the greatest
upper bound of the others, max(x_i, M) is convex in x_i and lies under its chord on
[l_i, u_i], and is x_i itself where l_i >= M. Below, the mirror image. So where the order
is decided the lines are the values themselves.
"""

import jax
import jax.numpy as jnp

from rkd_jax.bounds import outward as out
from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter


def sort_interval(lo: jax.Array, hi: jax.Array, axis: int):
  """(lower, upper) of the values sorted along one axis."""
  return jnp.sort(lo, axis=axis), jnp.sort(hi, axis=axis)


def sort_lines(lo: jax.Array, hi: jax.Array, axis: int):
  """(lower slopes, lower offset, upper slopes, upper offset) of the sorted values.

  Args:
    lo, hi: float[...].
    axis: along which they are sorted.

  Returns:
    Offsets of the shape of lo, slopes of that shape and an axis for the operand's.
  """
  lo, hi = out.settle(jnp.moveaxis(lo, axis, -1), jnp.moveaxis(hi, axis, -1))
  above, most = _above(lo, hi)
  below, least = _above(-hi, -lo)
  below, least = jnp.flip(below, axis=-2), -jnp.flip(least, axis=-1)
  slopes = lambda s: jnp.moveaxis(s, -2, axis)
  values = lambda v: jnp.moveaxis(v, -1, axis)
  return slopes(below), values(least), slopes(above), values(most)


def _above(lo, hi):
  """(slopes [..., k, operand], offsets [..., k]) of lines above, along the last axis."""
  order = jnp.argsort(hi, axis=-1)
  low, high = (jnp.take_along_axis(x, order, axis=-1) for x in (lo, hi))
  others = jnp.concatenate([jnp.full_like(high[..., :1], -jnp.inf), high[..., :-1]], -1)
  exact = low >= others
  others = jnp.where(exact, low, others)
  wide = ~exact & (high - low > out.least_width(low))
  s = out.ratio(jnp.where(wide, high - others, 0), jnp.where(wide, high - low, 1))
  s = out.flush(jnp.where(exact, 1, s))
  g_l, slack_l = out.residual(others, 0, s, low)
  g_u, slack_u = out.residual(high, 0, s, high)
  offset, = out.settle(jnp.where(exact, 0, jnp.maximum(g_l + slack_l, g_u + slack_u)))
  usable = jnp.isfinite(offset) & jnp.isfinite(s)
  s = jnp.where(usable, s, 0)
  one_hot = jax.nn.one_hot(order, lo.shape[-1], dtype=lo.dtype)
  return s[..., None] * one_hot, jnp.where(usable, offset, high)


def sort(rw: Rewriter, node: Node) -> Ref | None:
  """The first result of a sort, whatever is sorted along with it."""
  value = node.inputs[0]
  if node.params['result'] or not isinstance(value, Ref):
    return None
  return _sorted(rw, value, node.params['dimension'], node)


def top_k(rw: Rewriter, node: Node) -> Ref | None:
  """The k greatest values, falling."""
  value = node.inputs[0]
  shape = rw.shape(value)
  axis = node.params.get('axis', len(shape) - 1) % len(shape)
  if node.params['result']:
    return None
  found = _sorted(rw, value, axis, node)
  first = shape[axis] - node.params['k']
  return rw.emit(
      'gather', lambda x: jnp.flip(jax.lax.slice_in_dim(x, first, None, axis=axis), axis),
      found, linear=True, like=node)


def _sorted(rw, value, axis, like):
  return rw.emit('sorted', lambda x: jnp.sort(x, axis=axis), value,
                 params={'axes': (axis,)}, like=like)
