"""How two teachers are kept in balance: loss weights and temperatures.

Both rules come with state, scalars in float32 that change every step, and both
are constants of the student's loss: no gradient flows through them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

# A mean KL below this is rounding and counts as 0. (The public code of CIARD
# puts 1e-7 in the place of a 0.)
ZERO_LOSS = 1e-7

State = Mapping[str, jax.Array]


def init_weights() -> State:
  """Equal weights; the first losses are not seen yet (0)."""
  return {'weight_clean': jnp.float32(0.5),
          'first_loss_adv': jnp.float32(0), 'first_loss_clean': jnp.float32(0)}


def next_weights(state: State, loss_adv: jax.Array, loss_clean: jax.Array, *,
                 step_size) -> tuple[jax.Array, jax.Array, State]:
  """MTARD's weights for this step (Zhao et al. 2022; public code).

  With r = L / L_0 per loss, L_0 being its value on the first step:
  w_n <- w_n - step_size (w_n - r_n / (r_a + r_n)), w_a = 1 - w_n. The loss that
  has fallen less gets the larger weight.

  Args:
    state: from `init_weights` or the step before.
    loss_adv, loss_clean: mean losses of this step, float32 scalars. One that is
      0 (see `ZERO_LOSS`) does not serve as L_0: the next one that is not does,
      and r is 1 until then. Where both are 0 now, the weights stay.
    step_size: in [0, 1].

  Returns:
    (w_a, w_n, state): the weights after the update, which this step uses.
  """
  ratio_adv, first_adv = _ratio(loss_adv, state['first_loss_adv'])
  ratio_clean, first_clean = _ratio(loss_clean, state['first_loss_clean'])
  total = ratio_adv + ratio_clean
  weight = state['weight_clean']
  wanted = jnp.where(
      total > 0, ratio_clean / jnp.where(total > 0, total, 1), weight)
  weight = weight - step_size * (weight - wanted)
  return 1 - weight, weight, {
      'weight_clean': weight,
      'first_loss_adv': first_adv, 'first_loss_clean': first_clean}


def _ratio(loss, first):
  """(L / L_0, L_0), both defined for losses of 0."""
  loss = lax.stop_gradient(loss)
  loss = jnp.where(loss > ZERO_LOSS, loss, 0)
  first = jnp.where(first > 0, first, loss)
  return jnp.where(first > 0, loss / jnp.where(first > 0, first, 1), 1), first


def init_temperatures() -> State:
  """Temperature 1 for both teachers."""
  return {'robust': jnp.float32(1), 'clean': jnp.float32(1)}


def next_temperatures(state: State, entropy_robust: jax.Array,
                      entropy_clean: jax.Array, *, step_size, lower: float,
                      upper: float) -> State:
  """B-MTARD's temperatures for the next step (arXiv:2306.16170; public code).

  tau_r <- tau_r - step_size sign(H_r / H_n - 1), tau_n likewise with the roles
  exchanged, both clamped: the more uncertain teacher is sharpened. The sign is
  taken of H_r - H_n, which is the same and defined where an entropy is 0.

  Args:
    state: the temperatures of this step.
    entropy_robust, entropy_clean: mean entropies of the softened predictions of
      this step, float32 scalars in nats.
    step_size: >= 0.
    lower, upper: the range of the temperatures.
  """
  move = step_size * jnp.sign(lax.stop_gradient(entropy_robust - entropy_clean))
  return {'robust': jnp.clip(state['robust'] - move, lower, upper),
          'clean': jnp.clip(state['clean'] + move, lower, upper)}
