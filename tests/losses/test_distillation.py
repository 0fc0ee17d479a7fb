"""Losses against their definitions in float64, numerical gradients, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import losses
from rkd_jax.errors import ConfigError

B, K = 5, 4


def softmax(z):
  z = np.asarray(z, np.float64)
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def kl_by_hand(s, t, temp_s, temp_t):
  """sum p log(p / q) over the classes, straight from the definition."""
  p = softmax(np.asarray(t, np.float64) / temp_t)
  q = softmax(np.asarray(s, np.float64) / temp_s)
  return np.sum(p * np.log(p / q), axis=-1)


def numerical_gradient(fn, x, step=1e-5):
  """Central differences of sum(fn) in float64."""
  x = np.asarray(x, np.float64)
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[i] += step
    down[i] -= step
    gradient[i] = (fn(up).sum() - fn(down).sum()) / (2 * step)
  return gradient


@pytest.fixture(params=[0.1, 3.0], ids='scale_{}'.format)
def logits(request):
  rng = np.random.default_rng(0)
  return [np.float32(request.param * rng.normal(size=(B, K))) for _ in range(2)]


LABELS = np.array([0, 3, 1, 1, 2])


def test_cross_entropy(logits):
  by_hand = lambda z: -np.log(softmax(z)[np.arange(B), LABELS])
  fn = lambda z: losses.cross_entropy(z, jnp.asarray(LABELS))
  np.testing.assert_allclose(fn(logits[0]), by_hand(logits[0]), rtol=1e-5)
  np.testing.assert_allclose(
      jax.grad(lambda z: fn(z).sum())(logits[0]),
      numerical_gradient(by_hand, logits[0]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('temp_s', [1.0, 5.0])
@pytest.mark.parametrize('temp_t', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('classes', ['sum', 'mean'])
def test_kl(logits, temp_s, temp_t, classes):
  s, t = logits
  divisor = {'sum': 1, 'mean': K}[classes]
  by_hand = lambda s: kl_by_hand(s, t, temp_s, temp_t) / divisor
  fn = lambda s, t: losses.kl(
      s, t, student_temperature=temp_s, teacher_temperature=temp_t,
      classes=classes)
  np.testing.assert_allclose(fn(s, t), by_hand(s), rtol=1e-4, atol=1e-6)
  to_student, to_teacher = jax.grad(
      lambda s, t: fn(s, t).sum(), argnums=(0, 1))(s, t)
  np.testing.assert_allclose(
      to_student, numerical_gradient(by_hand, s), rtol=1e-3, atol=1e-6)
  np.testing.assert_array_equal(to_teacher, 0)


def test_kl_gradient_into_the_teacher(logits):
  s, t = logits
  gradient = jax.grad(
      lambda t: losses.kl(s, t, teacher_gradient=True).sum())(t)
  np.testing.assert_allclose(
      gradient, numerical_gradient(lambda t: kl_by_hand(s, t, 1, 1), t),
      rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 30.0])
def test_softened_kl(logits, temperature):
  s, t = logits
  by_hand = lambda s: temperature**2 * kl_by_hand(s, t, temperature, temperature)
  fn = lambda s: losses.softened_kl(s, t, temperature=temperature)
  np.testing.assert_allclose(fn(s), by_hand(s), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
      jax.grad(lambda s: fn(s).sum())(s), numerical_gradient(by_hand, s),
      rtol=1e-2, atol=1e-5)
  np.testing.assert_allclose(
      losses.softened_kl(s, t, temperature=temperature, classes='mean') * K,
      fn(s), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_entropy(logits, temperature):
  def by_hand(z):
    p = softmax(z / temperature)
    return -np.sum(p * np.log(p), axis=-1)
  fn = lambda z: losses.entropy(z, temperature=temperature)
  np.testing.assert_allclose(fn(logits[0]), by_hand(logits[0]), rtol=1e-4)
  np.testing.assert_allclose(
      jax.grad(lambda z: fn(z).sum())(logits[0]),
      numerical_gradient(by_hand, logits[0]), rtol=1e-2, atol=1e-5)
  np.testing.assert_allclose(
      losses.entropy(jnp.zeros((2, K)), temperature=temperature), np.log(K),
      rtol=1e-6)


def test_traced_temperatures(logits):
  s, t = logits
  fn = jax.jit(lambda tau: losses.kl(s, t, teacher_temperature=tau))
  np.testing.assert_allclose(
      fn(2.5), kl_by_hand(s, t, 1, 2.5), rtol=1e-4, atol=1e-6)
  fn = jax.jit(lambda tau: losses.entropy(s, temperature=tau))
  np.testing.assert_allclose(
      fn(2.5), losses.entropy(s, temperature=2.5), rtol=1e-6)


def test_extreme_logits():
  s = jnp.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]])
  t = jnp.array([[-1e4, 1e4, 0], [-1e4, 1e4, 0], [1e4, -1e4, -1e4]])
  labels = jnp.array([1, 1, 0])
  # All probability on one class each, so every value is a difference of logits.
  cases = [
      (lambda s: losses.kl(s, t), [2e4, 0, np.log(2)]),
      (lambda s: losses.softened_kl(s, t, temperature=2.0),
       [4e4, 0, 4 * np.log(2)]),
      (lambda s: losses.cross_entropy(s, labels), [2e4, 0, np.log(2)]),
      (losses.entropy, [0, 0, np.log(2)]),
  ]
  for fn, expected in cases:
    np.testing.assert_allclose(fn(s), expected, rtol=1e-6, atol=1e-6)
    assert np.isfinite(jax.grad(lambda s, fn=fn: fn(s).sum())(s)).all()
  gradient = jax.grad(
      lambda t: losses.kl(s, t, teacher_gradient=True).sum())(t)
  assert np.isfinite(gradient).all()


def test_correct():
  logits = jnp.array([[0.0, 1, 0], [2, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(
      losses.correct(logits, jnp.array([1, 2, 0])), [1, 0, 1])


@pytest.mark.parametrize('call, words', [
    (lambda: losses.kl(jnp.zeros((2, 3)), jnp.zeros((2, 4))), 'num_classes'),
    (lambda: losses.kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)),
                       student_temperature=0), 'student_temperature .* 0'),
    (lambda: losses.kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)),
                       teacher_temperature=-1.0), 'teacher_temperature .* -1'),
    (lambda: losses.kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)), classes='max'),
     "'sum', 'mean'.*'max'"),
    (lambda: losses.softened_kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)),
                                temperature=0.0), 'temperature must be > 0'),
    (lambda: losses.entropy(jnp.zeros((2, 3)), temperature=-2), 'got -2'),
    (lambda: losses.cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 3))),
     'one-hot'),
    (lambda: losses.correct(jnp.zeros((2, 3)), jnp.zeros((3,))), r'\(3,\)'),
])
def test_errors(call, words):
  with pytest.raises(ConfigError, match=words):
    call()
