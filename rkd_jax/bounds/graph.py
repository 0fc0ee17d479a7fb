"""A function as a flat list of equations on bounded values.

The nodes stand for real arithmetic: conversions between float32 and float64 count as
identities, and everything runs in the type of the input set.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.errors import UnsupportedPrimitiveError

# Linear in all of their bounded operands together. Each entry of the result is a
# copy of an entry of an operand, or a constant.
MOVES = frozenset({
    'reshape', 'transpose', 'slice', 'rev', 'squeeze', 'expand_dims',
    'broadcast_in_dim', 'concatenate', 'pad', 'gather', 'dynamic_slice', 'split',
    'select_n', 'dynamic_update_slice', 'stack', 'unstack', 'tile'})
# A sum of entries, with coefficients 0 and 1.
SUMS = frozenset({'add', 'add_any', 'reduce_sum', 'cumsum', 'reduce_window_sum',
                  'scatter-add'})
# Linear if one operand alone is bounded.
PRODUCTS = frozenset({'mul', 'dot_general', 'conv_general_dilated'})
# Their constants are coefficients; those of other linear equations are addends.
COEFFICIENTS = PRODUCTS | {'div'}

_COMPARISONS = frozenset({'gt', 'ge', 'lt', 'le', 'eq', 'ne'})


@dataclasses.dataclass(frozen=True)
class Ref:
  """The bounded value of this number, where a node reads one."""
  id: int


@dataclasses.dataclass(frozen=True)
class Node:
  """One equation. Its result is the value `out`.

  Attributes:
    name: of the primitive.
    inputs: in order, `Ref` of a bounded value or a constant array.
    out: number of the result.
    shape: of the result; one example, with the batch axis of length 1.
    evaluate: (*all inputs) -> result.
    params: of the primitive.
    linear: affine in the bounded operands.
    folds: how many rounded operations made the constants, at most.
    where: source line, for messages.
    sizes: For each input, None or an array: a constant c of size s may be off by
      gamma(folds) * s. None stands for |c|, which is too little after a cancellation.
  """

  name: str
  inputs: tuple[Any, ...]
  out: int
  shape: tuple[int, ...]
  evaluate: Callable[..., jax.Array]
  params: dict[str, Any]
  linear: bool
  folds: int = 0
  where: str = ''
  sizes: tuple[Any, ...] = ()

  @property
  def operands(self) -> tuple[int, ...]:
    """Numbers of the bounded operands, in order."""
    return tuple(i.id for i in self.inputs if isinstance(i, Ref))

  @property
  def constants(self) -> tuple[jax.Array, ...]:
    return tuple(i for i in self.inputs if not isinstance(i, Ref))

  def __call__(self, *bounded: jax.Array) -> jax.Array:
    """The equation, at these values of the bounded operands.

    XLA would rewrite (x * c) * d as x * (c * d) for constants, whose product may be
    zero or infinite where the bounds counted on two roundings. Behind a barrier it does
    not know that they are constants.
    """
    values = iter(bounded)
    return self.evaluate(*(
        next(values) if isinstance(i, Ref)
        else lax.optimization_barrier(i) if is_float(i) else i for i in self.inputs))

  def with_constants(self, change: Callable[[Any], Any]) -> 'Node':
    """The same equation with its floating-point constants changed."""
    return dataclasses.replace(self, inputs=tuple(
        i if isinstance(i, Ref) or not is_float(i) else change(i)
        for i in self.inputs))

  def with_sizes(self) -> 'Node':
    """The same equation with the sizes of its constants, which are no less than |c|."""
    sizes = self.sizes or (None,) * len(self.inputs)
    plain = self.with_constants(jnp.abs)
    return dataclasses.replace(plain, inputs=tuple(
        i if s is None else s for i, s in zip(plain.inputs, sizes)))

  def homogeneous(self) -> 'Node':
    """The linear part of a linear equation: without what it adds."""
    return self if self.name in COEFFICIENTS else self.with_constants(jnp.zeros_like)


@dataclasses.dataclass(frozen=True)
class Graph:
  """The equations from value 0, the input, to value `output`, in order."""

  nodes: tuple[Node, ...]
  shapes: dict[int, tuple[int, ...]]
  output: int
  dtype: Any

  def evaluate(self, x: jax.Array) -> jax.Array:
    """The function itself at one example `x` [1, ...]."""
    values = {0: x}
    for node in self.nodes:
      values[node.out] = node(*(values[i] for i in node.operands))
    return values[self.output]

  @functools.cached_property
  def uses(self) -> dict[int, int]:
    """How often each value is read; the output counts once more."""
    counts = dict.fromkeys(self.shapes, 0)
    for node in self.nodes:
      for i in node.operands:
        counts[i] += 1
    counts[self.output] += 1
    return counts

  @functools.cached_property
  def linear(self) -> frozenset[int]:
    """Results of linear equations."""
    return frozenset(node.out for node in self.nodes if node.linear)

  @functools.cached_property
  def merged(self) -> frozenset[int]:
    """Linear values that a linear equation reads, and nothing else."""
    return frozenset(i for node in self.nodes if node.linear for i in node.operands
                     if i in self.linear and self.uses[i] == 1)


def is_float(value: Any) -> bool:
  """Whether a constant is of a floating-point type."""
  return jnp.issubdtype(jax.typeof(value).dtype, jnp.floating)


def unsupported(node: Node, wanted: str) -> UnsupportedPrimitiveError:
  """The error for a node that `wanted` (such as 'interval rule') is missing for."""
  hint = ''
  if node.name in _COMPARISONS:
    hint = (' (a comparison of bounded values that is neither a choice nor converted to '
            'floating point)')
  elif node.name in ('sort', 'top_k', 'argmax', 'argmin'):
    hint = ' (a position that depends on bounded values)'
  elif node.name.startswith('scatter'):
    hint = ' (its indices must be known, and those of `set` differ)'
  elif node.name in ('dot_general', 'conv_general_dilated'):
    hint = ' (a large product of two bounded arrays)'
  elif node.name in ('while', 'cond'):
    hint = ' (control flow that depends on bounded values)'
  operands = ', '.join(
      f'bounded {i.id}' if isinstance(i, Ref) else 'constant' for i in node.inputs)
  return UnsupportedPrimitiveError(
      f'no {wanted} for {node.name!r}{hint}: equation {node.out}, result '
      f'{node.shape}, of ({operands}), from {node.where}. Rewrite the layer with '
      'operations that have bounds. Skipping it would be unsound, so no bound was '
      'returned.')
