"""alpha-CROWN: the free lines of the relaxations, optimised (Xu et al. 2021)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.bounds import relaxations
from rkd_jax.bounds.crown import (
    Bounds,
    Spec,
    output_bounds,
    output_rows,
    two_sided,
    walk_output,
)
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import CHUNK, State, propagate
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError

LEARNING_RATE = 0.25


def alpha_crown(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
                spec: Spec | None = None, *, upper: bool = True, steps: int = 20,
                optimizer: optax.GradientTransformation | None = None,
                shared: bool = False, intermediate: bool = False,
                chunk: int = CHUNK) -> Bounds:
  """CROWN with optimised lines (arXiv:2011.13824); never looser than `crown`.

  Whatever line is chosen in the allowed range is sound, so gradient ascent on the
  bounds themselves may stop anywhere; the best of all steps is returned, entry by
  entry.

  Args:
    fn, ball, spec, upper, chunk: as in `crown.crown`.
    steps: of the optimiser, >= 1. Each costs about three backward walks.
    optimizer: of the choices in [0, 1]; None: Adam, its learning rate decaying
      exponentially from 0.25 to a tenth.
    shared: one choice for all rows of a side instead of one for each (less memory,
      looser).
    intermediate: also optimises the lines behind each intermediate bound, shared by
      its neurons, for the sake of the final ones. Each step then costs about three
      times `crown`.

  Returns, raises: as `crown.crown`; also ConfigError for steps < 1.
  """
  if steps < 1:
    raise ConfigError(f'steps must be >= 1, got {steps}; for none use crown')
  graph = read(fn, ball)
  state = propagate(graph, ball, tighten=True, chunk=chunk)
  first = output_bounds(graph, state, ball, spec, upper)
  rows = output_rows(graph, spec, upper)
  best = ascend(graph, state, ball, rows, spec is None, steps=steps,
                optimizer=optimizer, intermediate=intermediate, chunk=chunk,
                groups=(2 if upper else 1) if shared else None).best
  found = two_sided(best, spec, upper)
  return Bounds(jnp.maximum(first.lower, found.lower),
                jnp.minimum(first.upper, found.upper) if upper else None)


class Optimised(NamedTuple):
  """What gradient ascent found.

  Attributes:
    best: float[B, R], the greatest lower bound of each row on the way.
    choices: value -> choices of the last step, [B, R or groups, *shape].
    known: tightened value -> (lower, upper), the best on the way; {} unless
      intermediate bounds were optimised.
  """

  best: jax.Array
  choices: dict[int, Any]
  known: dict[int, tuple[jax.Array, jax.Array]]


def ascend(graph: Graph, state: State, ball: InputSet, rows: jax.Array,
           same_rows: bool, *, steps: int, optimizer=None, intermediate=False,
           groups: int | None = None, chunk: int = CHUNK) -> Optimised:
  """Optimises the lines for lower bounds of rows on the output.

  Args:
    graph, state, ball, rows, same_rows: as in `crown.walk_output`.
    steps, optimizer, intermediate, chunk: as in `alpha_crown`.
    groups: rows that share choices fall into so many blocks; None: none share.
  """
  optimizer = optimizer or optax.adam(
      optax.exponential_decay(LEARNING_RATE, steps, 0.1))
  count = rows.shape[-3]
  groups = groups or count
  params = {'output': _starts(graph, state, groups), 'before': {}}
  if intermediate:
    params['before'] = {v: _starts(graph, state, 2, v) for v in state.tightened}

  def bound(params):
    now = state
    if intermediate:
      now = propagate(graph, ball, tighten=True, chunk=chunk,
                      choices=params['before'])
    choices = jax.tree.map(
        lambda c: jnp.repeat(c, count // groups, axis=1), params['output'])
    found = walk_output(graph, now, ball, rows, same_rows, choices)
    return found, {v: now.bounds[v] for v in params['before']}

  def step(carry, _):
    params, moments, best, known = carry
    (_, (found, bounds)), gradient = jax.value_and_grad(
        lambda p: (lambda b: (-jnp.sum(b[0]), b))(bound(p)), has_aux=True)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    params = jax.tree.map(lambda p, u: jnp.clip(p + u, 0, 1), params, updates)
    return (params, moments, *_better(best, known, found, bounds)), None

  found, bounds = bound(params)
  carry = params, optimizer.init(params), found, bounds
  (params, _, best, known), _ = lax.scan(step, carry, length=steps)
  best, known = _better(best, known, *bound(params))
  return Optimised(best, params['output'], known)


def _better(best, known, found, bounds):
  return jnp.maximum(best, found), {
      v: (jnp.maximum(known[v][0], low), jnp.minimum(known[v][1], high))
      for v, (low, high) in bounds.items()}


def _starts(graph: Graph, state: State, rows: int,
            before: int | None = None) -> dict[int, Any]:
  """Value -> its choice before the first step, for so many rows: [B, R, *shape].

  Of all values, or of those before the value `before`.
  """
  starts = {}
  for node in graph.nodes:
    if node.out == before:
      break
    if not node.linear:
      start = jax.vmap(relaxations.rule(node).start)(
          *(state.bounds[i] for i in node.operands))
      if any(s is not None for s in start):
        starts[node.out] = jax.tree.map(
            lambda s: jnp.repeat(lax.stop_gradient(s)[:, None], rows, axis=1), start)
  return starts
