"""Where the examples of a batch are in a value, and where equations move them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

BATCH = 3  # Examples traced: as good as any number above 1.


class Place(NamedTuple):
  """Entry i along `axis` is of examples[i // inner % len(examples)].

  The axis is None where the value is of one example alone.
  """

  axis: int | None
  inner: int = 1
  examples: tuple[int, ...] = tuple(range(BATCH))


class Mixed(NamedTuple):
  """A value that depends on several examples at once, and what to tell the caller."""

  message: str


class Noise(NamedTuple):
  """A value made of random numbers, and no example; different along these axes."""

  axes: frozenset[int]


def dropped(place: Place | Noise | None, axes: Any) -> Place | Noise | None:
  """Without some axes, none of which the examples are along."""
  if isinstance(place, Noise):
    kept = [a for a in place.axes if a not in axes]
    return Noise(frozenset(a - sum(b < a for b in axes) for a in kept)) if kept else None
  if place is None or place.axis is None:
    return place
  return place._replace(axis=place.axis - sum(b < place.axis for b in axes))


def moved(place: Place | Noise, name: str, params: dict[str, Any],
          before: tuple[int, ...], shape: tuple[int, ...]) -> Place | Noise | None:
  """After a move; None where that is not known.

  Args:
    place: Place of the operand, which has the shape `before`.
    name: Name of the equation, one of `MOVES`.
    params: Parameters of the equation.
    before: shape of the operand.
    shape: Shape of the result.
  """
  if isinstance(place, Noise):
    return _NOISE[name](place, params, before, shape) if name in _NOISE else (
        place if before == shape else None)
  return place if place.axis is None else MOVES[name](place, params, before, shape)


def joined(places: list[Any], shapes: list[tuple[int, ...]], axis: int,
           stacked: bool) -> Place | None:
  """After a concatenation along an axis; None where that is not known."""
  found = set(places)
  if any(not isinstance(q, Place) for q in found - {None}):
    return None
  along = [q.axis in (axis, None) and q.inner == 1 and (
      stacked or n[axis] == len(q.examples)) for q, n in zip(places, shapes) if q]
  if all(along) and None not in found and len(found) > 1:
    return Place(axis, 1, sum((q.examples for q in places), ()))
  found -= {None}
  alone = len(found) == 1 and all(q.axis != axis for q in found)
  return found.pop() if alone and not stacked else None


def _transpose(place, p, before, shape):
  return place._replace(axis=list(p['permutation']).index(place.axis))


def _broadcast(place, p, before, shape):
  return place._replace(axis=p['broadcast_dimensions'][place.axis])


def _reshape(place, p, before, shape):
  if p.get('dimensions') and before != shape:
    return None
  inner = place.inner * math.prod(before[place.axis + 1:])
  for axis in reversed(range(len(shape))):
    if inner < shape[axis] and shape[axis] % (inner * len(place.examples)) == 0:
      return place._replace(axis=axis, inner=inner)
    if inner % shape[axis]:
      return None  # The examples are not where an axis can show them.
    inner //= shape[axis]
  return None


def _squeeze(place, p, before, shape):
  return dropped(place, [a % len(before) for a in p['dimensions']])


def _kept(place, p, before, shape):
  return place if before[place.axis] == shape[place.axis] else None


def _slice(place, p, before, shape):
  axis = place.axis
  if before[axis] == shape[axis]:
    return place
  if before[axis] != len(place.examples):
    return None
  step = p['strides'][axis] if p['strides'] else 1
  examples = place.examples[p['start_indices'][axis]:p['limit_indices'][axis]:step]
  return Place(None if len(examples) == 1 else axis, 1, examples)


def _rev(place, p, before, shape):
  if place.axis not in p['dimensions']:
    return place
  whole = before[place.axis] == len(place.examples)
  return place._replace(examples=place.examples[::-1]) if whole else None


def _pad(place, p, before, shape):
  return None if any(p['padding_config'][place.axis]) else place


def _gather(place, p, before, shape):
  """Where indices pick along other axes, and all examples are taken."""
  numbers = p['dimension_numbers']
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  if place.axis in gone or p['slice_sizes'][place.axis] != before[place.axis]:
    return None
  kept = [a for a in range(len(before)) if a not in gone]
  return place._replace(axis=numbers.offset_dims[kept.index(place.axis)])


MOVES: dict[str, Callable[..., Any]] = {
    'transpose': _transpose, 'broadcast_in_dim': _broadcast, 'reshape': _reshape,
    'squeeze': _squeeze, 'expand_dims': _reshape, 'slice': _slice, 'split': _kept,
    'dynamic_slice': _kept, 'pad': _pad, 'gather': _gather, 'rev': _rev}
_NOISE: dict[str, Callable[..., Any]] = {
    'transpose': lambda noise, p, before, shape: Noise(frozenset(
        list(p['permutation']).index(a) for a in noise.axes)),
    'broadcast_in_dim': lambda noise, p, before, shape: Noise(frozenset(
        p['broadcast_dimensions'][a] for a in noise.axes
        if before[a] == shape[p['broadcast_dimensions'][a]])),
    'squeeze': _squeeze}
