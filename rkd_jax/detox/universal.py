"""Universal perturbations, one for each class: the trigger that a defender imagines."""

import jax
import jax.numpy as jnp

from rkd_jax import losses


def start(num_classes: int, image_shape, eps: float, key: jax.Array) -> jax.Array:
  """Random perturbations float32[K, H, W, C] in [-eps, eps]."""
  return jax.random.uniform(
      key, (num_classes, *image_shape), minval=-eps, maxval=eps)


def assign(labels: jax.Array, num_classes: int, key: jax.Array) -> jax.Array:
  """A class for each example, drawn from those that are not its own: int[B]."""
  shift = jax.random.randint(key, labels.shape, 1, num_classes)
  return (labels + shift) % num_classes


def perturb(images: jax.Array, deltas: jax.Array, classes: jax.Array) -> jax.Array:
  """clip(x + delta[class], 0, 1) of each example."""
  return jnp.clip(images + deltas[classes], 0, 1)


def ascend(fn, images, classes, deltas, *, eps: float, step_size: float) -> jax.Array:
  """Perturbations after one signed step towards their classes, within eps.

  Args:
    fn: float images -> logits.
    images: float32[B, H, W, C].
    classes: int[B], which perturbation each image carries.
    deltas: float32[K, H, W, C].
    eps, step_size: in pixel units.
  """
  def towards(deltas):
    logits = fn(perturb(images, deltas, classes))
    return jnp.mean(losses.cross_entropy(logits, classes))

  moved = deltas - step_size * jnp.sign(jax.grad(towards)(deltas))
  return jnp.clip(moved, -eps, eps)
