"""Whether a function treats the examples of a batch independently, by its jaxpr.

The function is traced for a batch, and where the examples are is followed from equation
to equation: along an axis, of which they may be a factor (a batch that was merged with
another axis by a reshape). An equation that adds up, compares or shifts entries of
several examples mixes them: BatchNorm in training mode takes means over the batch. One
that adds random numbers of the batch's shape (dropout) treats each position in its own
way. What an equation does that this file does not know is followed no further: this
recognises mistakes, and proves nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jax.extend import source_info_util

from rkd_jax.bounds.places import (
  BATCH,
  MOVES,
  Mixed,
  Noise,
  Place,
  dropped,
  joined,
  moved,
)
from rkd_jax.bounds.tracing import CALLS, inner, scan_counts
from rkd_jax.errors import ConfigError

# Name of an equation -> of the parameter with the axes that it works along.
_SUMS = {'reduce_sum': 'axes', 'reduce_max': 'axes', 'reduce_min': 'axes',
         'reduce_prod': 'axes', 'reduce_and': 'axes', 'reduce_or': 'axes',
         'argmax': 'axes', 'argmin': 'axes', 'reduce': 'dimensions'}
_ALONG = {'cumsum': 'axis', 'cumprod': 'axis', 'cummax': 'axis', 'cummin': 'axis',
          'cumlogsumexp': 'axis', 'sort': 'dimension'}
_WINDOWS = frozenset({
    'reduce_window_sum', 'reduce_window_max', 'reduce_window_min', 'reduce_window'})
_RANDOM = frozenset({'random_bits', 'threefry2x32', 'rng_uniform', 'rng_bit_generator'})
# Not entry by entry, whatever the shapes.
_OTHER = frozenset({'fft', 'cholesky', 'triangular_solve', 'gather', 'scatter', 'while',
                    'scatter-add', 'dynamic_slice', 'dynamic_update_slice', 'pad', 'rev'})


def check(fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...],
          dtype: Any) -> None:
  """Refuses a function in which the result of an example depends on the others.

  Args:
    fn: what is to be bounded.
    shape: Shape of the input, with batch axis first.
    dtype: Type of the input.

  Raises:
    ConfigError: `fn` mixes examples, or adds noise that differs between them.
  """
  try:
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((BATCH, *shape[1:]), dtype))
  except Exception:  # It takes one example at a time, so there is nothing to mix.
    return
  if any(a.ndim < 1 or a.shape[0] != BATCH for a in closed.out_avals):
    return  # Likewise.
  for place in _follow(closed.jaxpr, [Place(0)], ''):
    if isinstance(place, Place) and place.examples != tuple(range(BATCH)):
      raise ConfigError(
          'the function mixes the examples of a batch: it reorders or repeats them, so '
          'that a result is not that of the example at its place')
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
  consts, count = scan_counts(p)
  carry = consts + count
  body = p['jaxpr'].jaxpr
  given = [*places[:carry], *(_shifted(q, -1) for q in places[carry:])]
  for _ in range(2):  # What the first step puts into the carry, the second reads.
    out = _follow(body, given, where)
    given = [*given[:consts], *(
        a if a is not None else b for a, b in zip(given[consts:carry], out)),
        *given[carry:]]
  return [*out[:count], *(_shifted(q, 1) for q in out[count:])]


def _shifted(place, by):
  """With one axis more or fewer in front; unknown where that is the examples'."""
  if not isinstance(place, Place) or place.axis is None:
    return place if isinstance(place, Mixed | Place) else None
  return place._replace(axis=place.axis + by) if place.axis + by >= 0 else None


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
    return dropped(places[0], axes) if name in _SUMS else places[0]
  if name == 'dot_general':
    return _product(p, places, shapes, where)
  if name == 'conv_general_dilated':
    return _convolution(p, places, shapes, where)
  if name in MOVES and places[0] is not None and not any(places[1:]):
    return moved(places[0], name, p, shapes[0], shape)
  if name in ('concatenate', 'stack'):
    stacked = name == 'stack'
    return joined(places, shapes, p['axis' if stacked else 'dimension'], stacked)
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
    if place.axis is None:
      at = None
    elif place.axis in together:
      at = tuple(together).index(place.axis)
    else:
      first = 0 if side == 0 else len(shapes[0]) - len(left) - len(batch[0])
      at = len(together) + first + free.index(place.axis)
    here = place._replace(axis=at)
    if found is not None and found != here:
      return _mixes('dot_general', where)
    found = here
  return found


def _convolution(p, places, shapes, where):
  place, spec = places[0], p['dimension_numbers']
  if not isinstance(place, Place) or places[1] is not None:
    return None
  if place.axis is None:
    return place
  if place.axis == spec.lhs_spec[0]:
    return (place._replace(axis=spec.out_spec[0]) if p['batch_group_count'] == 1
            else None)
  if place.axis == spec.lhs_spec[1]:
    sums = p['feature_group_count'] == 1
  else:
    sums = shapes[1][spec.rhs_spec[spec.lhs_spec.index(place.axis)]] > 1
  return _mixes('conv_general_dilated', where) if sums else None
