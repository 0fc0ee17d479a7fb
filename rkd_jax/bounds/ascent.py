"""Gradient ascent on the free lines of the relaxations (Xu et al. 2021).

Whatever line is chosen in the allowed range is sound, so the ascent may stop anywhere;
the best of all steps counts, entry by entry.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.bounds import relaxations
from rkd_jax.bounds.graph import Graph

LEARNING_RATE = 0.25


def starts(graph: Graph, bounds: dict[int, Any], rows: int,
           before: int | None = None) -> dict[int, Any]:
  """Value -> the choice of its lines to start from, for so many rows: [rows, *shape].

  Args:
    graph: the function.
    bounds: value -> (lower, upper), of one example.
    rows: how many have choices of their own.
    before: only what comes before this value; None: everything.
  """
  found = {}
  for node in graph.nodes:
    if node.out == before:
      break
    if not node.linear:
      start = relaxations.rule(node).start(*(bounds[i] for i in node.operands))
      if any(s is not None for s in start):
        found[node.out] = jax.tree.map(
            lambda s: jnp.repeat(lax.stop_gradient(s)[None], rows, axis=0), start)
  return found


def ascend(bound: Callable[[Any], jax.Array], choices: Any, steps: int,
           optimizer: optax.GradientTransformation | None = None
           ) -> tuple[jax.Array, Any]:
  """(the greatest value of each entry on the way, the last choices).

  Args:
    bound: choices -> lower bounds, float[...].
    choices: to start from, each in [0, 1].
    steps: how many.
    optimizer: None: Adam, its learning rate decaying exponentially from 0.25 to a
      tenth.
  """
  optimizer = optimizer or optax.adam(
      optax.exponential_decay(LEARNING_RATE, steps, 0.1))

  def value(choices):
    found = bound(choices)
    return -jnp.sum(found), found

  def step(carry, _):
    choices, moments, best = carry
    (_, found), gradient = jax.value_and_grad(value, has_aux=True)(choices)
    updates, moments = optimizer.update(gradient, moments, choices)
    choices = jax.tree.map(lambda c, u: jnp.clip(c + u, 0, 1), choices, updates)
    return (choices, moments, jnp.maximum(best, found)), None

  shape = jax.eval_shape(bound, choices)
  carry = choices, optimizer.init(choices), jnp.full(shape.shape, -jnp.inf, shape.dtype)
  (choices, _, best), _ = lax.scan(step, carry, length=steps)
  return jnp.maximum(best, bound(choices)), choices
