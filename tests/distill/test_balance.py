"""Loss weights and temperatures against hand-written recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.distill import balance

STEP = 0.025


def weights_of(losses, step_size=STEP):
  """(w_a, w_n) after each pair of losses (adversarial, clean)."""
  state, out = balance.init_weights(), []
  for adv, clean in losses:
    w_a, w_n, state = balance.next_weights(
        state, jnp.float32(adv), jnp.float32(clean), step_size=step_size)
    out.append((float(w_a), float(w_n)))
  return np.array(out)


def test_weights_follow_mtard():
  losses = [(2.0, 0.5), (1.0, 0.5), (1.5, 0.1), (4.0, 0.02), (0.1, 3.0)]
  w, expected = 0.5, []
  for adv, clean in losses:
    r_a, r_n = adv / 2.0, clean / 0.5
    w = w - STEP * (w - r_n / (r_a + r_n))
    expected.append((1 - w, w))
  np.testing.assert_allclose(weights_of(losses), expected, rtol=1e-6)
  # By hand: the first step changes nothing; then r = (1/2, 1).
  assert expected[0] == (0.5, 0.5)
  np.testing.assert_allclose(expected[1][1], 0.5 - 0.025 * (0.5 - 2 / 3))


def test_weights_where_losses_are_zero():
  # Both 0: nothing moves. The first that is not 0 is L_0.
  np.testing.assert_allclose(weights_of([(0, 0), (0, 0)]), 0.5)
  got = weights_of([(0, 2.0), (4.0, 1.0), (2.0, 1.0), (0, 0), (0, 1.0)])
  w, expected = 0.5, []
  for r_a, r_n in [(1, 1), (1, 0.5), (0.5, 0.5), None, (0, 0.5)][:3]:
    w = w - STEP * (w - r_n / (r_a + r_n))
    expected.append(w)
  expected.append(w)
  expected.append(w - STEP * (w - 1))
  np.testing.assert_allclose(got[:, 1], expected, rtol=1e-6)
  # Rounding below 0 is a loss of 0.
  np.testing.assert_allclose(weights_of([(-1e-9, 1e-9)]), 0.5)


def test_no_gradient_through_the_rules():
  def total(loss):
    w_a, w_n, _ = balance.next_weights(
        {**balance.init_weights(), 'first_loss_adv': jnp.float32(2),
         'first_loss_clean': jnp.float32(1)}, loss, 2 * loss, step_size=STEP)
    tau = balance.next_temperatures(
        {'robust': jnp.float32(2), 'clean': jnp.float32(2)}, loss, loss**2,
        step_size=STEP, lower=1, upper=10)
    return w_a + 3 * w_n + tau['robust'] + 5 * tau['clean']
  assert jax.grad(total)(jnp.float32(0.7)) == 0


@pytest.mark.parametrize('h_robust, h_clean, robust, clean', [
    (0.9, 0.3, 4.9, 5.1),  # R is more uncertain: sharpened; N softened.
    (0.3, 0.9, 5.1, 4.9),
    (0.4, 0.4, 5.0, 5.0),
    (0.1, 0.0, 4.9, 5.1),
    (0.0, 0.0, 5.0, 5.0)])
def test_temperatures(h_robust, h_clean, robust, clean):
  got = balance.next_temperatures(
      {'robust': jnp.float32(5), 'clean': jnp.float32(5)}, jnp.float32(h_robust),
      jnp.float32(h_clean), step_size=0.1, lower=1.0, upper=10.0)
  np.testing.assert_allclose(
      [got['robust'], got['clean']], [robust, clean], rtol=1e-6)


def test_temperatures_are_clamped():
  state = balance.init_temperatures()
  assert state['robust'] == state['clean'] == 1
  for _ in range(30):
    state = balance.next_temperatures(
        state, jnp.float32(1), jnp.float32(0.5), step_size=0.5, lower=1.0,
        upper=10.0)
  assert state['robust'] == 1 and state['clean'] == 10
