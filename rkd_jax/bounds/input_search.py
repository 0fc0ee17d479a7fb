"""Branch and bound by halving the box of inputs; for any function."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import falsify
from rkd_jax.bounds.child import Child
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.crown import Spec, output_bounds
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import propagate
from rkd_jax.bounds.sets import Box


class InputSearch:
  """Bounds boxes by CROWN and halves them; a problem is (lower, upper, axis)."""

  def __init__(self, graph: Graph, compiled: Compiled, batch: int):
    self.graph, self.compiled, self.batch = graph, compiled, batch

  def start(self, ball: Box, spec: Spec) -> tuple[list[Child], float]:
    """The whole box; (children, seconds)."""
    self.spec = spec
    box = np.asarray(ball.lower[0]), np.asarray(ball.upper[0])
    children, seconds = self._bounded([box])
    return children, seconds

  def expand(self, taken: list) -> tuple[list[Child], float]:
    """Halves up to `batch` boxes along their axes; (children, seconds)."""
    halves = []
    for low, high, axis in taken:
      index = np.unravel_index(axis, low.shape)
      middle = low[index] + (high[index] - low[index]) / 2
      for edge, side in ((high, 'left'), (low, 'right')):
        moved = edge.copy()
        moved[index] = middle
        halves.append((low, moved) if side == 'left' else (moved, high))
    return self._bounded(halves)

  def _bounded(self, boxes):
    filled = boxes + [boxes[-1]] * (2 * self.batch - len(boxes))
    low, high = (np.stack(edge) for edge in zip(*filled))
    found, seconds = self.compiled('boxes', self._bounds, low, high, self.spec)
    lower, axes, points, least = jax.tree.map(np.asarray, found)
    worst = int(np.argmin(least[:len(boxes)]))
    children = []
    for i, (low, high) in enumerate(boxes):
      index = np.unravel_index(axes[i], low.shape)
      middle = low[index] + (high[index] - low[index]) / 2
      splittable = low[index] < middle < high[index]
      children.append(Child(
          float(lower[i]), (low, high, int(axes[i])) if splittable else None,
          points[i] if i == worst and least[i] <= 0 else None))
    return children, seconds

  def _bounds(self, low, high, spec):
    """(least row's bound, axis to halve, a point where it is small, its rows)."""
    graph, box = self.graph, Box(low, high)
    spec = Spec(*(jnp.repeat(a, len(low), axis=0) for a in spec))
    found = output_bounds(graph, propagate(graph, box, tighten=True), box, spec,
                          upper=False, coefficients=True)

    def one(low, high, bound, rows, matrix, constant):
      row = rows[jnp.argmin(bound)]
      gain = (jnp.abs(row) + jnp.finfo(row.dtype).tiny) * (high - low)
      corner = Box(low, high).minimizer(row)
      return (jnp.min(bound), jnp.argmax(gain), corner,
              falsify.least_row(graph, matrix, constant, corner))

    return jax.vmap(one)(low, high, found.lower, found.below.coefficients, *spec)
