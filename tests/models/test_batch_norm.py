"""BatchNorm against its definition in float64 NumPy and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.models import batch_norm
from rkd_jax.models.batch_norm import BatchNorm

EPSILON = 1e-5


def by_hand(x, scale, bias, g):
  """(out, gradients of sum(out * g) for x, scale and bias, mean, var), float64."""
  x, scale, bias, g = (np.asarray(a, np.float64) for a in (x, scale, bias, g))
  axes = (0, 1, 2)
  mean, var = x.mean(axes), x.var(axes)
  deviation = np.sqrt(var + EPSILON)
  normal = (x - mean) / deviation
  sent = g * scale
  grad_x = (sent - sent.mean(axes) - normal * (sent * normal).mean(axes)) / deviation
  return (normal * scale + bias, grad_x, (g * normal).sum(axes), g.sum(axes),
          mean, var)


@pytest.fixture(params=['cpu', 'other'])
def backend(request, monkeypatch):
  monkeypatch.setattr(batch_norm, 'on_cpu', lambda: request.param == 'cpu')


def example():
  rng = np.random.default_rng(0)
  x = (3 * rng.standard_normal((4, 5, 3, 6)) + 40).astype(np.float32)
  g = rng.standard_normal(x.shape).astype(np.float32)
  params = {'scale': rng.uniform(0.5, 2, 6).astype(np.float32),
            'bias': rng.standard_normal(6).astype(np.float32)}
  stats = {'mean': np.full(6, 2, np.float32), 'var': np.full(6, 9, np.float32)}
  return x, g, params, stats


def test_training_matches_definition(backend):
  x, g, params, stats = example()

  @jax.jit
  def run(params, x):
    def apply(params, x):
      return BatchNorm().apply({'params': params, 'batch_stats': stats}, x, True,
                               mutable=['batch_stats'])
    out, vjp, updated = jax.vjp(apply, params, x, has_aux=True)
    return out, vjp(g), updated['batch_stats']

  out, (grads, grad_x), updated = run(params, x)
  expected = by_hand(x, params['scale'], params['bias'], g)
  found = out, grad_x, grads['scale'], grads['bias']
  for one, wanted in zip(found, expected, strict=False):
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-4)
  *_, mean, var = expected
  np.testing.assert_allclose(updated['mean'], 0.9 * 2 + 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(updated['var'], 0.9 * 9 + 0.1 * var, rtol=1e-4)


def test_evaluation_uses_running_statistics(backend):
  x, _, params, stats = example()
  out = BatchNorm(result_dtype=jnp.bfloat16).apply(
      {'params': params, 'batch_stats': stats}, x, False)
  expected = (x - 2) / np.sqrt(9 + EPSILON) * params['scale'] + params['bias']
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2**-8, atol=1e-3)


def test_initialisation_leaves_the_running_statistics():
  x, *_ = example()
  variables = BatchNorm().init(jax.random.key(0), x, True)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(6))
  np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(6))
