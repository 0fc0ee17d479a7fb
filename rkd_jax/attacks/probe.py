"""What an attack sees of a network at a point, and what it brings home."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Seen(NamedTuple):
  """A network at one point a example.

  Attributes:
    value: float32[B], the objective.
    gradient: float32[B, ...], of the objective; None where it was not asked for.
    wrong: bool[B], whether the label has lost.
    finite: bool[B], whether all logits are finite.
  """

  value: jax.Array
  gradient: jax.Array | None
  wrong: jax.Array
  finite: jax.Array


class Outcome(NamedTuple):
  """What an attack found.

  Attributes:
    images: float32[B, ...], within the ball and the box: the first misclassified
      image, or where there is none the one with the highest objective.
    broken: bool[B], whether it is misclassified.
    queries: int32[B], forward passes spent on the example until it was broken.
    gradients: int32[B], backward passes likewise.
    finite: bool[B], whether all logits seen were finite.
  """

  images: jax.Array
  broken: jax.Array
  queries: jax.Array
  gradients: jax.Array
  finite: jax.Array


def wide(values, like):
  """[B] as [B, 1, ...], to go with images."""
  return values.reshape(-1, *(1,) * (like.ndim - 1))


def choose(where, chosen, other):
  """`jnp.where` for a pytree of arrays with a leading batch axis."""
  return jax.tree.map(lambda a, b: jnp.where(wide(where, a), a, b), chosen, other)


def gradient_probe(fn: Callable, objective: Callable, labels, keys,
                   draws: int) -> Callable:
  """`probe(images, moment) -> Seen` with the gradient.

  Args:
    fn: images -> logits float[B, K]; with `draws` > 0 (images, keys [B]) -> logits.
    objective: logits -> float[B].
    labels: int[B].
    keys: typed keys [B]; folded with the moment and the draw.
    draws: 0 for a deterministic network. Else the expectation over transformation
      (Athalye et al. 2018): value, gradient and logits are means over so many draws.
  """
  def once(images, of_draw):
    def total(images):
      logits = fn(images) if of_draw is None else fn(images, of_draw)
      values = objective(logits)
      return jnp.sum(values), (values, logits)

    gradient, (values, logits) = jax.grad(total, has_aux=True)(images)
    return values, gradient, logits

  def probe(images, moment):
    if not draws:
      values, gradient, logits = once(images, None)
    else:
      values, gradient, logits = mean_of_draws(once, images, keys, moment, draws)
    return lax.stop_gradient(Seen(values, gradient, *judge(logits, labels)))
  return probe


def mean_of_draws(once, images, keys, moment, draws):
  """Mean of `once(images, keys [B])` over draws that belong to a moment."""
  at = fold(keys, moment)
  shapes = jax.eval_shape(once, images, at)
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  add = lambda draw, total: jax.tree.map(jnp.add, total, once(images, fold(at, draw)))
  return jax.tree.map(lambda a: a / draws, lax.fori_loop(0, draws, add, zeros))


def judge(logits, labels):
  """(wrong bool[B], finite bool[B])."""
  return jnp.argmax(logits, axis=-1) != labels, jnp.all(jnp.isfinite(logits), axis=-1)


def fold(keys, number):
  """Every key folded with a number."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
