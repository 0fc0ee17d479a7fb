"""Auto-PGD: projected gradient ascent that chooses its own step sizes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.attacks import (
    apgd_l1,
    arguments,
    ball,
    network,
    objectives,
    probe,
    record,
    threat,
)
from rkd_jax.attacks.probe import Outcome, wide
from rkd_jax.attacks.record import Record
from rkd_jax.errors import ConfigError, unknown_name

LOSSES = ('ce', 'dlr', 'margin', 'targeted_dlr', 'difference')
TARGETED = ('targeted_dlr', 'difference')
_MOMENTUM = 0.75  # alpha of eq. 3.
_RHO = 0.75


def apgd(fn: Callable, images, labels, *, key, eps, norm: str = 'linf',
         loss: str = 'ce', targets=None, steps: int = 100, restarts: int = 1,
         eot: int = 0, until_broken: bool = True) -> jax.Array:
  """Adversarial images by Auto-PGD (Croce and Hein 2020, arXiv:2003.01690).

  Algorithm 1: momentum 0.75, a first step of 2 eps, which is halved at checkpoints
  where fewer than 0.75 of the steps gained or where nothing was gained since the last
  one; the ascent then goes on from the best point so far. For 'l1' the sparse form of
  arXiv:2103.01208, at radii 3 eps, 2 eps and eps. Nothing is to be tuned.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], in evaluation mode. With `eot`
      it is `fn(images, keys [B])`.
    images: float[B, ...], clean, within [0, 1].
    labels: int[B].
    key: a typed key, or one an image, [B]; see `pgd`.
    eps: radius > 0 in pixel units; may be traced.
    norm: 'linf', 'l2' or 'l1'.
    loss: 'ce', 'dlr' (K >= 3), 'margin', or for `targets` 'targeted_dlr' (K >= 4) and
      'difference'; see `objectives`.
    targets: int[B], other than the labels, for the targeted losses.
    steps: number of steps; steps + 1 gradients.
    restarts: independent starts; a broken image before any other, then the highest
      loss.
    eot: 0, or how many draws of a randomised network to average over.
    until_broken: an image rests once it is misclassified, and the loop ends when all
      are. Otherwise the image with the highest loss is looked for to the end.

  Returns:
    float32[B, ...], in the ball and in [0, 1] as `ball.project` defines them. No
    gradient flows out of it.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  images, labels = arguments.check_images(images, labels)
  ball.check_norm(norm)
  arguments.check_radius('eps', arguments.check_size('eps', eps, above_zero=True), norm,
                         images.shape)
  eps = jnp.float32(eps)
  if targets is not None:
    targets = arguments.check_classes('targets', targets, images.shape)
  arguments.check_count('restarts', restarts, 1)
  keys = arguments.example_keys(key, len(images), 'uniform')

  def once(restart):
    return search(fn, images, labels, probe.fold(keys, restart), eps=eps, norm=norm,
                  loss=loss, targets=targets, steps=steps, eot=eot,
                  until_broken=until_broken)

  if restarts == 1:
    found = once(0)[0]
    arguments.check_finite(found.finite, 'apgd')
    return found.images
  found, values = lax.map(once, jnp.arange(restarts))
  arguments.check_finite(jnp.all(found.finite, axis=0), 'apgd')
  eligible = found.broken == jnp.any(found.broken, axis=0)
  best = jnp.argmax(jnp.where(eligible, values, -jnp.inf), axis=0)
  return jax.vmap(lambda i, of_one: of_one[i], in_axes=(0, 1))(best, found.images)


def search(fn, images, labels, keys, *, eps, norm, loss, steps, targets=None, eot=0,
           until_broken=True) -> tuple[Outcome, jax.Array]:
  """One run of `apgd`: (outcome, objective float32[B] at its images)."""
  ball.check_norm(norm)
  arguments.check_count('steps', steps, 1)
  arguments.check_count('eot', eot, 0)
  fn = network.checked(fn, labels, targets, draws=eot)
  see = probe.gradient_probe(
      fn, _objective(loss, labels, targets), labels, keys, eot)
  if norm == 'l1':
    return apgd_l1.search(see, images, keys, eps=eps, steps=steps, draws=max(eot, 1),
                          until_broken=until_broken)
  start = ball.random_start(images, keys, eps=eps, norm=norm)
  found = ascend(see, images, start, eps=eps, norm=norm, steps=steps,
                 until_broken=until_broken)
  return record.finish(found, until_broken, max(eot, 1))


def _objective(loss, labels, targets):
  if loss not in LOSSES:
    raise unknown_name('loss', loss, LOSSES)
  if (loss in TARGETED) != (targets is not None):
    raise ConfigError(f'loss {loss!r} with{"out" * (targets is None)} targets: '
                      f'{" and ".join(TARGETED)} take targets, the others none')
  if loss == 'ce':
    return lambda logits: objectives.cross_entropy(logits, labels)
  if loss in TARGETED:
    return lambda logits: getattr(objectives, loss)(logits, labels, targets)
  return lambda logits: getattr(objectives, loss)(logits, labels)


class _State(NamedTuple):
  step: jax.Array
  point: jax.Array
  previous: jax.Array
  value: jax.Array
  gradient: jax.Array
  record: Record
  step_size: jax.Array
  gains: jax.Array  # Steps since the last checkpoint that raised the objective.
  value_then: jax.Array  # Best objective at the last checkpoint.
  halved_then: jax.Array


def checkpoints(steps: int) -> np.ndarray:
  """int[steps + 1]: at each checkpoint the steps since the last one, else 0.

  p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); at ceil(p_j N).
  """
  lengths = np.zeros(steps + 1, np.int32)
  last, percent, gap = 0, 22, 22
  while percent <= 100:
    at = -(-percent * steps // 100)
    if at > last:
      lengths[at] = at - last
      last = at
    gap = max(gap - 3, 6)
    percent += gap
  return lengths


def ascend(see, images, start, *, eps, norm, steps, until_broken) -> Record:
  """The ascent for 'linf' and 'l2' from a given start."""
  lengths = jnp.asarray(checkpoints(steps))
  project = lambda point: ball.project(point, images, eps=eps, norm=norm)
  seen = see(start, 0)
  count = len(images)
  state = _State(
      jnp.int32(0), start, start, seen.value, seen.gradient, record.new(start, seen),
      jnp.full(count, 2 * eps, jnp.float32), jnp.zeros(count, jnp.int32), seen.value,
      jnp.zeros(count, bool))

  def step(state):
    ahead = project(state.point + wide(state.step_size, images)
                    * threat.ascent(state.gradient, norm=norm))
    share = jnp.where(state.step == 0, 1.0, _MOMENTUM)
    point = project(state.point + share * (ahead - state.point)
                    + (1 - share) * (state.point - state.previous))
    seen = see(point, state.step + 1)
    state = state._replace(
        step=state.step + 1, previous=state.point, point=point, value=seen.value,
        gradient=seen.gradient, record=record.note(state.record, point, seen),
        gains=state.gains + (seen.value > state.value))
    return _check(state, lengths[state.step])

  def goes_on(state):
    active = state.step < steps
    return active & ~jnp.all(state.record.broken) if until_broken else active

  return lax.while_loop(goes_on, step, state).record


def _check(state, interval):
  """Conditions 1 and 2 of sec. 3.2, at a checkpoint after `interval` steps."""
  best = state.record
  few = state.gains < _RHO * interval
  stuck = ~state.halved_then & (state.value_then == best.value)
  at = interval > 0
  halve = at & (few | stuck)
  point, value, gradient = probe.choose(
      halve, (best.best, best.value, best.gradient),
      (state.point, state.value, state.gradient))
  return state._replace(
      point=point, value=value, gradient=gradient,
      step_size=jnp.where(halve, state.step_size / 2, state.step_size),
      gains=jnp.where(at, 0, state.gains),
      value_then=jnp.where(at, best.value, state.value_then),
      halved_then=jnp.where(at, halve, state.halved_then))
