"""Whether a function treats the examples of a batch independently, by its jaxpr.

The function is traced for a batch, and where the examples are is followed from equation
to equation: along an axis, of which they may be a factor (a batch that was merged with
another axis by a reshape). An equation that adds up, compares or shifts entries of
several examples mixes them: BatchNorm in training mode takes means over the batch. One
that adds random numbers of the batch's shape (dropout) treats each position in its own
way. What an equation does that this file does not know is followed no further: this
recognises mistakes, and proves nothing.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
from jax.extend import source_info_util

from rkd_jax.bounds.tracing import CALLS, inner
from rkd_jax.errors import ConfigError

_BATCH = 3  # Examples traced: as good as any number above 1.

# Name of an equation -> of the parameter with the axes that it works along.
_SUMS = {'reduce_sum': 'axes', 'reduce_max': 'axes', 'reduce_min': 'axes',
         'reduce_prod': 'axes', 'reduce_and': 'axes', 'reduce_or': 'axes',
         'argmax': 'axes', 'argmin': 'axes', 'reduce': 'dimensions'}
_ALONG = {'cumsum': 'axis', 'cumprod': 'axis', 'cummax': 'axis', 'cummin': 'axis',
          'cumlogsumexp': 'axis', 'sort': 'dimension', 'rev': 'dimensions'}
_WINDOWS = frozenset({
    'reduce_window_sum', 'reduce_window_max', 'reduce_window_min', 'reduce_window'})
_RANDOM = frozenset({'random_bits', 'threefry2x32', 'rng_uniform', 'rng_bit_generator'})
# Not entry by entry, whatever the shapes.
_OTHER = frozenset({'fft', 'cholesky', 'triangular_solve', 'gather', 'scatter', 'while',
                    'scatter-add', 'dynamic_slice', 'dynamic_update_slice', 'pad'})


class Place(NamedTuple):
  """Where the examples of a value are: entry i along `axis` is of example
  (i // inner) % batch."""

  axis: int
  inner: int = 1


class Mixed(NamedTuple):
  """A value that depends on several examples, and the message that says why."""

  message: str


class Noise(NamedTuple):
  """A value made of random numbers, and no example; different along these axes."""

  axes: frozenset[int]


def check(fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...],
          dtype: Any) -> None:
  """Refuses a function in which the result of an example depends on the others.

  Args:
    fn: what is to be bounded.
    shape: of the input, with batch axis first.
    dtype: of the input.

  Raises:
    ConfigError: `fn` mixes examples, or adds noise that differs between them.
  """
  try:
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((_BATCH, *shape[1:]), dtype))
  except Exception:  # It takes one example at a time, so there is nothing to mix.
    return
  if any(a.ndim < 1 or a.shape[0] != _BATCH for a in closed.out_avals):
    return  # Likewise.
  for place in _follow(closed.jaxpr, [Place(0)], ''):
    if isinstance(place, Mixed):
      raise ConfigError(place.message)


def _follow(jaxpr, args, caller):
  """Places of the results of a jaxpr; None where unknown, or free of examples."""
  env = dict(zip(jaxpr.invars, args))
  read = lambda v: None if isinstance(v, jex.Literal) else env.get(v)
  for eqn in jaxpr.eqns:
    name, places = eqn.primitive.name, [read(v) for v in eqn.invars]
    where = source_info_util.summarize(eqn.source_info) or caller
    if name in _RANDOM:
      found = [Noise(frozenset(range(v.aval.ndim))) for v in eqn.outvars]
    elif all(p is None for p in places) and name not in CALLS:
      continue
    elif name in CALLS:
      found = _follow(inner(eqn)[0], places, where)
    elif name == 'scan':
      found = _scan(eqn.params, places, where)
    elif name == 'cond':
      found = _cond(eqn.params, places[1:], where)
    elif mixed := [p for p in places if isinstance(p, Mixed)]:
      found = mixed[:1] * len(eqn.outvars)
    else:
      found = [_through(eqn, places, v.aval.shape, where) for v in eqn.outvars]
    env.update(zip(eqn.outvars, found))
  return [read(v) for v in jaxpr.outvars]


def _scan(p, places, where):
  consts, carry = p['num_consts'], p['num_consts'] + p['num_carry']
  moved = lambda place, by: (
      place._replace(axis=place.axis + by)
      if isinstance(place, Place) and place.axis + by >= 0
      else place if isinstance(place, Mixed) else None)
  body = p['jaxpr'].jaxpr
  given = [*places[:carry], *(moved(q, -1) for q in places[carry:])]
  for _ in range(2):  # What the first step puts into the carry, the second reads.
    out = _follow(body, given, where)
    given = [*given[:consts], *(
        a if a is not None else b for a, b in zip(given[consts:carry], out)),
        *given[carry:]]
  count = p['num_carry']
  return [*out[:count], *(moved(q, 1) for q in out[count:])]


def _cond(p, places, where):
  found = [_follow(branch.jaxpr, places, where) for branch in p['branches']]
  return [next((q for q in each if isinstance(q, Mixed)),
               each[0] if len(set(each)) == 1 else None) for each in zip(*found)]


def _through(eqn, places, shape, where):
  """Where the examples of a result of this shape are."""
  name, p = eqn.primitive.name, eqn.params
  shapes = [getattr(v.aval, 'shape', ()) for v in eqn.invars]
  axes = _axes(name, p, shapes[0] if shapes else ())
  if axes is not None:
    if any(isinstance(q, Place) and q.axis in axes for q in places):
      return _mixes(name, where)
    return _dropped(places[0], axes) if name in _SUMS else places[0]
  if name == 'dot_general':
    return _product(p, places, shapes, where)
  if name == 'conv_general_dilated':
    return _convolution(p, places, shapes, where)
  if name in _MOVES and all(q is None for q in places[1:]):
    return _MOVES[name](places[0], p, shapes[0], shape)
  if name == 'concatenate':
    found = {q for q in places if isinstance(q, Place)}
    alone = len(found) == 1 and all(q.axis != p['dimension'] for q in found)
    return found.pop() if alone else None
  fits = lambda s: not s or len(s) == len(shape) and all(
      n in (1, m) for n, m in zip(s, shape))
  elementwise = name not in _OTHER and all(map(fits, shapes))
  return _together(name, places, where) if elementwise else None


def _axes(name, p, before):
  """The axes that an equation works along; None if it is of another kind."""
  if name in _WINDOWS:
    return [a for a, n in enumerate(p['window_dimensions']) if n > 1]
  if name == 'top_k':
    return [p.get('axis', len(before) - 1) % len(before)]
  if name in _SUMS:
    return p[_SUMS[name]]
  if name in _ALONG:
    axes = p[_ALONG[name]]
    return axes if isinstance(axes, tuple) else [axes]
  return None


def _together(name, places, where):
  """Entry by entry, of operands of one shape."""
  found = {q for q in places if isinstance(q, Place)}
  axes = frozenset().union(*(q.axes for q in places if isinstance(q, Noise)))
  if not found:
    return Noise(axes) if axes else None
  if len(found) > 1:
    return _mixes(name, where)
  place, = found
  if place.axis in axes:
    return Mixed(
        f'the function adds other random numbers to each example of a batch '
        f'({name!r} from {where}): is it a network in training mode, with dropout? '
        'Bound the one that is deployed (train=False, deterministic=True).')
  return place


def _mixes(name, where):
  return Mixed(
      f'the function mixes the examples of a batch ({name!r} from {where}), but bounds '
      'are of each example on its own, and would not hold: is it a network in training '
      'mode, whose BatchNorm takes means over the batch? Bound the one that is '
      'deployed (train=False, use_running_average=True).')


def _product(p, places, shapes, where):
  (left, right), batch = p['dimension_numbers']
  found = None
  for side, (contract, together) in enumerate(zip((left, right), batch)):
    place = places[side]
    if not isinstance(place, Place):
      continue
    if place.axis in contract:
      return _mixes('dot_general', where)
    free = [a for a in range(len(shapes[side])) if a not in (*contract, *together)]
    if place.axis in together:
      at = tuple(together).index(place.axis)
    else:
      first = 0 if side == 0 else len(shapes[0]) - len(left) - len(batch[0])
      at = len(together) + first + free.index(place.axis)
    here = Place(at, place.inner)
    if found is not None and found != here:
      return _mixes('dot_general', where)
    found = here
  return found


def _convolution(p, places, shapes, where):
  place, spec = places[0], p['dimension_numbers']
  if not isinstance(place, Place) or places[1] is not None:
    return None
  if place.axis == spec.lhs_spec[0]:
    return Place(spec.out_spec[0], place.inner) if p['batch_group_count'] == 1 else None
  if place.axis == spec.lhs_spec[1]:
    sums = p['feature_group_count'] == 1
  else:
    sums = shapes[1][spec.rhs_spec[spec.lhs_spec.index(place.axis)]] > 1
  return _mixes('conv_general_dilated', where) if sums else None


def _dropped(place, axes):
  """Without some axes."""
  if isinstance(place, Noise):
    kept = [a for a in place.axes if a not in axes]
    return Noise(frozenset(a - sum(b < a for b in axes) for a in kept)) if kept else None
  return place and place._replace(axis=place.axis - sum(b < place.axis for b in axes))


def _transpose(place, p, before, shape):
  order = list(p['permutation'])
  if isinstance(place, Noise):
    return Noise(frozenset(order.index(a) for a in place.axes))
  return place._replace(axis=order.index(place.axis))


def _broadcast(place, p, before, shape):
  dims = p['broadcast_dimensions']
  if isinstance(place, Noise):
    return Noise(frozenset(dims[a] for a in place.axes if before[a] == shape[dims[a]]))
  return place._replace(axis=dims[place.axis])


def _reshape(place, p, before, shape):
  if isinstance(place, Noise) or p.get('dimensions'):
    return place if before == shape else None
  inner = place.inner * math.prod(before[place.axis + 1:])
  for axis in reversed(range(len(shape))):
    if inner < shape[axis] and shape[axis] % (inner * _BATCH) == 0:
      return Place(axis, inner)
    if inner % shape[axis]:
      return None  # The examples are not where an axis can show them.
    inner //= shape[axis]
  return None


def _sliced(place, p, before, shape):
  if isinstance(place, Noise):
    return place
  return place if before[place.axis] == shape[place.axis] else None


def _padded(place, p, before, shape):
  if isinstance(place, Noise):
    return place
  return None if any(p['padding_config'][place.axis]) else place


def _gathered(place, p, before, shape):
  """Where indices pick along other axes, and all examples are taken."""
  numbers = p['dimension_numbers']
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  if isinstance(place, Noise) or place.axis in gone or (
      p['slice_sizes'][place.axis] != before[place.axis]):
    return None
  kept = [a for a in range(len(before)) if a not in gone]
  return place._replace(axis=numbers.offset_dims[kept.index(place.axis)])


_MOVES: dict[str, Callable[..., Any]] = {
    'transpose': _transpose, 'broadcast_in_dim': _broadcast, 'reshape': _reshape,
    'squeeze': lambda place, p, before, shape: _dropped(
        place, [a % len(before) for a in p['dimensions']]),
    'expand_dims': lambda place, p, before, shape: _reshape(place, {}, before, shape),
    'slice': _sliced, 'split': _sliced, 'dynamic_slice': _sliced, 'pad': _padded,
    'gather': _gathered}
