"""A graph under rewriting: new equations, and what the old ones are made of.

The tools of `patterns`. An equation is looked at through its operands, which were
rewritten before it. Equal equations become one.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import Graph, Node, Ref

# One result, a function of operands and parameters: two such equations are equal if
# those are. (The several results of `split` have the same parameters.)
_SHARED = frozenset({
    'abs', 'add', 'broadcast_in_dim', 'choose', 'div', 'equals', 'erf', 'exp', 'expm1',
    'ge', 'gt', 'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt', 'max', 'min', 'mul',
    'ne', 'neg', 'reciprocal', 'reduce_max', 'reduce_min', 'reduce_sum', 'reshape', 'rev',
    'select_n', 'slice', 'square', 'squeeze', 'step', 'sub', 'tanh', 'transpose'})
_COMMUTATIVE = frozenset({'add', 'max', 'min', 'mul'})
_SMALL = 4096  # Constants up to this size are compared by value.
_DEPTH = 12  # Equations that are looked through.
_WITH_TWO_OPERANDS = frozenset({'mul', 'max', 'min', 'pow'})


class Rewriter:
  """The new equations so far, in order.

  Attributes:
    old: the graph that is rewritten.
    defs: value -> the new equation that defines it.
    shapes: of all values, old and new.
  """

  def __init__(self, old: Graph):
    self.old = old
    self.dtype = old.dtype
    self.shapes = dict(old.shapes)
    self.defs = {}
    self._renamed = {}
    self._known = {}
    self._kept = []  # So that no id() of a constant is used twice.
    self._next = max(old.shapes) + 1

  def node(self, value: Any, *names: str) -> Node | None:
    """The equation behind a value, if it has one of these names (or any)."""
    found = self.defs.get(value.id) if isinstance(value, Ref) else None
    return found if found is not None and (not names or found.name in names) else None

  def shape(self, value: Any) -> tuple[int, ...]:
    return self.shapes[value.id] if isinstance(value, Ref) else value.shape

  def read(self, node: Node) -> Node:
    """An old equation on the new values."""
    return dataclasses.replace(node, inputs=tuple(
        self._renamed.get(i, i) if isinstance(i, Ref) else i for i in node.inputs))

  def keep(self, node: Node) -> None:
    """Takes over an equation whose operands `read` has replaced."""
    if not node.linear and node.name in _WITH_TWO_OPERANDS:
      node = self._of_one_shape(node)
    self._settle(node.out, self._add(node))

  def replace(self, node: Node, value: Ref) -> None:
    """Lets `value` stand for the result of an old equation, under its number."""
    last = next(reversed(self.defs.values()), None)
    if (last is not None and last.out == value.id and node.shape == last.shape
        and value.id not in self.old.shapes
        and value not in self._renamed.values()):
      del self.defs[value.id], self.shapes[value.id]
      self._add(dataclasses.replace(last, out=node.out))
      value = Ref(node.out)
    self._settle(node.out, value)

  def emit(self, name: str, evaluate: Callable[..., jax.Array], *inputs: Any,
           params: dict[str, Any] | None = None, linear: bool = False,
           like: Node | None = None) -> Ref:
    """A new equation, with source line and `folds` of `like`; its value."""
    shapes = [jax.ShapeDtypeStruct(self.shapes[i.id], self.dtype)
              if isinstance(i, Ref) else i for i in inputs]
    shape = jax.eval_shape(evaluate, *shapes).shape
    out, self._next = self._next, self._next + 1
    self.shapes[out] = shape
    return self._add(Node(
        name, inputs, out, shape, evaluate, params or {}, linear,
        like.folds if like and linear else 0, like.where if like else ''))

  def _add(self, node):
    key = self._key(node)
    found = self._known.setdefault(key, node.out) if key else node.out
    if found in self.defs:
      return Ref(found)
    if key:
      self._known[key] = node.out
    self.defs[node.out] = node
    return Ref(node.out)

  def _settle(self, out, value):
    if value != Ref(out):
      self._renamed[Ref(out)] = value

  def _key(self, node):
    if node.name not in _SHARED:
      return None
    self._kept += node.constants
    operands = [i if isinstance(i, Ref) else _identity(i) for i in node.inputs]
    if node.name in _COMMUTATIVE:
      operands.sort(key=repr)
    return (node.name, tuple(operands), node.shape, node.folds,
            repr(sorted(node.params.items(), key=lambda item: item[0])))

  def _of_one_shape(self, node):
    """Operands of the shape of the result: what rules with two operands expect."""
    inputs = tuple(i if not isinstance(i, Ref) else self.broadcast(
        i, node.shape, tuple(range(len(self.shape(i)))), node) for i in node.inputs)
    return dataclasses.replace(node, inputs=inputs)

  def finish(self) -> Graph:
    """The new graph: what its output depends on."""
    output = self._renamed.get(Ref(self.old.output), Ref(self.old.output)).id
    needed, kept = {output}, []
    for node in reversed(self.defs.values()):
      if node.out in needed:
        kept.append(node)
        needed.update(node.operands)
    shapes = {i: s for i, s in self.shapes.items() if i in needed | {0}}
    return Graph(tuple(reversed(kept)), shapes, output, self.old.dtype)

  # New linear equations.

  def neg(self, value, like):
    return self.emit('neg', lax.neg, value, linear=True, like=like)

  def add(self, left, right, like):
    return self.emit('add', jnp.add, left, right, linear=True, like=like)

  def sub(self, left, right, like):
    return self.emit('sub', jnp.subtract, left, right, linear=True, like=like)

  def constant(self, value: float) -> np.ndarray:
    """A number; from NumPy, so that it is known while something is being traced."""
    return np.asarray(value, self.dtype)

  def reshape(self, value, shape, like):
    if self.shape(value) == tuple(shape):
      return value
    return self.emit('reshape', lambda x: lax.reshape(x, shape), value, linear=True,
                     params={'new_sizes': tuple(shape), 'dimensions': None}, like=like)

  def transpose(self, value, order, like):
    if tuple(order) == tuple(range(len(order))):
      return value
    return self.emit('transpose', lambda x: lax.transpose(x, order), value,
                     params={'permutation': tuple(order)}, linear=True, like=like)

  def broadcast(self, value, shape, dims, like):
    if self.shape(value) == tuple(shape):
      return value
    return self.emit(
        'broadcast_in_dim', lambda x: lax.broadcast_in_dim(x, shape, dims), value,
        params={'shape': tuple(shape), 'broadcast_dimensions': dims}, linear=True,
        like=like)

  def fixed(self, value: jax.Array, like: Node) -> Ref:
    """A constant as the result of an equation: it reads the input and ignores it."""
    return self.emit(
        'select_n', lambda mask, constant, x: lax.select_n(
            mask, constant, jnp.broadcast_to(x.ravel()[0], mask.shape)),
        np.zeros(value.shape, bool), value, Ref(0), linear=True, like=like)

  def replay(self, value: Any, mapping: dict[Ref, Ref]) -> Any:
    """The same function of other values: those of `mapping`."""
    if not isinstance(value, Ref) or value in mapping:
      return value if not isinstance(value, Ref) else mapping[value]
    node = self.defs[value.id]
    inputs = [self.replay(i, mapping) for i in node.inputs]
    return self.emit(node.name, node.evaluate, *inputs, params=node.params,
                     linear=node.linear, like=node)

  # What values are made of.

  def unbroadcast(self, value: Ref, dims=None) -> tuple[Ref, tuple[int | None, ...]]:
    """Looks through broadcasts and axes of length 1.

    Returns:
      (core, dims): axis i of `core` runs along axis dims[i] of `value`, None for
      axes of length 1; `value` is constant along all others. With `dims` given, of
      the array whose axes those are.
    """
    dims = tuple(range(len(self.shape(value)))) if dims is None else dims
    while (node := self.node(
        value, 'broadcast_in_dim', 'reshape', 'squeeze', 'expand_dims')):
      if len(node.inputs) != 1:
        break
      before = self.shape(node.inputs[0])
      if node.name == 'broadcast_in_dim':
        dims = tuple(dims[d] for d in node.params['broadcast_dimensions'])
      elif ([n for n in before if n != 1] != [n for n in node.shape if n != 1]
            or node.params.get('dimensions') and node.name == 'reshape'):
        break
      else:
        long = iter([dims[a] for a, n in enumerate(node.shape) if n != 1])
        dims = tuple(next(long) if n != 1 else None for n in before)
      value = node.inputs[0]
      dims = tuple(d if n != 1 else None for d, n in zip(dims, self.shape(value)))
    return value, dims

  def constant_along(self, value: Any, shape: tuple[int, ...], axes) -> bool:
    """Whether `value`, broadcast to `shape`, is constant along `axes`."""
    own = self.shape(value)
    if own and len(own) != len(shape):
      return False
    axes = [a for a in axes if shape[a] != 1 and own and own[a] != 1]
    if not isinstance(value, Ref):
      return not axes
    return not set(axes) & set(self.unbroadcast(value)[1])

  def same(self, left: Any, right: Any) -> bool:
    """Whether two values are surely equal: one value, or one number everywhere."""
    if isinstance(left, Ref) or isinstance(right, Ref):
      return left == right if isinstance(left, Ref) else False
    return left is right or (
        uniform(left) is not None and uniform(left) == uniform(right))


def _identity(constant):
  known = concrete(constant) if constant.size <= _SMALL else None
  if known is None:
    return id(constant)
  return known.shape, str(known.dtype), known.tobytes()


def concrete(value: Any) -> np.ndarray | None:
  """The numbers of a constant; None for bounded values and traced constants."""
  if isinstance(value, Ref):
    return None
  try:
    return np.asarray(value)
  except jax.errors.TracerArrayConversionError:
    return None


def uniform(value: Any) -> float | None:
  """The number that a constant holds everywhere; may be infinite, never NaN."""
  known = concrete(value)
  if known is None or not known.size or not (known == known.flat[0]).all():
    return None
  return float(known.flat[0])


def is_uniform(value: Any, number: float) -> bool:
  return uniform(value) == number


class Polynomial(NamedTuple):
  """Of one value: power -> coefficient != 0, and the folds behind those."""

  coefficients: dict[int, Fraction]
  folds: int = 0

  def __getitem__(self, power):
    return self.coefficients.get(power, Fraction(0))

  @property
  def degree(self):
    return max(self.coefficients, default=0)

  def __add__(self, other):
    powers = {*self.coefficients, *other.coefficients}
    return _polynomial({p: self[p] + other[p] for p in powers},
                       self.folds + other.folds)

  def __mul__(self, other):
    product = {}
    for p, a in self.coefficients.items():
      for q, b in other.coefficients.items():
        product[p + q] = product.get(p + q, 0) + a * b
    return _polynomial(product, self.folds + other.folds)


def _polynomial(coefficients, folds=0):
  return Polynomial({p: c for p, c in coefficients.items() if c}, folds)


def polynomial(rw: Rewriter, value: Any, base: Ref, depth: int = _DEPTH
               ) -> Polynomial | None:
  """`value` as a polynomial of `base`, in exact arithmetic; None if it is not one.

  Of degree at most 3. Constants count only where they are one finite number.
  """
  if value == base if isinstance(value, Ref) else False:
    return _polynomial({1: Fraction(1)})
  if not isinstance(value, Ref):
    number = uniform(value)
    finite = number is not None and np.isfinite(number)
    return _polynomial({0: Fraction(number)}) if finite else None
  node = rw.node(value, 'add', 'add_any', 'sub', 'neg', 'mul', 'div', 'square',
                 'integer_pow')
  if node is None or not depth:
    return None
  parts = [polynomial(rw, i, base, depth - 1) for i in node.inputs]
  if any(p is None for p in parts):
    return None
  found = _combined(node, parts)
  return found if found is not None and found.degree <= 3 else None


def _combined(node, parts):
  minus = _polynomial({0: Fraction(-1)})
  first, last = parts[0], parts[-1]
  if node.name == 'neg':
    return minus * first
  if node.name in ('square', 'integer_pow'):
    power = node.params.get('y', 2)
    return {2: lambda: first * first, 3: lambda: first * first * first}.get(
        power, lambda: None)()
  if node.name == 'div':
    if last.degree or not last[0]:
      return None
    found = first * _polynomial({0: 1 / last[0]})
  elif node.name == 'mul':
    found = first * last
  else:
    found = first + (minus * last if node.name == 'sub' else last)
  return found._replace(folds=found.folds + node.folds)
