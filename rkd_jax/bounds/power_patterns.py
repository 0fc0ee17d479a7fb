"""Powers, however they are written: x * x * x, x ** y, 2. ** x, roots of sums.

The product x * x knows that its two factors are one number, McCormick's planes for two
bounded operands do not: x in [-1, 1] gives [0, 1] instead of [-1, 1].
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import MOVES, Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, concrete, uniform

_MOST_EXPONENTS = 8  # Different ones in an array that get an equation each.
_DEPTH = 8


def product(rw: Rewriter, node: Node) -> Ref | None:
  """(c x**p) * (d x**q) = x**(p + q) * c * d, with constants c and d of any shape."""
  first, last = node.inputs
  if not (isinstance(first, Ref) and isinstance(last, Ref)):
    return None
  (base, p, factors), (other, q, more) = _monomial(rw, first), _monomial(rw, last)
  if base != other or rw.shape(base) != node.shape:
    return None
  value = integer_power(rw, base, p + q, node)
  for factor in factors + more:
    inputs = (value if isinstance(i, Ref) else i for i in factor.inputs)
    value = rw.emit(factor.name, factor.evaluate, *inputs, params=factor.params,
                    linear=True, like=factor)
  return value


def _monomial(rw, value):
  """(x, p, factors) of a value x**p times the constants of the nodes `factors`."""
  factors = []
  while (node := rw.node(value, 'mul', 'neg', 'div')) and node.linear and (
      node.shape == rw.shape(Ref(node.operands[0]))):
    factors.append(node)
    value = Ref(node.operands[0])
  node = rw.node(value, 'square', 'integer_pow')
  power = node.params.get('y', 2) if node else 1
  return (node.inputs[0], power, factors) if power > 1 else (value, 1, factors)


def of_a_power(rw: Rewriter, node: Node) -> Ref | None:
  """(x**p)**q = x**(p q) for p, q >= 1; x**0 and x**1 are no powers."""
  base, power, factors = _monomial(rw, node.inputs[0])
  y = node.params.get('y', 2)
  if y >= 1 and power > 1 and not factors:
    return integer_power(rw, base, power * y, node)
  return None


def integer_power(rw: Rewriter, x: Ref, y: int, like: Node) -> Ref:
  """x**y for an integer y, as the equation that has the best rule."""
  if y == 1:
    return x
  if y == 2:
    return rw.emit('square', jnp.square, x, like=like)
  if y == -1:
    return rw.emit('reciprocal', lambda v: 1 / v, x, like=like)
  return rw.emit('integer_pow', lambda v: lax.integer_pow(v, y), x, params={'y': y},
                 like=like)


def power(rw: Rewriter, node: Node) -> Ref | None:
  """x ** y: by its constant exponents where they are known, else exp(y log(x))."""
  base, exponent = node.inputs
  known = concrete(exponent)
  if isinstance(base, Ref) and known is not None:
    values = np.unique(known)
    exact = not node.folds or np.all(known == np.round(known))
    if exact and len(values) <= _MOST_EXPONENTS and np.all(np.abs(values) < 1e3):
      return _by_exponent(rw, base, known, values, node)
  return _general(rw, base, exponent, node)


def _by_exponent(rw, base, exponents, values, node):
  """Each entry from the power that it is raised to."""
  base = rw.broadcast(base, node.shape, tuple(range(len(node.shape))), node)
  found = None
  for value in map(float, values):
    one = _constant_power(rw, base, value, node)
    if found is None:
      found = one
    else:
      mask = np.broadcast_to(exponents == value, node.shape)
      found = rw.emit('select_n', lax.select_n, mask, found, one, linear=True,
                      like=node)
  return found


def _constant_power(rw, base, p, node):
  if p == int(p):
    return integer_power(rw, base, int(p), node)
  if p == 0.5:
    return rw.emit('sqrt', lax.sqrt, nonnegative(rw, base, node), like=node)
  if p == -0.5:
    return rw.emit('rsqrt', lax.rsqrt, base, like=node)
  if p > 0:
    base = nonnegative(rw, base, node)
  return rw.emit('pow', lax.pow, base, rw.constant(p), like=node)


def _general(rw, base, exponent, node):
  """exp(y log(x)), true for x > 0.

  Where x may be negative its log has infinite bounds on both sides, and `exp_of_log`
  says nothing then, not even that it is positive: (-2)**3 is not. x = 0 is the limit.
  """
  def shaped(value):
    if not isinstance(value, Ref):
      return jnp.broadcast_to(value, node.shape)
    return rw.broadcast(value, node.shape, tuple(range(len(node.shape))), node)

  base, exponent = shaped(base), shaped(exponent)
  if isinstance(base, Ref):
    log, like = rw.emit('log', lax.log, base, like=node), node
  else:
    log, like = jnp.log(base), dataclasses.replace(node, folds=node.folds + 8)
  both = isinstance(log, Ref) and isinstance(exponent, Ref)
  scaled = rw.emit('mul', jnp.multiply, log, exponent, linear=not both, like=like)
  return rw.emit('exp_of_log', jnp.exp, scaled, like=node)


def root(rw: Rewriter, node: Node) -> Ref | None:
  """sqrt(s) of a sum that cannot be negative, in spite of the rounding of its bounds."""
  value = nonnegative(rw, node.inputs[0], node)
  if value == node.inputs[0]:
    return None
  return rw.emit('sqrt', lax.sqrt, value, like=node)


def nonnegative(rw: Rewriter, value: Ref, like: Node) -> Ref:
  """max(value, 0) where that is the value itself; else the value as it is.

  Interval bounds of a sum are widened, so that those of x**2 + y**2 begin below 0,
  where the root is undefined.
  """
  node = rw.node(value, 'reduce_sum', 'add', 'add_any', 'mul', 'div', 'dot_general',
                 'reshape', 'broadcast_in_dim', 'squeeze', 'cumsum', 'integer_pow')
  if node is None or not _is_nonnegative(rw, value):
    return value
  return rw.emit('max', jnp.maximum, value, rw.constant(0), like=like)


_POSITIVE = frozenset({
    'square', 'abs', 'exp', 'exp2', 'exp_of_log', 'logistic', 'softplus', 'sqrt',
    'rsqrt', 'softmax', 'cosh'})
_KEEP_SIGN = MOVES | {'add', 'add_any', 'reduce_sum', 'cumsum', 'reduce_max', 'mul',
                      'div', 'min', 'reduce_window_sum', 'dot_general'}


def _is_nonnegative(rw, value, depth=_DEPTH):
  """Whether a value is surely >= 0, by how it is made."""
  if not isinstance(value, Ref):
    known = concrete(value)
    return known is not None and (known.dtype.kind in 'iub' or bool(np.all(known >= 0)))
  node = rw.node(value)
  if node is None or not depth:
    return False
  if node.name in _POSITIVE:
    return True
  if node.name == 'integer_pow':
    return node.params['y'] % 2 == 0 or _is_nonnegative(rw, node.inputs[0], depth - 1)
  if node.name == 'max':
    return any((uniform(i) or -1) >= 0 or uniform(i) == 0 for i in node.constants)
  return node.name in _KEEP_SIGN and all(
      _is_nonnegative(rw, i, depth - 1) for i in node.inputs)
