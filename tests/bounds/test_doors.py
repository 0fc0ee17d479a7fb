"""What comes in: rounded outwards, or refused with the cause."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rkd_jax import bounds
from rkd_jax.bounds import alpha, independence
from rkd_jax.errors import ConfigError, ContradictionError, UnsupportedPrimitiveError

IMAGE = np.ones((2, 6), np.float32)


def test_float64_ends_are_rounded_outwards():
  rng = np.random.default_rng(0)
  low = rng.uniform(-1, 1, (500, 2)) * 10.0**rng.uniform(-39, 37, (500, 1))
  high = low + rng.uniform(size=(500, 2)) * np.abs(low)
  for found in (bounds.box(low, high), bounds.box(low.tolist(), high.tolist()),
                bounds.linf_ball((low + high) / 2, np.inf, lower=low, upper=high)):
    assert found.lower.dtype == jnp.float32
    assert (np.asarray(found.lower, np.float64) <= low).all()
    assert (np.asarray(found.upper, np.float64) >= high).all()


@pytest.mark.parametrize('make, order', [
    (bounds.linf_ball, np.inf), (bounds.l2_ball, 2), (bounds.l1_ball, 1)])
@pytest.mark.parametrize('eps', [0.0, 0.1])
def test_float64_centers_stay_inside(make, order, eps):
  rng = np.random.default_rng(1)
  center = rng.uniform(size=(300, 4))
  ball = make(center, eps, lower=0.0, upper=1.0)
  if order == np.inf:
    assert (np.asarray(ball.lower, np.float64) <= np.maximum(center - eps, 0)).all()
    assert (np.asarray(ball.upper, np.float64) >= np.minimum(center + eps, 1)).all()
    return
  away = np.linalg.norm(np.asarray(ball.center, np.float64) - center, order, axis=1)
  assert (np.asarray(ball.eps, np.float64) >= eps + away).all()


@pytest.mark.parametrize('value', [1e-40, -1e-40, 1.2e-38, 1e-45])
def test_subnormal_ends_count(value):
  """As float32 arrays, too, which XLA on CPU reads as zero."""
  for image in (np.array([[value]]), jnp.array([[value]], jnp.float32)):
    exact = float(np.asarray(image)[0, 0])
    for ball in (bounds.linf_ball(image, 0.0), bounds.l2_ball(image, 0.0),
                 bounds.linf_ball(image, 1e-42)):
      low, high = (float(np.asarray(edge)[0, 0]) for edge in ball.hull())
      reach = float(np.asarray(getattr(ball, 'eps', [0.0]))[0])
      assert low <= exact + reach and exact <= high + reach


@pytest.mark.parametrize('values', [
    jnp.ones((1, 2), jnp.bfloat16), np.ones((1, 2), np.float16)])
def test_half_precision_sets_are_refused(values):
  with pytest.raises(ConfigError, match='computed in float32 or float64'):
    bounds.linf_ball(values, 0.1)


@pytest.mark.parametrize('fn', [
    lambda x: nn.Dense(3, dtype=jnp.bfloat16).apply(
        {'params': {'kernel': jnp.ones((6, 3)), 'bias': jnp.ones(3)}}, x),
    lambda x: lax.reduce_precision(x, 8, 7),
    lambda x: jnp.tanh(x.astype(jnp.float16)).astype(jnp.float32)])
def test_functions_that_round_to_half_precision_are_refused(fn):
  with pytest.raises(UnsupportedPrimitiveError, match='dtype=float32'):
    bounds.ibp(fn, bounds.linf_ball(IMAGE, 0.1))


def test_weights_that_were_rounded_to_bfloat16_stay_so():
  weights = jnp.array([[1.00001], [2.3], [3.14159], [0.1], [0.7], [7.77]])
  rounded = np.asarray(weights.astype(jnp.bfloat16), np.float64)
  found = bounds.ibp(lambda x: x @ weights.astype(jnp.bfloat16).astype(jnp.float32),
                     bounds.linf_ball(IMAGE, 0.0))
  np.testing.assert_allclose(found.lower, rounded.sum(), rtol=1e-5)


@pytest.mark.parametrize('spec', [
    bounds.Spec(np.full((2, 1, 6), 0.1), np.zeros((2, 1))),
    bounds.Spec(np.full((2, 1, 6), 1e-40, np.float32), np.zeros((2, 1)))])
def test_a_specification_that_would_be_another_one(spec):
  with pytest.raises(ConfigError, match='round its numbers'):
    bounds.ibp(lambda x: x, bounds.linf_ball(IMAGE, 0.1), spec)
  exact = bounds.Spec(np.full((2, 1, 6), 0.5), np.zeros((2, 1)))
  found = bounds.ibp(lambda x: x, bounds.linf_ball(IMAGE, 0.1), exact)
  np.testing.assert_allclose(found.lower, 6 * 0.5 * 0.9, rtol=1e-5)


class Layers(nn.Module):
  rate: float = 0.0

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(5)(x)
    x = nn.Dropout(self.rate, deterministic=not train)(x)
    x = nn.BatchNorm(use_running_average=not train or self.rate > 0)(x)
    return nn.Dense(3)(x)


@functools.cache
def _variables():
  with jax.ensure_compile_time_eval():  # Whoever asks first may be tracing.
    return Layers().init(jax.random.key(0), IMAGE, False)


def _layers(train, rate=0.0):
  return lambda x: Layers(rate).apply(
      _variables(), x, train, mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(1)})[0]


def _heads(x):
  return x.reshape(len(x), 3, 1, 2)


_CARRY = lambda f: lambda x: lax.scan(
    lambda carry, w: (f(carry @ w), None), x, jnp.ones((2, 6, 6)))[0]
MIXING = {
    'BatchNorm in training mode': _layers(True), 'mean': lambda x: x - x.mean(0),
    'flip': lambda x: x[::-1], 'roll': lambda x: jnp.roll(x, 1, 0),
    'first': lambda x: x * x[:1], 'softmax': lambda x: jax.nn.softmax(x, 0),
    'sum of all': lambda x: x / (1 + jnp.square(x).sum()),
    'sort': lambda x: jnp.sort(x, 0), 'cumsum': lambda x: jnp.cumsum(x, 0),
    'products': lambda x: x @ x.T @ jnp.ones((len(x), 2)),
    'merged': lambda x: (x.reshape(-1, 2) - x.reshape(-1, 2).mean(0)).reshape(x.shape),
    'in a scan': _CARRY(lambda y: y - y.mean(0)),
    'in a call': jax.jit(lambda x: jax.checkpoint(lambda x: x - x.max(0))(x)),
    'repeated': lambda x: jnp.broadcast_to(x[0], x.shape)}
APART = {
    'BatchNorm in evaluation mode': _layers(False),
    'mean': lambda x: x - x.mean(1)[:, None],
    'constant': lambda x: x * jnp.arange(6.0)[None],
    'unused mean': lambda x: (x.mean(0), 2 * x)[1],
    'merged': lambda x: (x.reshape(-1, 2) @ jnp.ones((2, 2))).reshape(len(x), -1),
    'one by one': lambda x: jnp.stack([jnp.tanh(x[i]) for i in range(len(x))]),
    'map': lambda x: lax.map(lambda row: row / row.sum(), x),
    'vmap': jax.vmap(lambda row: jnp.sort(row) * row.max()),
    'in a scan': _CARRY(jnp.tanh),
    'recurrent': lambda x: lax.scan(lambda c, u: (jnp.tanh(c + u), None),
                                    jnp.zeros(len(x)), x.T)[0][:, None],
    'picked': lambda x: x[:, jnp.array([3, 1])], 'padded': lambda x: jnp.pad(
        x, ((0, 0), (1, 1)))[:, ::2],
    'attention': lambda x: jax.nn.dot_product_attention(
        *3 * [_heads(x)]).reshape(len(x), -1),
    'convolution': lambda x: lax.conv_general_dilated(
        x[:, None], jnp.ones((2, 1, 3)), (1,), 'SAME').reshape(len(x), -1)}


@pytest.mark.parametrize('name', list(MIXING))
def test_functions_that_mix_examples_are_refused(name):
  with pytest.raises(ConfigError, match='mixes the examples'):
    bounds.crown(MIXING[name], bounds.linf_ball(IMAGE, 0.1))


def test_dropout_is_refused():
  with pytest.raises(ConfigError, match='dropout'):
    bounds.crown(_layers(True, rate=0.5), bounds.linf_ball(IMAGE, 0.1))


@pytest.mark.parametrize('name', list(APART))
def test_functions_of_single_examples_are_not(name):
  independence.check(APART[name], IMAGE.shape, jnp.float32)
  # And so they are: by two batches that differ in the other examples.
  first, other = IMAGE * 0.3, np.concatenate([IMAGE[:1] * 0.3, IMAGE[:1] * 7])
  np.testing.assert_allclose(APART[name](first)[0], APART[name](other)[0], rtol=1e-6)


def test_a_contradiction_stops_verification(monkeypatch):
  """A bound above a value that the function takes, from a broken method."""
  fn = lambda x: jax.nn.relu(x[:, :2])
  spec = bounds.Spec(jnp.ones((2, 1, 2)), jnp.full((2, 1), -0.5))
  ball = bounds.linf_ball(IMAGE * 0.1, 0.3)
  found = bounds.verify(fn, ball, spec, timeout_s=5.0, attack_steps=5, restarts=2)
  assert (found.status == 'falsified').all()
  real = alpha.alpha_crown
  monkeypatch.setattr(alpha, 'alpha_crown', lambda *args, **options: real(
      *args, **options)._replace(lower=jnp.full((2, 1), 0.01)))
  with pytest.raises(ContradictionError, match='one of them is wrong'):
    bounds.verify(fn, ball, spec, timeout_s=5.0, attack_steps=5, restarts=2)
