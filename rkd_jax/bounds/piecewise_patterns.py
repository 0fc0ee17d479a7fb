"""Functions written as a choice between two: `select_n` on a comparison.

A choice by sign or threshold becomes relu-like equations that have tight lines:
max, min, abs, leaky_relu and sums of them. The two sides must meet where the choice
changes (checked in exact arithmetic); for a jump see `predicates`. Which side holds at
the threshold itself is then the same, so `<` and `<=` are.
"""

import operator
from fractions import Fraction

import jax.numpy as jnp

from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, is_uniform, polynomial, uniform

_ORDER = {'gt': operator.gt, 'ge': operator.gt, 'lt': operator.lt, 'le': operator.lt}


def select(rw: Rewriter, node: Node) -> Ref | None:
  """The value of a choice that is decided, or that can be written without one."""
  if len(node.inputs) != 3:
    return None
  predicate, if_false, if_true = node.inputs
  while inner := rw.node(predicate, 'not'):
    predicate, if_false, if_true = inner.inputs[0], if_true, if_false
  test = rw.node(predicate)
  if test is None or test.shape != node.shape:
    return None
  surely = decided(test)
  if surely is not None:
    chosen = if_true if surely else if_false
    return chosen if isinstance(chosen, Ref) else None
  if test.name not in _ORDER:
    return None
  greater, less = test.inputs if _ORDER[test.name](1, 0) else test.inputs[::-1]
  return _compared(rw, node, greater, less, above=if_true, below=if_false)


def decided(test: Node) -> bool | None:
  """What a test says about finite numbers, None if that depends on them."""
  if test.name == 'is_finite':
    return True
  if test.name in ('eq', 'ne'):
    left, right = test.inputs
    if left == right if isinstance(left, Ref) and isinstance(right, Ref) else False:
      return test.name == 'eq'
    if any(abs(uniform(i) or 0) == float('inf') for i in test.inputs):
      return test.name == 'ne'
  return None


def _compared(rw, node, greater, less, above, below):
  """`above` where greater > less, else `below`."""
  if rw.same(above, greater) and rw.same(below, less):
    return _extreme(rw, 'max', greater, less, node)
  if rw.same(above, less) and rw.same(below, greater):
    return _extreme(rw, 'min', greater, less, node)
  if isinstance(less, Ref):
    if isinstance(greater, Ref):
      return None
    x, threshold = less, greater
    above, below = below, above
  else:
    x, threshold = greater, less
  if rw.shape(x) != node.shape:
    return None
  for rule in (_leaky, _two_lines, _one_sided_clip, _vanishing_sides):
    found = rule(rw, node, x, threshold, above, below)
    if found is not None:
      return found
  return None


def _extreme(rw, name, left, right, like):
  for i in (left, right):
    if isinstance(i, Ref) and rw.shape(i) != like.shape:
      return None
  function = {'max': jnp.maximum, 'min': jnp.minimum}[name]
  return rw.emit(name, function, left, right, like=like)


def _leaky(rw, node, x, threshold, above, below):
  """x on one side of 0, slope * x on the other; the slope may be any array."""
  if not is_uniform(threshold, 0):
    return None
  for line, rest, mirrored in ((above, below, False), (below, above, True)):
    slope = _slope(rw, rest, x)
    if line == x and isinstance(line, Ref) and slope is not None:
      return leaky_relu(rw, x, slope, node, mirrored)
  return None


def _slope(rw, value, x):
  """s of a value s * x (s a constant of any shape, not the result of rounding)."""
  node = rw.node(value, 'mul', 'neg')
  if (node is None or node.folds or node.shape != rw.shape(x)
      or node.operands != (x.id,)):
    return None
  return rw.constant(-1) if node.name == 'neg' else node.constants[0]


def leaky_relu(rw: Rewriter, x: Ref, slope, like: Node, mirrored: bool = False) -> Ref:
  """x where x >= 0, slope * x elsewhere; mirrored: slope * x where x >= 0, else x."""
  if mirrored:
    x = rw.neg(x, like)
  if is_uniform(slope, -1):
    found = rw.emit('abs', jnp.abs, x, like=like)
  elif is_uniform(slope, 0):
    found = rw.emit('max', jnp.maximum, x, rw.constant(0), like=like)
  else:
    found = rw.emit('leaky_relu', lambda v: jnp.where(v >= 0, v, slope * v), x,
                    params={'slope': slope}, like=like)
  return rw.neg(found, like) if mirrored else found


def _two_lines(rw, node, x, threshold, above, below):
  """Affine functions g (above) and h (below) of x that agree at the threshold c.

  h(x) + g(max(x, c)) - h(max(x, c)), in which the walk backwards adds up what
  multiplies the maximum.
  """
  g, h = (polynomial(rw, i, x) for i in (above, below))
  c = uniform(threshold)
  if g is None or h is None or c is None or abs(c) == float('inf'):
    return None
  c = Fraction(c)
  if max(g.degree, h.degree) > 1 or g.folds or h.folds or g[0] + g[1] * c != (
      h[0] + h[1] * c):
    return None
  if not c and not g[0] and not h[0]:
    if g[1] == 1 and (slope := exactly(rw, h[1])) is not None:
      return leaky_relu(rw, x, slope, node)
    if h[1] == 1 and (slope := exactly(rw, g[1])) is not None:
      return leaky_relu(rw, x, slope, node, mirrored=True)
    # x / 3 is y, and x is 3 * y, where 1 / 3 is no number of this type.
    if g[1] == 1 and h[1] > 0 and (slope := exactly(rw, 1 / h[1])) is not None:
      return leaky_relu(rw, below, slope, node, mirrored=True)
    if h[1] == 1 and g[1] > 0 and (slope := exactly(rw, 1 / g[1])) is not None:
      return leaky_relu(rw, above, slope, node)
  if not g.degree and not h.degree:
    return None  # A constant.
  if not g.degree:
    return rw.replay(below, {x: _extreme(rw, 'min', x, threshold, node)})
  clipped = _extreme(rw, 'max', x, threshold, node)
  if not h.degree:
    return rw.replay(above, {x: clipped})
  difference = rw.sub(rw.replay(above, {x: clipped}), rw.replay(below, {x: clipped}),
                      node)
  return rw.add(below, difference, node)


def exactly(rw: Rewriter, number: Fraction):
  """A constant of this value, None if rounding would change it."""
  constant = rw.constant(float(number))
  return constant if Fraction(uniform(constant)) == number else None


def _one_sided_clip(rw, node, x, threshold, above, below):
  """The outer choice of a clip: c where x > c, else max(x, b) with b <= c."""
  for name, inner, constant, value, order in (
      ('min', 'max', above, below, 1), ('max', 'min', below, above, -1)):
    clip = rw.node(value, inner)
    c, bounds = uniform(threshold), clip.constants if clip else ()
    if len(bounds) != 1 or not any(i == x for i in clip.inputs if isinstance(i, Ref)):
      continue
    b = uniform(bounds[0])
    if None in (b, c) or isinstance(constant, Ref) or uniform(constant) != c:
      continue
    if order * b <= order * c:
      return _extreme(rw, name, value, threshold, node)
  return None


def _vanishing_sides(rw, node, x, threshold, above, below):
  """g(x) above 0, h(x) below, both 0 at 0: g(max(x, 0)) + h(min(x, 0)). Elu, selu.

  The sides may be written on x or on x clipped to their own side.
  """
  if not is_uniform(threshold, 0):
    return None
  sides = []
  for name, value in (('max', above), ('min', below)):
    clipped = _extreme(rw, name, x, rw.constant(0), node)
    own = {x: clipped, clipped: clipped}
    if not _vanishes(rw, value, own):
      return None
    sides.append(rw.replay(value, own))
  return rw.add(*sides, node)


def _vanishes(rw, value, at, depth=8):
  """Whether a value is surely 0 where those in `at` are."""
  if not isinstance(value, Ref) or value in at:
    return value in at if isinstance(value, Ref) else is_uniform(value, 0)
  node = rw.node(value)
  if node is None or not depth:
    return False
  inside = lambda i: _vanishes(rw, i, at, depth - 1)
  if node.name in ('neg', 'expm1', 'tanh', 'erf', 'log1p', 'sin', 'abs', 'square'):
    return inside(node.inputs[0])
  if node.name == 'mul' and len(node.operands) == 1 or node.name == 'div':
    return len(node.operands) == 1 and all(map(inside, map(Ref, node.operands)))
  if node.name in ('add', 'sub'):
    left, right = node.inputs
    exp = rw.node(left, 'exp')
    if node.name == 'sub' and exp and is_uniform(right, 1):
      return inside(exp.inputs[0])
    return inside(left) and inside(right)
  return False
