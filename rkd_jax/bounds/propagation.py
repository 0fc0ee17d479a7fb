"""Bounds of every value of a graph, for a batch of examples."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.bounds import ascent, interval, linear, relaxations
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
  """

  bounds: dict[int, tuple[jax.Array, jax.Array]]
  facts: Facts


def propagate(graph: Graph, ball: InputSet, *, tighten: bool,
              chunk: int = CHUNK, steps: int = 0,
              optimizer: optax.GradientTransformation | None = None) -> State:
  """Bounds of all values, in order.

  Args:
    graph: the function.
    ball: the inputs, with batch axis.
    tighten: intersects the bounds of what enters a nonlinear equation with those of
      a backward walk; only entries for which it can matter are walked.
    chunk: numbers in the largest array of coefficients at a time.
    steps: of ascent on the lines behind each bound that is tightened.
    optimizer: of these, see `ascent.ascend`.
  """
  low, high = ball.hull()
  state = State({0: (low[:, None], high[:, None])}, Facts({}, {}, {}))
  exact = exact_values(graph) if tighten and isinstance(ball, Box) else frozenset()
  done = set(exact)
  for node in graph.nodes:
    if not node.linear:
      for position, i in enumerate(node.operands):
        if tighten and i not in done:
          operands = [state.bounds[j] for j in node.operands]
          wanted = jax.vmap(relaxations.rule(node).unstable)(*operands)[position]
          state.bounds[i] = _tighten(
              graph, ball, state, i, wanted, chunk, steps, optimizer)
          done.add(i)
    operands = [state.bounds[i] for i in node.operands]
    state.bounds[node.out] = jax.vmap(
        lambda *b, node=node: interval.interval(node, graph, b))(*operands)
    _learn(graph, node, state)
  return state


def _learn(graph, node, state):
  """Adds the facts about a node to the state."""
  operands = {i: state.bounds[i] for i in node.operands}
  offsets = {i: state.facts.offsets[i] for i in node.operands
             if i in state.facts.offsets}

  def one(operands, offsets):
    return (*linear.facts_of(node, graph, operands, Facts(offsets, {}, {})),
            linear.loss(node, graph, [operands[i] for i in node.operands]))

  found, slopes, loss = jax.vmap(one)(operands, offsets)
  if found is not None:
    state.facts.offsets[node.out] = found
  if slopes is not None:
    state.facts.slopes[node.out] = slopes
  if loss is not None:
    state.facts.losses[node.out] = loss


def segment(graph: Graph, value: int) -> dict[int, jax.Array] | None:
  """The linear function behind a value, as matrices [N, *shape of the source].

  It reaches back to values that no linear equation takes over: results of nonlinear
  equations, the input, and what is read several times. None if it would be large.
  """
  size = math.prod(graph.shapes[value])
  if value not in graph.linear:
    return None
  sources, reached = _segment_values(graph, value)
  if size * max(math.prod(graph.shapes[i]) for i in sources | reached) > _MATRIX:
    return None
  eye = jnp.eye(size, dtype=graph.dtype).reshape(size, *graph.shapes[value])
  rows, _ = linear.backward(graph, {value: eye}, linear.NOTHING,
                            stop=frozenset(sources))
  return rows


def _segment_values(graph, value):
  """(where the segment behind a value ends, what is inside, the value included)."""
  sources, reached = set(), {value}
  for node in reversed(graph.nodes):
    if node.out in reached:
      for i in node.operands:
        (reached if i in graph.merged else sources).add(i)
  return sources, reached


def _tighten(graph, ball, state, value, wanted, chunk, steps, optimizer):
  """The bounds of a value, intersected with those of a backward walk.

  Rows are walked in chunks, for each example those that are wanted first; a chunk in
  which no example wants anything is skipped.
  """
  low, high = state.bounds[value]
  batch, size = len(low), math.prod(low.shape[1:])
  order = jnp.argsort(~wanted.reshape(batch, size), axis=1)
  most = jnp.max(jnp.sum(wanted.reshape(batch, size), axis=1))
  widest = max(math.prod(s) for s in graph.shapes.values())
  if steps:  # Lines of its own for each row, their gradient and two moments.
    widest = 4 * (widest + sum(math.prod(n.shape) for n in graph.nodes if not n.linear))
  length = min(size, max(1, chunk // (2 * batch * widest)))
  count = -(-size // length)
  order = jnp.pad(order, ((0, 0), (0, count * length - size)), mode='edge')
  matrices = segment(graph, value)
  every = jnp.arange(batch)[:, None]

  def walk(bounds, start):
    index = lax.dynamic_slice_in_dim(order, start, length, axis=1)
    found = jax.vmap(lambda *one: _entries(
        graph, value, matrices, steps, optimizer, *one))(index, state, ball)
    return (bounds[0].at[every, index].max(found[0]),
            bounds[1].at[every, index].min(found[1]))

  def step(bounds, start):
    return lax.cond(start < most, walk, lambda bounds, _: bounds, bounds, start), None

  flat = low.reshape(batch, size), high.reshape(batch, size)
  flat, _ = lax.scan(step, flat, jnp.arange(count) * length)
  return flat[0].reshape(low.shape), flat[1].reshape(low.shape)


def _entries(graph, value, matrices, steps, optimizer, index, state, ball):
  """(lower, upper) of the entries `index` [k] of a value, for one example."""
  constant = 0.0
  if matrices is None:
    size = math.prod(graph.shapes[value])
    rows = {value: jax.nn.one_hot(index, size, dtype=graph.dtype).reshape(
        -1, *graph.shapes[value])}
  else:
    rows = {i: m[index] for i, m in matrices.items()}
    if value in state.facts.offsets:
      low, high = (o.reshape(-1)[index] for o in state.facts.offsets[value])
      constant = jnp.concatenate([low, -high])
    _, reached = _segment_values(graph, value)
    constant = constant - sum(
        loss for i, loss in state.facts.losses.items() if i in reached)
  rows = {i: jnp.concatenate([r, -r]) for i, r in rows.items()}

  def bound(choices):
    return known_below(
        minimum(graph, rows, chosen(graph, state, choices), ball) + constant)

  choices = (ascent.starts(graph, state.bounds, 2 * len(index), before=value)
             if steps else {})
  found = ascent.ascend(bound, choices, steps, optimizer)[0] if choices else bound({})
  low, high = jnp.split(found, 2)
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
  return Facts(offsets, slopes, state.facts.losses)


def minimum(graph: Graph, start: linear.Rows, facts: Facts,
            ball: InputSet) -> jax.Array:
  """Lower bound of the function that rows stand for, over the set: [R]; one example."""
  rows, constant = linear.backward(graph, start, facts)
  return known_below(constant + ball.minimum(rows[0][:, 0]))


def known_below(bound: jax.Array) -> jax.Array:
  """Lower bounds as they are; -inf for NaN, and for inf, which only overflows make."""
  return jnp.where(bound < jnp.inf, bound, -jnp.inf)
