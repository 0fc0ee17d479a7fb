"""Verified accuracy: below what any attack leaves, exact at eps 0 and on a classifier
whose robust radius is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rkd_jax import models
from rkd_jax.evaluation import certified, robustness
from rkd_jax.models.network import Network

N, EPS, K = 96, 0.06, 3
NETWORK = Network(models.create('mlp_8_6', num_classes=K))
KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def split():
  """Three noisy patterns, as uint8."""
  rng = np.random.default_rng(0)
  patterns = rng.uniform(0.2, 0.8, (K, 4, 4, 1))
  label = rng.integers(0, K, N).astype(np.int32)
  image = patterns[label] + 0.22 * rng.normal(size=(N, 4, 4, 1))
  wrong = np.where(np.arange(N) < 9, (label + 1) % K, label)  # Some, after training.
  return types.SimpleNamespace(image=np.uint8(255 * np.clip(image, 0, 1)),
                               label=wrong, learnt=label)


@pytest.fixture(scope='module')
def variables(split):
  """Weights after a short training with cross-entropy."""
  images, tx = jnp.float32(split.image) / 255, optax.adam(0.02)

  def loss(params):
    logits = NETWORK.predict({'params': params, 'batch_stats': {}}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, split.learnt).mean()

  def step(carry, _):
    params, moments = carry
    updates, moments = tx.update(jax.grad(loss)(params), moments)
    return (optax.apply_updates(params, updates), moments), None

  @jax.jit
  def train():
    params = NETWORK.init(KEY, (4, 4, 1))['params']
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=80)
    return params

  return {'params': train(), 'batch_stats': {}}


def evaluate(split, variables, eps):
  names = ('clean', 'pgd20', *certified.KINDS)
  specs = robustness.specs_from(names, {'eps': eps, 'norm': 'linf'})
  results = robustness.evaluate(
      NETWORK, variables, split, specs, key=KEY, batch_size=40)
  return {name: robustness.correct(
      NETWORK, variables, split, spec, key=KEY, batch_size=40)
          for name, spec in specs.items()}, results


def test_certified_below_attacked_below_clean(split, variables):
  right, results = evaluate(split, variables, EPS)
  order = ('certified_ibp', 'certified_crown_ibp', 'certified_crown', 'pgd20', 'clean')
  for weaker, stronger in zip(order, order[1:], strict=False):
    assert (right[weaker] <= right[stronger]).all(), (weaker, stronger)
  assert 0 < right['certified_ibp'].sum() < right['certified_crown'].sum()
  assert right['pgd20'].sum() < right['clean'].sum()
  for kind in certified.KINDS:
    assert results[kind]['correct'] == right[kind].sum()
  assert results['worst'] == results['pgd20']  # Attacks alone.


def test_at_eps_0_whatever_is_right_is_verified(split, variables):
  right, _ = evaluate(split, variables, 0.0)
  assert 0.5 < right['clean'].mean() < 1
  for kind in certified.KINDS:
    np.testing.assert_array_equal(right[kind], right['clean'])


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_linear_classifier_is_verified_up_to_its_radius(norm):
  """|f(x)| / dual norm of the weights; no pixel near the edges of the box."""
  rng = np.random.default_rng(1)
  weight = rng.normal(size=9)
  image = rng.uniform(0.3, 0.7, (64, 9))
  score = (image - 0.5) @ weight
  radius = np.abs(score) / (np.abs(weight).sum() if norm == 'linf'
                            else np.linalg.norm(weight))
  eps = np.quantile(radius, 0.6)
  label = (score > 0).astype(np.int32)
  label[:8] = 1 - label[:8]

  def fn(x):
    value = (x - 0.5) @ jnp.asarray(weight, jnp.float32)
    return value[:, None] * jnp.asarray([-1.0, 1.0])

  for kind in ('certified_crown_ibp', 'certified_crown'):
    found = jax.jit(lambda x, kind=kind: certified.verified(
        fn, x, jnp.asarray(label), eps=eps, kind=kind, norm=norm))(
            jnp.asarray(image, jnp.float32))
    expected = (radius > eps) & ((score > 0) == label)
    clear = np.abs(radius - eps) > 1e-4
    np.testing.assert_array_equal(np.asarray(found)[clear], expected[clear])
