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
           restarts: int) -> tuple[jax.Array, jax.Array]:
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

  Returns:
    (points float[B, ...], their least row [B]); of all points seen last.
  """
  def one(ball, matrix, constant, key):
    low, high = ball.hull()
    width = jnp.where(jnp.isfinite(high - low), high - low, 0)
    rows = len(constant)

    def value(x, row):
      return matrix[row] @ graph.evaluate(x[None])[0] + constant[row]

    def move(i, x):
      length = 0.25 * 0.04 ** (i / steps)
      direction = jax.vmap(jax.vmap(jax.grad(value), (0, None)), (0, 0))(
          x, jnp.arange(rows))
      return jax.vmap(jax.vmap(ball.project))(x - length * width * jnp.sign(direction))

    noise = jax.random.uniform(key, (rows, restarts, low.size), low.dtype)
    noise = noise.at[:, 0].set(0.5)
    x = low + noise.reshape(rows, restarts, *low.shape) * width
    x = lax.fori_loop(0, steps, move, jax.vmap(jax.vmap(ball.project))(x))
    x = x.reshape(-1, *low.shape)
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
