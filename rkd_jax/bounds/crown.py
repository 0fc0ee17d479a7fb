"""The bounds themselves: IBP, CROWN-IBP and CROWN of any function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import linear, rounding
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import (
    CHUNK,
    State,
    chosen,
    known_below,
    minimum,
    propagate,
)
from rkd_jax.bounds.pytrees import any_shape
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError


class Line(NamedTuple):
  """A linear function of the input: sum(coefficients * x) + constant.

  Attributes:
    coefficients: float[B, K, ...].
    constant: float[B, K].
  """

  coefficients: jax.Array
  constant: jax.Array


class Bounds(NamedTuple):
  """lower <= fn(x) <= upper for every x of the set; float[B, K] each.

  With a specification: of its rows instead, [B, S]. Where `fn` returns another shape
  [B, ...] or a pytree, so do these, and K stands for it.

  Attributes:
    lower: float[B, K].
    upper: float[B, K]; None where only lower bounds were asked for.
    below: the linear function that is a lower bound on the set; None where the method
      has none, or it was not asked for.
    above: that above.
  """

  lower: jax.Array
  upper: jax.Array | None
  below: Line | None = None
  above: Line | None = None


class Spec(NamedTuple):
  """Linear functions of the output: C y + d.

  Attributes:
    matrix: float[B, S, K].
    constant: float[B, S].
  """

  matrix: jax.Array
  constant: jax.Array


def margins(labels: Any, num_classes: int, dtype: Any = jnp.float32) -> Spec:
  """y[label] - y[j] for every other class j, in order: S = num_classes - 1.

  All positive means that every input of the set is classified as `labels`, int[B].
  """
  labels = jnp.asarray(labels)
  others = jnp.arange(num_classes - 1) + (
      jnp.arange(num_classes - 1) >= labels[:, None])
  one_hot = lambda index: jax.nn.one_hot(index, num_classes, dtype=dtype)
  matrix = one_hot(labels)[:, None] - one_hot(others)
  return Spec(matrix, jnp.zeros(matrix.shape[:2], dtype))


@any_shape
def ibp(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
        spec: Spec | None = None, *, upper: bool = True) -> Bounds:
  """Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715).

  The cheapest: about three times the price of evaluating `fn`. With a specification
  the last linear equations are merged with it (their "elision of the last layer").

  Args:
    fn: pure, [B, ...] -> [B, K], each example on its own. A result of another shape
      [B, ...], or a pytree of such, gives bounds of that shape.
    ball: the inputs, see `sets`; a pytree of sets if `fn` takes a pytree of arrays.
    spec: linear functions of the output to bound instead of the outputs; several
      outputs count as one [B, K], flattened in the order of `jax.tree.leaves`.
    upper: also bounds from above.

  Raises:
    ConfigError: a result of `fn` has no batch axis.
    UnsupportedPrimitiveError: it holds an operation without a rule.
  """
  graph = read(fn, ball)
  return _last_segment(graph, propagate(graph, ball, tighten=False), spec, upper)


@any_shape
def crown_ibp(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
              spec: Spec | None = None, *, upper: bool = True,
              coefficients: bool = False) -> Bounds:
  """Linear bounds of the output on interval bounds of what is before.

  Zhang et al. 2020, arXiv:1906.06316: one backward walk, for the output. Arguments,
  result and errors as in `ibp`; with `coefficients` the result has the linear functions
  too.
  """
  graph = read(fn, ball)
  state = propagate(graph, ball, tighten=False)
  return output_bounds(graph, state, ball, spec, upper, coefficients)


@any_shape
def crown(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
          spec: Spec | None = None, *, upper: bool = True,
          coefficients: bool = False, chunk: int = CHUNK) -> Bounds:
  """Linear bounds of the output and of everything before (Zhang et al. 2018).

  arXiv:1811.00866, with the adaptive lower line of ReLU. Only neurons whose sign
  interval bounds leave open are walked back, in chunks.

  Args:
    fn, ball, spec, upper: as in `ibp`.
    coefficients: also returns the linear functions behind the bounds.
    chunk: numbers in the largest array of coefficients at a time; bounds memory.

  Raises:
    As `ibp`.
  """
  graph = read(fn, ball)
  state = propagate(graph, ball, tighten=True, chunk=chunk)
  return output_bounds(graph, state, ball, spec, upper, coefficients)


def output_bounds(graph: Graph, state: State, ball: InputSet, spec: Spec | None,
                  upper: bool, coefficients: bool = False) -> Bounds:
  """Bounds of the output, or of linear functions of it, by a backward walk."""
  plain = _last_segment(graph, state, spec, upper)
  rows = output_rows(graph, spec, upper)
  found = two_sided(walk_output(graph, state, ball, rows, spec is None), spec, upper)
  bounds = tighter(plain, found)
  if not coefficients:
    return bounds
  below, above = _lines(graph, state, rows, spec, upper)
  return bounds._replace(below=below, above=above)


def tighter(one: Bounds, other: Bounds) -> Bounds:
  """The better bound of each entry; an upper one where both have it."""
  both = one.upper is not None and other.upper is not None
  return Bounds(jnp.maximum(one.lower, other.lower),
                jnp.minimum(one.upper, other.upper) if both else None)


def _lines(graph, state, rows, spec, upper):
  """The linear functions (below, above) themselves."""
  def one(rows, facts):
    found, constant = linear.backward(graph, {graph.output: rows}, facts)
    # Where a coefficient overflowed, nothing is known.
    finite = jnp.isfinite(found[0][:, 0])
    every = jnp.all(finite.reshape(len(finite), -1), axis=1)
    return (jnp.where(finite, found[0][:, 0], 0),
            jnp.where(every, known_below(constant), -jnp.inf))

  found, constant = jax.vmap(one, in_axes=(None if spec is None else 0, 0))(
      rows, state.facts)
  low, high = two_sided(constant, spec, upper)[:2]
  if not upper:
    return Line(found, low), None
  below, above = jnp.split(found, 2, axis=1)
  return Line(below, low), Line(-above, high)


def walk_output(graph: Graph, state: State, ball: InputSet, rows: jax.Array,
                same_rows: bool, choices: dict[int, Any] | None = None) -> jax.Array:
  """Lower bounds of rows on the output: [B, R].

  Args:
    graph, state, ball: what `propagate` was given and returned.
    rows: [R, 1, K] if `same_rows`, else [B, R, 1, K].
    same_rows: the same for every example.
    choices: value -> free parameters of its lines, for each row [B, R, *shape].
  """
  def one(rows, state, ball, choices):
    facts = chosen(graph, state, choices)
    return minimum(graph, {graph.output: rows}, facts, ball)

  return jax.vmap(one, in_axes=(None if same_rows else 0, 0, 0, 0))(
      rows, state, ball, choices or {})


def output_rows(graph, spec, upper):
  """Rows on the output, [S, 1, K] or with a batch axis; negated ones after them."""
  size = graph.shapes[graph.output][1]
  if spec is None:
    rows = jnp.eye(size, dtype=graph.dtype)[:, None]
    return jnp.concatenate([rows, -rows]) if upper else rows
  if spec.matrix.ndim != 3 or spec.matrix.shape[2] != size:
    raise ConfigError(f'the specification is for {spec.matrix.shape} [B, S, K], the '
                      f'function has K = {size} outputs')
  for part in spec:
    _refuse_rounding(part, graph.dtype)
  rows = spec.matrix.astype(graph.dtype)[:, :, None]
  return jnp.concatenate([rows, -rows], axis=1) if upper else rows


def _refuse_rounding(values, dtype):
  """Raises ConfigError for a specification that would be another one in this type."""
  wider = jnp.finfo(values.dtype).bits > jnp.finfo(dtype).bits
  if isinstance(values, jax.core.Tracer):
    changed = wider
  else:
    known = np.asarray(values)
    subnormal = (known != 0) & (np.abs(known) < np.finfo(dtype).tiny)
    changed = subnormal.any() or wider and (known.astype(dtype) != known).any()
  if changed:
    raise ConfigError(
        f'the specification is {values.dtype} and bounds are computed in {dtype}, which '
        'would round its numbers to others: give it in that type, as `margins` does, '
        'or the input set in float64 under jax.enable_x64')


def two_sided(bound, spec, upper):
  """Bounds from the minima of rows [B, S], or [B, 2 S] with the negated ones."""
  bound = known_below(bound)
  low, high = jnp.split(bound, 2, axis=1) if upper else (bound, None)
  high = -high if upper else None
  if spec is None:
    return Bounds(low, high)
  constant = spec.constant.astype(low.dtype)
  slack = 2 * rounding.unit_roundoff(low.dtype)
  add = lambda b, sign: (b + constant) + sign * slack * (
      jnp.abs(b) + jnp.abs(constant)) + sign * rounding.tiny(0, low.dtype)
  return Bounds(add(low, -1), add(high, 1) if upper else None)


def _last_segment(graph, state, spec, upper):
  """Interval bounds of linear functions of the output, its last equations merged."""
  stop = frozenset(graph.shapes) - (graph.merged | {graph.output} & graph.linear)
  rows = output_rows(graph, spec, upper)

  def one(rows, facts, bounds):
    ends, total = linear.backward(graph, {graph.output: rows}, facts, stop=stop)
    for i, part in ends.items():
      low, high = bounds[i]
      terms = part[0].size
      slack = rounding.gamma(terms, graph.dtype) * jnp.maximum(
          jnp.abs(low), jnp.abs(high)) + rounding.tiny(terms, graph.dtype)
      total = total + linear.emit(part, (low - slack, high + slack))
    return total

  bound = jax.vmap(one, in_axes=(None if spec is None else 0, 0, 0))(
      rows, state.facts, state.bounds)
  found = two_sided(bound, spec, upper)
  if spec is not None:
    return found
  return tighter(Bounds(*(b[:, 0] for b in state.bounds[graph.output])), found)
