"""How an operation is done where only a window of its input changed.

What is kept of a changed value is the difference to its last value within a window.
Through linear operations the difference goes alone; others need the last value too.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.attacks.local.spans import Span, fits, look_up, shift
from rkd_jax.models import conv

_MOST = 0.7  # Beyond this share of a layer the whole of it is as quick.
_IDENTITIES = frozenset({'copy', 'copy_p', 'name', 'optimization_barrier',
                         'sharding_constraint', 'stop_gradient'})
_SMOOTH = frozenset({'abs', 'cos', 'div', 'erf', 'exp', 'expm1', 'integer_pow', 'log',
                     'log1p', 'logistic', 'max', 'min', 'mul', 'rsqrt', 'sin', 'sqrt',
                     'square', 'tanh'})


@dataclasses.dataclass(frozen=True)
class Change:
  """A changed value [B, H, W, C], or the same flattened.

  Attributes:
    delta: float32[B, h, w, C], the difference to the last value.
    rows, columns: where it lies.
    shape: as the program has the value: [B, H, W, C], [B * H * W, C] or [B, H * W * C].
  """

  delta: jax.Array
  rows: Span
  columns: Span
  shape: tuple[int, ...]

  @property
  def image(self):
    """(B, H, W, C)."""
    return (len(self.delta), self.rows.length, self.columns.length, self.delta.shape[3])

  def fits(self, shape) -> bool:
    """Whether a shape is one that the value may have."""
    batch, height, width, channels = self.image
    return tuple(shape) in (self.image, (batch * height * width, channels),
                            (batch, height * width * channels))


@dataclasses.dataclass(frozen=True)
class Total:
  """A changed value without pixels, all of which changed: float32[B, K]."""

  delta: jax.Array


class Place:
  """Where the window is: the numbers of its row and column, traced."""

  def __init__(self, row, column):
    self.row, self.column = row, column

  def start(self, rows: Span, columns: Span):
    """Indices of the first element of [B, H, W, C] there."""
    return (0, look_up(rows.first, self.row), look_up(columns.first, self.column), 0)

  def cut(self, values, rows: Span, columns: Span):
    """That part of [B or 1, H or 1, W or 1, C or 1]."""
    for axis, span, place in ((1, rows, self.row), (2, columns, self.column)):
      if values.shape[axis] > 1 or span.length == 1:
        values = jax.lax.dynamic_slice_in_dim(
            values, look_up(span.first, place), span.size, axis)
    return values

  def region(self, change, rows: Span, columns: Span, kernel, strides, padding):
    """The change within what the outputs `rows` and `columns` see of the padded input."""
    values = change.delta
    axes = [
        (old.first + p - new.first * s, (new.size - 1) * s + k, place)
        for old, new, k, s, p, place in zip(
            (change.rows, change.columns), (rows, columns), kernel, strides, padding,
            (self.row, self.column), strict=True)]
    if all(fits(offsets, count, size) for (offsets, size, _), count in zip(
        axes, values.shape[1:3], strict=True)):
      zeros = jnp.zeros((len(values), axes[0][1], axes[1][1], values.shape[3]))
      return jax.lax.dynamic_update_slice(zeros, values, (
          0, *(look_up(offsets, place) for offsets, _, place in axes), 0))
    for axis, (offsets, size, place) in enumerate(axes, 1):
      values = shift(values, axis, offsets, size, place)
    return values

  def widened(self, change, rows: Span, columns: Span):
    """The change within spans that hold its own."""
    return self.region(change, rows, columns, (1, 1), (1, 1), (0, 0))


def apply(operation, values, known, place, last):
  """The result of an operation with a change among its values; None: no rule.

  Args:
    operation: a `program.Operation`.
    values: its inputs: a Change, an array that changed as a whole, or a constant.
    known: which of them are constants.
    place: Place.
    last: `last(i)`: the last value of input i, as [B, H, W, C].
  """
  for value, constant in zip(values, known, strict=True):
    if not constant and not isinstance(value, Change):
      return None
  if operation.name in _RULES:
    return _RULES[operation.name](operation, values, place, last)
  if operation.name in _IDENTITIES and len(values) == 1:
    return values[0]
  if operation.name in _SMOOTH:
    return _smooth(operation, values, place, last)
  return None


def _as_image(constant, change):
  """A constant [1 or B, 1 or H, 1 or W, 1 or C] beside a change; None: no such one."""
  constant = jnp.asarray(constant)
  batch, height, width, channels = change.image
  shape = constant.shape
  if constant.size == 1:
    return constant.reshape(1, 1, 1, 1)
  if change.shape == change.image and len(shape) == 4:
    return constant
  if change.shape == (batch * height * width, channels) and len(shape) == 2:
    if shape == (1, channels):
      return constant.reshape(1, 1, 1, channels)
    return constant.reshape(change.image) if shape == change.shape else None
  if len(shape) == 2 and shape[1] == height * width * channels:
    return constant.reshape(shape[0], height, width, channels)
  return None


def _aligned(values, place):
  """(changes all in one window, constants cut to it, rows, columns), or None."""
  changes = [v for v in values if isinstance(v, Change)]
  first = changes[0]
  rows, columns = first.rows, first.columns
  for change in changes[1:]:
    if change.image != first.image or change.shape != first.shape:
      return None
    rows, columns = rows.joined(change.rows), columns.joined(change.columns)
  parts = []
  for value in values:
    if isinstance(value, Change):
      parts.append(place.widened(value, rows, columns))
      continue
    image = _as_image(value, first)
    if image is None:
      return None
    parts.append(place.cut(image, rows, columns))
  return parts, rows, columns


def _like(values, delta, rows, columns):
  change = next(v for v in values if isinstance(v, Change))
  return Change(delta, rows, columns, change.shape)


def _sum(operation, values, place, last):
  del last
  found = _aligned(values, place)
  if found is None:
    return None
  parts, rows, columns = found
  signs = (1, -1 if operation.name == 'sub' else 1)
  delta = sum(sign * part for sign, part, value in zip(signs, parts, values, strict=True)
              if isinstance(value, Change))
  return _like(values, delta, rows, columns)


def _negative(operation, values, place, last):
  del operation, place, last
  return dataclasses.replace(values[0], delta=-values[0].delta)


def _cast(operation, values, place, last):
  del place, last
  return values[0] if operation.params['new_dtype'] == jnp.float32 else None


def _product(operation, values, place, last):
  """Linear where one factor, or the divisor, is constant."""
  linear = not isinstance(values[1], Change) or (
      operation.name == 'mul' and not isinstance(values[0], Change))
  if not linear:
    return _smooth(operation, values, place, last)
  found = _aligned(values, place)
  if found is None:
    return None
  parts, rows, columns = found
  delta, = operation.bind(_broadcast(parts))
  return _like(values, delta, rows, columns)


def _broadcast(parts):
  shape = np.broadcast_shapes(*(part.shape for part in parts))
  return [jnp.broadcast_to(part, shape) for part in parts]


def _smooth(operation, values, place, last):
  """Any function of single elements: its new value less its last one."""
  found = _aligned(values, place)
  if found is None:
    return None
  parts, rows, columns = found
  before = [place.cut(last(i), rows, columns) if isinstance(value, Change) else part
            for i, (value, part) in enumerate(zip(values, parts, strict=True))]
  after = [old + part if isinstance(value, Change) else part
           for old, part, value in zip(before, parts, values, strict=True)]
  new, = operation.bind(_broadcast(after))
  old, = operation.bind(_broadcast(before))
  return _like(values, new - old, rows, columns)


def _slid(change, kernel, strides, padding, size):
  """(rows, columns) of what a sliding window yields, or None where it is too much."""
  rows, columns = (
      span.slid(k, s, p, n) for span, k, s, p, n in zip(
          (change.rows, change.columns), kernel, strides, padding, size, strict=True))
  small = rows.size * columns.size <= _MOST * math.prod(size)
  return (rows, columns) if small else None


def convolution(operation):
  """(strides, padding at the start, groups) of a convolution that is one of ours."""
  p = operation.params
  spec = p['dimension_numbers']
  if ((spec.lhs_spec, spec.rhs_spec, spec.out_spec) != (
      (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or p['batch_group_count'] != 1
      or set(p['lhs_dilation'] + p['rhs_dilation']) != {1}):
    return None
  return p['window_strides'], p['padding'], p['feature_group_count']


def convolve(operation, image, kernel, padding):
  """A convolution of ours with another padding, the same on each side of an axis."""
  strides, _, groups = convolution(operation)
  if conv.on_cpu() and image.dtype == jnp.float32:
    return conv.forward(lambda image: conv.conv(
        image, kernel, strides=strides, padding=padding, groups=groups), image)
  # With the precision that the network asks for.
  params = {**operation.params, 'padding': tuple((p, p) for p in padding)}
  result, = dataclasses.replace(operation, params=params).bind([image, kernel])
  return result


def _convolution(operation, values, place, last):
  del last
  found = convolution(operation)
  change, kernel = values
  if found is None or not isinstance(change, Change) or isinstance(kernel, Change):
    return None
  strides, padding, _ = found
  first = [low for low, _ in padding]
  size = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(
      change.image[1:3], padding, kernel.shape, strides, strict=False)]
  reached = _slid(change, kernel.shape[:2], strides, first, size)
  if reached is None:
    return None
  region = place.region(change, *reached, kernel.shape[:2], strides, first)
  delta = convolve(operation, region, kernel, (0, 0))
  return Change(delta, *reached, (*change.image[:1], *size, kernel.shape[3]))


def pooling(operation):
  """(window, strides, padding) of a pooling over pixels alone, or None."""
  p = operation.params
  dims, strides, padding = (p['window_dimensions'], p['window_strides'], p['padding'])
  plain = (len(dims) == 4 and set(p['base_dilation'] + p['window_dilation']) == {1}
           and dims[0] == dims[3] == strides[0] == strides[3] == 1
           and set((*padding[0], *padding[3])) == {0}
           and all(low == high < window for (low, high), window in zip(
               padding, dims, strict=True)))
  return (dims[1:3], strides[1:3], [low for low, _ in padding[1:3]]) if plain else None


def _pooled(operation, values, place, last):
  found = pooling(operation)
  change, = values
  if found is None:
    return None
  window, strides, padding = found
  greatest = operation.name == 'reduce_window_max'
  if greatest and any(padding):
    return None  # What lies beyond the edge is no part of the last value.
  size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(
      change.image[1:3], padding, window, strides, strict=True)]
  reached = _slid(change, window, strides, padding, size)
  if reached is None:
    return None
  region = place.region(change, *reached, window, strides, padding)
  if greatest:
    start = tuple(i * s for i, s in zip(
        place.start(*reached), (1, *strides, 1), strict=True))
    before = jax.lax.dynamic_slice(last(0), start, region.shape)
    pool = lambda values: conv.max_pool(values, window, strides)
    delta = pool(before + region) - pool(before)
  else:
    delta = conv.avg_pool(region, window, strides) * math.prod(window)
  return Change(delta, *reached, (*change.image[:1], *size, change.image[3]))


def _reshaped(operation, values, place, last):
  del place, last
  shape = operation.params['new_sizes']
  change = values[0]
  if operation.params.get('dimensions') is not None:
    return None
  return dataclasses.replace(change, shape=tuple(shape)) if change.fits(shape) else None


def _summed(operation, values, place, last):
  """Over all pixels."""
  del place, last
  change = values[0]
  if change.shape != change.image or tuple(operation.params['axes']) != (1, 2):
    return None
  return Total(jnp.sum(change.delta, axis=(1, 2)))


def _matrix(operation, values, place, last):
  """A dense layer on flattened pixels."""
  del last
  change, matrix = values
  if not isinstance(change, Change) or isinstance(matrix, Change):
    return None
  batch, height, width, channels = change.image
  flat = (batch, height * width * channels)
  if (change.shape != flat or np.ndim(matrix) != 2
      or operation.params['dimension_numbers'] != (((1,), (0,)), ((), ()))):
    return None
  rows = jnp.asarray(matrix).reshape(height, width, -1)
  part = jax.lax.dynamic_slice(
      rows, (*place.start(change.rows, change.columns)[1:3], 0),
      (change.rows.size, change.columns.size, rows.shape[2]))
  return Total(jnp.dot(change.delta.reshape(batch, -1), part.reshape(-1, matrix.shape[1]),
                       precision=operation.params['precision']))


_RULES = {
    'add': _sum, 'add_any': _sum, 'sub': _sum, 'neg': _negative,
    'convert_element_type': _cast, 'mul': _product, 'div': _product,
    'conv_general_dilated': _convolution, 'reduce_window_max': _pooled,
    'reduce_window_sum': _pooled, 'reshape': _reshaped, 'reduce_sum': _summed,
    'dot_general': _matrix}
