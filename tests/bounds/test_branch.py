"""Branch and bound against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def network(seed, sizes=(5, 10, 10, 3)):
  rng = np.random.default_rng(seed)
  layers = [(jnp.asarray(rng.normal(size=(n, m)) * np.sqrt(2 / n), jnp.float32),
             jnp.asarray(rng.normal(size=m) / 4, jnp.float32))
            for n, m in zip(sizes[:-1], sizes[1:])]

  def fn(x):
    for i, (weight, bias) in enumerate(layers):
      x = x @ weight + bias
      x = jax.nn.relu(x) if i < len(layers) - 1 else x
    return x

  return fn


def compare(seed, eps, split_on, count=6):
  """`verify` against the exact least margins by MILP; no disagreement."""
  fn = network(seed)
  x = np.random.default_rng(seed + 100).uniform(size=(count, 5)).astype(np.float32)
  labels = np.asarray(jnp.argmax(fn(x), axis=1))
  spec, ball = bounds.margins(labels, 3), bounds.linf_ball(x, eps)
  found = bounds.verify(fn, ball, spec, timeout_s=30, batch=16, restarts=1,
                        attack_steps=3, split_on=split_on)
  truth = np.min(np.asarray(bounds.milp(fn, ball, spec, upper=False).lower), axis=1)
  for i in range(count):
    if abs(truth[i]) > 1e-4:
      assert found.status[i] == ('verified' if truth[i] > 0 else 'falsified'), i
    assert found.lower[i] <= truth[i] + 1e-5
    if found.status[i] == 'falsified':
      point = found.counterexample[i]
      assert (np.abs(point - x[i]) <= eps * (1 + 1e-6)).all()
      output = np.asarray(fn(point[None]))[0]
      assert output[labels[i]] <= np.delete(output, labels[i]).max() + 1e-6
    else:
      assert np.isnan(found.counterexample[i]).all()
  return found


@pytest.mark.parametrize('split_on', ['relu', 'input'])
def test_agrees_with_milp(split_on):
  found = compare(0, 0.3, split_on)
  assert found.subproblems.max() > 0, 'the case is too easy to test branching'


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(50))
def test_agrees_with_milp_on_many_networks(seed):
  compare(seed, (0.1, 0.2, 0.3, 0.5)[seed % 4], ('relu', 'input')[seed % 2])


def test_smooth_functions_are_split_on_the_input():
  """x0^2 + x1^2 - 0.3 > 0 around (1, 0.5), not around (0.3, 0.3)."""
  fn = lambda x: jnp.sum(x**2, axis=1, keepdims=True) - 0.3
  x = np.array([[1, 0.5], [0.3, 0.3]], np.float32)
  spec = bounds.Spec(jnp.ones((2, 1, 1)), jnp.zeros((2, 1)))
  found = bounds.verify(fn, bounds.linf_ball(x, 0.3), spec, timeout_s=20)
  assert list(found.status) == ['verified', 'falsified']
  assert 0 < found.lower[0] <= 0.7**2 + 0.2**2 - 0.3


def test_time_limit_leaves_a_sound_bound():
  fn = network(3, (30, 40, 40, 40, 3))
  x = np.random.default_rng(0).uniform(size=(1, 30)).astype(np.float32)
  labels = np.asarray(jnp.argmax(fn(x), axis=1))
  ball, spec = bounds.linf_ball(x, 0.05), bounds.margins(labels, 3)
  seen = []
  found = bounds.verify(fn, ball, spec, timeout_s=1e-6, restarts=1, attack_steps=1,
                        progress=lambda *state: seen.append(state))
  alpha_crown = jax.jit(lambda ball: bounds.alpha_crown(fn, ball, spec).lower)
  low = float(jnp.min(alpha_crown(ball)))
  if found.status[0] == 'unknown':
    assert found.lower[0] >= low - 1e-4


def test_bad_arguments(mlp):
  ball = bounds.linf_ball(np.zeros((2, 12), np.float32), 0.1)
  with pytest.raises(ConfigError, match='timeout_s'):
    bounds.verify(mlp, ball, bounds.margins(np.zeros(2, int), 4), timeout_s=0)
  with pytest.raises(ConfigError, match='K = 4'):
    bounds.verify(mlp, ball, bounds.margins(np.zeros(2, int), 5))
  with pytest.raises(ConfigError, match='split_on'):
    bounds.verify(mlp, ball, bounds.margins(np.zeros(2, int), 4), split_on='weights')
