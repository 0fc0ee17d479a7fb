"""Interval bound propagation: a rule for every equation (Gowal et al. 2018)."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import relaxations, rounding
from rkd_jax.bounds.graph import COEFFICIENTS, MOVES, SUMS, Graph, Node, Ref, is_float


def interval(node: Node, graph: Graph, bounds: list) -> tuple[jax.Array, jax.Array]:
  """Lower and upper bound of a node, for one example.

  Args:
    node: an equation of `graph`.
    graph: gives the shapes.
    bounds: (lower, upper) of each bounded operand, as `node.operands`.

  Returns:
    (lower, upper), rounded outwards.

  Raises:
    UnsupportedPrimitiveError: no rule.
  """
  low, high = (_linear(node, graph, bounds) if node.linear
               else relaxations.rule(node).interval(*bounds))
  return relaxations.known(low, high)


def _linear(node, graph, bounds):
  lows, highs = [b[0] for b in bounds], [b[1] for b in bounds]
  if node.name in MOVES:
    ends = node(*lows), node(*highs)
    return rounding.normal(*ends) if any(map(is_float, node.constants)) else ends
  if node.name in ('dot_general', 'conv_general_dilated'):
    return _mixed(node, graph, *bounds[0])
  slack = rounded(node, graph, [magnitude(*b) for b in bounds])
  if node.name == 'neg':
    return node(*highs), node(*lows)
  if node.name == 'sub':
    low, high = _difference(node, lows, highs)
  elif node.name in SUMS:
    low, high = node(*lows), node(*highs)
  else:  # A product with a constant, or a quotient by one.
    ends = node(*lows), node(*highs)
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
  return low - slack, high + slack


def _difference(node, lows, highs):
  if len(lows) == 2:
    return node(lows[0], highs[1]), node(highs[0], lows[1])
  ends = node(*lows), node(*highs)
  return jnp.minimum(*ends), jnp.maximum(*ends)


def _mixed(node, graph, low, high):
  """By centre and radius: W m -+ |W| r.

  The slack takes the greatest |x| of the example for each entry: |W| 1 is the same for
  all examples, where |W| |x| would cost a third product.
  """
  unit = rounding.unit_roundoff(graph.dtype)
  center = (low + high) / 2
  radius = jnp.maximum(high - center, center - low) * (1 + 4 * unit)
  largest = jnp.max(jnp.abs(center) + radius)
  slack = lax.stop_gradient(
      _error(node, graph) * sized(node, jnp.ones_like(low)) * largest
      + _least(node, graph) * (1 + largest))
  value, spread = node(center), absolute(node, radius) + slack
  return value - spread, value + spread


def magnitude(low, high):
  """Greatest absolute value in an interval."""
  return jnp.maximum(jnp.abs(low), jnp.abs(high))


def absolute(node: Node, *values) -> jax.Array:
  """|L| of a linear node: every coefficient replaced by its absolute value.

  Args:
    node: linear.
    values: arrays >= 0, one for each bounded operand.
  """
  return _positive(node.with_constants(
      jnp.abs if node.name in COEFFICIENTS else jnp.zeros_like), values)


def sized(node: Node, *values) -> jax.Array:
  """What the errors of a linear node are relative to, constants that are added too.

  That is `absolute` with the sizes of folded constants instead of their values.
  """
  return _positive(node.with_sizes(), values)


def _positive(node, values):
  """A linear node with positive constants, at values >= 0: without a subtraction."""
  if node.name == 'neg':
    return values[0]
  if node.name != 'sub':
    return node(*values)
  given = iter(values)
  parts = [next(given) if isinstance(i, Ref) else i for i in node.inputs]
  return jnp.broadcast_to(parts[0] + parts[1], node.shape)


def rounded(node: Node, graph: Graph, magnitudes: list) -> jax.Array:
  """How far the node, or its transpose, may be off by rounding, for operands so large.

  As the error of the result; for the transpose, of <row, result> divided by |row|:
  a computed coefficient is off by gamma times |row| |L|, and multiplies an operand
  that is no larger than its magnitude.
  """
  largest = sized(node, *magnitudes)
  least = _least(node, graph)
  if node.name in COEFFICIENTS:  # Subnormal ones count as zero.
    least = least * (1 + sum(jnp.max(finite(m), initial=0) for m in magnitudes))
  return lax.stop_gradient(_error(node, graph) * largest + least)


def finite(magnitudes: jax.Array) -> jax.Array:
  """Infinite magnitudes as zero, for sums that leave those out."""
  return jnp.where(magnitudes < jnp.inf, magnitudes, 0)


def _error(node, graph):
  # Where several equations read a value, the walk adds up their rows on it.
  shared = max(graph.uses[i] for i in node.operands)
  return rounding.gamma(terms(node, graph) + node.folds + shared, graph.dtype)


def _least(node, graph):
  return rounding.tiny(terms(node, graph), graph.dtype)


def terms(node: Node, graph: Graph) -> int:
  """Length of the longest sum in the node, in its transpose, or behind a slope."""
  if not node.linear:
    return 2 * max(n for i in (node.out, *node.operands) for n in (1, *graph.shapes[i]))
  size_in = max(math.prod(graph.shapes[i]) for i in node.operands)
  size_out = math.prod(node.shape)
  if node.name == 'dot_general':
    ours = 0 if isinstance(node.inputs[0], Ref) else 1
    axes = node.params['dimension_numbers'][0][ours]
    inner = math.prod(graph.shapes[node.operands[0]][a] for a in axes)
    return max(inner, -(-size_out * inner // size_in))
  if node.name == 'conv_general_dilated':
    kernel = node.constants[0].shape
    spec = node.params['dimension_numbers'].rhs_spec  # (out, in, spatial ...)
    if not isinstance(node.inputs[0], Ref):
      return max(math.prod(kernel), size_in, size_out)
    return max(math.prod(kernel) // kernel[spec[0]], math.prod(kernel) // kernel[spec[1]])
  if node.name == 'reduce_sum':
    return size_in // size_out
  if node.name == 'scatter-add':
    updates = node.inputs[2]
    return 1 + math.prod(graph.shapes[updates.id] if isinstance(updates, Ref)
                         else updates.shape)
  if node.name == 'cumsum':
    return max(node.shape)
  if node.name == 'reduce_window_sum':
    return math.prod(node.params['window_dimensions'])
  if node.name in ('gather', 'dynamic_slice'):
    return size_out
  # One entry may be copied to many: broadcasts, tiles, operands of a smaller shape.
  smallest = min(math.prod(graph.shapes[i]) for i in node.operands)
  return -(-size_out // max(smallest, 1)) if node.name not in (
      'concatenate', 'stack', 'pad', 'dynamic_update_slice') else 1


def exact_move(node: Node, graph: Graph) -> bool:
  """Whether no number is added to another on the way through, nor a constant."""
  return (node.name in MOVES and terms(node, graph) <= 1 and not node.constants
          and all(graph.uses[i] == 1 for i in node.operands))
