"""Linear bounds: the backward walk of CROWN (Zhang et al. 2018, arXiv:1811.00866).

A row holds the coefficients of a linear function of some values of the graph. The
walk replaces, from the last equation to the first, each value by what it is made of:
through a linear equation by its transpose, through a nonlinear one by the line below
where the coefficient is positive and the line above where it is negative. What is
left is a function of the input alone that is a lower bound. Upper bounds are lower
bounds of the negated row.

Rounding never shows up in the walk itself: every line and every constant is an
interval that was widened in advance by what the walk may lose there (`Facts`). What
underflow costs does not shrink with the coefficients: a product that became zero may
have been anything below `tiny`, on an operand as large as its bounds. That is one
number for each equation (`loss`), taken off once for each row that passes.

Operands with infinite bounds are not in it. A linear equation that reads one has an
infinite offset wherever its result is used, and lines are flat there, so no product
with a coefficient on an infinite operand is ever rounded.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import interval, relaxations, rounding
from rkd_jax.bounds.graph import Graph, Node

Rows = dict[int, jax.Array]  # Value number -> coefficients [R, *its shape].


class Facts(NamedTuple):
  """What the walk needs to know, for one example; arrays have the values' shapes.

  Attributes:
    offsets: value -> (lower, upper). For a linear value, the constant part of its
      affine function; for a nonlinear one, those of its lines. Values that are
      missing have none.
    slopes: nonlinear value -> its lines, see `relaxations`.
    losses: value -> what underflow may cost a row that passes its equation, [].
  """

  offsets: dict[int, tuple[jax.Array, jax.Array]]
  slopes: dict[int, Any]
  losses: dict[int, jax.Array]


NOTHING = Facts({}, {}, {})  # For walks along linear equations, of which no sum is kept.


def facts_of(node: Node, graph: Graph, bounds: dict, facts: Facts,
             choice=None) -> tuple[Any, Any]:
  """(offsets, slopes) of one node from the bounds of its operands; None if it has none.

  Args:
    node: of `graph`.
    graph: the function.
    bounds: value -> (lower, upper), one example.
    facts: of the nodes before.
    choice: free parameters of the lines, see `relaxations`; None is the default.
  """
  operands = [bounds[i] for i in node.operands]
  if node.linear:
    return _constant(node, graph, operands, facts), None
  slopes, (low, high) = relaxations.rule(node).lines(*operands, choice=choice)
  shared = max(graph.uses[i] for i in node.operands)
  slack = slopes.rounding([interval.magnitude(*b) for b in operands],
                          rounding.gamma(shared, graph.dtype))
  slack = slack + rounding.tiny(shared, graph.dtype)
  return _widened(node, graph, low - slack, high + slack), slopes


def _constant(node, graph, operands, facts):
  """Constant part of a linear value, with what its operands hand over."""
  handed = [facts.offsets.get(i) if i in graph.merged else None
            for i in node.operands]
  if interval.exact_move(node, graph) and all(h is None for h in handed):
    return None
  zeros = [jnp.zeros(graph.shapes[i], graph.dtype) for i in node.operands]
  middle = [z if h is None else (h[0] + h[1]) / 2 for z, h in zip(zeros, handed)]
  radius = [z if h is None else jnp.maximum(h[1] - m, m - h[0])
            for z, h, m in zip(zeros, handed, middle)]
  # The transpose acts on rows whose operands are so large; this constant is one.
  largest = [interval.magnitude(*b) + jnp.abs(m) + r
             for b, m, r in zip(operands, middle, radius)]
  slack = (interval.absolute(node, *radius)
           + interval.rounded(node, graph, largest))
  value = node(*middle)
  return _widened(node, graph, value - slack, value + slack)


def _widened(node, graph, low, high):
  """For the rounding of <row, offset> and of the sum of all such terms."""
  terms = low.size + len(graph.nodes)
  slack = (rounding.gamma(terms, graph.dtype) * interval.magnitude(low, high)
           + rounding.tiny(0, graph.dtype))
  return low - slack, high + slack


def loss(node: Node, graph: Graph, bounds: list) -> jax.Array | None:
  """What underflow may cost any row that passes a node, []; None for exact moves.

  Args:
    node: of `graph`.
    graph: the function.
    bounds: (lower, upper) of each bounded operand, one example.
  """
  if node.linear and interval.exact_move(node, graph):
    return None
  sizes = [jnp.sum(interval.finite(interval.magnitude(*b))) for b in bounds]
  terms = interval.terms(node, graph) + max(graph.uses[i] for i in node.operands)
  return lax.stop_gradient(
      rounding.tiny(terms, graph.dtype) * (sum(sizes) + math.prod(node.shape)))


def transpose(node: Node, graph: Graph, rows: jax.Array) -> list[jax.Array]:
  """Rows on the result of a linear node, as rows on each of its operands."""
  shapes = [jax.ShapeDtypeStruct(graph.shapes[i], graph.dtype)
            for i in node.operands]
  return jax.vmap(jax.linear_transpose(node.homogeneous(), *shapes))(rows)


def emit(rows: jax.Array, offsets) -> jax.Array:
  """Lower bound of <row, c> for a constant c in the interval `offsets`: [R]."""
  low, high = offsets
  # A vacuous line has an infinite offset, which a zero coefficient takes away. One that
  # is neither positive nor negative is zero, or NaN and has to stay that.
  terms = jnp.where(rows > 0, rows * low,
                    jnp.where(rows < 0, rows * high, lax.stop_gradient(rows)))
  return jnp.sum(terms.reshape(len(rows), -1), axis=1)


def backward(graph: Graph, start: Rows, facts: Facts, *,
             stop: frozenset[int] = frozenset(),
             extra: Rows | None = None) -> tuple[Rows, jax.Array]:
  """Walks rows back to the input, or to the values in `stop`; for one example.

  Args:
    graph: the function.
    start: rows on some values; what is bounded is the sum over all of them.
    facts: of every node before.
    stop: values that are not replaced.
    extra: rows to be added when the walk reaches a value (the multipliers of
      split neurons).

  Returns:
    (rows on the values where the walk stopped, constants [R]).
  """
  rows, done = dict(start), set()
  total = jnp.zeros(len(next(iter(start.values()))), graph.dtype)
  for node in reversed(graph.nodes):
    if node.out not in rows or node.out in stop:
      continue
    here = rows.pop(node.out)
    if node.out in facts.losses:
      total = total - facts.losses[node.out]
    if extra and node.out in extra:
      here = here + extra[node.out]
    if node.out not in done and node.out in facts.offsets:
      total = total + emit(here, facts.offsets[node.out])
    if node.linear:
      pulled = transpose(node, graph, here)
      done.update(i for i in node.operands if i in graph.merged)
    else:
      pulled = facts.slopes[node.out].pull(here)
    for i, part in zip(node.operands, pulled):
      rows[i] = rows[i] + part if i in rows else part
  return rows, total
