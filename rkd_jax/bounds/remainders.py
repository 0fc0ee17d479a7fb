"""Remainders by a constant: a saw that is x - k c between its jumps.

`modulo` has the sign of the divisor c (Python's %), `remainder` that of x (C's fmod).
With a = |c|, both come from m(x) = x - a floor(x / a): modulo(x, c) is m(x) for c > 0 and
-m(-x) for c < 0; remainder(x, c) is m(x) for x >= 0 and -m(-x) for x <= 0. If
floor(x / a) is k at both ends of an interval it is k inside, and m is the line x - k a;
else m is in [0, a].
"""

import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import outward as out
from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, concrete, is_uniform

_MOST_CELLS = 2.0**20  # Beyond, k a is too inexact to be of use.


def _saw(a, folds):
  """(lo, hi) -> (whether k is one number, k a, error of x - k a) of m."""
  def cell(lo, hi):
    # The quotient errs by eps, the divisor by what it took to compute it.
    size = jnp.maximum(jnp.abs(lo), jnp.abs(hi)) / a
    slack = (8 + folds) * out.eps(lo) * size + out.underflow(lo)
    first, last = jnp.floor(lo / a - slack), jnp.floor(hi / a + slack)
    one = (first == last) & (jnp.abs(first) < _MOST_CELLS)
    base = jnp.where(one, first, 0) * a
    error = (4 + folds) * out.eps(lo) * (
        jnp.maximum(jnp.abs(lo), jnp.abs(hi)) + 2 * jnp.abs(base)) + out.underflow(lo)
    return one, base, jnp.where((base == 0), 0, error)
  return cell


def _above_zero(a, folds) -> out.Elementwise:
  cell = _saw(a, folds)
  largest = lambda lo: jnp.broadcast_to(a * (1 + folds * out.eps(lo)), lo.shape)

  def interval(lo, hi):
    one, base, error = cell(lo, hi)
    lower = jnp.where(one, jnp.maximum(lo - base - error, 0), 0)
    upper = jnp.where(one, jnp.minimum(hi - base + error, largest(lo)), largest(lo))
    return lower, upper

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    del choice_lower, choice_upper
    lo, hi = out.settle(lo, hi)
    one, base, error = cell(lo, hi)
    slope = one.astype(lo.dtype)
    return out.Lines(slope, jnp.where(one, -base - error, 0), slope,
                     jnp.where(one, -base + error, largest(lo)))
  return out.Elementwise(interval, lines)


def _turned(rule, turn) -> out.Elementwise:
  """f(x), and -f(-x) where turn(lo, hi)."""
  def ends(lo, hi):
    turned = turn(lo, hi)
    return turned, jnp.where(turned, -hi, lo), jnp.where(turned, -lo, hi)

  def interval(lo, hi):
    turned, a, b = ends(lo, hi)
    lower, upper = rule.interval(a, b)
    return jnp.where(turned, -upper, lower), jnp.where(turned, -lower, upper)

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    turned, a, b = ends(lo, hi)
    found = rule.lines(a, b, choice_lower, choice_upper)
    back = (found[2], -found[3], found[0], -found[1])
    return out.Lines(*(jnp.where(turned, y, x) for x, y in zip(found, back)))
  return out.Elementwise(interval, lines)


def modulo(divisor, folds: int = 0) -> out.Elementwise:
  """x % c, in [0, c) or (c, 0]; c is not 0 and broadcastable to x.

  Args:
    divisor: c.
    folds: rounded operations behind c.
  """
  return _turned(_above_zero(jnp.abs(divisor), folds),
                 lambda lo, hi: jnp.broadcast_to(divisor < 0, lo.shape))


def remainder(divisor, folds: int = 0) -> out.Elementwise:
  """fmod(x, c): as `modulo`, with the sign of x. Across 0 it is x while |x| < |c|."""
  a = jnp.abs(divisor)
  one_sided = _turned(_above_zero(a, folds), lambda lo, hi: hi <= 0)

  def sides(lo, hi):
    across = (lo < 0) & (hi > 0)
    near = a * (1 - (1 + folds) * out.eps(lo))
    far = jnp.broadcast_to(a * (1 + folds * out.eps(lo)), lo.shape)
    return across, across & (lo > -near) & (hi < near), far

  def interval(lo, hi):
    across, _, far = sides(lo, hi)
    lower, upper = one_sided.interval(jnp.where(across, 0, lo), jnp.where(across, 0, hi))
    return (jnp.where(across, jnp.maximum(lo, -far), lower),
            jnp.where(across, jnp.minimum(hi, far), upper))

  def lines(lo, hi, choice_lower=None, choice_upper=None):
    across, identity, _ = sides(lo, hi)
    found = one_sided.lines(jnp.where(across, 0, lo), jnp.where(across, 0, hi),
                            choice_lower, choice_upper)
    slope = identity.astype(lo.dtype)
    lower, upper = interval(lo, hi)
    whole = (slope, jnp.where(identity, 0, lower), slope, jnp.where(identity, 0, upper))
    return out.Lines(*(jnp.where(across, w, f) for w, f in zip(whole, found)))
  return out.Elementwise(interval, lines)


def modulo_of_remainder(rw: Rewriter, node: Node) -> Ref | None:
  """What `jnp.mod` is: r + c where r = rem(x, c) is not 0 and of the other sign, else r.
  """
  if len(node.inputs) != 3:
    return None
  test, if_false, if_true = node.inputs
  r, total, both = rw.node(if_false, 'rem'), rw.node(if_true, 'add'), rw.node(test, 'and')
  if not r or not total or not both or not isinstance(r.inputs[0], Ref):
    return None
  divisor = r.inputs[1]
  if isinstance(divisor, Ref) or total.inputs[0] != if_false or not rw.same(
      total.inputs[1], divisor):
    return None
  for signs, other in (both.inputs, both.inputs[::-1]):
    nonzero, signs = rw.node(other, 'ne'), rw.node(signs, 'ne')
    below = signs and rw.node(signs.inputs[0], 'lt')
    if (nonzero and below and nonzero.inputs[0] == below.inputs[0] == if_false
        and is_uniform(nonzero.inputs[1], 0) and is_uniform(below.inputs[1], 0)
        and _is_sign(signs.inputs[1], divisor)):
      return rw.emit('modulo', jnp.mod, r.inputs[0], divisor, params={'folds': r.folds},
                     like=r)
  return None


def _is_sign(value, divisor):
  value, divisor = concrete(value), concrete(divisor)
  return (value is not None and divisor is not None and bool(np.all(divisor != 0))
          and bool(np.all(value == (divisor < 0))))
