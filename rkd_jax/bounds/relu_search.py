"""Branch and bound on the ReLUs of one example."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import alpha, falsify, leaf, subproblems
from rkd_jax.bounds.child import Child
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.crown import Spec, output_rows
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import propagate
from rkd_jax.bounds.sets import Box, InputSet
from rkd_jax.bounds.subproblems import Subproblems

_RATE = 0.3  # Of Adam, for slopes and multipliers: few steps, many subproblems.


class ReluSearch:
  """Bounds and splits subproblems; keeps what is known of the present example."""

  def __init__(self, graph: Graph, compiled: Compiled, batch: int, steps: int,
               root_steps: int):
    self.graph, self.compiled, self.batch = graph, compiled, batch
    self.steps, self.root_steps = steps, root_steps
    self.relus_only = subproblems.relus_only(graph)

  def start(self, ball: InputSet, spec: Spec) -> tuple[list[Child], float]:
    """One subproblem without decisions for each row; (children, seconds)."""
    (self.state, problems), seconds = self.compiled(
        'root', lambda ball, spec: root(self.graph, ball, spec, self.root_steps),
        ball, spec)
    self.ball = jax.tree.map(lambda a: a[0], ball)
    problems = jax.tree.map(np.asarray, problems)
    return [Child(float(low), Subproblems(*(a[i] for a in problems)), None)
            for i, low in enumerate(problems.lower)], seconds

  def expand(self, taken: list[Subproblems]) -> tuple[list[Child], float]:
    """Splits up to `batch` subproblems; (children, seconds)."""
    # A short batch is filled up with copies, whose halves are thrown away.
    filled = taken + [taken[-1]] * (self.batch - len(taken))
    parents = Subproblems(*(np.stack(a) for a in zip(*filled)))
    found, seconds = self.compiled('expand', self._expand, self.state, self.ball, parents)
    halves, points, least, splittable = jax.tree.map(np.asarray, found)
    keep = np.flatnonzero(np.arange(2 * self.batch) % self.batch < len(taken))
    worst = keep[np.argmin(least[keep])]
    children = []
    for i in keep:
      half = Subproblems(*(a[i] for a in halves))
      point = points[i] if i == worst and least[i] <= 0 else None
      if half.lower > 0 or splittable[i]:
        children.append(Child(float(half.lower), half, point))
      else:
        child, spent = self._finish(half)
        children.append(child)
        seconds += spent
    return children, seconds

  def _expand(self, state, ball, parents):
    graph = self.graph
    halves = subproblems.split(graph, state, ball, parents)
    halves, _ = subproblems.tighten(graph, state, ball, halves, steps=self.steps,
                                 rate=_RATE, multiplier_rate=_RATE)
    _, rows = subproblems.bound(graph, state, ball, halves)
    points = jax.vmap(ball.minimizer)(rows)
    least = jax.vmap(lambda x, row, constant: falsify.least_row(
        graph, row[None], constant[None], x))(points, halves.rows, halves.constants)
    return halves, points, least, subproblems.undecided(graph, state, halves)

  def _finish(self, problem) -> tuple[Child, float]:
    """A subproblem without undecided neurons: by its linear program."""
    start, point, lower = time.monotonic(), None, float(problem.lower)
    if self.relus_only and isinstance(self.ball, Box):
      active = leaf.sides(self.graph, self.state, problem)
      derived = lambda active, x: self.compiled('leaf', self._derived, active, x)[0]
      point, multipliers, _ = leaf.solve(derived, problem, active,
                                         np.asarray(self.ball.lower),
                                         np.asarray(self.ball.upper))
      trial = problem._replace(multipliers=multipliers.astype(self.graph.dtype))
      (found, _), _ = self.compiled(
          'proof', lambda state, ball, p: subproblems.bound(self.graph, state, ball, p),
          self.state, self.ball, jax.tree.map(lambda a: np.asarray(a)[None], trial))
      lower = max(lower, float(found[0]))
    return Child(lower, None, point), time.monotonic() - start

  def _derived(self, active, x):
    both = lambda x: leaf.affine(self.graph, active, x)
    return both(x), jax.jacrev(both)(x)


def root(graph: Graph, ball: InputSet, spec: Spec, steps: int):
  """(state, subproblems without decisions: one a row) of one example."""
  state = propagate(graph, ball, tighten=True, steps=steps)
  rows = output_rows(graph, spec, upper=False)
  lower, choices = alpha.optimise(graph, state, ball, rows, False, steps=steps)
  state, choices, lower = jax.tree.map(lambda a: a[0], (state, choices, lower))
  slopes = jax.vmap(lambda c: subproblems.gather(
      graph, {out: below for out, (below, _) in c.items()}))(choices)
  matrix, constant = (a[0].astype(graph.dtype) for a in spec)
  return state, Subproblems(
      matrix, constant, jnp.zeros(slopes.shape, jnp.int8), slopes,
      jnp.zeros_like(slopes), subproblems.add(lower, constant))
