"""Truth values in a graph as numbers that are 0 or 1, which have bounds.

Only what a choice or a conversion to a floating-point type reads becomes one, after
`piecewise_patterns` has looked for functions without a jump.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import MOVES, Node, Ref
from rkd_jax.bounds.normalised import in_place
from rkd_jax.bounds.piecewise_patterns import decided
from rkd_jax.bounds.rewriter import Rewriter, concrete, is_uniform

_COMPARISONS = frozenset({'gt', 'ge', 'lt', 'le', 'eq', 'ne'})
_OF_TRUTHS = frozenset({'not', 'and', 'or', 'xor', 'reduce_and', 'reduce_or',
                        'is_finite'})


def choose(rw: Rewriter, node: Node) -> Ref | None:
  """A choice by a bounded predicate."""
  if len(node.inputs) != 3 or not isinstance(node.inputs[0], Ref):
    return None
  predicate = truth(rw, node.inputs[0], node)
  if predicate is None:
    return None
  sides = node.inputs[1:]
  if not isinstance(predicate, Ref):
    return _constant_choice(rw, predicate, sides, node)
  predicate = _shaped(rw, predicate, node)
  sides = [_shaped(rw, side, node) for side in sides]
  if not any(isinstance(side, Ref) for side in sides):
    return _between(rw, predicate, *sides, node)
  return rw.emit('choose', lambda p, f, t: jnp.where(p > 0.5, t, f), predicate, *sides,
                 like=node)


def convert(rw: Rewriter, node: Node) -> Ref | None:
  """A truth value as a number; by way of an integer, too."""
  value = node.inputs[0]
  while inner := rw.node(value, 'convert_element_type'):
    value = inner.inputs[0]
  if not jnp.issubdtype(node.params['new_dtype'], jnp.floating) or not _is_truth(
      rw, value):
    return None
  found = truth(rw, value, node)
  if found is None or isinstance(found, Ref):
    return found
  return rw.fixed(jnp.broadcast_to(found, node.shape), node)


def _shaped(rw, value, node):
  if isinstance(value, Ref):
    return rw.broadcast(value, node.shape, tuple(range(len(rw.shape(value)))), node)
  return value


def _constant_choice(rw, predicate, sides, node):
  """A choice that is decided after all."""
  if not any(isinstance(side, Ref) for side in sides):
    return rw.fixed(jnp.broadcast_to(
        jnp.where(predicate > 0.5, sides[1], sides[0]), node.shape), node)
  known = concrete(predicate)
  for side, wanted in zip(sides, (0, 1)):
    if known is not None and np.all(known == wanted):
      return side if isinstance(side, Ref) else rw.fixed(
          jnp.broadcast_to(side, node.shape), node)
  mask = jnp.broadcast_to(predicate > 0.5, node.shape)
  sides = [_shaped(rw, s, node) if isinstance(s, Ref) else
           jnp.broadcast_to(s, node.shape) for s in sides]
  return rw.emit('select_n', lax.select_n, mask, *sides, linear=True, like=node)


def _between(rw, predicate, if_false, if_true, node):
  """f + (t - f) p for constants f and t."""
  known = concrete(if_false)
  exact = known is not None and not np.any(known)
  like = node if exact else dataclasses.replace(node, folds=node.folds + 2)
  scaled = rw.emit('mul', jnp.multiply, predicate, jnp.asarray(if_true, rw.dtype)
                   - jnp.asarray(if_false, rw.dtype), linear=True, like=like)
  return scaled if exact else rw.add(scaled, if_false, like)


def truth(rw: Rewriter, value, like: Node):
  """A truth value as 0 or 1: a `Ref`, an array, or None where it is not known how."""
  if not isinstance(value, Ref):
    known = concrete(value)
    return (known if known is not None else value).astype(rw.dtype)
  node = rw.node(value)
  if node is None or not _is_truth(rw, value):
    return None
  if (surely := decided(node)) is not None:
    return np.full(node.shape, surely, rw.dtype)
  if node.name in _COMPARISONS and not _is_truth(rw, node.inputs[0]):
    return _compare(rw, node)
  parts = [truth(rw, i, node) if isinstance(i, Ref) or i.dtype == bool else i
           for i in node.inputs]
  if any(p is None for p in parts):
    return None
  if node.name in MOVES:
    if not any(isinstance(p, Ref) for p in parts):
      return node.evaluate(*parts)
    return rw.emit(node.name, node.evaluate, *parts, params=node.params, linear=True,
                   like=node)
  return _combine(rw, node, parts)


def _combine(rw, node, parts):
  name, first, last = node.name, parts[0], parts[-1]
  if name in ('reduce_and', 'reduce_or'):
    return _reduced(rw, node, first)
  if name == 'not':
    return _not(rw, first, node)
  if name in ('eq', 'ne', 'xor'):
    if isinstance(first, Ref) or isinstance(last, Ref):
      apart = rw.emit('abs', jnp.abs, rw.sub(first, last, node), like=node)
    else:
      apart = jnp.abs(first - last)
    return _not(rw, apart, node) if name == 'eq' else apart
  if name not in ('and', 'or'):
    return None
  function = {'and': jnp.minimum, 'or': jnp.maximum}[name]
  if isinstance(first, Ref) and isinstance(last, Ref):
    return rw.emit({'and': 'min', 'or': 'max'}[name], function, first, last, like=node)
  if not isinstance(first, Ref) and not isinstance(last, Ref):
    return function(first, last)
  p, constant = (first, last) if isinstance(first, Ref) else (last, first)
  if name == 'and':  # p c, and p (1 - c) + c.
    return rw.emit('mul', jnp.multiply, p, constant, linear=True, like=node)
  kept = rw.emit('mul', jnp.multiply, p, 1 - constant, linear=True, like=node)
  return rw.add(kept, constant, node)


def _not(rw, value, like):
  if not isinstance(value, Ref):
    return 1 - value
  return rw.sub(rw.constant(1), value, like)


def _reduced(rw, node, value):
  axes = tuple(node.params['axes'])
  if not isinstance(value, Ref):
    return (jnp.min if node.name == 'reduce_and' else jnp.max)(value, axis=axes)
  largest = lambda v: rw.emit('reduce_max', lambda x: jnp.max(x, axis=axes), v,
                              params={'axes': axes}, like=node)
  if node.name == 'reduce_or':
    return largest(value)
  return rw.neg(largest(rw.neg(value, node)), node)


def _is_truth(rw, value, depth=8):
  """Whether a value is a truth value; the graph itself knows shapes alone."""
  if not isinstance(value, Ref):
    return value.dtype == bool
  node = rw.node(value)
  if node is None or not depth:
    return False
  if node.name in _COMPARISONS or node.name in _OF_TRUTHS:
    return True
  inputs = node.inputs[1:2] if node.name == 'select_n' else node.inputs[:1]
  return node.name in MOVES and all(_is_truth(rw, i, depth - 1) for i in inputs)


def _compare(rw, node):
  """The test `node` as a step of one value; lt and le are one minus ge and gt."""
  name, (left, right) = node.name, node.inputs
  if name in ('eq', 'ne'):
    extreme = _with_extreme(rw, left, right) or _with_extreme(rw, right, left)
    if extreme is None:
      found = _step(rw, node, 'equals', left, right)
    else:
      found = _step(rw, node, 'step', *extreme, strict=False)
    return _not(rw, found, node) if name == 'ne' else found
  if name in ('gt', 'ge'):
    return _step(rw, node, 'step', left, right, strict=name == 'gt')
  return _step(rw, node, 'step', right, left, strict=name == 'lt')


def _with_extreme(rw, value, other):
  """(a, b) such that value == other is a >= b, if `other` is a maximum with it or so."""
  found = rw.node(other, 'max', 'min')
  for same, rest in (found.inputs, found.inputs[::-1]) if found else ():
    if rw.same(same, value):
      return (value, rest) if found.name == 'max' else (rest, value)
  if isinstance(value, Ref) and isinstance(other, Ref):
    return (value, other) if _is_maximum(rw, value, other) else None
  return None


def _is_maximum(rw, value, other):
  """The axes of a maximum of `value` along some that lies, broadcast, beside it."""
  core, dims = rw.unbroadcast(other)
  inner, shape = rw.node(core, 'reduce_max'), rw.shape(value)
  if not inner or inner.inputs[0] != value:
    return None
  axes = tuple(inner.params['axes'])
  return axes if in_place(rw, other, dims, axes, shape) else None


def _step(rw, node, name, left, right, **params):
  """left > right (or >=, ==) by a constant threshold, or by their difference."""
  if not isinstance(left, Ref):  # c > x is not (x >= c).
    if name == 'equals':
      return _step(rw, node, name, right, left)
    return _not(rw, _step(rw, node, name, right, left, strict=not params['strict']),
                node)
  threshold = right
  if isinstance(right, Ref) or node.folds:
    left, threshold = rw.sub(left, right, node), rw.constant(0)
  if rw.shape(left) != node.shape:
    left = _shaped(rw, left, node)
  if name == 'equals':
    test = lambda x, c: x == c
  else:
    test = (lambda x, c: x > c) if params['strict'] else (lambda x, c: x >= c)
  return rw.emit(name, lambda x, c: test(x, c).astype(x.dtype), left, threshold,
                 params=params, like=node)


def count(rw: Rewriter, node: Node) -> Ref | None:
  """How many entries are their maximum: at least one. The gradient of a maximum has it.
  """
  test = rw.node(node.inputs[0], 'step')
  apart = test and rw.node(test.inputs[0], 'sub')
  if not apart or test.params['strict'] or not is_uniform(test.constants[0], 0):
    return None
  value, largest = apart.inputs
  if not isinstance(value, Ref) or not isinstance(largest, Ref):
    return None
  axes = _is_maximum(rw, value, largest)
  if axes is None or set(axes) != set(node.params['axes']) or rw.shape(
      value) != test.shape:
    return None
  total = rw.emit('reduce_sum', node.evaluate, node.inputs[0], params=node.params,
                  linear=True, like=node)
  return rw.emit('max', jnp.maximum, total, rw.constant(1), like=node)
