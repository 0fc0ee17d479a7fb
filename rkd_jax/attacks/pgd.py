"""Projected gradient descent: the strongest first-order attack for its price."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import arguments, network, objectives, threat
from rkd_jax.errors import ConfigError


def pgd(fn: Callable[[jax.Array], Any], images, labels, *, key, eps, step_size,
        steps: int, norm: str = 'linf', objective: str | Callable = 'ce',
        start: str = 'uniform', start_scale: float | None = None,
        restarts: int = 1, lower: float = 0.0, upper: float = 1.0) -> jax.Array:
  """Adversarial images by projected gradient ascent on an objective.

  `x <- project(x + step_size * ascent(grad objective(fn(x))))`, `steps` times
  from a random start (Madry et al. 2018, arXiv:1706.06083, sec. 2.1). Examples are
  independent of each other if `fn` treats them so. One gradient a step; nothing
  else is evaluated unless there are restarts.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], or any pytree if `objective`
      is a callable. Evaluation mode: it is called again and again.
    images: float[B, ...], clean, within [lower, upper].
    labels: int[B]; may be None if `objective` is a callable.
    key: a typed key, or one an image, [B]; a single one is folded with the
      position in the batch. May be None if `start` is 'none'.
    eps: radius >= 0 in pixel units; may be traced.
    step_size: length of a step in the norm, >= 0; may be traced.
    steps: number of steps; 0 returns the start; may be traced.
    norm: 'linf' or 'l2'.
    objective: 'ce' (cross-entropy), 'margin' (greatest wrong logit less the
      right one), or `objective(fn_output) -> float[B]`; maximised.
    start: 'uniform' in the ball, 'gaussian' or 'none' (the clean image).
    start_scale: standard deviation of the 'gaussian' start; None: 0.001.
    restarts: number of independent starts. Each example keeps its best last
      image: with 'ce' and 'margin' a misclassified one before any other, then
      the one with the highest objective; with a callable the highest objective.
      The starts of fewer restarts are among those of more.
    lower: least valid pixel.
    upper: greatest valid pixel.

  Returns:
    float32[B, ...], in the ball and in the box as `threat.project` defines them.
    No gradient flows out of it, nor into what `fn` closes over.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  arguments.check_box(lower, upper)
  images, labels = arguments.check_images(
      images, labels, lower=lower, upper=upper, labelled=not callable(objective))
  threat.check_norm(norm)
  for name, size in (('eps', eps), ('step_size', step_size)):
    arguments.check_size(name, size)
    arguments.check_radius(name, size, norm, images.shape, lower=lower, upper=upper)
  eps, step_size = jnp.float32(eps), jnp.float32(step_size)
  arguments.check_count('steps', steps, 0)
  arguments.check_count('restarts', restarts, 1)
  if start_scale is not None:
    arguments.check_size('start_scale', start_scale)
  if restarts > 1 and start == 'none':
    raise ConfigError(f"restarts {restarts} with start 'none' would repeat one "
                      "attack; use start='uniform'")
  keys = arguments.example_keys(key, len(images), start)
  value = network.traced('objective', objectives.resolve(objective, labels))
  fn = network.checked(fn, labels, logits=not callable(objective))
  ball = {'eps': eps, 'norm': norm, 'lower': lower, 'upper': upper}
  total = lambda adv: jnp.sum(_per_example(value(fn(adv)), len(images)))

  def step(_, adv):
    moved = adv + step_size * threat.ascent(jax.grad(total)(adv), norm=norm)
    # It stops gradients in every step: an outer gradient finds nothing to follow
    # in the loop, even where `fn` closes over the variables that it is for.
    return threat.project(moved, images, **ball)

  def attack(restart):
    adv = threat.random_start(images, _fold(keys, restart), kind=start,
                              scale=start_scale, **ball)
    return lax.fori_loop(0, steps, step, adv)

  if restarts == 1:
    found = attack(0)
  else:
    rank = lambda adv: _rank(fn(adv), value, None if callable(objective) else labels)
    found = _best(attack, rank, restarts)
  # A gradient that is not a number leaves pixels that are none.
  arguments.check_finite(jnp.all(jnp.isfinite(threat.rows(found)), axis=1), 'pgd')
  return found


def _per_example(values, batch):
  if getattr(values, 'shape', None) != (batch,):
    seen = getattr(values, 'shape', type(values).__name__)
    raise ConfigError(f'the objective must return one value an image, ({batch},), '
                      f'got {seen}; do not average it')
  return values


def _fold(keys, data):
  if keys is None:
    return None
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def _rank(output, value, labels):
  """(success bool[B], objective float[B]); no success is defined without labels."""
  values = lax.stop_gradient(value(output))
  if labels is None:
    return jnp.ones(values.shape, bool), values
  return jnp.argmax(output, axis=-1) != labels, values


def _best(attack, rank, restarts):
  """The best of the restarts for each example; see `pgd`."""
  def candidate(restart):
    adv = attack(restart)
    return adv, *rank(adv)

  adv, success, values = lax.map(candidate, jnp.arange(restarts))
  eligible = success == jnp.any(success, axis=0, keepdims=True)
  chosen = jnp.argmax(jnp.where(eligible, values, -jnp.inf), axis=0)
  return jax.vmap(lambda index, of_one: of_one[index], in_axes=(0, 1))(chosen, adv)
