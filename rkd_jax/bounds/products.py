"""Products of bounded arrays, and what is accumulated along an axis.

Each becomes products (maxima, sums) of two values of one shape: a convolution by
gathering what each product of it multiplies, a product over n entries by log2(n)
halvings, a running one by log2(n) shifts.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter

MAX_PRODUCTS = 2**16  # Of two bounded values, made from one equation.


def dot(rw: Rewriter, node: Node) -> Ref | None:
  """A product of two bounded arrays as `mul` and `reduce_sum`, if it is small."""
  if len(node.operands) != 2:
    return None
  (left_sum, right_sum), batch = node.params['dimension_numbers']
  shapes = [rw.shape(i) for i in node.inputs]
  summed = [shapes[0][a] for a in left_sum]
  full = (*node.shape, *summed)
  if math.prod(full) > MAX_PRODUCTS:
    return None
  n_batch, rank, moved = len(batch[0]), len(full), []
  n_left = len(shapes[0]) - n_batch - len(summed)
  for value, contract, together, first in zip(
      node.inputs, (left_sum, right_sum), batch, (n_batch, n_batch + n_left)):
    shape = rw.shape(value)
    free = [a for a in range(len(shape)) if a not in (*contract, *together)]
    order = (*together, *free, *contract)
    value = rw.transpose(value, order, node)
    dims = (*range(n_batch), *range(first, first + len(free)),
            *range(rank - len(contract), rank))
    moved.append(rw.broadcast(value, full, dims, node))
  return _sum_of_products(rw, *moved, tuple(range(len(node.shape), rank)), node)


def _sum_of_products(rw, left, right, axes, node):
  if left == right:
    product = rw.emit('square', jnp.square, left, like=node)
  else:
    product = rw.emit('mul', jnp.multiply, left, right, like=node)
  if not axes:
    return product
  return rw.emit('reduce_sum', lambda x: jnp.sum(x, axis=axes), product,
                 params={'axes': axes}, linear=True, like=node)


def convolution(rw: Rewriter, node: Node) -> Ref | None:
  """A convolution of two bounded arrays, if it has few products."""
  if len(node.operands) != 2 or node.params['batch_group_count'] != 1:
    return None
  specs = node.params['dimension_numbers']
  shapes = [rw.shape(i) for i in node.inputs]
  kernel = [shapes[1][a] for a in specs.rhs_spec]  # [out, in, spatial ...]
  full = (*(node.shape[a] for a in specs.out_spec), *kernel[1:])
  if math.prod(full) > MAX_PRODUCTS:
    return None
  left, inside, right = _factors(node.params, shapes, full)
  found = _sum_of_products(
      rw, _gather(rw, node.inputs[0], left, inside, node),
      _gather(rw, node.inputs[1], right, None, node),
      tuple(range(len(node.shape), len(full))), node)
  order = [0] * len(node.shape)
  for canonical, axis in enumerate(specs.out_spec):
    order[axis] = canonical
  return rw.transpose(found, tuple(order), node)


def _factors(params, shapes, full):
  """For each product [out shape, in, kernel ...]: (entry left, is one, entry right)."""
  specs, space = params['dimension_numbers'], len(full) // 2 - 1
  grid = np.indices(full)
  example, out, at = grid[0], grid[1], grid[2:2 + space]
  channel, tap = grid[2 + space], grid[3 + space:]
  images, kernels = (
      np.transpose(np.arange(math.prod(shape)).reshape(shape), spec)
      for shape, spec in zip(shapes, (specs.lhs_spec, specs.rhs_spec)))
  inside, places = np.ones(full, bool), []
  for d in range(space):
    place, rest = np.divmod(
        at[d] * params['window_strides'][d] + tap[d] * params['rhs_dilation'][d]
        - params['padding'][d][0], params['lhs_dilation'][d])
    inside &= (rest == 0) & (place >= 0) & (place < images.shape[2 + d])
    places.append(np.clip(place, 0, images.shape[2 + d] - 1))
  group = out // (kernels.shape[0] // params['feature_group_count'])
  left = images[(example, group * kernels.shape[1] + channel, *places)]
  return left, inside, kernels[(out, channel, *tap)]


def _gather(rw, value, entries, inside, like):
  """Entries of a value by their numbers, 0 where they are not inside."""
  def take(x):
    found = x.reshape(-1)[entries]
    return found if inside is None else jnp.where(inside, found, 0)
  return rw.emit('gather', take, value, linear=True, like=like)


def product_over(rw: Rewriter, node: Node) -> Ref | None:
  """The product along axes, by halves."""
  value, axes = node.inputs[0], tuple(node.params['axes'])
  shape = rw.shape(value)
  kept = tuple(a for a in range(len(shape)) if a not in axes)
  count = math.prod(shape[a] for a in axes)
  if not count:
    return None
  value = rw.transpose(value, (*axes, *kept), node)
  value = rw.reshape(value, (count, *(shape[a] for a in kept)), node)
  while count > 1:
    half = count // 2
    parts = [_cut(rw, value, 0, start, start + half, node) for start in (0, half)]
    found = rw.emit('mul', jnp.multiply, *parts, like=node)
    if count % 2:
      found = _join(rw, found, _cut(rw, value, 0, count - 1, count, node), 0, node)
    value, count = found, half + count % 2
  return rw.reshape(value, node.shape, node)


def running(combine: Callable) -> Callable[[Rewriter, Node], Ref | None]:
  """The pattern of a running product, maximum ...: `combine(rw, left, right, like)`.

  After the shift by d, entry i holds the 2 d entries up to it.
  """
  def pattern(rw, node):
    value, axis = node.inputs[0], node.params['axis']
    length, turned = node.shape[axis], node.params['reverse']
    flip = lambda v: rw.emit('rev', lambda x: jnp.flip(x, axis), v, linear=True,
                             params={'dimensions': (axis,)}, like=node)
    value = flip(value) if turned else value
    shift = 1
    while shift < length:
      later = _cut(rw, value, axis, shift, length, node)
      earlier = _cut(rw, value, axis, 0, length - shift, node)
      value = _join(rw, _cut(rw, value, axis, 0, shift, node),
                    combine(rw, later, earlier, node), axis, node)
      shift *= 2
    return flip(value) if turned else value
  return pattern


def _cut(rw, value, axis, start, stop, like):
  shape = rw.shape(value)
  starts = tuple(start if a == axis else 0 for a in range(len(shape)))
  stops = tuple(stop if a == axis else n for a, n in enumerate(shape))
  return rw.emit('slice', lambda x: lax.slice(x, starts, stops), value, linear=True,
                 params={'start_indices': starts, 'limit_indices': stops,
                         'strides': None}, like=like)


def _join(rw, first, second, axis, like):
  return rw.emit('concatenate', lambda *xs: lax.concatenate(xs, axis), first, second,
                 params={'dimension': axis}, linear=True, like=like)


def _nonlinear(name, function):
  return running(lambda rw, left, right, like: rw.emit(
      name, function, left, right, like=like))


def _logaddexp(rw, left, right, like):
  """left + softplus(right - left)."""
  grown = rw.emit('softplus', jax.nn.softplus, rw.sub(right, left, like), like=like)
  return rw.add(left, grown, like)


RUNNING = {'cumprod': _nonlinear('mul', jnp.multiply),
           'cummax': _nonlinear('max', jnp.maximum),
           'cummin': _nonlinear('min', jnp.minimum),
           'cumlogsumexp': running(_logaddexp)}
