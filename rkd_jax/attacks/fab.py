"""FAB: the smallest perturbation that changes the decision, by projections."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import (
    arguments,
    ball,
    hyperplane,
    network,
    objectives,
    probe,
    threat,
)
from rkd_jax.attacks.probe import Outcome, choose, wide
from rkd_jax.models.conv import forward

_BIAS_MOST = 0.1  # alpha_max: how much a step leans towards the clean image.
_OVERSHOOT = 1.05  # eta.
_BACKWARD = 0.9  # beta: how far from the clean image a step back ends.
_FINAL_STEPS = 3
_SURELY_INSIDE = 1 - 1e-4  # More than `ball.project` narrows the radius by.


class Nearest(NamedTuple):
  """The nearest misclassified images that were found.

  Attributes:
    images: float32[B, ...]; the clean image where none was found.
    distance: float32[B], in the norm; inf where none was found.
  """

  images: jax.Array
  distance: jax.Array


def fab(fn: Callable, images, labels, *, key, norm: str = 'linf', targets=None,
        steps: int = 100, restarts: int = 1, eps=1.0) -> Nearest:
  """Fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044), Algorithm 1.

  Every step linearises the decision at the current point and projects the point and
  the clean image onto the hyperplane within [0, 1], then goes to a mean of both that
  leans towards the clean image. A misclassified point is recorded and left behind,
  towards the clean image. In the end a few secant steps between the clean image and the
  best point move the latter to the decision boundary.

  An image that is misclassified as it is has distance 0.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], K >= 2.
    images: float[B, ...], clean, within [0, 1].
    labels: int[B].
    key: a typed key, or one an image, [B]; see `pgd`. The first of the restarts starts
      from the clean image and draws nothing.
    norm: 'linf', 'l2' or 'l1'.
    targets: int[B], other than the labels: only the boundary to this class is
      approached (FAB-T), which takes one gradient a step instead of K.
    steps: number of steps.
    restarts: of which all but the first start at random, at half the distance found so
      far or, where nothing was found, within `eps`.
    eps: see `restarts`.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  images, labels = arguments.check_images(images, labels)
  arguments.check_count('restarts', restarts, 1)
  keys = arguments.example_keys(key, len(images), 'uniform')
  eps = arguments.check_size('eps', eps)
  ball.check_norm(norm)
  arguments.check_count('steps', steps, 1)
  if targets is not None:
    targets = arguments.check_classes('targets', targets, images.shape)
  fn = network.checked(fn, labels, targets)
  wrong, finite = probe.judge(fn(images), labels)
  found = nothing(images)
  found = found._replace(distance=jnp.where(wrong, 0, found.distance))

  def one(restart, state):
    found, _, finite = run(
        fn, images, labels, probe.fold(keys, restart), state[0], eps=eps, norm=norm,
        targets=targets, steps=steps, random=restart > 0)
    return found, state[1] & finite

  found, finite = lax.fori_loop(0, restarts, one, (found, finite))
  arguments.check_finite(finite, 'fab')
  return found


def nothing(images) -> Nearest:
  """Where a search begins."""
  return Nearest(images, jnp.full(len(images), jnp.inf, jnp.float32))


def search(fn, images, labels, keys, *, eps, norm, steps, targets=None,
           random=False) -> Outcome:
  """One run that ends where all images are broken within `eps`; for AutoAttack."""
  found, passes, finite = run(
      fn, images, labels, keys, nothing(images), eps=eps, norm=norm, steps=steps,
      targets=targets, random=random, until=eps * _SURELY_INSIDE)
  broken = jnp.isfinite(found.distance) & ball.inside(
      found.images, images, eps=eps, norm=norm)
  classes = 1 if targets is not None else _classes(fn, images)
  return Outcome(choose(broken, found.images, images), broken,
                 2 * passes + _FINAL_STEPS + 2, classes * passes, finite)


def _classes(fn, images):
  return jax.eval_shape(fn, images).shape[1]


def _boundary(fn, labels, targets):
  """`point -> (values [B], normals, finite [B])` of the nearest linearised boundary.

  The value is the logit of the label less that of another class, > 0 where the label
  is ahead; the class is the target, or that whose hyperplane is nearest.
  """
  if targets is not None:
    def at_target(point, norm):
      def total(point):
        logits = fn(point)
        values = -objectives.difference(logits, labels, targets)
        return jnp.sum(values), (values, jnp.all(jnp.isfinite(logits), axis=1))
      normals, (values, finite) = jax.grad(total, has_aux=True)(point)
      return values, normals, finite
    return at_target

  def at_nearest(point, norm):
    logits, back = jax.vjp(fn, point)
    count = logits.shape[1]
    own = jax.nn.one_hot(labels, count, dtype=logits.dtype)
    differences = jnp.sum(own * logits, axis=1, keepdims=True) - logits
    weights = own[None] - jnp.eye(count, dtype=logits.dtype)[:, None]
    normals = jax.vmap(lambda weight: back(weight)[0])(weights)  # [K, B, ...]
    away = jax.vmap(lambda n, v: hyperplane.distance(n, v, norm))(normals, differences.T)
    nearest = jnp.argmin(jnp.where(own.T > 0, jnp.inf, away), axis=0)
    values = jnp.take_along_axis(differences, nearest[:, None], axis=1)[:, 0]
    normal = jax.vmap(lambda i, of_one: of_one[i], in_axes=(0, 1))(nearest, normals)
    return values, normal, jnp.all(jnp.isfinite(logits), axis=1)
  return at_nearest


class _State(NamedTuple):
  step: jax.Array
  point: jax.Array
  found: Nearest
  passes: jax.Array
  finite: jax.Array


def run(fn, images, labels, keys, found, *, eps, norm, steps, targets=None,
        random=False, until=None):
  """One run from what was found before: (found, steps taken int32[B], finite bool[B]).

  `random` may be traced. With `until` an image rests once its distance is at most that.
  """
  ball.check_norm(norm)
  fn = network.checked(fn, labels, targets)
  boundary = _boundary(fn, labels, targets)
  start = choose(jnp.broadcast_to(random, (len(images),)),
                 _random_point(images, keys, found.distance, eps, norm), images)
  # XLA on CPU computes what several others use again for each of them, and this is half
  # of the time, unless it ends in a division; by a number that it does not know.
  unit = jnp.where(eps >= 0, 1.0, jnp.nan)
  once = lambda values: values / unit
  done = lambda found: (found.distance <= until if until is not None
                        else jnp.zeros(len(images), bool))

  def step(state):
    values, normals, finite = boundary(state.point, norm)
    point = once(_move(state.point, images, values, once(normals), norm))
    logits = forward(fn, point)
    wrong, finite_too = probe.judge(logits, labels)
    far = ball.length(point - images, norm)
    better = wrong & (far < state.found.distance)
    found = choose(better, Nearest(point, far), state.found)
    back = images + _BACKWARD * (point - images)
    return _State(state.step + 1, choose(wrong, back, point), found,
                  state.passes + ~done(state.found),
                  state.finite & finite & finite_too)

  def goes_on(state):
    return (state.step < steps) & ~jnp.all(done(state.found))

  zeros = jnp.zeros(len(images), jnp.int32)
  state = lax.while_loop(goes_on, step, _State(
      jnp.int32(0), start, found, zeros, zeros == 0))
  return (_towards_boundary(fn, images, labels, state.found, norm), state.passes,
          state.finite)


def _random_point(images, keys, distance, eps, norm):
  """Uniform at up to half the smaller of the distance found and eps from the images."""
  radius = jnp.minimum(jnp.where(jnp.isfinite(distance), distance, jnp.inf), eps) / 2
  offset = ball.random_start(jnp.full_like(images, 0.5), keys, eps=0.5, norm=norm) - 0.5
  return jnp.clip(images + wide(radius, images) * offset / 0.5, 0, 1)


def _move(point, images, values, normals, norm):
  """Eq. 9: the mean of both projections, past the hyperplane by 5%."""
  from_point = hyperplane.project(point, normals, values, norm=norm) - point
  values_clean = values + jnp.sum(threat.rows(normals) * threat.rows(images - point),
                                  axis=1)
  from_clean = hyperplane.project(images, normals, values_clean, norm=norm) - images
  here, there = ball.length(from_point, norm), ball.length(from_clean, norm)
  total = here + there
  bias = jnp.minimum(here / jnp.where(total > 0, total, 1), _BIAS_MOST)
  bias = wide(bias, images)
  moved = ((1 - bias) * (point + _OVERSHOOT * from_point)
           + bias * (images + _OVERSHOOT * from_clean))
  return jnp.clip(moved, 0, 1)


def _towards_boundary(fn, images, labels, found, norm):
  """Secant steps on the segment from the clean image to the best point."""
  ahead = lambda point: -objectives.margin(fn(point), labels)  # > 0 where right.
  has = jnp.isfinite(found.distance)
  right = ahead(images)

  def step(_, state):
    inner, outer, inner_value, outer_value = state
    share = inner_value / jnp.where(inner_value > outer_value,
                                    inner_value - outer_value, 1)
    # Past the root, else a linear decision is met exactly and stays undecided.
    share = jnp.clip(1.01 * share, 0, 1)
    point = inner + wide(share, images) * (outer - inner)
    logits = fn(point)
    value = -objectives.margin(logits, labels)
    wrong, _ = probe.judge(logits, labels)
    return choose(wrong, (inner, point, inner_value, value),
                  (point, outer, value, outer_value))

  state = (images, found.images, right, ahead(found.images))
  outer = lax.fori_loop(0, _FINAL_STEPS, step, state)[1]
  valid = has & (right > 0)
  outer = choose(valid, outer, found.images)
  far = ball.length(outer - images, norm)
  # Rounding may have turned the ends of a tiny segment around.
  better = valid & (far < found.distance)
  return choose(better, Nearest(outer, far), found)
