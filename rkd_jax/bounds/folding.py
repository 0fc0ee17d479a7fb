"""How far a constant that was computed from others may be off.

A constant c has k rounded operations behind it and a size s >= |c|: it differs from its
value in real arithmetic by at most gamma(k) * s, to first order. Without a cancellation s
is |c|. A sum of large terms that cancel, such as an entry of a product of two weight
matrices, is off by a share of its terms instead, so its size is the sum of theirs.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.bounds.graph import MOVES, is_float

_DIFFERENCES = frozenset({'add', 'add_any', 'sub'})
_SUMS = frozenset({'reduce_sum', 'cumsum', 'reduce_window_sum', 'dot_general',
                   'conv_general_dilated', 'scatter-add'})


def cancels(name: str) -> bool:
  """Whether results of a primitive may be far smaller than its operands."""
  return name in _DIFFERENCES | _SUMS


def terms(eqn: Any) -> int:
  """Rounded operations behind an entry of the result of an equation, at most."""
  name, p = eqn.primitive.name, eqn.params
  if name not in _SUMS:
    return 4
  shapes = [v.aval.shape for v in eqn.invars]
  if name == 'dot_general':
    return 4 + math.prod(shapes[0][axis] for axis in p['dimension_numbers'][0][0])
  if name == 'conv_general_dilated':
    return 4 + math.prod(shapes[1])
  if name == 'reduce_sum':
    return 4 + math.prod(shapes[0][axis] for axis in p['axes'])
  if name == 'cumsum':
    return 4 + shapes[0][p['axis']]
  if name == 'reduce_window_sum':
    return 4 + math.prod(p['window_dimensions'])
  return 4 + math.prod(shapes[2])  # scatter-add: every update may go to one entry.


def size(primitive: Any, params: dict[str, Any], inputs: Sequence[Any],
         sizes: Sequence[Any], result: jax.Array) -> jax.Array | None:
  """Size of the one result of an equation on constants; None stands for its magnitude.

  Args:
    primitive: Operation of the equation.
    params: Parameters that it was evaluated with.
    inputs: Operands.
    sizes: Size of each operand, None where it is the magnitude.
    result: Value of the equation.
  """
  name = primitive.name
  if not is_float(result) or not cancels(name) and all(s is None for s in sizes):
    return None
  large = [s if s is not None else jnp.abs(i) if is_float(i) else i
           for i, s in zip(inputs, sizes)]
  if name in _DIFFERENCES:
    return large[0] + large[1]
  if name in _SUMS or name in MOVES or name == 'mul':
    return primitive.bind(*large, **params)
  if name == 'div':
    return large[0] * large[1] / jnp.square(inputs[1])
  if name in ('max', 'min'):
    return jnp.maximum(*large)
  if len(inputs) == 1 and jnp.shape(result) == jnp.shape(inputs[0]):
    # An error of the operand is multiplied by the derivative.
    slope = jax.jvp(lambda x: primitive.bind(x, **params), tuple(inputs), tuple(large))[1]
    return jnp.abs(result) + jnp.abs(slope)
  return None
