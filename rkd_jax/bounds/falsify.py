"""Counterexamples: a short attack on a specification, and their exact check."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.crown import Spec
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.sets import InputSet
from rkd_jax.bounds.tracing import trace


def attack(graph: Graph, ball: InputSet, spec: Spec, key: jax.Array, *, steps: int,
           restarts: int, kept: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """Points of the set where the least row of the specification is small.

  Descent by the gradient's sign on each row of its own, from the middle of the hull and
  random points of it moved into the set, with steps from a quarter of its width down
  to a hundredth.

  Args:
    graph: of the function.
    ball, spec: B examples.
    key: typed; one is enough.
    steps: of descent.
    restarts: starts for each row.
    kept: share of an example's descents (one for each row and start) that goes on after
      a tenth of the steps: those that are lowest then.

  Returns:
    (points float[B, ...], their least row [B]); of all points seen last.
  """
  first = steps // 10 if kept < 1 else steps

  def one(ball, matrix, constant, key):
    low, high = ball.hull()
    width = jnp.where(jnp.isfinite(high - low), high - low, 0)
    rows = jnp.repeat(jnp.arange(len(constant)), restarts)

    def value(x, row):
      return matrix[row] @ graph.evaluate(x[None])[0] + constant[row]

    def descend(x, rows, begin, end):
      def move(i, x):
        length = 0.25 * 0.04 ** (i / steps)
        direction = jax.vmap(jax.grad(value))(x, rows)
        return jax.vmap(ball.project)(x - length * width * jnp.sign(direction))
      return lax.fori_loop(begin, end, move, x)

    noise = jax.random.uniform(key, (len(constant), restarts, low.size), low.dtype)
    noise = noise.at[:, 0].set(0.5)
    middle = jnp.clip(jnp.zeros_like(low), low, high)  # Where it has no finite width.
    start = jnp.where(jnp.isfinite(high - low), low, middle)
    x = jax.vmap(ball.project)(start + noise.reshape(-1, *low.shape) * width)
    x = descend(x, rows, 0, first)
    if first < steps:
      lowest = jnp.argsort(jax.vmap(value)(x, rows))[:max(1, round(kept * len(rows)))]
      x = jnp.concatenate([x, descend(x[lowest], rows[lowest], first, steps)])
    least = jax.vmap(lambda x: least_row(graph, matrix, constant, x))(x)
    best = jnp.argmin(least)
    return x[best], least[best]

  keys = jax.random.split(key, len(spec.constant))
  return jax.vmap(one)(ball, spec.matrix, spec.constant, keys)


def least_row(graph: Graph, matrix: jax.Array, constant: jax.Array,
              x: jax.Array) -> jax.Array:
  """min over the rows of C f(x) + d, for one point x [...]."""
  return jnp.min(matrix @ graph.evaluate(x[None])[0] + constant)


def exactly(fn: Callable[[jax.Array], jax.Array], x: np.ndarray, matrix: np.ndarray,
            constant: np.ndarray) -> float:
  """The least row at one point x [...], in float64 whatever the function's type."""
  with jax.enable_x64(True):
    graph = trace(fn, (1, *x.shape), jnp.float64)
    output = np.asarray(graph.evaluate(jnp.asarray(x[None], jnp.float64)))[0]
  return float(np.min(np.asarray(matrix, np.float64) @ output
                      + np.asarray(constant, np.float64)))
