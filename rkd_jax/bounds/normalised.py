"""Softmax, log-softmax and logsumexp found in a graph.

All three are known by exp(d) and its sum over the same d. That a maximum (or anything
else that is constant along the axes) was subtracted changes nothing:
softmax(x - m) = softmax(x), log_softmax likewise, logsumexp(x - m) + m = logsumexp(x).
"""

import math

import jax

from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, is_uniform, polynomial


def softmax(rw: Rewriter, node: Node) -> Ref | None:
  """exp(d) * (1 / sum(exp(d)))."""
  for top, bottom in (node.inputs, node.inputs[::-1]):
    exp = rw.node(top, 'exp')
    if exp is None or exp.shape != node.shape or not isinstance(bottom, Ref):
      continue
    core, dims = rw.unbroadcast(bottom)
    inverse = rw.node(core, 'reciprocal')
    if inverse is None:
      continue
    axes = _summed(rw, *rw.unbroadcast(inverse.inputs[0], dims), top)
    if axes is not None:
      return _emit(rw, 'softmax', exp.inputs[0], axes, node)
  return None


def logsumexp(rw: Rewriter, node: Node) -> Ref | None:
  """log(sum(exp(d))), also of the absolute value of the sum; log(softmax)."""
  value = node.inputs[0]
  if inner := rw.node(value, 'softmax'):
    return _emit(rw, 'log_softmax', inner.inputs[0], inner.params['axes'], node)
  core, dims = rw.unbroadcast(value)
  if positive := rw.node(core, 'abs'):
    core, dims = rw.unbroadcast(positive.inputs[0], dims)
  total = rw.node(core, 'reduce_sum')
  exp = total and rw.node(total.inputs[0], 'exp')
  if not exp:
    return None
  axes = tuple(total.params['axes'])
  found = rw.emit('logsumexp', lambda x: jax.nn.logsumexp(x, axis=axes),
                  exp.inputs[0], params={'axes': axes}, like=node)
  return _place(rw, found, dims, node)


def logsumexp_of_shifted(rw: Rewriter, node: Node) -> Ref | None:
  """logsumexp(x - m) + m."""
  if len(node.operands) != 2:
    return None
  for left, shift in (node.inputs, node.inputs[::-1]):
    core, dims = rw.unbroadcast(left)
    inner = rw.node(core, 'logsumexp')
    shifted = inner and rw.node(inner.inputs[0], 'sub')
    if not shifted or not isinstance(shifted.inputs[1], Ref):
      continue
    x, subtracted = shifted.inputs
    if not isinstance(x, Ref) or rw.shape(x) != shifted.shape:
      continue
    axes = inner.params['axes']
    kept = [a for a in range(len(shifted.shape)) if a not in axes]
    ours, our_dims = rw.unbroadcast(shift)
    theirs, their_dims = rw.unbroadcast(subtracted)
    ranks = {len(rw.shape(i)) for i in (left, shift)} | {len(node.shape)}
    if (ours != theirs or len(ranks) > 1
        or len(rw.shape(subtracted)) != len(shifted.shape)):
      continue
    # Along which axis of the sum each axis of m runs, and where that should be.
    wanted = dict(zip(kept, dims))
    if all(b is None or a is not None and wanted.get(b, -1) == a
           for a, b in zip(our_dims, their_dims)):
      found = rw.emit('logsumexp', inner.evaluate, x, params=inner.params, like=node)
      return _place(rw, found, dims, node)
  return None


def log_softmax(rw: Rewriter, node: Node) -> Ref | None:
  """d - logsumexp(d)."""
  value, total = node.inputs
  if not isinstance(value, Ref) or not isinstance(total, Ref):
    return None
  core, dims = rw.unbroadcast(total)
  inner = rw.node(core, 'logsumexp')
  if not inner or inner.inputs[0] != value or rw.shape(value) != node.shape:
    return None
  axes = inner.params['axes']
  if not in_place(rw, total, dims, axes, node.shape):
    return None
  return _emit(rw, 'log_softmax', value, axes, node)


def softmax_of_log(rw: Rewriter, node: Node) -> Ref | None:
  """exp(log_softmax(x))."""
  inner = rw.node(node.inputs[0], 'log_softmax')
  return inner and _emit(
      rw, 'softmax', inner.inputs[0], inner.params['axes'], node)


def softplus(rw: Rewriter, node: Node) -> Ref | None:
  """max(a, b) + log1p(exp(-|a - b|)) = b + softplus(a - b)."""
  for left, right in (node.inputs, node.inputs[::-1]):
    largest, log = rw.node(left, 'max'), rw.node(right, 'log1p')
    exp = log and rw.node(log.inputs[0], 'exp')
    minus = exp and rw.node(exp.inputs[0], 'neg')
    size = minus and rw.node(minus.inputs[0], 'abs')
    if not largest or not size or log.shape != node.shape:
      continue
    for a, b in (largest.inputs, largest.inputs[::-1]):
      difference = _difference(rw, size.inputs[0], a, b)
      if difference is not None:
        found = rw.emit('softplus', jax.nn.softplus, difference, like=node)
        return found if is_uniform(b, 0) else rw.add(found, b, node)
  return None


def _difference(rw, d, a, b):
  """a - b, if `d` is that up to its sign and no more than a shape was changed."""
  if not isinstance(a, Ref):
    return None
  if is_uniform(b, 0):
    minus = rw.node(a, 'neg')  # Whose absolute value is that of what it negates.
    signed = polynomial(rw, d, minus.inputs[0] if minus else a)
    same_size = rw.shape(d) == rw.shape(a)
    is_a = signed is not None and signed.coefficients in ({1: 1}, {1: -1})
    return a if same_size and is_a and not signed.folds else None
  node = rw.node(d, 'sub')
  if node and rw.same(node.inputs[0], a) and rw.same(node.inputs[1], b):
    return d
  if (node and not isinstance(b, Ref) and rw.same(node.inputs[0], b)
      and rw.same(node.inputs[1], a)):
    return rw.neg(d, node)
  return None


def _summed(rw, core, dims, exp):
  """Axes that the sum over `exp` goes along, if `core` is one and lies in place."""
  total = rw.node(core, 'reduce_sum')
  if not total or total.inputs[0] != exp:
    return None
  axes, shape = tuple(total.params['axes']), rw.shape(exp)
  kept = [a for a in range(len(shape)) if a not in axes]
  fits = all(d == k or shape[k] == 1 for d, k in zip(dims, kept))
  return axes if fits else None


def in_place(rw, value, dims, axes, shape):
  """Whether the axes that a reduction kept are still where they were."""
  kept = [a for a in range(len(shape)) if a not in axes]
  return len(rw.shape(value)) in (0, len(shape)) and all(
      d == k or shape[k] == 1 for d, k in zip(dims, kept))


def _place(rw, value, dims, node):
  """`value` with axis i along axis dims[i] of the shape of `node`."""
  own = [(n, d) for n, d in zip(rw.shape(value), dims) if n != 1]
  target = [(n, a) for a, n in enumerate(node.shape) if n != 1]
  if own == target:
    return rw.reshape(value, node.shape, node)
  order = [d for _, d in own]
  if order != sorted(order) or any(node.shape[d] != n for n, d in own):
    return None
  flat = rw.reshape(value, tuple(n for n, _ in own), node)
  return rw.broadcast(flat, node.shape, tuple(order), node)


def _emit(rw, name, value, axes, like):
  """softmax or log_softmax of `value` without what is constant along the axes."""
  shape = like.shape
  while node := rw.node(value, 'sub', 'add'):
    first, last = node.inputs
    if _is_shifted(rw, first, last, shape, axes):
      value = first
    elif node.name == 'add' and _is_shifted(rw, last, first, shape, axes):
      value = last
    else:
      break
  axes = tuple(a for a in axes if shape[a] != 1) or tuple(axes[:1])
  kept = [a for a in range(len(shape)) if a not in axes]
  order = (*kept, *axes)
  if len(axes) == 1:
    return _along(rw, name, value, axes[0], like)
  # Rules go along one axis.
  merged = rw.reshape(rw.transpose(value, order, like),
                      (*(shape[a] for a in kept), math.prod(shape[a] for a in axes)),
                      like)
  found = _along(rw, name, merged, len(kept), like)
  found = rw.reshape(found, tuple(shape[a] for a in order), like)
  return rw.transpose(found, tuple(order.index(a) for a in range(len(shape))), like)


def _along(rw, name, value, axis, like):
  function = {'softmax': jax.nn.softmax, 'log_softmax': jax.nn.log_softmax}[name]
  return rw.emit(name, lambda x: function(x, axis=axis), value,
                 params={'axes': (axis,)}, like=like)


def _is_shifted(rw, value, shift, shape, axes):
  return (isinstance(value, Ref) and rw.shape(value) == shape
          and rw.constant_along(shift, shape, axes))
