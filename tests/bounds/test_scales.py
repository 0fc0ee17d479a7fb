"""Bounds at every scale that float32 has: nothing underflows or overflows unnoticed.

References are in long double, whose range is far larger, from definitions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds

METHODS = {
    'ibp': bounds.ibp, 'crown_ibp': bounds.crown_ibp, 'crown': bounds.crown,
    'forward': bounds.forward,
    'alpha_crown': functools.partial(bounds.alpha_crown, steps=2)}
MAKERS = {'linf': (bounds.linf_ball, np.inf), 'l2': (bounds.l2_ball, 2),
          'l1': (bounds.l1_ball, 1)}
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
EACH = pytest.mark.parametrize('method', list(METHODS))
SETS = pytest.mark.parametrize('kind', list(MAKERS))
# Rounding of the reference: 64 bits, sums of at most 64 terms.
_ULP = np.longdouble(2)**-57
_MOST = float(np.finfo(np.float32).max)


def sizes(rng, shape, low=-37, high=37):
  """Random normal numbers of float32 of all sizes and signs."""
  return (rng.choice([-1, 1], shape) * 10.0**rng.uniform(low, high, shape)).astype(
      np.float32)


def contained(found, values, room=0.0):
  """Whether bounds are no NaN and hold for long double values [N, B, K]."""
  lower, upper = (np.asarray(edge).astype(np.longdouble) for edge in found[:2])
  assert not (np.isnan(lower) | np.isnan(upper)).any()
  assert (lower < np.inf).all() and (upper > -np.inf).all()
  assert (values >= lower - room).all(), np.argwhere(values < lower - room)[0]
  assert (values <= upper + room).all(), np.argwhere(values > upper + room)[0]


@SETS
def test_the_minimum_of_a_linear_function(kind):
  """By the dual norm; sound at all sizes, and tight where float32 can say it."""
  make, order = MAKERS[kind]
  rng = np.random.default_rng(3)
  of_set = jax.jit(jax.vmap(lambda ball, rows: ball.minimum(rows)))
  for n in (3, 60):
    shape = (200, 1)
    center = rng.normal(size=(200, n)).astype(np.float32) * sizes(rng, shape)
    eps = np.abs(sizes(rng, 200))
    rows = np.clip(rng.normal(size=(200, 4, n)) * sizes(rng, (200, 4, 1))
                   * 10.0**rng.uniform(-2, 2, (200, 4, n)), -3e38, 3e38)
    rows = np.where(np.abs(rows) < 1.2e-38, 0, rows).astype(np.float32)
    found = np.asarray(of_set(make(center, eps), rows)).astype(np.longdouble)
    a, c, e = (v.astype(np.longdouble) for v in (rows, center, eps[:, None]))
    norm = {np.inf: np.abs(a).sum(-1), 2: np.sqrt((a * a).sum(-1)),
            1: np.abs(a).max(-1)}[order]
    middle, size = np.einsum('brn,bn->br', a, c), np.einsum('brn,bn->br', abs(a), abs(c))
    least = middle - e * norm
    assert not np.isnan(found).any()
    assert (found <= least + _ULP * (size + e * norm)).all()
    # Its own rounding, the least normal number for each term, and what overflows.
    room = 1e-4 * (size + e * norm) + 1e-35 * (1 + abs(a).sum(-1) + n * e)
    said = size + e * norm < _MOST / 4
    assert (found >= least - room)[said].all()


def small_network(w, v, a, b, x):
  return jax.nn.relu(x @ w * a) @ v * b


@SETS
@EACH
def test_a_network_whose_scale_comes_and_goes(method, kind):
  """relu(a W x) scaled back by b: coefficients from 1e-38 to 1e38 and beyond."""
  make, order = MAKERS[kind]
  rng = np.random.default_rng(4)
  run = jax.jit(lambda w, v, a, b, ball: METHODS[method](
      functools.partial(small_network, w, v, a, b), ball), compiler_options=QUICK)
  for trial in range(40):
    n = 3
    w, v = (rng.normal(size=s).astype(np.float32) for s in ((n, 4), (4, 2)))
    a, b = np.abs(sizes(rng, 2))
    b = np.float32(1 / a) if trial % 2 else b  # Back to where it came from.
    center = rng.normal(size=(2, n)).astype(np.float32) * sizes(rng, (), -12, 12)
    eps = np.float32(np.abs(center).max() * 10.0**rng.uniform(-3, 1))
    found = run(w, v, a, b, make(center, eps))
    w, v, a, b = (np.asarray(k, np.longdouble) for k in (w, v, a, b))
    # Towards each corner of the hull, to the border of the ball.
    offset = rng.choice([-1.0, 0, 1], (200, 2, n)) * rng.uniform(0.5, 1, (200, 2, n))
    offset = offset.astype(np.longdouble)
    norm = np.linalg.norm(offset.astype(float), order, axis=-1, keepdims=True)
    x = center + offset * eps / np.maximum(norm, 1e-9) * (1 - 1e-15)
    hidden = np.maximum(x @ w, 0)
    contained(found, hidden @ v * a * b, room=_ULP * (hidden @ abs(v)) * a * b)


def singular(x):
  """What has no bound near 0, one output each; [B, 2] -> [B, 9]."""
  p, q = x[:, :1], x[:, 1:]
  kept = jnp.array([[True, False]])
  return jnp.concatenate([
      jax.nn.silu(1 / p), jnp.sin(1 / p), jnp.tanh(1 / p) * 2, 1 / p,
      jnp.maximum(1 / p, q), jnp.max(1 / x, axis=1, keepdims=True),
      jax.nn.softmax(1 / x)[:, :1], 0 * (1 / p) + q,
      jnp.mean(x, axis=1, keepdims=True, where=kept)], axis=1)


@EACH
def test_what_is_unknown_is_infinite_and_never_nan(method):
  center = jnp.array([[0.0, 0.5], [3.0, 0.5]])
  run = jax.jit(lambda ball: METHODS[method](singular, ball), compiler_options=QUICK)
  found = run(bounds.linf_ball(center, 1.0))
  # By hand at x[0] in [-1, 1] without 0: 1 / p is any number of size 1 and more.
  low, high = (np.asarray(edge) for edge in found[:2])
  assert not np.isnan(low).any() and not np.isnan(high).any()
  np.testing.assert_array_equal(high[0, [0, 3, 4, 5]], np.inf)
  assert low[0, 3] == -np.inf
  assert -0.2785 < low[0, 0] <= -0.27846 and (low[0, 1] <= -1) and (high[0, 1] >= 1)
  assert (low[0, 2] <= -2) and (high[0, 2] >= 2)
  # And in [2, 4] it is between 1/4 and 1/2.
  assert 0.249 < low[1, 3] <= 0.25 and 0.5 <= high[1, 3] < 0.501
  infinite = run(bounds.linf_ball(center, jnp.inf))
  assert not any(np.isnan(edge).any() for edge in infinite[:2])
  assert (infinite.lower[:, 8] == -np.inf).all()


@pytest.mark.parametrize('fn', [
    lambda p: p * jnp.log(p), lambda x: x / x, lambda x: jax.nn.relu(x) * jnp.inf,
    lambda x: jnp.square(x * 1e30) * 1e-30, lambda x: x * 1e20 * 1e20])
@pytest.mark.parametrize('method', ['crown', 'forward'])
def test_overflow_and_zero_times_infinity(fn, method):
  found = jax.jit(functools.partial(METHODS[method], fn), compiler_options=QUICK)(
      bounds.box(jnp.zeros((1, 1)), jnp.ones((1, 1))))
  assert not np.isnan(found.lower).any() and (found.lower <= 0).all()
  assert (found.upper == np.inf).all()


@pytest.mark.parametrize('kind, eps', [('linf', np.inf), ('l2', np.inf), ('l1', np.inf)])
@EACH
def test_an_infinite_radius_has_infinite_bounds(method, kind, eps):
  ball = MAKERS[kind][0](jnp.array([[1.0, -88.5]]), eps)
  found = jax.jit(lambda ball: METHODS[method](jax.nn.relu, ball),
                  compiler_options=QUICK)(ball)
  np.testing.assert_array_equal(found.upper, np.inf)
  np.testing.assert_array_equal(found.lower, 0)


@EACH
def test_exp_beyond_the_largest_number(method):
  """In real arithmetic 1e-30 exp(100) = 2.7e13; the network itself says inf."""
  fn = lambda x: jax.nn.relu(jnp.exp(x)) * 1e-30
  found = jax.jit(functools.partial(METHODS[method], fn), compiler_options=QUICK)(
      bounds.box(jnp.array([[99.0]]), jnp.array([[100.0]])))
  assert found.lower[0, 0] <= 1e-30 * np.exp(99) and found.upper[0, 0] == np.inf


@pytest.mark.parametrize('first, then, back, x', [
    ('times', 1e-30, 1e33, 2e25), ('over', 1e38, 1e-30, 2.), ('times', 1e30, 1e-30, 2.)])
def test_constants_are_not_multiplied_with_each_other(first, then, back, x):
  """XLA knows constants under jit: 1e-30 * 1e-30 is 0, 1e30 * 1e30 is infinite, and 1 /
  2e38 is subnormal."""
  then, back = np.float32(then), np.float32(back)
  start = {'times': lambda x: x * then, 'over': lambda x: x / np.float32(2e38)}[first]
  fn = lambda x: jax.nn.relu(start(x) * then) * back
  x = np.array([[-x, x]], np.float32)
  truth = np.maximum(start(x.astype(np.longdouble)), 0) * np.longdouble(then) * back
  for method in ('crown_ibp', 'forward'):
    found = jax.jit(lambda b, method=method: METHODS[method](fn, b))(bounds.box(x, x))
    contained(found, truth[None], room=truth * _ULP)
