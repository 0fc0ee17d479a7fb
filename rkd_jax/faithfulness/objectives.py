"""Subproblems of "how far apart": one class, one sign, some ReLUs and margins decided.

An objective is q(x) = s(u_1) - s(u_2) of one class, s the logistic function, u_1 the
log-odds of one network and u_2 those of the other: there are 2 K of them. Both are
functions of the 2 (K - 1) margins m of that class. On ranges of the margins q has a
linear upper bound, which is then a linear function of the outputs of a ReLU network: an
ordinary subproblem of `bounds.subproblems`. Ranges are halved where that bound is loose,
ReLUs are decided where the rest is.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds
from rkd_jax.bounds import alpha, ascent, joint, leaf, subproblems
from rkd_jax.bounds.child import Child
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.crown import output_rows
from rkd_jax.bounds.propagation import propagate
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.sets import InputSet
from rkd_jax.bounds.subproblems import Subproblems
from rkd_jax.errors import ConfigError
from rkd_jax.faithfulness.pair import Classifier

_RATE = 0.3  # Of Adam, as in `bounds.relu_search`.


class Problems(NamedTuple):
  """D subproblems, M = 2 (K - 1) margins each.

  Attributes:
    objective: int[D]: the class, plus K where the student's probability comes first.
    low, high: float[D, M], ranges of the margins of u_1, then of u_2.
    cuts: float[D, 2, M] >= 0, multipliers of m >= low and of m <= high.
    relaxed: with rows on all margins of both networks; its bounds are of -q.
  """

  objective: jax.Array
  low: jax.Array
  high: jax.Array
  cuts: jax.Array
  relaxed: Subproblems


class Search:
  """Bounds and splits problems; keeps what is known of the present example."""

  def __init__(self, teacher: Classifier, student: Classifier, ball: InputSet, size: int,
               compiled: Compiled, batch: int, steps: int, root_steps: int):
    def both(x):
      parts = [joint.margins(fn(x)) for fn in (teacher, student)]
      return jnp.concatenate([m.reshape(len(x), -1) for m in parts], axis=1)

    self.graph, self.size = read(both, ball), size
    if not subproblems.relu_nodes(self.graph):
      raise ConfigError('branch and bound splits ReLUs, and neither network has one; use '
                        "method='best'")
    self.relus_only = subproblems.relus_only(self.graph)
    self.compiled, self.batch = compiled, batch
    self.steps, self.root_steps = steps, root_steps
    # Objective -> where its margins are among the outputs of the graph.
    first = np.arange(size)[:, None] * (size - 1) + np.arange(size - 1)
    second = first + size * (size - 1)
    self.places = np.concatenate([np.concatenate([first, second], axis=1),
                                  np.concatenate([second, first], axis=1)])

  def start(self, ball: InputSet, wanted, goal: float) -> tuple[list[Child], float]:
    """Problems without decisions for the wanted classes; (children, seconds).

    The `lower` of a child is an upper bound of its objective; its point comes closer
    to that than all before.
    """
    chosen = np.flatnonzero(np.isin(np.arange(2 * self.size) % self.size, list(wanted)))
    self.reached = 0.0
    (self.state, problems), seconds = self.compiled(
        'faith root', self._root, ball, jnp.float32(goal))
    self.ball = jax.tree.map(lambda a: a[0], ball)
    problems = jax.tree.map(np.asarray, problems)
    one = lambda i: jax.tree.map(lambda a: a[i], problems)
    return [Child(-float(problems.relaxed.lower[i]), one(i), None)
            for i in chosen], seconds

  def expand(self, taken: list[Problems], goal: float) -> tuple[list[Child], float]:
    """Splits up to `batch` problems; (children, seconds)."""
    filled = taken + [taken[-1]] * (self.batch - len(taken))
    parents = jax.tree.map(lambda *a: np.stack(a), *filled)
    found, seconds = self.compiled('faith split', self._expand, self.state, self.ball,
                                   parents, jnp.float32(goal))
    halves, points, heights, splittable, linear = jax.tree.map(np.asarray, found)
    keep = np.flatnonzero(np.arange(2 * self.batch) % self.batch < len(taken))
    best = keep[np.argmax(heights[keep])]
    better = heights[best] > self.reached
    self.reached = max(self.reached, float(heights[best]))
    children = []
    for i in keep:
      half = jax.tree.map(lambda a, i=i: a[i], halves)
      if linear[i] and -half.relaxed.lower > goal:
        half, spent = self._finish(half)
        seconds += spent
      children.append(Child(
          -float(half.relaxed.lower), half if splittable[i] else None,
          points[i] if better and i == best else None))
    return children, seconds

  def _finish(self, half: Problems) -> tuple[Problems, float]:
    """A problem whose ReLUs are all decided, with the bound of its linear program."""
    start = time.monotonic()
    active = leaf.sides(self.graph, self.state, half.relaxed)
    _, multipliers, cuts = leaf.solve(
        lambda active, x: self.compiled('leaf', self._derived, active, x)[0],
        half.relaxed, active, np.asarray(self.ball.lower), np.asarray(self.ball.upper),
        self.places[half.objective], np.stack([half.low, half.high]))
    dtype = self.graph.dtype
    trial = half._replace(cuts=cuts.astype(dtype), relaxed=half.relaxed._replace(
        multipliers=multipliers.astype(dtype)))
    (found, _), _ = self.compiled('proof', lambda state, ball, p: subproblems.bound(
        self.graph, state, ball, _cut(self, p.relaxed, p)), self.state, self.ball,
        jax.tree.map(lambda a: np.asarray(a)[None], trial))
    if found[0] > half.relaxed.lower:
      half = trial._replace(relaxed=trial.relaxed._replace(lower=np.asarray(found[0])))
    return half, time.monotonic() - start

  def _derived(self, active, x):
    both = lambda x: leaf.affine(self.graph, active, x)
    return both(x), jax.jacrev(both)(x)

  def _root(self, ball, goal):
    graph = self.graph
    state = propagate(graph, ball, tighten=True, steps=self.root_steps)
    rows = output_rows(graph, None, upper=True)
    lower, _ = alpha.optimise(graph, state, ball, rows, True, steps=self.root_steps)
    low, high = jnp.split(lower[0], 2)
    plain = state.bounds[graph.output]
    low = jnp.maximum(low, plain[0][0, 0])
    high = jnp.minimum(-high, plain[1][0, 0])
    state, ball = jax.tree.map(lambda a: a[0], (state, ball))
    # Lines below that no relaxation has chosen yet start where CROWN has them.
    starts = ascent.starts(graph, state.bounds, 1)
    slopes = subproblems.gather(graph, {
        n.out: starts[n.out][0] for n in subproblems.relu_nodes(graph)})
    count = len(self.places)
    copies = lambda a: jnp.broadcast_to(a, (count, *a.shape))
    zeros = jnp.zeros_like(copies(slopes))
    relaxed = Subproblems(
        jnp.zeros((count, len(low)), graph.dtype), jnp.zeros(count, graph.dtype),
        zeros.astype(jnp.int8), copies(slopes), zeros,
        jnp.full(count, -jnp.inf, graph.dtype))
    low, high = low[self.places], high[self.places]
    problems = Problems(jnp.arange(count), low, high,
                        jnp.zeros((count, 2, low.shape[1]), graph.dtype), relaxed)
    return state, self._relax(state, ball, problems, goal, self.root_steps)

  def _expand(self, state, ball, parents, goal):
    relus = subproblems.split(self.graph, state, ball, parents.relaxed)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), parents)
    loose, axis, free = jax.vmap(
        lambda p: self._loose(state, ball, p))(parents)
    undecided = subproblems.undecided(self.graph, state, parents.relaxed)
    by_margin = jnp.tile(free & (loose | ~undecided), 2)
    middle = lambda low, high: low + (high - low) / 2
    along = jax.nn.one_hot(jnp.tile(axis, 2), twice.low.shape[1], dtype=bool)
    right = jnp.arange(len(by_margin)) >= len(loose)
    halved = along & by_margin[:, None]
    low = jnp.where(halved & right[:, None], middle(twice.low, twice.high), twice.low)
    high = jnp.where(halved & ~right[:, None], middle(twice.low, twice.high), twice.high)
    signs = jnp.where(by_margin[:, None], twice.relaxed.signs, relus.signs)
    halves = twice._replace(
        low=low, high=high, relaxed=twice.relaxed._replace(signs=signs))
    halves = self._relax(state, ball, self._ranges(state, ball, halves), goal,
                         self.steps)
    _, rows = subproblems.bound(
        self.graph, state, ball, _cut(self, halves.relaxed, halves))
    points = jax.vmap(ball.minimizer)(rows)
    heights = jax.vmap(self._height)(halves.objective, points)
    # What cannot be halved any more comes back as it was.
    linear = (~subproblems.undecided(self.graph, state, halves.relaxed)
              & self.relus_only & isinstance(ball, bounds.Box))
    return halves, points, heights, jnp.tile(free | undecided, 2), linear

  def _relax(self, state, ball, problems, goal, steps) -> Problems:
    """The linear bound of the objective on the ranges, and the bound of that."""
    found = bounds.crown(_negative, bounds.Box(problems.low, problems.high),
                         coefficients=True)
    rows = self._rows(problems.objective, found.below.coefficients[:, 0])
    relaxed = problems.relaxed
    relaxed = relaxed._replace(
        rows=rows, constants=found.below.constant[:, 0],
        lower=jnp.maximum(relaxed.lower, found.lower[:, 0]))
    relaxed, cuts = subproblems.tighten(
        self.graph, state, ball, relaxed, steps=steps, rate=_RATE,
        multiplier_rate=_RATE, goal=-goal, cuts=problems.cuts,
        cut=lambda relaxed, cuts: _cut(self, relaxed, problems._replace(cuts=cuts)))
    return problems._replace(relaxed=relaxed, cuts=cuts)

  def _rows(self, objective, coefficients):
    """Coefficients [D, M] of an objective's margins as rows on all of them."""
    places = jnp.asarray(self.places)[objective]
    zeros = jnp.zeros((len(places), self.graph.shapes[self.graph.output][1]),
                      self.graph.dtype)
    return zeros.at[jnp.arange(len(places))[:, None], places].set(coefficients)

  def _ranges(self, state, ball, problems):
    """With the ranges of the margins that the decisions leave.

    Where they cross no x is left, and any bound is right.
    """
    count, width = problems.low.shape
    eye = jnp.eye(width, dtype=self.graph.dtype)
    every = lambda a: jnp.repeat(a, 2 * width, axis=0)
    coefficients = jnp.tile(jnp.concatenate([eye, -eye]), (count, 1))
    relaxed = jax.tree.map(every, problems.relaxed)
    lower, _ = subproblems.bound(self.graph, state, ball, relaxed._replace(
        rows=self._rows(every(problems.objective), coefficients),
        constants=jnp.zeros_like(relaxed.constants),
        multipliers=jnp.zeros_like(relaxed.multipliers)))
    low, high = jnp.split(lower.reshape(count, 2 * width), 2, axis=1)
    low, high = jnp.maximum(problems.low, low), jnp.minimum(problems.high, -high)
    empty = jnp.any(low > high, axis=1)
    return problems._replace(
        low=low, high=jnp.maximum(low, high), relaxed=problems.relaxed._replace(
            lower=jnp.where(empty, jnp.inf, problems.relaxed.lower)))

  def _loose(self, state, ball, problem):
    """(whether most of the gap is in the linear bound of q rather than in the ReLUs, the
    margin whose range to halve, whether that can be halved)."""
    one = jax.tree.map(lambda a: a[None], problem)
    _, rows = subproblems.bound(
        self.graph, state, ball, _cut(self, one.relaxed, one))
    places = jnp.asarray(self.places)[problem.objective]
    margins = self.graph.evaluate(ball.minimizer(rows[0])[None])[0][places]
    # ReLUs that are relaxed let the point have margins that are out of range.
    inside = jnp.clip(margins, problem.low, problem.high)
    value, slope = jax.value_and_grad(lambda m: _negative(m[None])[0, 0])(inside)
    row = problem.relaxed.rows[places]
    lost = value - (row @ inside + problem.relaxed.constants)
    gap = _negative(margins[None])[0, 0] - problem.relaxed.lower
    width = problem.high - problem.low
    axis = jnp.argmax(jnp.abs(slope - row) * width)
    middle = problem.low + width / 2
    free = ((problem.low < middle) & (middle < problem.high))[axis]
    return 2 * lost > gap, axis, free

  def _height(self, objective, point):
    output = self.graph.evaluate(point[None])[0]
    return -_negative(output[jnp.asarray(self.places)[objective]][None])[0, 0]


def _negative(margins: jax.Array) -> jax.Array:
  """-q of margins [B, 2 (K - 1)]: [B, 1]."""
  first, second = jnp.split(margins, 2, axis=1)
  probability = lambda m: jax.nn.sigmoid(-jax.nn.logsumexp(m, axis=1, keepdims=True))
  return probability(second) - probability(first)


def _cut(search: Search, relaxed: Subproblems, problems: Problems) -> Subproblems:
  """Takes b (m - low) and b (high - m) off the function, which are >= 0: a lower bound.

  The new coefficients are rounded; what that may change of a margin in its range is in
  the constant.
  """
  below, above = problems.cuts[:, 0], problems.cuts[:, 1]
  rows = relaxed.rows + search._rows(problems.objective, above - below)
  largest = jnp.maximum(jnp.abs(problems.low), jnp.abs(problems.high))
  old = jnp.sum(jnp.max(jnp.abs(relaxed.rows), axis=1, keepdims=True) * largest, axis=1)
  terms = below * problems.low - above * problems.high
  size = old + jnp.sum((below + above) * largest, axis=1) + jnp.abs(relaxed.constants)
  unit = float(jnp.finfo(search.graph.dtype).eps)
  return relaxed._replace(
      rows=rows, constants=relaxed.constants + jnp.sum(terms, axis=1)
      - unit * (terms.shape[1] + 8) * size)
