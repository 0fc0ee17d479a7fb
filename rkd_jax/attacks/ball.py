"""Balls in three norms, cut with the box [0, 1]: projection, start, length.

Adds the L1 ball to those of `threat`: there clipping after projecting is not the
nearest point, and the difference decides (Croce and Hein 2021, arXiv:2103.01208).
"""

import math

import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import threat
from rkd_jax.attacks.probe import wide
from rkd_jax.errors import unknown_name

NORMS = ('linf', 'l2', 'l1')
_BISECTIONS = 32


def check_norm(norm: str) -> None:
  """Refuses a norm that is not in `NORMS`."""
  if norm not in NORMS:
    raise unknown_name('norm', norm, NORMS)


def length(offset, norm: str):
  """Norm of each example, float32[B]."""
  flat = jnp.abs(threat.rows(offset))
  if norm == 'linf':
    return jnp.max(flat, axis=1)
  if norm == 'l1':
    return jnp.sum(flat, axis=1)
  return threat.l2_norm(flat).reshape(-1)


def project(images_adv, images, *, eps, norm: str):
  """The ball around the images, cut with [0, 1]; as `threat.project`, and for 'l1'.

  For 'l1' the nearest point of the cut ball in the Euclidean norm. The radius is
  narrowed by more than the rounding of a sum, so the norm is <= eps in exact
  arithmetic; every example that is inside already is returned as it is.

  Args:
    images_adv: float32[B, ...].
    images: float32[B, ...], clean, within [0, 1].
    eps: radius >= 0, a number or traced scalar.
    norm: of `NORMS`.
  """
  check_norm(norm)
  if norm != 'l1':
    return threat.project(images_adv, images, eps=eps, norm=norm, lower=0.0, upper=1.0)
  images_adv, images, eps = lax.stop_gradient(
      (images_adv, images, jnp.asarray(eps, jnp.float32)))
  slack = 2.0**-23 * (math.prod(images.shape[1:])**0.5 + 16)
  radius = eps * (1 - slack)
  offset = images_adv - images
  clipped = jnp.clip(images_adv, 0, 1)
  inside = length(clipped - images, 'l1') <= radius
  shrunk = _shrink(offset, images, radius * (1 - slack))
  low, high = threat.interval(images, jnp.abs(shrunk))
  moved = jnp.clip(images + shrunk, jnp.maximum(low, 0), jnp.minimum(high, 1))
  return jnp.where(wide(inside, images), clipped, moved)


def _shrink(offset, images, radius):
  """Offsets of the nearest points of the cut L1 ball, where the sum is too large.

  The nearest point moves pixel i by `sign(u_i) clip(|u_i| - t, 0, room_i)`, with t
  such that the sum of moves is the radius (Croce and Hein 2021, prop. 2.1). The sum
  falls with t and is piecewise linear: bisection finds the piece, a Newton step the
  point on it.
  """
  flat, clean = threat.rows(offset), threat.rows(images)
  size = jnp.abs(flat)
  room = jnp.where(flat > 0, 1 - clean, clean)
  moves = lambda t: jnp.clip(size - t[:, None], 0, room)
  total = lambda t: jnp.sum(moves(t), axis=1)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    above = total(middle) > radius
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  low, high = lax.fori_loop(
      0, _BISECTIONS, halve, (jnp.zeros(len(size)), jnp.max(size, axis=1)))
  middle = (low + high) / 2
  left = size - middle[:, None]
  slope = jnp.sum((left > 0) & (left < room), axis=1)
  exact = middle + (total(middle) - radius) / jnp.maximum(slope, 1)
  t = jnp.where(slope > 0, jnp.clip(exact, low, high), high)
  return (jnp.sign(flat) * moves(t)).reshape(offset.shape)


def inside(images_adv, images, *, eps, norm: str):
  """bool[B]: whether projecting would leave the image as it is."""
  same = project(images_adv, images, eps=eps, norm=norm) == images_adv
  return jnp.all(threat.rows(same), axis=1)


def random_start(images, keys, *, eps, norm: str):
  """A start in the cut ball: as `threat.random_start` 'uniform'; for 'l1' the
  projection of a Gaussian, which is sparse as the steps are."""
  if norm != 'l1':
    return threat.random_start(images, keys, kind='uniform', eps=eps, norm=norm)
  return project(images + threat.normal(keys, images), images, eps=eps, norm=norm)
