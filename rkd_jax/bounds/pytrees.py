"""Functions of pytrees, with results of any shape, as functions from [B, n] to [B, K].

The methods know one input and one result [B, K]. `any_shape` lets them take a pytree of
sets, for which the function gets the pytree of arrays, and gives their results the shape
of those of the function.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import rounding
from rkd_jax.bounds.sets import Box, L1Ball, L2Ball
from rkd_jax.errors import ConfigError

_SETS = (Box, L1Ball, L2Ball)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['parts'],
                   meta_fields=['ranks'])
@dataclasses.dataclass(frozen=True)
class Product:
  """All [x_1, x_2, ...] with x_i in its own set; flattened, one after another.

  Attributes:
    parts: sets, each with the batch axis first.
    ranks: number of axes of each part's arrays without the batch axis.
  """

  parts: tuple[Any, ...]
  ranks: tuple[int, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    return (*self._lead(), sum(self._sizes()))

  @property
  def dtype(self):
    return self.parts[0].dtype

  def hull(self) -> tuple[jax.Array, jax.Array]:
    """The smallest box around the set, flattened."""
    lows, highs = zip(*(part.hull() for part in self.parts))
    return self._flat(lows), self._flat(highs)

  def minimum(self, rows: jax.Array) -> jax.Array:
    """At most min over the set of <row, x>, for one example's rows [R, n]: [R].

    The sum of the minima of the parts, less its rounding.
    """
    least = jnp.stack([part.minimum(row) for part, row in zip(
        self.parts, self._split(rows))])
    slack = (rounding.gamma(len(self.parts), rows.dtype) * jnp.sum(jnp.abs(least), axis=0)
             + rounding.tiny(len(self.parts), rows.dtype))
    total = jnp.sum(least, axis=0)
    return jnp.where(jnp.isfinite(total), total - slack, -jnp.inf)

  def minimizer(self, row: jax.Array) -> jax.Array:
    """Where <row, x> is small; for one example, row [n]."""
    return self._flat([part.minimizer(r) for part, r in zip(
        self.parts, self._split(row))])

  def project(self, x: jax.Array) -> jax.Array:
    """A point of the set, x itself if it is one; for one example."""
    return self._flat([part.project(p) for part, p in zip(self.parts, self._split(x))])

  def contains(self, x: np.ndarray) -> bool:
    """Whether a point is in the set; for one example of NumPy arrays."""
    return all(part.contains(p) for part, p in zip(self.parts, self._split(x)))

  def _lead(self):
    shape = self.parts[0].shape
    return shape[:len(shape) - self.ranks[0]]

  def _features(self):
    return [part.shape[len(part.shape) - rank:]
            for part, rank in zip(self.parts, self.ranks)]

  def _sizes(self):
    return [math.prod(shape) for shape in self._features()]

  def _flat(self, arrays):
    return jnp.concatenate([a.reshape(*self._lead(), -1) for a in arrays], axis=-1)

  def _split(self, x):
    return _cut(x, self._features())


def _cut(x, features):
  """[..., n] -> arrays [..., *feature]."""
  ends = np.cumsum([math.prod(f) for f in features])
  return [x[..., end - math.prod(f):end].reshape(*x.shape[:-1], *f)
          for end, f in zip(ends, features)]


class Flat:
  """A function of pytrees as one from [B, ...] to [B, K].

  Attributes:
    ball: the set of its inputs; a pytree of sets becomes one set of arrays [B, n].
  """

  def __init__(self, fn: Callable[[Any], Any], ball: Any):
    self._fn = fn
    self._results = None  # (tree, shapes without batch axis), once it was traced.
    if isinstance(ball, (*_SETS, Product)):
      self._inputs, self.ball = None, ball
      return
    sets, tree = jax.tree.flatten(ball, is_leaf=lambda s: isinstance(s, _SETS))
    _check(sets, ball)
    self._inputs = tree, [part.shape[1:] for part in sets]
    product = Product(tuple(sets), tuple(len(part.shape) - 1 for part in sets))
    boxed = all(isinstance(part, Box) for part in sets)
    self.ball = Box(*(product._flat([getattr(part, end) for part in sets])
                      for end in ('lower', 'upper'))) if boxed else product

  def __call__(self, x: jax.Array) -> jax.Array:
    leaves, tree = jax.tree.flatten(self._fn(self.inputs(x)))
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not leaves or any(len(s) < 1 or s[0] != x.shape[0] for s in shapes):
      seen = ', '.join(map(str, shapes)) or 'nothing'
      raise ConfigError(
          f'the function maps a batch of {x.shape[0]} to {seen}; every result needs the '
          'batch axis first, and every example is on its own: does the function close '
          'over an array with a batch axis, or sum over it?')
    self._results = tree, [s[1:] for s in shapes]
    if len(leaves) == 1 and len(shapes[0]) == 2:
      return leaves[0]
    return jnp.concatenate([leaf.reshape(x.shape[0], -1) for leaf in leaves if leaf.size],
                           axis=1)

  def inputs(self, x: Any) -> Any:
    """What the function itself gets for an array [B, n]."""
    if self._inputs is None:
      return x
    tree, features = self._inputs
    return jax.tree.unflatten(tree, _cut(x, features))

  def results(self, values: jax.Array | None) -> Any:
    """[B, K] (and further axes) as the results of the function; None stays None."""
    if values is None:
      return None
    tree, shapes = self._results
    ends = np.cumsum([math.prod(s) for s in shapes])
    return jax.tree.unflatten(tree, [
        values[:, end - math.prod(s):end].reshape(values.shape[0], *s, *values.shape[2:])
        for end, s in zip(ends, shapes)])

  def line(self, line: Any, by_spec: bool) -> Any:
    """A linear function of the flat input, by results and inputs."""
    if line is None:
      return None
    results = (lambda values: values) if by_spec else self.results
    coefficients = results(line.coefficients)
    if self._inputs is not None:
      coefficients = jax.tree.map(self.inputs, coefficients)
    return line._replace(coefficients=coefficients, constant=results(line.constant))


def _check(sets, ball):
  if not sets or not all(isinstance(part, _SETS) for part in sets):
    seen = ', '.join(sorted({type(part).__name__ for part in sets})) or repr(ball)
    raise ConfigError('the inputs must be a set or a pytree of sets (linf_ball, '
                      f'l2_ball, l1_ball, box), got {seen}')
  for what, values in (('batch sizes', {part.shape[0] for part in sets}),
                       ('types', {str(part.dtype) for part in sets})):
    if len(values) > 1:
      raise ConfigError(f'the sets of a pytree must have the same {what}, got '
                        f'{", ".join(map(str, sorted(values)))}')


def any_shape(method: Callable) -> Callable:
  """`method(fn, ball, spec, ...)` of pytrees and of results of any shape.

  An empty batch is bounded as one example, which is dropped.
  """
  @functools.wraps(method)
  def bounds(fn, ball, spec=None, **options):
    flat = Flat(fn, ball)
    if not flat.ball.shape[0]:
      one = lambda tree: jax.tree.map(
          lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), tree)
      found = method(flat, one(flat.ball), one(spec), **options)
      found = jax.tree.map(lambda a: a[:0], found)
    else:
      found = method(flat, flat.ball, spec, **options)
    restore = flat.results if spec is None else lambda values: values
    return found._replace(
        lower=restore(found.lower), upper=restore(found.upper),
        below=flat.line(found.below, spec is not None),
        above=flat.line(found.above, spec is not None))

  return bounds
