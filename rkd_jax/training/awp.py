"""Adversarial weight perturbation (Wu et al. 2020, arXiv:2004.05884) of any method.

A step without it takes the gradient of the loss at the student's weights w. With it,
the gradient is taken at w + v, the worst weights nearby, and applied at w.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rkd_jax.sections import Awp
from rkd_jax.settings import build
from rkd_jax.training.schedules import first_epoch

# gradient(loss_fn, params) -> (gradient like params, aux), where
# loss_fn(params, images=None) -> (loss, (metrics, images, *rest)): `images` are those
# that the inner maximisation found, or should take over from another call.
Gradient = Callable[..., tuple[Any, Any]]


def plain_gradient(loss_fn: Callable, params):
  """The gradient at the weights themselves."""
  return jax.grad(loss_fn, has_aux=True)(params)


def perturb(params, ascent, gamma):
  """params + v: every layer moved along the gradient of the loss, as far as allowed.

  v_l = gamma |w_l| g_l / |g_l|, one normalised step of the paper's ascent, with
  Euclidean norms over a layer's kernel. As in the public code, arrays of less than two
  axes (biases, the parameters of BatchNorm) stay, and so does a layer without a
  gradient.

  Args:
    params: pytree of float arrays.
    ascent: the gradient of the loss, like `params`.
    gamma: size of v_l relative to |w_l|, >= 0.
  """
  def move(weight, slope):
    if weight.ndim < 2:
      return weight
    norm = optax.tree.norm(slope)
    scale = gamma * optax.tree.norm(weight) / jnp.where(norm > 0, norm, 1)
    return weight + scale * slope

  return jax.tree.map(move, params, ascent)


def make_gradient(gamma: float) -> Gradient:
  """The gradient at the perturbed weights, for gamma > 0.

  v is found by one step on the loss that the method minimises, at the images that its
  attack found at w; the gradient is taken at the same images. What else the objective
  returns (metrics, running statistics, memory) is of the second evaluation, as in the
  public code; the metric 'awp_rise' is by how much v raises the loss.
  """
  def gradient(loss_fn, params):
    (loss, (_, images, *_)), ascent = jax.value_and_grad(
        loss_fn, has_aux=True)(params)
    grads, (metrics, *rest) = jax.grad(
        lambda moved: loss_fn(moved, images), has_aux=True)(
            perturb(params, ascent, gamma))
    return grads, ({**metrics, 'awp_rise': metrics['loss'] - loss}, *rest)

  return gradient


def make(settings: Mapping[str, Any], *, epochs: int) -> Callable[[int], Gradient]:
  """`gradient_at(epoch)` of a config, the same function for all epochs alike.

  Args:
    settings: What differs from the defaults of `sections.Awp`. The weights are
      perturbed from a whole epoch on.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: a value out of its range.
  """
  chosen = build(Awp, settings, 'awp')
  if chosen.gamma == 0:
    return lambda epoch: plain_gradient
  first, perturbed = first_epoch(chosen.start, epochs), make_gradient(chosen.gamma)
  return lambda epoch: perturbed if epoch >= first else plain_gradient


def reuse(images=None) -> tuple[Callable, list]:
  """(once, made): how an objective's images are kept, and which they are.

  `once(make)` is `make()`, or the next of `images` where they are given.
  """
  made = []

  def once(make_images):
    made.append(make_images() if images is None else images[len(made)])
    return made[-1]

  return once, made
