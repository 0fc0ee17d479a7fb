"""Constants that were computed from others: their rounding is in the bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds

FUNCTIONS = {  # Of weights a, b and input x; NumPy's in long double is the reference.
    'product': lambda np_, a, b, x: x @ (a @ b),
    'difference': lambda np_, a, b, x: x + (a.sum(0) - b[0]),
    'standardised': lambda np_, a, b, x: x @ ((a - a.mean(0)) / np_.sqrt(a.var(0))),
    'divided': lambda np_, a, b, x: x / (a[0] - b[0])}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_cancellations_are_in_the_bounds(name):
  """At zero width nothing but rounding is between both ends."""
  fn = FUNCTIONS[name]
  methods = bounds.ibp, bounds.crown_ibp, bounds.forward
  run = jax.jit(lambda a, b, ball: [
      method(lambda x: fn(jnp, a, b, x), ball)[:2] for method in methods])
  rng = np.random.default_rng(0)
  for _ in range(40):
    a, b = rng.normal(size=(2, 6, 6)).astype(np.float32)
    a += np.float32(rng.choice([0, 1000]))  # Means that are far larger than deviations.
    b[0] = a[0] * np.float32(1 + 1e-5)
    x = rng.normal(size=(1, 6)).astype(np.float32)
    truth = fn(np, *(array.astype(np.longdouble) for array in (a, b, x)))
    for lower, upper in run(a, b, bounds.box(x, x)):
      assert (np.asarray(lower) <= truth).all() and (truth <= np.asarray(upper)).all()
