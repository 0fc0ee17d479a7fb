"""Known functions in a graph, as one equation each instead of many.

Bounds of softplus are tighter than those of its log1p, exp, abs and max put together,
and comparisons have no bounds at all. So what JAX writes for such functions, and
what people write by hand, is recognised by its structure: which value is read where,
along which axes, and what the constants are. A constant that is itself being traced
is unknown and nothing is concluded from it.

The new graph is the same function in real arithmetic, on finite values. (Thus tests
for NaN and infinity are decided.)
"""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds import (
  normalised,
  piecewise_patterns,
  pooling,
  power_patterns,
  predicates,
  products,
  remainders,
  scatter,
  sorting,
)
from rkd_jax.bounds.graph import Graph, Ref
from rkd_jax.bounds.rewriter import Rewriter, is_uniform, polynomial, uniform


def recognise(graph: Graph) -> Graph:
  """The same function with known composites as single equations.

  Names of new equations, each with one bounded operand: `softmax` and `log_softmax`
  (params `axes`: one), `logsumexp` (`axes`, none of which is kept), `softplus`, `silu`,
  `gelu`, `gelu_tanh`, `leaky_relu` (`slope`: a number or an array), `abs`; and those of
  primitives. Also windows of max pooling become slices, and a small product of two
  bounded arrays a `mul` and a sum. Operands of `mul`, `max`, `min` and `pow` are
  broadcast to the shape of the result.

  Args:
    graph: as `tracing.trace` returns it.

  Returns:
    A graph without unused equations. Values that are in both have the same number.
  """
  rw = Rewriter(graph)
  for node in map(rw.read, graph.nodes):
    for rule in _RULES.get(node.name, ()):
      found = rule(rw, node)
      if found is not None and rw.shape(found) == node.shape:
        rw.replace(node, found)
        break
    else:
      rw.keep(node)
  return rw.finish()


def _identity(rw, node):
  """x + 0, x - 0, 1 * x, x / 1, max(x, -inf), no padding, the same shape ..."""
  if node.name == 'pad':
    same = all(not any(edges) for edges in node.params['padding_config'])
    return node.inputs[0] if same and isinstance(node.inputs[0], Ref) else None
  if node.name in ('reshape', 'broadcast_in_dim', 'squeeze'):
    plain = not node.params.get('dimensions') or node.name != 'reshape'
    return node.inputs[0] if plain else None
  neutral = {'add': 0, 'sub': 0, 'mul': 1, 'div': 1, 'max': -math.inf, 'min': math.inf}
  first, last = node.inputs
  if isinstance(first, Ref) and _is_neutral(last, neutral[node.name]):
    return first
  if node.name in ('add', 'mul', 'max', 'min') and isinstance(last, Ref):
    return last if _is_neutral(first, neutral[node.name]) else None
  return None


def _is_neutral(value, number):
  return not isinstance(value, Ref) and value.size == 1 and is_uniform(value, number)


def _minus(rw, node):
  """0 - x."""
  first, last = node.inputs
  if isinstance(last, Ref) and _is_neutral(first, 0):
    return rw.neg(last, node)
  return None


def _abs(rw, node):
  """|-x|."""
  inner = rw.node(node.inputs[0], 'neg')
  return inner and rw.emit('abs', jnp.abs, inner.inputs[0], like=node)


def _logistic(rw, node):
  """1 / (1 + exp(y)) = logistic(-y)."""
  total = rw.node(node.inputs[0], 'add')
  for one, other in (total.inputs, total.inputs[::-1]) if total else ():
    exp = rw.node(other, 'exp')
    if exp and is_uniform(one, 1) and exp.shape == node.shape:
      minus = rw.node(exp.inputs[0], 'neg')
      value = minus.inputs[0] if minus else rw.neg(exp.inputs[0], node)
      return rw.emit('logistic', lax.logistic, value, like=node)
  return None


def _silu(rw, node):
  """x * logistic(b * x) = silu(b * x) / b."""
  for x, other in (node.inputs, node.inputs[::-1]):
    sigmoid = rw.node(other, 'logistic')
    if not sigmoid or not isinstance(x, Ref) or rw.shape(x) != sigmoid.shape:
      continue
    scaled = polynomial(rw, sigmoid.inputs[0], x)
    if scaled is None or set(scaled.coefficients) != {1} or scaled.folds:
      continue
    found = rw.emit('silu', jax.nn.silu, sigmoid.inputs[0], like=node)
    if scaled[1] == 1:
      return found
    for name, function, factor in (('div', jnp.divide, scaled[1]),
                                   ('mul', jnp.multiply, 1 / scaled[1])):
      constant = piecewise_patterns.exactly(rw, factor)
      if constant is not None:
        return rw.emit(name, function, found, constant, linear=True, like=node)
  return None


def _gelu(rw, node):
  """x / 2 * (1 + erf(x / sqrt(2))), or with tanh; the factors in any order.

  The constants may be off by one eps, the rounding of what they stand for. The rules
  of both functions allow for at least twice the change that this makes: relative to
  the value x**2 (for x < 0) and 2 |w| eps (w the argument of tanh).
  """
  eps = float(jnp.finfo(rw.dtype).eps)
  near = lambda a, b: abs(float(a) / b - 1) <= eps
  for scale, x, gate in _gated(rw, node):
    kind, argument, height, sign = gate
    power = polynomial(rw, argument, x)
    if power is None or scale * height != Fraction(1, 2):
      continue
    if kind == 'erf' and set(power.coefficients) == {1} and near(
        sign * power[1], math.sqrt(0.5)):
      return rw.emit('gelu', lambda v: jax.nn.gelu(v, approximate=False), x,
                     params={'approximate': False}, like=node)
    if kind == 'tanh' and set(power.coefficients) == {1, 3} and near(
        sign * power[1], math.sqrt(2 / math.pi)) and near(
            power[3] / power[1], 0.044715):
      return rw.emit('gelu_tanh', lambda v: jax.nn.gelu(v, approximate=True), x,
                     params={'approximate': True}, like=node)
  return None


def _gated(rw, node):
  """All (number, x, gate) whose product a product is, x a value; see `_gate`."""
  for scale, values in _factors(rw, node):
    for x, other in (values, values[::-1]) if len(values) == 2 else ():
      gate = _gate(rw, other)
      if gate is not None and rw.shape(x) == node.shape:
        yield scale, x, gate


def _factors(rw, node, depth=3):
  """All (number, at most two values) whose product a product is."""
  choices = []
  for index, value in enumerate(node.inputs):
    if isinstance(value, Ref):
      inner = rw.node(value, 'mul', 'div') if depth else None
      deeper = _factors(rw, inner, depth - 1) if inner else ()
      choices.append([(Fraction(1), (value,)), *deeper])
      continue
    number = uniform(value) if value.size == 1 and not node.folds else None
    if not number or not np.isfinite(number):
      return
    inverse = node.name == 'div' and index == 1
    choices.append([(1 / Fraction(number) if inverse else Fraction(number), ())])
  for (one, left), (other, right) in itertools.product(*choices):
    if len(left) + len(right) <= 2:
      yield one * other, left + right


def _gate(rw, value):
  """(name, argument, h, sign) of a value h * (1 + sign * f(argument)), f odd."""
  node = rw.node(value, 'add', 'sub')
  if node is None or len(node.operands) != 1:
    return None
  inner = rw.node(Ref(node.operands[0]), 'erf', 'tanh', 'mul', 'neg')
  if inner and inner.name in ('mul', 'neg') and len(inner.operands) == 1:
    inner = rw.node(Ref(inner.operands[0]), 'erf', 'tanh')
  if inner is None or inner.name not in ('erf', 'tanh'):
    return None
  height = polynomial(rw, value, Ref(inner.out))
  if height is None or height.degree != 1 or abs(height[1]) != abs(height[0]):
    return None
  return inner.name, inner.inputs[0], height[0], int(height[1] / height[0])


def _erfc(rw, node):
  erf = rw.emit('erf', lax.erf, node.inputs[0], like=node)
  return rw.sub(rw.constant(1), erf, node)


def _leaky_extreme(rw, node):
  """max(x, s * x) and min(x, s * x)."""
  if len(node.operands) != 2 or len(set(node.operands)) != 2:
    return None
  for x, other in (node.inputs, node.inputs[::-1]):
    scaled = polynomial(rw, other, x)
    if (scaled is None or set(scaled.coefficients) - {1} or scaled.folds
        or rw.shape(x) != rw.shape(other)):
      continue
    slope = piecewise_patterns.exactly(rw, scaled[1])
    if slope is not None:
      mirrored = (scaled[1] > 1) == (node.name == 'max')
      return piecewise_patterns.leaky_relu(rw, x, slope, node, mirrored)
  return None


# The first rule that finds something is taken.
_RULES = {
    'abs': (_abs,),
    'add': (_identity, normalised.softplus, normalised.logsumexp_of_shifted),
    'broadcast_in_dim': (_identity,),
    'convert_element_type': (predicates.convert,),
    'div': (_identity, _gelu),
    'conv_general_dilated': (products.convolution,),
    'dot_general': (products.dot,),
    'erfc': (_erfc,),
    'exp': (normalised.softmax_of_log,),
    'log': (normalised.logsumexp,),
    'max': (_identity, _leaky_extreme, pooling.tree),
    'min': (_identity, _leaky_extreme, pooling.tree),
    'integer_pow': (power_patterns.of_a_power,),
    'mul': (_identity, power_patterns.product, _silu, _gelu, normalised.softmax),
    'pad': (_identity,),
    'pow': (power_patterns.power,),
    'reciprocal': (_logistic,),
    'reduce': (pooling.reduce,),
    'reduce_min': (pooling.reduce,),
    'reduce_prod': (products.product_over,),
    'reduce_sum': (predicates.count,),
    'reduce_window': (pooling.reduce_window,),
    'reduce_window_max': (pooling.reduce_window,),
    'reduce_window_min': (pooling.reduce_window,),
    'reshape': (_identity,),
    'scatter': (scatter.scatter,),
    'scatter-max': (scatter.scatter,),
    'scatter-min': (scatter.scatter,),
    'scatter-mul': (scatter.scatter,),
    'scatter-sub': (scatter.subtract,),
    'select_n': (piecewise_patterns.select, remainders.modulo_of_remainder,
                 predicates.choose),
    'sort': (sorting.sort,),
    'sqrt': (power_patterns.root,),
    'square': (power_patterns.of_a_power,),
    'squeeze': (_identity,),
    'sub': (_identity, _minus, normalised.log_softmax),
    'top_k': (sorting.top_k,),
} | {name: (rule,) for name, rule in products.RUNNING.items()}
