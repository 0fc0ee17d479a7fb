"""The nearest point of a hyperplane within the box [0, 1], exactly, in three norms."""

import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import bisection, threat

_MOST_PIECES = 60


def project(points, normals, values, *, norm: str):
  """`argmin_z ||z - x||_p` with `<w, z - x> + value = 0` and z in [0, 1].

  Sec. 3.2 of Croce and Hein 2020 (arXiv:1907.02044). How far `<w, z>` can be moved is
  a piecewise linear, increasing and (for 'linf' and 'l2') concave function of one
  multiplier, on which Newton's method from 0 climbs to the solution in at most as many
  steps as there are pieces. For 'l1' the pixels with the greatest weights are moved as
  far as the box lets them.

  Args:
    points: float32[B, ...], x, within [0, 1].
    normals: float32[B, ...], w.
    values: float32[B], of the linear function at x.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    float32[B, ...] in [0, 1]. Where the hyperplane does not meet the box, the point of
    the box with the value nearest to 0.
  """
  flat, weights = threat.rows(points), threat.rows(normals)
  side = -jnp.sign(values)[:, None] * jnp.sign(weights)  # The way that every pixel goes.
  room = jnp.where(side > 0, 1 - flat, jnp.where(side < 0, flat, 0))
  # Scaled, as products of small gradients are zero in float32.
  size = jnp.abs(weights)
  largest = jnp.max(size, axis=1)
  scale = jnp.where(largest > 0, largest, 1)
  size, need = size / scale[:, None], jnp.abs(values) / scale
  gain = size * room  # Of a pixel that moves as far as the box lets it.
  moves = {'linf': _linf, 'l2': _l2, 'l1': _l1}[norm](size, room, gain, need)
  reached = jnp.sum(gain, axis=1) > need
  moves = jnp.where(reached[:, None], moves, room)
  return jnp.clip(flat + side * moves, 0, 1).reshape(points.shape)


def _linf(size, room, gain, need):
  """All pixels move by t, or as far as they can."""
  return jnp.minimum(_climb(size, room, gain, need)[:, None], room)


def _l2(size, room, gain, need):
  """A pixel moves by t times its weight, or as far as it can."""
  full_at = jnp.where(size > 0, room / jnp.where(size > 0, size, 1), 0)
  t = _climb(jnp.square(size), full_at, gain, need)
  return jnp.minimum(t[:, None] * size, room)


def _climb(rate, full_at, gain, need):
  """The root of `sum_i min(rate_i t, gain_i) = need`, from t = 0; all but need [B, D].

  `full_at` is the t from which pixel i gives its gain.
  """
  def step(state):
    count, t, _ = state
    moves = full_at > t[:, None]
    # Both sums in one pass, which is what this takes its time for.
    rise, given = lax.reduce(
        (jnp.where(moves, rate, 0), jnp.where(moves, 0, gain)),
        (jnp.zeros((), rate.dtype),) * 2,
        lambda sums, terms: (sums[0] + terms[0], sums[1] + terms[1]), (1,))
    ahead = jnp.where(rise > 0, (need - given) / jnp.where(rise > 0, rise, 1), t)
    return count + 1, jnp.maximum(ahead, t), ahead > t * (1 + 1e-6)

  def goes_on(state):
    return (state[0] < _MOST_PIECES) & jnp.any(state[2])

  start = jnp.zeros_like(need)
  return lax.while_loop(goes_on, step, (0, start, need > 0))[1]


def _l1(size, room, gain, need):
  """All pixels above a weight move as far as they can, those of this weight in part."""
  total = lambda chosen: jnp.sum(jnp.where(chosen, gain, 0), axis=1)
  least = bisection.greatest(lambda t: total(size >= t[:, None]) >= need, len(size))
  above, at = size > least[:, None], size == least[:, None]
  within = total(at)
  share = jnp.clip((need - total(above)) / jnp.where(within > 0, within, 1), 0, 1)
  return room * jnp.where(above, 1, jnp.where(at, share[:, None], 0))


def distance(normals, values, norm: str):
  """Distance of the points to the hyperplane without the box, float32[B, ...].

  `|value| / ||w||_q` with the dual norm q; infinite where w is zero.
  """
  flat = jnp.abs(threat.rows(normals))
  if norm == 'linf':
    dual = jnp.sum(flat, axis=1)
  elif norm == 'l1':
    dual = jnp.max(flat, axis=1)
  else:
    dual = threat.l2_norm(flat).reshape(-1)
  return jnp.where(dual > 0, jnp.abs(values) / jnp.where(dual > 0, dual, 1), jnp.inf)
