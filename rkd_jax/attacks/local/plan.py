"""A network evaluated where a window of its images changed."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rkd_jax.attacks.local import program, rules
from rkd_jax.attacks.local.rules import Change, Place, Total
from rkd_jax.attacks.local.spans import Span
from rkd_jax.models import conv

Layers = dict[int, jax.Array]  # Last values by their number in the program.


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a network's logits follow a window of its images.

  Attributes:
    program: of the network.
    side: (height, width) of the window.
    layers: shapes [B, H, W, C] or [B, K] of the values that must be kept, by number.
    cost: multiplications of one evaluation, as a share of those of the whole network.
  """

  program: program.Program
  side: tuple[int, int]
  layers: dict[int, tuple[int, ...]]
  cost: float

  @classmethod
  def of(cls, network: program.Program, side: tuple[int, int]) -> 'Plan':
    """For a window of (height, width) pixels, within the image."""
    shape = network.shapes[network.source].shape
    part = _Walk(network, Place(0, 0), None)
    jax.eval_shape(lambda delta: part.run(_source(delta, shape)),
                   jax.ShapeDtypeStruct((shape[0], *side, shape[3]), jnp.float32))
    whole = sum(_products(network, operation, network.shapes[operation.outputs[0]].shape,
                          math.prod(_shape(network, operation.inputs[0])))
                for operation in network.operations)
    return cls(network, side, part.asked, part.products / whole if whole else 1.0)

  def start(self, images) -> tuple[jax.Array, Layers]:
    """Logits of images as a whole, and what to keep of them."""
    walk = _Walk(self.program, None, {})
    logits = walk.run(images)
    return logits, {i: walk.values[i].reshape(shape) for i, shape in self.layers.items()}

  def follow(self, layers: Layers, delta, place) -> tuple[jax.Array, Callable]:
    """Logits after a change, to rounding, and a function that keeps it.

    Args:
      layers: of the images before it.
      delta: float32[B, h, w, C], what is added to the images in the window.
      place: (row, column) of the window's first pixel, int32, the same for the batch.

    Returns:
      float32[B, K] and `keep(where bool[B]) -> layers`, with the change of those
      examples.
    """
    walk = _Walk(self.program, Place(*place), layers)
    logits = walk.run(_source(delta, self.program.shapes[self.program.source].shape))

    def keep(where):
      def one(before, change):
        delta = jnp.where(where.reshape(-1, *(1,) * (before.ndim - 1)), change.delta, 0)
        if isinstance(change, Total):
          return before + delta
        return _put(before, dataclasses.replace(change, delta=delta), walk.place)
      return {i: one(layers[i], walk.values[i]) for i in self.layers}
    return logits, keep


def read(fn: Callable, shape: Sequence[int]) -> program.Program:
  """Reads a network.

  Args:
    fn: images float32[B, H, W, C] -> logits float[B, K], example by example; arrays that
      it closes over may be traced. What no rule is known for is evaluated as a whole, so
      any function will do, if not any faster.
    shape: (B, H, W, C).
  """
  with conv.plain():
    return program.read(fn, shape)


def evaluate(network: program.Program, images) -> jax.Array:
  """Logits of images as a whole."""
  return _Walk(network, None, {}).run(images)


def _source(delta, shape):
  rows, columns = (Span.window(k, n) for k, n in zip(
      delta.shape[1:3], shape[1:3], strict=True))
  return Change(delta, rows, columns, tuple(shape))


def _put(before, change, place):
  """[B, H, W, C] with a change added."""
  part = place.cut(before, change.rows, change.columns)
  return jax.lax.dynamic_update_slice(
      before, part + change.delta, place.start(change.rows, change.columns))


class _Walk:
  """One evaluation of a program: of changes, or of images as a whole.

  Attributes:
    layers: the last values; None: a dry evaluation, which finds out what it takes.
    values: by number: arrays, and changes that have not been made whole.
    asked: shapes of the last values that were needed, by number.
    products: multiplications of convolutions and matrix products.
  """

  def __init__(self, network, place, layers):
    self.network, self.place, self.layers = network, place, layers
    self.values, self.wholes, self.asked, self.products = {}, {}, {}, 0

  def run(self, source):
    self.values[self.network.source] = source
    for operation in self.network.operations:
      self.values.update(zip(operation.outputs, self._one(operation), strict=True))
    return self.whole(self.network.result)

  def _one(self, operation):
    find = lambda i: self.network.known[i] if i in self.network.known else self.values[i]
    values = [find(i) for i in operation.inputs]
    if any(isinstance(v, Change) for v in values):
      known = [i in self.network.known for i in operation.inputs]
      last = lambda at: self.last(operation.inputs[at])
      result = rules.apply(operation, values, known, self.place, last)
      if result is not None:
        self._count(operation, result.delta.shape, values[0])
        return [result]
    values = [self.whole(i) for i in operation.inputs]
    results = _evaluate(operation, values)
    self._count(operation, results[0].shape, values[0])
    return results

  def _count(self, operation, shape, value):
    """`shape` of what was computed of the result, from a first input `value`."""
    read = value.delta if isinstance(value, Change) else value
    self.products += _products(self.network, operation, shape, jnp.size(read))

  def last(self, i):
    """The last value of a changed one, as [B, H, W, C] or [B, K]."""
    value = self.values[i]
    shape = value.image if isinstance(value, Change) else value.delta.shape
    self.asked[i] = shape
    return jnp.zeros(shape) if self.layers is None else self.layers[i]

  def whole(self, i):
    """A value as an array."""
    if i in self.network.known:
      return self.network.known[i]
    value = self.values[i]
    if not isinstance(value, Change | Total):
      return value
    if i not in self.wholes:
      before = self.last(i)
      self.wholes[i] = before + value.delta if isinstance(value, Total) else _put(
          before, value, self.place).reshape(value.shape)
    return self.wholes[i]


def _products(network, operation, shape, size):
  """Multiplications for so much of a result, from so many numbers of its first input."""
  if operation.name == 'conv_general_dilated':
    return math.prod(shape) * math.prod(_shape(network, operation.inputs[1])[:3])
  # A dense layer; other products are counted as if they were one.
  return shape[-1] * size if operation.name == 'dot_general' else 0


def _shape(network, i):
  known = network.known
  return jnp.shape(known[i]) if i in known else network.shapes[i].shape


def _evaluate(operation, values):
  """The results, by the quick forms of `models.conv` where there is one."""
  if operation.name == 'conv_general_dilated':
    found = rules.convolution(operation)
    if found is not None and all(low == high for low, high in found[1]):
      return [rules.convolve(operation, *values, [low for low, _ in found[1]])]
  if operation.name in ('reduce_window_max', 'reduce_window_sum'):
    found = rules.pooling(operation)
    if found is not None and values[0].dtype == jnp.float32:
      window, strides, padding = found
      if operation.name == 'reduce_window_max':
        return [conv.max_pool(values[0], window, strides, padding)]
      return [conv.avg_pool(values[0], window, strides, padding) * math.prod(window)]
  return operation.bind(values)
