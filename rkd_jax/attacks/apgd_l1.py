"""Auto-PGD in the L1 norm: sparse steps whose sparsity adapts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import ball, bisection, record, threat
from rkd_jax.attacks.probe import Outcome, choose, wide
from rkd_jax.attacks.record import Record

_RADII = (3, 2, 1)  # In units of eps, for 0.3, 0.3 and 0.4 of the steps.
_SPARSER = 1.5  # How much sparser a step is than the best perturbation.
_SLOWER = 1.5  # What the step size is divided by.
_LEAST_STEP = 0.1  # In units of the radius.
_ADAPT_EVERY = 0.04  # Share of the steps.


def search(see, images, keys, *, eps, steps: int, draws: int,
           until_broken: bool) -> tuple[Outcome, jax.Array]:
  """L1-APGD with shrinking radii (Croce and Hein 2021, arXiv:2103.01208, sec. 4).

  Arguments and result as of `apgd.search`; `see` is its probe. The ascents at the
  larger radii only find a start: what they break does not count, but is paid for. How
  sparse the first steps are is the support of the random start / 1.5, as in the released
  code.
  """
  first = ball.random_start(images, keys, eps=_RADII[0] * eps, norm='l1')
  lengths = [3 * steps // 10, 3 * steps // 10]
  lengths.append(steps - sum(lengths))
  starts = [0, lengths[0] + 1, lengths[0] + lengths[1] + 2]

  def phase(carry, plan):
    start, passes, finite, broken, adversarial = carry
    radius, count, moment, counts = plan
    start = ball.project(start, images, eps=radius, norm='l1')
    found = _ascend(see, images, start, radius, count, moment, counts & until_broken)
    # A larger ball is searched to its end, whatever is broken there.
    paid = jnp.where(counts, found.passes, count + 1)
    return (found.best, passes + paid, finite & found.finite,
            found.broken, found.adversarial), found.value

  plans = (eps * jnp.asarray(_RADII, jnp.float32), jnp.asarray(lengths, jnp.int32),
           jnp.asarray(starts, jnp.int32), jnp.asarray([False, False, True]))
  none = jnp.zeros(len(images), bool)
  (best, passes, finite, broken, adversarial), values = lax.scan(
      phase, (first, jnp.zeros(len(images), jnp.int32), ~none, none, first), plans)
  if until_broken:
    best = choose(broken, adversarial, best)
  return Outcome(best, broken, passes * draws, passes * draws, finite), values[-1]


class _State(NamedTuple):
  step: jax.Array
  point: jax.Array
  gradient: jax.Array
  record: Record
  step_size: jax.Array
  moved: jax.Array  # Pixels that a step moves, float32[B].
  support: jax.Array  # Pixels of the best perturbation when last looked at.


def _ascend(see, images, start, radius, steps, moment, stops) -> Record:
  """One ascent, at first as sparse as the start says; `steps` is traced."""
  count = len(images)
  seen = see(start, moment)
  support = _support(start, images)
  state = _State(
      jnp.int32(0), start, seen.gradient, record.new(start, seen),
      jnp.full(count, radius, jnp.float32), support / _SPARSER, support)
  every = jnp.maximum(jnp.floor(_ADAPT_EVERY * steps + 1e-3).astype(jnp.int32), 1)

  def step(state):
    direction = _sparse_sign(state.gradient, state.moved)
    point = ball.project(state.point + wide(state.step_size, images) * direction,
                         images, eps=radius, norm='l1')
    seen = see(point, moment + state.step + 1)
    state = state._replace(step=state.step + 1, point=point, gradient=seen.gradient,
                           record=record.note(state.record, point, seen))
    return _adapt(state, images, radius, (state.step % every) == 0)

  def goes_on(state):
    return (state.step < steps) & ~(stops & jnp.all(state.record.broken))

  return lax.while_loop(goes_on, step, state).record


def _sparse_sign(gradient, moved):
  """Sign of the `moved` greatest entries of each example, of L1 norm 1 together.

  At least one; rounded down, else a support of two pixels would never become one.
  """
  flat = threat.rows(gradient)
  size = jnp.abs(flat)
  many = jnp.clip(jnp.floor(moved).astype(jnp.int32), 1, flat.shape[1])
  least = bisection.greatest(
      lambda t: jnp.sum(size >= t[:, None], axis=1) >= many, len(flat))
  sign = jnp.where(size >= least[:, None], jnp.sign(flat), 0)
  total = jnp.maximum(jnp.sum(jnp.abs(sign), axis=1, keepdims=True), 1)
  return (sign / total).reshape(gradient.shape)


def _support(point, images):
  """How many pixels differ, float32[B]."""
  return jnp.sum(threat.rows(point != images), axis=1, dtype=jnp.float32)


def _adapt(state, images, radius, now):
  """The sparsity follows that of the best point; the step starts anew where it falls.

  Where the support shrank by more than 5% the step size is the radius again and the
  ascent goes on from the best point; elsewhere the step size falls.
  """
  support = _support(state.record.best, images)
  sparser = now & (support < 0.95 * state.support)
  smaller = jnp.maximum(state.step_size / _SLOWER, _LEAST_STEP * radius)
  point, gradient = choose(sparser, (state.record.best, state.record.gradient),
                           (state.point, state.gradient))
  return state._replace(
      point=point, gradient=gradient,
      moved=jnp.where(now, support / _SPARSER, state.moved),
      support=jnp.where(now, support, state.support),
      step_size=jnp.where(sparser, radius,
                          jnp.where(now, smaller, state.step_size)))
