"""Bounds of every value of a graph, for a batch of examples."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.bounds import interval, linear, relaxations
from rkd_jax.bounds.exact import exact_values
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.linear import Facts
from rkd_jax.bounds.sets import Box, InputSet

# Numbers in the largest array of coefficients that a chunk of rows may need.
CHUNK = 2**20
# Largest matrix of a linear segment that is kept whole.
_MATRIX = 2**24


class State(NamedTuple):
  """What is known about the values of a graph; arrays [B, ...].

  Attributes:
    bounds: value -> (lower, upper).
    facts: the lines and constants that the backward walk uses.
    tightened: values whose bounds come from a backward walk.
  """

  bounds: dict[int, tuple[jax.Array, jax.Array]]
  facts: Facts
  tightened: tuple[int, ...] = ()


def propagate(graph: Graph, ball: InputSet, *, tighten: bool,
              choices: dict[int, Any] | None = None,
              known: dict[int, Any] | None = None, chunk: int = CHUNK) -> State:
  """Bounds of all values, in order.

  Args:
    graph: the function.
    ball: the inputs, with batch axis.
    tighten: intersects the bounds of what enters a nonlinear equation with those of
      a backward walk; only entries for which it can matter are walked.
    choices: tightened value -> (value -> free parameters of its lines) of the walk
      that tightens it, each [B, 2, *shape]: for the lower bounds and for the upper.
    known: value -> (lower, upper) [B, *shape] to intersect with, known before.
    chunk: numbers in the largest array of coefficients at a time.
  """
  low, high = ball.hull()
  state = State({0: (low[:, None], high[:, None])}, Facts({}, {}))
  exact = exact_values(graph) if tighten and isinstance(ball, Box) else frozenset()
  tightened, done = [], set(exact)
  known, choices = known or {}, choices or {}
  for node in graph.nodes:
    if not node.linear:
      for position, i in enumerate(node.operands):
        if tighten and i not in done:
          operands = [state.bounds[j] for j in node.operands]
          wanted = jax.vmap(relaxations.rule(node).unstable)(*operands)[position]
          state.bounds[i] = _tighten(
              graph, ball, state, i, wanted, choices.get(i, {}), chunk)
          done.add(i)
          tightened.append(i)
    operands = [state.bounds[i] for i in node.operands]
    state.bounds[node.out] = _intersect(
        jax.vmap(lambda *b, node=node: interval.interval(node, graph, b))(*operands),
        known.get(node.out))
    _learn(graph, node, state)
  return state._replace(tightened=tuple(tightened))


def _intersect(bounds, known):
  if known is None:
    return bounds
  return jnp.maximum(bounds[0], known[0]), jnp.minimum(bounds[1], known[1])


def _learn(graph, node, state):
  """Adds the facts about a node to the state."""
  operands = {i: state.bounds[i] for i in node.operands}
  offsets = {i: state.facts.offsets[i] for i in node.operands
             if i in state.facts.offsets}

  def one(operands, offsets):
    return linear.facts_of(node, graph, operands, Facts(offsets, {}))

  found, slopes = jax.vmap(one)(operands, offsets)
  if found is not None:
    state.facts.offsets[node.out] = found
  if slopes is not None:
    state.facts.slopes[node.out] = slopes


def segment(graph: Graph, value: int) -> dict[int, jax.Array] | None:
  """The linear function behind a value, as matrices [N, *shape of the source].

  It reaches back to values that no linear equation takes over: results of nonlinear
  equations, the input, and what is read several times. None if it would be large.
  """
  size = math.prod(graph.shapes[value])
  linear_values = {node.out for node in graph.nodes if node.linear}
  if value not in linear_values:
    return None
  sources, reached = set(), {value}
  for node in reversed(graph.nodes):
    if node.out in reached:
      for i in node.operands:
        (reached if i in graph.merged else sources).add(i)
  if size * max(math.prod(graph.shapes[i]) for i in sources | reached) > _MATRIX:
    return None
  eye = jnp.eye(size, dtype=graph.dtype).reshape(size, *graph.shapes[value])
  rows, _ = linear.backward(graph, {value: eye}, Facts({}, {}),
                            stop=frozenset(sources))
  return rows


def _tighten(graph, ball, state, value, wanted, choices, chunk):
  """The bounds of a value, intersected with those of a backward walk.

  Rows are walked in chunks, for each example those that are wanted first; a chunk in
  which no example wants anything is skipped.
  """
  low, high = state.bounds[value]
  batch, size = len(low), math.prod(low.shape[1:])
  order = jnp.argsort(~wanted.reshape(batch, size), axis=1)
  most = jnp.max(jnp.sum(wanted.reshape(batch, size), axis=1))
  widest = max(math.prod(s) for s in graph.shapes.values())
  length = min(size, max(1, chunk // (2 * batch * widest)))
  count = -(-size // length)
  order = jnp.pad(order, ((0, 0), (0, count * length - size)), mode='edge')
  matrices = segment(graph, value)
  every = jnp.arange(batch)[:, None]

  def walk(bounds, start):
    index = lax.dynamic_slice_in_dim(order, start, length, axis=1)
    found = jax.vmap(lambda index, state, ball, choices: _entries(
        graph, value, matrices, index, state, ball, choices))(
            index, State(state.bounds, state.facts), ball, choices)
    return (bounds[0].at[every, index].max(found[0]),
            bounds[1].at[every, index].min(found[1]))

  def step(bounds, start):
    return lax.cond(start < most, walk, lambda bounds, _: bounds, bounds, start), None

  flat = low.reshape(batch, size), high.reshape(batch, size)
  flat, _ = lax.scan(step, flat, jnp.arange(count) * length)
  return flat[0].reshape(low.shape), flat[1].reshape(low.shape)


def _entries(graph, value, matrices, index, state, ball, choices):
  """(lower, upper) of the entries `index` [k] of a value, for one example."""
  for_rows = jax.tree.map(
      lambda c: jnp.repeat(c, len(index), axis=0), choices)
  facts = chosen(graph, state, for_rows)
  constant = 0.0
  if matrices is None:
    size = math.prod(graph.shapes[value])
    rows = {value: jax.nn.one_hot(index, size, dtype=graph.dtype).reshape(
        -1, *graph.shapes[value])}
  else:
    rows = {i: m[index] for i, m in matrices.items()}
    if value in facts.offsets:
      low, high = (o.reshape(-1)[index] for o in facts.offsets[value])
      constant = jnp.concatenate([low, -high])
  rows = {i: jnp.concatenate([r, -r]) for i, r in rows.items()}
  bound = minimum(graph, rows, facts, ball) + constant
  low, high = jnp.split(bound, 2)
  return low, -high


def chosen(graph: Graph, state: State, choices: dict[int, Any]) -> Facts:
  """The facts with other lines, one for each row; for one example.

  Args:
    graph, state: of one example.
    choices: value -> free parameters of its lines, [R, *shape]; {} keeps all.
  """
  offsets, slopes = dict(state.facts.offsets), dict(state.facts.slopes)
  for node in graph.nodes:
    if node.out in choices:
      offsets[node.out], slopes[node.out] = jax.vmap(
          lambda choice, node=node: linear.facts_of(
              node, graph, state.bounds, state.facts, choice))(choices[node.out])
  return Facts(offsets, slopes)


def minimum(graph: Graph, start: linear.Rows, facts: Facts, ball: InputSet,
            extra: linear.Rows | None = None) -> jax.Array:
  """Lower bound of the function that rows stand for, over the set: [R]; one example."""
  rows, constant = linear.backward(graph, start, facts, extra=extra)
  bound = constant + ball.minimum(rows[0][:, 0])
  # NaN comes of infinite bounds before: then nothing is known.
  return jnp.where(jnp.isnan(bound), -jnp.inf, bound)
