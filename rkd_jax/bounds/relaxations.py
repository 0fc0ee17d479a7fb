"""Every nonlinear equation between two linear functions of its operands.

A table from the name of a primitive to a `Rule`: the range of the result, and lines
below and above it. The mathematics is in `elementwise` and `softmax`; here
it is put into the form that the backward walk uses.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import (
    elementwise,
    remainders,
    rounding,
    selection,
    softmax,
    sorting,
)
from rkd_jax.bounds.graph import Node, Ref, unsupported
from rkd_jax.bounds.slopes import Diagonal, Matrix, Reduced, steepest


class Rule(NamedTuple):
  """How a nonlinear equation is bounded; for one example.

  Attributes:
    interval: ((lower, upper) of each operand) -> (lower, upper).
    lines: (the same, choice) -> (slopes, (lower offset, upper offset)). The choice is
      None or (for the line below, for the line above), each None or in [0, 1], of
      the result's shape.
    unstable: (the same as `interval`) -> for each operand, where tighter bounds of it
      would help.
    start: (the same as `interval`) -> the choice that optimisation starts from, None
      on sides where there is none.
  """

  interval: Callable[..., tuple[jax.Array, jax.Array]]
  lines: Callable[..., tuple[Any, tuple[jax.Array, jax.Array]]]
  unstable: Callable[..., list[jax.Array]]
  start: Callable[..., tuple[jax.Array | None, jax.Array | None]]


def rule(node: Node) -> Rule:
  """The rule of a nonlinear node.

  Raises:
    UnsupportedPrimitiveError: there is none.
  """
  if node.name == 'choose':
    return _choice(node)
  if len(node.operands) == 1:
    if node.name in _REDUCTIONS:
      return _over(node, _REDUCTIONS, Reduced, tuple(node.params['axes']))
    if node.name in _MIXING and len(node.params['axes']) == 1:
      axis = node.params['axes'][0] % len(node.shape)
      return _over(node, _MIXING, Matrix, axis)
    found = _of_one(node)
    if found is not None:
      return found
  elif len(node.operands) == 2 and node.name in elementwise.BINARY:
    return _of_two(elementwise.BINARY[node.name])
  raise unsupported(node, 'rule')


def _of_one(node):
  """The rule of an elementwise function of one bounded operand, or None."""
  name, constants = node.name, node.constants
  if name == 'max':
    return _loosened(_kinked(
        elementwise.max_const(constants[0]), constants[0], above=False), constants)
  if name == 'min':
    return _loosened(_kinked(
        elementwise.min_const(constants[0]), constants[0], above=True), constants)
  if name == 'rem' and isinstance(node.inputs[0], Ref):
    return _smooth(remainders.remainder(constants[0], node.folds))
  if name == 'modulo':
    return _smooth(remainders.modulo(constants[0], node.params['folds']))
  if name == 'step':
    return _smooth(selection.step(constants[0], node.params['strict']))
  if name == 'equals':
    return _smooth(selection.equals(constants[0]))
  if name == 'abs':
    return _kinked(elementwise.RULES['abs'], 0.0, above=False)
  if name == 'leaky_relu':
    slope = node.params['slope']
    rule = _smooth(elementwise.leaky_relu(slope))  # Free on the chord's other side.
    rule = rule._replace(unstable=lambda bounds: [(bounds[0] < 0) & (bounds[1] > 0)])
    return _loosened(rule, [slope], lambda bounds: steepest(*bounds))
  if name == 'clamp' and isinstance(node.inputs[1], Ref):
    return _loosened(_smooth(elementwise.clamp(*constants)), constants)
  if name == 'integer_pow':
    return _smooth(elementwise.integer_pow(node.params['y']))
  if name == 'pow' and isinstance(node.inputs[0], Ref):
    return _smooth(elementwise.power(float(constants[0])))
  return _smooth(elementwise.RULES[name]) if name in elementwise.RULES else None


def _loosened(rule: Rule, constants, size=lambda bounds: 1.0) -> Rule:
  """With room for constants that are subnormal, and so count as zero.

  Args:
    rule: Rule of a function that changes by no more than `size` times a constant does.
    constants: Constants of the function.
    size: operand bounds -> that factor.
  """
  unknown = [jnp.asarray(c) for c in constants if isinstance(c, jax.core.Tracer)
             or _subnormal(np.asarray(c)).any()]
  if not unknown:
    return rule

  def slack(bounds):
    least = jnp.finfo(bounds[0].dtype).tiny
    return sum(jnp.where(rounding.subnormal(c.astype(bounds[0].dtype)), least, 0)
               for c in unknown) * size(bounds)

  def interval(bounds):
    low, high = rule.interval(bounds)
    return low - slack(bounds), high + slack(bounds)

  def lines(bounds, choice=None):
    slopes, (low, high) = rule.lines(bounds, choice)
    return slopes, (low - slack(bounds), high + slack(bounds))

  return rule._replace(interval=interval, lines=lines)


def _subnormal(constant):
  size = np.abs(constant)
  return (size > 0) & (size < np.finfo(np.float32).tiny)


def _lines(function):
  def lines(bounds, choice=None):
    finite, ends = _finite(bounds)
    found = function.lines(*ends, *(choice or ()))
    return (Diagonal((_flat(finite, found.lower_slope),),
                     (_flat(finite, found.upper_slope),)),
            _offsets(finite, found.lower_offset, found.upper_offset,
                     function.interval(*bounds)))
  return lines


def _finite(*operands):
  """(where all ends are finite, the ends, 1 elsewhere, which every function takes)."""
  finite = functools.reduce(jnp.logical_and, (
      jnp.isfinite(end) for ends in operands for end in ends))
  return finite, [jnp.where(finite, end, 1) for ends in operands for end in ends]


def _flat(finite, slope):
  return jnp.where(finite, slope, 0)


def _offsets(finite, low, high, interval):
  """The constant bounds where an operand is unbounded."""
  return tuple(jnp.where(finite, offset, bound)
               for offset, bound in zip((low, high), known(*interval)))


def known(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Bounds without NaN and without an infinity on the wrong side.

  NaN comes of infinite bounds before, and a lower bound of inf of an overflow: then
  nothing is known, and infinite bounds say so.
  """
  return (jnp.where(low < jnp.inf, low, -jnp.inf),
          jnp.where(high > -jnp.inf, high, jnp.inf))


def _kinked(function: Any, kink, above: bool) -> Rule:
  """Linear on both sides of `kink`, free on the side of its chord's opposite."""

  def start(bounds):
    low, high = bounds
    steep = (high - kink > kink - low).astype(low.dtype)
    return (None, 1 - steep) if above else (steep, None)

  return Rule(lambda bounds: function.interval(*bounds), _lines(function),
              lambda bounds: [(bounds[0] < kink) & (kink < bounds[1])], start)


def _halfway(*bounds):
  half = jnp.full_like(bounds[0][0], 0.5)
  return half, half


def _smooth(function: Any) -> Rule:
  return Rule(lambda bounds: function.interval(*bounds), _lines(function),
              lambda bounds: [bounds[0] < bounds[1]], _halfway)


def _of_two(function: Any) -> Rule:
  def lines(first, second, choice=None):
    finite, ends = _finite(first, second)
    found = function.lines(*ends, *(choice or ()))
    lower, upper = (tuple(_flat(finite, s) for s in slopes)
                    for slopes in (found.lower_slopes, found.upper_slopes))
    return Diagonal(lower, upper), _offsets(
        finite, found.lower_offset, found.upper_offset,
        function.interval(*first, *second))

  return Rule(lambda first, second: function.interval(*first, *second), lines,
              lambda *bounds: [low < high for low, high in bounds], _halfway)


def _choice(node: Node) -> Rule:
  """A choice between two values, of which one may be constant."""
  bounded = [isinstance(i, Ref) for i in node.inputs]
  full = lambda function: selection.with_constants(function, node.inputs, bounded)
  kept = lambda parts: tuple(p for p, b in zip(parts, bounded) if b)

  def lines(*bounds, choice=None):
    (below, low), (above, high) = full(lambda p, f, t: selection.choose_lines(
        p, f, t, bounded[1:], *(choice or ())))(*bounds)
    return Diagonal(kept(below), kept(above)), (low, high)

  return Rule(full(selection.choose_interval), lines,
              lambda *bounds: list(kept(full(selection.choose_unstable)(*bounds))),
              _halfway)


_REDUCTIONS = {
    'reduce_max': (lambda low, high, axes: (jnp.max(low, axes), jnp.max(high, axes)),
                   elementwise.reduce_max_lines),
    'reduce_min': (lambda low, high, axes: (jnp.min(low, axes), jnp.min(high, axes)),
                   elementwise.reduce_min_lines),
    'logsumexp': (softmax.logsumexp_interval, softmax.logsumexp_lines)}
_MIXING = {'softmax': (softmax.softmax_interval, softmax.softmax_lines),
           'log_softmax': (softmax.log_softmax_interval, softmax.log_softmax_lines),
           'sorted': (sorting.sort_interval, sorting.sort_lines)}


def _over(node: Node, functions, slopes_of, axes) -> Rule:
  """A function of all entries along `axes`; its lines have no free choice."""
  interval, lines_of = functions[node.name]

  def lines(bounds, choice=None):
    del choice
    finite, ends = _finite(bounds)
    if slopes_of is Reduced:  # One infinite end makes all of a maximum unknown.
      finite = jnp.all(finite, axes, keepdims=True)
      ends = [jnp.where(finite, end, 1) for end in ends]
    else:
      ends = bounds  # Those rules know of infinite ends.
    below, low, above, high = lines_of(*ends, axes)
    if slopes_of is not Reduced:
      return slopes_of(below, above, axes), known(low, high)
    return (slopes_of(_flat(finite, below), _flat(finite, above), axes),
            _offsets(jnp.squeeze(finite, axes), low, high, interval(*bounds, axes)))

  return Rule(lambda bounds: interval(*bounds, axes), lines,
              lambda bounds: [bounds[0] < bounds[1]], lambda bounds: (None, None))
