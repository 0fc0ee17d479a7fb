"""Forward linear bounds: for functions of few inputs, or with many outputs.

Every value is kept between two linear functions of the input. It needs the memory of
two evaluations for each entry of the input, and no walk back; on deep networks it is
looser than `crown`, whose lines are chosen by the sign of the final coefficient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rkd_jax.bounds import interval, relaxations, rounding
from rkd_jax.bounds.crown import Bounds, Spec, ibp, output_rows, tighter, two_sided
from rkd_jax.bounds.graph import Graph, Node
from rkd_jax.bounds.pytrees import any_shape
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.sets import InputSet


class Between(NamedTuple):
  """Two linear functions of the input x [n], flattened, around a value.

  Attributes:
    low, high: coefficients [n, *shape].
    least, most: constants [*shape].
  """

  low: jax.Array
  high: jax.Array
  least: jax.Array
  most: jax.Array


@any_shape
def forward(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
            spec: Spec | None = None, *, upper: bool = True) -> Bounds:
  """Linear bounds carried from the input to the output.

  Zhang et al. 2018 (arXiv:1811.00866) in forward mode, as in Xu et al. 2020
  (arXiv:2002.12920). Arguments, result and errors as in `crown.ibp`; no looser than
  that.
  """
  graph = read(fn, ball)
  rows = output_rows(graph, spec, upper)[..., 0, :]
  found = jax.vmap(lambda ball, rows: _one(graph, ball, rows),
                   in_axes=(0, None if spec is None else 0))(ball, rows)
  found = two_sided(found, spec, upper)
  return tighter(ibp(fn, ball, spec, upper=upper), found)


def _one(graph: Graph, ball: InputSet, rows: jax.Array) -> jax.Array:
  """Lower bounds of rows [R, K] on the output, of one example: [R]."""
  low, high = (edge[None] for edge in ball.hull())
  n = low.size
  eye = jnp.eye(n, dtype=graph.dtype).reshape(n, *low.shape)
  zero = jnp.zeros_like(low)
  between, bounds = {0: Between(eye, eye, zero, zero)}, {0: (low, high)}
  largest = interval.magnitude(low, high).reshape(n)
  for node in graph.nodes:
    operands = [bounds[i] for i in node.operands]
    functions = [between[i] for i in node.operands]
    sizes = [_size(f, largest, graph) for f in functions]
    if node.linear:
      found = _through_linear(node, graph, functions, sizes)
    else:
      found = _through_lines(node, graph, functions, operands, sizes)
    plain = interval.interval(node, graph, operands)
    found = _finite(_rounded(found, node, graph, largest), *plain)
    concrete = _concrete(found, ball)
    between[node.out] = found
    bounds[node.out] = (jnp.maximum(plain[0], concrete[0]),
                        jnp.minimum(plain[1], concrete[1]))
  return _output(between[graph.output], rows, ball, largest, graph)


def _size(f: Between, largest, graph):
  """Sum of the absolute values of a function's terms, at most: [*shape]."""
  terms = jnp.tensordot(largest, jnp.maximum(jnp.abs(f.low), jnp.abs(f.high)), 1,
                        precision=jax.lax.Precision.HIGHEST)
  more = 1 + rounding.gamma(len(largest), graph.dtype)
  return (terms + interval.magnitude(f.least, f.most)) * more


def _rounded(f: Between, node: Node, graph: Graph, largest) -> Between:
  """Moved outwards by what underflow may cost each coefficient, and the constant."""
  count = interval.terms(node, graph)
  slack = rounding.tiny(count, graph.dtype) * (1 + jnp.sum(interval.finite(largest)))
  return f._replace(least=f.least - slack, most=f.most + slack)


def _finite(f: Between, low, high) -> Between:
  """Constant functions where a coefficient or a constant overflowed."""
  usable = (jnp.isfinite(f.least) & jnp.isfinite(f.most)
            & jnp.all(jnp.isfinite(f.low) & jnp.isfinite(f.high), axis=0))
  return Between(jnp.where(usable, f.low, 0), jnp.where(usable, f.high, 0),
                 jnp.where(usable, f.least, low), jnp.where(usable, f.most, high))


def _through_linear(node: Node, graph: Graph, functions, sizes) -> Between:
  """By centre and radius: v in m -+ r gives L v in L m -+ |L| r."""
  zeroed = node.homogeneous()
  half = [(f.low + f.high) / 2 for f in functions]
  spread = [(f.high - f.low) / 2 for f in functions]
  middle = node(*((f.least + f.most) / 2 for f in functions))
  radius = interval.absolute(node, *((f.most - f.least) / 2 for f in functions))
  half = jax.vmap(zeroed)(*half)
  spread = jax.vmap(lambda *s: interval.absolute(node, *s))(*spread)
  # Forming m and r from the two costs three more roundings of either.
  slack = 2 * interval.rounded(node, graph, sizes)
  return Between(half - spread, half + spread, middle - radius - slack,
                 middle + radius + slack)


def _through_lines(node: Node, graph: Graph, functions, operands, sizes) -> Between:
  slopes, (least, most) = relaxations.rule(node).lines(*operands)
  low, high = slopes.push([(f.low, f.high) for f in functions])
  c_low, c_high = slopes.push([(f.least[None], f.most[None]) for f in functions])
  slack = slopes.rounding(sizes, rounding.gamma(2 * len(functions), graph.dtype))
  slack = slack + rounding.gamma(2, graph.dtype) * interval.magnitude(least, most)
  return Between(low, high, c_low[0] + least - slack, c_high[0] + most + slack)


def _concrete(f: Between, ball: InputSet):
  """(lower, upper) of a value over the set: [*shape] each."""
  rows = lambda c: jnp.moveaxis(c.reshape(len(c), -1), 0, 1).reshape(-1, *ball.shape)
  low = ball.minimum(rows(f.low)).reshape(f.least.shape) + f.least
  high = -ball.minimum(-rows(f.high)).reshape(f.most.shape) + f.most
  slack, least = 2 * rounding.unit_roundoff(low.dtype), rounding.tiny(0, low.dtype)
  return relaxations.known(
      low - slack * (jnp.abs(low) + jnp.abs(f.least)) - least,
      high + slack * (jnp.abs(high) + jnp.abs(f.most)) + least)


def _output(f: Between, rows, ball: InputSet, largest, graph: Graph):
  """Lower bounds of rows [R, K] of the output, whose linear functions are `f`."""
  positive, negative = jnp.maximum(rows, 0), jnp.minimum(rows, 0)
  product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  low, high = (c.reshape(len(c), -1).T for c in (f.low, f.high))  # [K, n]
  found = product(positive, low) + product(negative, high)
  constant = (product(positive, f.least.reshape(-1))
              + product(negative, f.most.reshape(-1)))
  slack = rounding.gamma(2 * rows.shape[1] + 4, graph.dtype) * product(
      jnp.abs(rows), _size(f, largest, graph).reshape(-1))
  slack = slack + rounding.tiny(2 * rows.shape[1], graph.dtype) * (
      1 + jnp.sum(interval.finite(largest)))
  return ball.minimum(found.reshape(-1, *ball.shape)) + constant - slack
