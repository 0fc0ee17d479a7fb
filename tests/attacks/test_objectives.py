"""Objectives against float64 definitions, at ordinary and at extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.attacks import objectives
from rkd_jax.errors import ConfigError

B, K = 6, 5


def softmax(logits):
  shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def draw(seed, scale=2.0):
  return np.random.default_rng(seed).normal(size=(B, K)) * scale


LABELS = np.array([0, 1, 2, 3, 4, 2])


def test_cross_entropy():
  logits = draw(0)
  expected = -np.log(softmax(logits)[np.arange(B), LABELS])
  got = objectives.cross_entropy(jnp.asarray(logits, jnp.float32), LABELS)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def by_enumeration(logits):
  return np.array([max(row[j] - row[y] for j in range(K) if j != y)
                   for row, y in zip(logits, LABELS, strict=True)])


def test_margin():
  logits = draw(1)
  got = objectives.margin(jnp.asarray(logits, jnp.float32), LABELS)
  np.testing.assert_allclose(got, by_enumeration(logits), rtol=1e-5, atol=1e-6)


def test_margin_clamps_at_kappa():
  logits = jnp.asarray(draw(1), jnp.float32)
  value, gradient = jax.value_and_grad(
      lambda z: objectives.margin(z, LABELS, kappa=2.0).sum())(logits)
  expected = by_enumeration(draw(1))
  assert (expected > 2).any() and (expected < 2).any()
  np.testing.assert_allclose(value, np.minimum(expected, 2).sum(), rtol=1e-5)
  np.testing.assert_array_equal(np.abs(gradient).sum(axis=1),
                                np.where(expected > 2, 0, 2))


def test_kl_and_its_gradients():
  reference, logits = draw(2), draw(3)
  p, q = softmax(reference), softmax(logits)
  log_ratio = np.log(p / q)
  expected = np.sum(p * log_ratio, axis=1)
  args = [jnp.asarray(x, jnp.float32) for x in (reference, logits)]
  np.testing.assert_allclose(objectives.kl_divergence(*args), expected, rtol=1e-4)
  to_reference, to_logits = jax.grad(
      lambda *x: objectives.kl_divergence(*x).sum(), argnums=(0, 1))(*args)
  np.testing.assert_allclose(to_logits, q - p, atol=1e-5)
  np.testing.assert_allclose(
      to_reference, p * (log_ratio - expected[:, None]), atol=1e-5)


def test_kl_to_passes_nothing_to_the_reference():
  reference, logits = (jnp.asarray(draw(seed), jnp.float32) for seed in (2, 3))
  gradient = jax.grad(lambda r: objectives.kl_to(r)(logits).sum())(reference)
  np.testing.assert_array_equal(gradient, np.zeros((B, K)))


@pytest.mark.parametrize('scale', [0.0, 1.0, 1e4])
def test_finite_at_extremes(scale):
  """One-hot references with the mass on the right and on a wrong class."""
  logits = jnp.asarray(scale * (2 * np.eye(K)[LABELS] - 1), jnp.float32)
  for reference in (logits, -logits, jnp.roll(logits, 1, axis=1)):
    value, gradient = jax.value_and_grad(
        lambda z, r=reference: objectives.kl_to(r)(z).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
  for named in objectives.NAMED.values():
    value, gradient = jax.value_and_grad(
        lambda z, f=named: f(z, LABELS).sum())(-logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_values_at_extremes():
  """Mass 1 on a class whose log-probability under the logits is -2e4."""
  logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
  np.testing.assert_allclose(objectives.kl_to(-logits)(logits), [2e4, 2e4])
  np.testing.assert_allclose(objectives.kl_to(logits)(logits), [0, 0])
  labels = np.array([1, 1])
  np.testing.assert_allclose(objectives.cross_entropy(logits, labels), [2e4, 0])
  np.testing.assert_allclose(objectives.margin(logits, labels), [2e4, -2e4])


def test_refused():
  logits = jnp.zeros((B, K))
  with pytest.raises(ConfigError, match='num_classes'):
    objectives.kl_to(jnp.zeros((B, K + 1)))(logits)
  with pytest.raises(ConfigError, match='only one'):
    objectives.margin(jnp.zeros((B, 1)), np.zeros(B, int))
  with pytest.raises(ConfigError, match="'margin'"):
    objectives.resolve('margn', LABELS)
  with pytest.raises(ConfigError, match='labels, got None'):
    objectives.resolve('ce', None)(logits)
  with pytest.raises(ConfigError, match='callable'):
    objectives.resolve('ce', LABELS)((logits, logits))
