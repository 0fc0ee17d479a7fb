"""Maxima of several values as one `reduce_max` over a new axis.

For trees of binary maxima and for windows (max pooling). Minima are negated maxima.

What is padded never wins: padding is replaced by an entry that the same maximum
contains anyway. An infinity would poison the arithmetic, a very low number would be
a bound of its own.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, is_uniform, uniform

_LOWEST = {'max': -np.inf, 'min': np.inf}
Indices = tuple[int | None, ...]  # Along one axis; None is padding.


def tree(rw: Rewriter, node: Node) -> Ref | None:
  """max(max(a, b), c) ... of bounded values, or min, as one maximum."""
  if node.linear or len(node.operands) != 2 or _inner(rw, node):
    return None
  leaves = list(dict.fromkeys(_leaves(rw, node)))
  if any(rw.shape(leaf) != node.shape for leaf in leaves):
    return None
  windows = [_window(rw, leaf, _LOWEST[node.name]) for leaf in leaves]
  if any(w is not None and w[2] for w in windows):
    if not all(windows) or len({w[0] for w in windows}) != 1:
      return None
    return _padded(rw, node, windows)
  if len(leaves) < 3:
    return leaves[0] if len(leaves) == 1 else None
  if node.name == 'max':
    return _maximum(rw, node, leaves)
  return rw.neg(_maximum(rw, node, [rw.neg(leaf, node) for leaf in leaves]), node)


def _inner(rw, node):
  """Whether a tree that `node` is part of goes on."""
  readers = [n for n in rw.old.nodes if node.out in n.operands]
  return (len(readers) == 1 and rw.old.uses[node.out] == 1
          and readers[0].name == node.name and readers[0].shape == node.shape
          and len(readers[0].operands) == 2)


def _leaves(rw, node):
  for i in node.inputs:
    inner = rw.node(i, node.name)
    if (inner is not None and len(inner.operands) == 2 and inner.shape == node.shape
        and rw.old.uses.get(inner.out) == 1):
      yield from _leaves(rw, inner)
    else:
      yield i


def _maximum(rw, node, leaves):
  """One maximum of values of the shape of `node`."""
  axis = min(1, len(node.shape))
  longer = (*node.shape[:axis], 1, *node.shape[axis:])
  stacked = rw.emit(
      'concatenate', lambda *xs: lax.concatenate(xs, axis),
      *(rw.reshape(leaf, longer, node) for leaf in leaves),
      params={'dimension': axis}, linear=True, like=node)
  return reduce_max(rw, stacked, (axis,), node)


def reduce_max(rw: Rewriter, value: Ref, axes: tuple[int, ...], like: Node) -> Ref:
  return rw.emit('reduce_max', lambda x: jnp.max(x, axis=axes), value,
                 params={'axes': axes}, like=like)


def _window(rw, leaf, lowest):
  """(source, its indices along each axis, whether some are padding) of a leaf."""
  lists = [tuple(range(n)) for n in rw.shape(leaf)]
  cut = rw.node(leaf, 'slice')
  if cut is not None:
    strides = cut.params.get('strides') or (1,) * len(lists)
    lists = [tuple(range(*window)) for window in zip(
        cut.params['start_indices'], cut.params['limit_indices'], strides)]
    leaf = cut.inputs[0]
  pad = rw.node(leaf, 'pad')
  if pad is None or not isinstance(pad.inputs[0], Ref) or not is_uniform(
      pad.inputs[1], lowest):
    return leaf, tuple(lists), False
  source = pad.inputs[0]
  lists = tuple(
      tuple(_position(i - low, interior + 1, n) for i in along)
      for along, (low, _, interior), n in zip(
          lists, pad.params['padding_config'], rw.shape(source)))
  return source, lists, any(i is None for along in lists for i in along)


def _position(index, dilation, size):
  position, rest = divmod(index, dilation)
  return position if not rest and 0 <= position < size else None


def _padded(rw, node, windows):
  """A maximum over windows of one padded array, if they are all combinations."""
  source, dims = windows[0][0], len(node.shape)
  choices = [list(dict.fromkeys(w[1][d] for w in windows)) for d in range(dims)]
  if set(itertools.product(*choices)) != {w[1] for w in windows}:
    return None
  return windows_max(rw, source, choices, node, node.name)


def windows_max(rw: Rewriter, source: Ref, choices: Sequence[Sequence[Indices]],
                node: Node, name: str = 'max') -> Ref | None:
  """Maximum (or minimum) over windows.

  Args:
    rw: where new equations go.
    source: [n_1, ..., n_D].
    choices: for each axis, what each element of the window reads at the positions
      of the result. The window consists of all combinations.
    node: has the shape of the result.
    name: 'max' or 'min'.

  Returns:
    The value; None if a window is nothing but padding.
  """
  leaves = [rw.neg(source, node) if name == 'min' else source]
  for axis, lists in enumerate(choices):
    inside = [next((i for i in column if i is not None), None)
              for column in zip(*lists)]
    if None in inside:
      return None
    # Another element of the same window, at the same place along other axes.
    lists = [tuple(j if i is None else i for i, j in zip(column, inside))
             for column in lists]
    leaves = [_take(rw, leaf, axis, indices, node)
              for leaf in leaves for indices in dict.fromkeys(lists)]
  found = leaves[0] if len(leaves) == 1 else _maximum(rw, node, leaves)
  return rw.neg(found, node) if name == 'min' else found


def _take(rw, value, axis, indices, like):
  """Entries along one axis, by as few slices as possible."""
  shape = rw.shape(value)
  if indices == tuple(range(shape[axis])):
    return value
  pieces = [_slice(rw, value, axis, run, like) for run in _runs(indices)]
  if len(pieces) == 1:
    return pieces[0]
  return rw.emit('concatenate', lambda *xs: lax.concatenate(xs, axis), *pieces,
                 params={'dimension': axis}, linear=True, like=like)


def _runs(indices):
  """Cuts indices into runs (start, step >= 1, length)."""
  runs = []
  for i in indices:
    if runs:
      start, step, length = runs[-1]
      if length == 1 and i > start:
        runs[-1] = (start, i - start, 2)
        continue
      if length > 1 and i == start + step * length:
        runs[-1] = (start, step, length + 1)
        continue
    runs.append((i, 1, 1))
  return runs


def _slice(rw, value, axis, run, like):
  start, step, length = run
  shape = rw.shape(value)
  starts = tuple(start if a == axis else 0 for a in range(len(shape)))
  limits = tuple(start + step * (length - 1) + 1 if a == axis else n
                 for a, n in enumerate(shape))
  strides = tuple(step if a == axis else 1 for a in range(len(shape)))
  return rw.emit(
      'slice', lambda x: lax.slice(x, starts, limits, strides), value, linear=True,
      params={'start_indices': starts, 'limit_indices': limits, 'strides': strides},
      like=like)


def reduce_window(rw: Rewriter, node: Node) -> Ref | None:
  """Max and min pooling; sums that JAX did not recognise as such."""
  name, initial = {
      'reduce_window_max': ('max', -np.inf), 'reduce_window_min': ('min', np.inf),
  }.get(node.name) or _computation(node)
  value = node.inputs[0]
  if name == 'add' and initial == 0:
    return _window_sum(rw, node)
  if name not in _LOWEST or not isinstance(value, Ref) or initial is None:
    return None
  p = node.params
  choices = [
      [tuple(_position(o * stride + k * dilation - low, base, n)
             for o in range(length)) for k in range(size)]
      for length, size, stride, dilation, (low, _), base, n in zip(
          node.shape, p['window_dimensions'], p['window_strides'],
          p['window_dilation'], p['padding'], p['base_dilation'], rw.shape(value))]
  found = windows_max(rw, value, choices, node, name)
  return found if found is None else _with_initial(rw, node, found, name, initial)


def reduce(rw: Rewriter, node: Node) -> Ref | None:
  """`reduce_min`, and `lax.reduce` with a maximum, minimum or sum."""
  value = node.inputs[0]
  if node.name == 'reduce_min':
    name, initial, axes = 'min', np.inf, node.params['axes']
  else:
    name, initial = _computation(node)
    axes = node.params['dimensions']
  if initial is None or not isinstance(value, Ref):
    return None
  if name == 'add' and initial == 0:
    return rw.emit('reduce_sum', lambda x: jnp.sum(x, axis=axes), value,
                   params={'axes': axes}, linear=True, like=node)
  if name == 'max':
    return _with_initial(rw, node, reduce_max(rw, value, axes, node), name, initial)
  if name == 'min':
    found = rw.neg(reduce_max(rw, rw.neg(value, node), axes, node), node)
    return _with_initial(rw, node, found, name, initial)
  return None


def _computation(node):
  """(primitive, initial value) of a reduction by a function of two numbers."""
  jaxpr = node.params['jaxpr']
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  if len(node.inputs) != 2 or len(jaxpr.eqns) != 1:
    return None, None
  eqn, = jaxpr.eqns
  if (list(eqn.outvars) != list(jaxpr.outvars)
      or {id(v) for v in eqn.invars} != {id(v) for v in jaxpr.invars}):
    return None, None
  return eqn.primitive.name, uniform(node.inputs[1])


def _with_initial(rw, node, found, name, initial):
  if initial == _LOWEST[name]:
    return found
  if not np.isfinite(initial):
    return None
  return rw.emit(name, {'max': jnp.maximum, 'min': jnp.minimum}[name], found,
                 rw.constant(initial), like=node)


def _window_sum(rw, node):
  p = {k: node.params[k] for k in (
      'window_dimensions', 'window_strides', 'padding', 'base_dilation',
      'window_dilation')}
  return rw.emit(
      'reduce_window_sum', lambda x: lax.reduce_window(
          x, np.zeros((), x.dtype), lax.add, *p.values()),
      node.inputs[0], params=p, linear=True, like=node)
