"""Pytrees of inputs and results, results of any shape, no result, no example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.errors import ConfigError

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
METHODS = ('ibp', 'crown_ibp', 'crown', 'alpha_crown', 'forward')
W = np.float32(np.random.default_rng(0).normal(size=(6, 8)))
X = np.float32(np.random.default_rng(1).normal(size=(3, 2, 3)))


def _bounds(fn, ball, methods=METHODS, **options):
  return jax.jit(lambda ball: [getattr(bounds, m)(fn, ball, **options) for m in methods],
                 compiler_options=QUICK)(ball)


def test_results_of_any_shape(points):
  def fn(x):
    h = jax.nn.relu(x.reshape(len(x), 6) @ W)
    return {'image': h.reshape(-1, 2, 2, 2), 'sum': h.sum(axis=1), 'none': (x, h[:, :0])}

  def exact(x):
    h = np.maximum(x.reshape(len(x), 6) @ np.float64(W), 0)
    return {'image': h.reshape(-1, 2, 2, 2), 'sum': h.sum(axis=1), 'none': (x, h[:, :0])}

  ball = bounds.linf_ball(X, 0.1)
  for lower, upper, *_ in _bounds(fn, ball):
    assert lower['image'].shape == (3, 2, 2, 2) and upper['sum'].shape == (3,)
    for x in points(ball, 30):
      jax.tree.map(lambda low, y, high: np.testing.assert_array_equal(
          (low <= y) & (y <= high), True), lower, exact(x), upper)
  single, = _bounds(lambda x: x.sum(axis=(1, 2)), ball, ('crown',))
  np.testing.assert_allclose(single.upper, X.sum(axis=(1, 2)) + 0.6, rtol=1e-5)


def test_linear_functions_have_the_shapes_of_results_and_inputs():
  fn = lambda tree: {'y': (tree['a'] @ W).reshape(-1, 2, 4) + tree['b'][:, :, None]}
  ball = {'a': bounds.linf_ball(X.reshape(3, 6), 0.1),
          'b': bounds.l2_ball(X[:, :, 0], 0.2)}
  found, = _bounds(fn, ball, ('crown',), coefficients=True)
  line = found.below
  assert line.constant['y'].shape == (3, 2, 4)
  assert line.coefficients['y']['a'].shape == (3, 2, 4, 6)
  wanted = np.broadcast_to(W.T.reshape(2, 4, 6), (3, 2, 4, 6))
  np.testing.assert_allclose(line.coefficients['y']['a'], wanted, rtol=1e-6)
  np.testing.assert_allclose(line.coefficients['y']['b'], np.broadcast_to(
      np.eye(2)[:, None], (3, 2, 4, 2)), atol=1e-6)


def test_several_inputs_with_a_set_each():
  """The support functions of a box, an L2 and an L1 ball, by their norms."""
  a, b, c = X[:, 0], X[:, 1], X[:, :, 0]
  ball = {'a': bounds.linf_ball(a, 0.1), 'bc': (bounds.l2_ball(b, 0.2),
                                                bounds.l1_ball(c, 0.3))}
  def fn(tree):
    b, c = tree['bc']
    return (tree['a'] @ W[:3] + b @ W[3:] + c @ W[:2])

  middle = a @ W[:3] + b @ W[3:] + c @ W[:2]
  reach = (0.1 * np.abs(W[:3]).sum(0) + 0.2 * np.linalg.norm(W[3:], axis=0)
           + 0.3 * np.abs(W[:2]).max(0))
  for name, found in zip(METHODS, _bounds(fn, ball)):
    assert np.all(found.lower <= middle - reach) and np.all(found.upper >= middle + reach)
    if name != 'ibp':
      np.testing.assert_allclose(found.lower, middle - reach, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(found.upper, middle + reach, rtol=1e-4, atol=1e-4)


def test_a_tuple_of_boxes_is_a_box():
  low, high = X - 0.1, X + 0.1
  together, = _bounds(lambda x: jnp.tanh(x.reshape(-1, 6) @ W), bounds.box(low, high),
                      ('crown',))
  parts = tuple(bounds.box(low[:, i], high[:, i]) for i in range(2))
  apart, = _bounds(lambda parts: jnp.tanh(jnp.concatenate(parts, axis=1) @ W), parts,
                   ('crown',))
  np.testing.assert_allclose(apart.lower, together.lower, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(apart.upper, together.upper, rtol=1e-4, atol=1e-5)


def test_constants_are_exact():
  value = np.float32([[0.1, -3e38, 1e-30]])
  fn = lambda x: jnp.broadcast_to(value, (len(x), 3)) * jnp.ones_like(x[:, 0, :1])
  for lower, upper, *_ in _bounds(fn, bounds.linf_ball(X, jnp.inf)):
    np.testing.assert_array_equal(lower, np.broadcast_to(value, (3, 3)))
    np.testing.assert_array_equal(upper, np.broadcast_to(value, (3, 3)))


def test_no_example():
  ball = bounds.linf_ball(X[:0], 0.1, lower=-9.0, upper=9.0)
  assert bounds.box(X[:0], X[:0]).shape == bounds.l2_ball(X[:0], 1.0).shape == (0, 2, 3)
  for lower, upper, *_ in _bounds(lambda x: (x, x.sum(axis=1)), ball):
    assert [a.shape for a in (*lower, *upper)] == 2 * [(0, 2, 3), (0, 3)]
  spec = bounds.margins(np.zeros(0, int), 3)
  found = bounds.verify(lambda x: x[:, 0], ball, spec)
  assert found.status.shape == (0,) and found.counterexample.shape == (0, 2, 3)
  assert bounds.crown(lambda x: x[:, 0], ball, spec).lower.shape == (0, 2)


def test_verify_returns_the_pytree():
  """y = a - |b| >= -0.2 fails at a = 0.4, b = +-0.7 alone."""
  balls = {'a': bounds.linf_ball(jnp.array([[0.5], [2.0]]), 0.1),
           'b': bounds.linf_ball(jnp.array([[0.5], [0.5]]), 0.2)}
  spec = bounds.Spec(jnp.ones((2, 1, 1)), jnp.full((2, 1), 0.2))
  found = bounds.verify(lambda t: t['a'] - jnp.abs(t['b']), balls, spec)
  assert list(found.status) == ['falsified', 'verified']
  assert found.counterexample['a'].shape == (2, 1)
  assert found.counterexample['a'][0, 0] - abs(found.counterexample['b'][0, 0]) <= -0.2


@pytest.mark.parametrize('ball, message', [
    ((bounds.linf_ball(X, 0.1), bounds.linf_ball(X[:2], 0.1)), 'batch sizes'),
    ({}, 'a set or a pytree of sets'), ({'a': X}, 'a set or a pytree of sets')])
def test_other_inputs_are_refused(ball, message):
  with pytest.raises(ConfigError, match=message):
    bounds.ibp(lambda tree: tree, ball)


def test_a_radius_for_each_entry():
  eps = np.float32([[0.1, 0, 0.3], [0, 0.2, 0]])
  ball = bounds.linf_ball(X, eps[None])
  np.testing.assert_allclose(ball.upper - X, np.broadcast_to(eps, X.shape), atol=1e-6)
  assert np.all((ball.upper == X) == (eps == 0))
  with pytest.raises(ConfigError, match='for each entry'):
    bounds.linf_ball(X, eps)
  for ball in (bounds.l1_ball, bounds.l2_ball):
    with pytest.raises(ConfigError, match='lower = upper = images'):
      ball(X, eps[None])


@pytest.mark.parametrize('make, order', [(bounds.l2_ball, 2), (bounds.l1_ball, np.inf)])
def test_a_mask_is_a_cut(make, order):
  """<w, x> over a ball of the entries that may change: their dual norm."""
  may = np.float32([[1, 0, 1], [0, 1, 0]])
  ball = make(X, 0.2, lower=np.where(may, -9, X), upper=np.where(may, 9, X))
  w = np.float32(np.random.default_rng(5).normal(size=(2, 3)))
  found, = _bounds(lambda x: jnp.sum(x * w, axis=(1, 2)), ball, ('crown',))
  wanted = np.sum(X * w, axis=(1, 2)) + 0.2 * np.linalg.norm((w * may).ravel(), order)
  assert np.all(found.upper >= wanted)
  np.testing.assert_allclose(found.upper, wanted, atol=1e-4)
