"""A function of images as a flat list of operations that depend on them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

_CALLS = frozenset({
    'jit', 'pjit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call',
    'remat', 'remat2', 'checkpoint'})


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation; values are numbered, each is computed once.

  Attributes:
    primitive, params: as in the jaxpr.
    inputs, outputs: numbers of values.
  """

  primitive: Any
  params: dict[str, Any]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]

  @property
  def name(self) -> str:
    return self.primitive.name

  def bind(self, values: Sequence[jax.Array]) -> list[jax.Array]:
    """The results, as traced."""
    params = self.primitive.get_bind_params(self.params)
    if isinstance(params, tuple):  # (functions, parameters) in older releases.
      values, params = [*params[0], *values], params[1]
    results = self.primitive.bind(*values, **params)
    return list(results) if self.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of images.

  Attributes:
    operations: those that depend on the images, in order.
    known: values of the others, which were computed where the program was read.
    shapes: of all values that depend on the images: jax.ShapeDtypeStruct by number.
    source, result: numbers of the images and of the result.
  """

  operations: tuple[Operation, ...]
  known: dict[int, jax.Array]
  shapes: dict[int, jax.ShapeDtypeStruct]
  source: int
  result: int


def read(fn: Callable, shape: Sequence[int]) -> Program:
  """The program of `fn(images float32[shape])`; arrays it closes over may be traced."""
  closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(tuple(shape), 'float32'))
  reader = _Reader()
  source = reader.number(closed.jaxpr.invars[0].aval)
  result, = reader.run(closed.jaxpr, closed.consts, [source])
  return Program(tuple(reader.operations), reader.known, reader.shapes, source, result)


class _Reader:

  def __init__(self):
    self.operations, self.known, self.shapes, self.count = [], {}, {}, 0

  def number(self, aval=None, value=None):
    """A new value, which depends on the images unless it is given."""
    self.count += 1
    if aval is None:
      self.known[self.count] = value
    else:
      self.shapes[self.count] = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    return self.count

  def run(self, jaxpr, consts, inputs):
    """Numbers of a jaxpr's results."""
    of = dict(zip(jaxpr.invars, inputs, strict=True))
    of.update((var, self.number(value=const)) for var, const in zip(
        jaxpr.constvars, consts, strict=True))

    def find(var):
      return self.number(value=var.val) if isinstance(var, jex.Literal) else of[var]

    for equation in jaxpr.eqns:
      of.update(zip(equation.outvars, self._one(
          equation, [find(var) for var in equation.invars]), strict=True))
    return [find(var) for var in jaxpr.outvars]

  def _one(self, equation, inputs):
    if equation.primitive.name in _CALLS:
      inner = next(equation.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
                   if key in equation.params)
      consts = getattr(inner, 'consts', ())
      return self.run(getattr(inner, 'jaxpr', inner), consts, inputs)
    operation = Operation(equation.primitive, equation.params, tuple(inputs), ())
    if all(i in self.known for i in inputs):
      return [self.number(value=value) for value in operation.bind(
          [self.known[i] for i in inputs])]
    outputs = tuple(self.number(var.aval) for var in equation.outvars)
    self.operations.append(dataclasses.replace(operation, outputs=outputs))
    return outputs
