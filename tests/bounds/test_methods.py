"""Soundness and agreement of the methods on small networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rkd_jax import bounds
from rkd_jax.errors import ConfigError

METHODS = {
    'ibp': bounds.ibp, 'crown_ibp': bounds.crown_ibp, 'crown': bounds.crown,
    'forward': bounds.forward,
    'alpha_crown': functools.partial(bounds.alpha_crown, steps=5)}
EPS = (0.0, 1e-6, 0.01, 0.1, 1.0)


@pytest.fixture(scope='module')
def centers():
  return np.random.default_rng(1).uniform(size=(3, 12)).astype(np.float32)


@pytest.fixture(scope='module')
def compiled(mlp):
  """Method -> its bounds of the network on a set, compiled."""
  return {name: jax.jit(functools.partial(method, mlp))
          for name, method in METHODS.items()}


@pytest.mark.parametrize('method', list(METHODS))
def test_no_point_is_outside(mlp, compiled, centers, points, method):
  """Uniform points and corners, in float64, without any tolerance."""
  for eps in EPS:
    ball = bounds.linf_ball(centers, eps)
    found = compiled[method](ball)
    outputs = mlp.exact(points(ball, 2000))
    assert (outputs >= np.asarray(found.lower, np.float64)).all(), eps
    assert (outputs <= np.asarray(found.upper, np.float64)).all(), eps


@pytest.mark.parametrize('make', [bounds.l2_ball, bounds.l1_ball])
@pytest.mark.parametrize('method', ['ibp', 'crown', 'forward'])
def test_other_balls(mlp, compiled, centers, points, make, method):
  for eps in (0.0, 0.1, 1.0):
    ball = make(centers, eps, lower=0.0, upper=1.0)
    found = compiled[method](ball)
    outputs = mlp.exact(points(ball, 500))
    assert (outputs >= np.asarray(found.lower, np.float64)).all()
    assert (outputs <= np.asarray(found.upper, np.float64)).all()


@pytest.mark.parametrize('method', list(METHODS))
def test_a_point_has_no_width_but_rounding(mlp, compiled, centers, method):
  found = compiled[method](bounds.linf_ball(centers, 0.0))
  assert (found.upper - found.lower).max() < 2e-4
  exact = mlp.exact(centers)
  assert (found.lower <= exact).all() and (exact <= found.upper).all()


@pytest.mark.parametrize('method', list(METHODS))
def test_a_greater_set_has_wider_bounds(compiled, centers, method):
  """Interval bounds nest exactly; a walk's lines may trade one entry for another."""
  before = None
  for eps in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):
    found = compiled[method](bounds.linf_ball(centers, eps))
    width = np.asarray(found.upper - found.lower)
    if before is not None:
      assert width.mean() >= before.mean()
      if method == 'ibp':
        assert (width >= before).all()
    before = width


def test_each_method_is_tighter_than_the_one_below(compiled, centers):
  for eps in (0.01, 0.1, 0.5):
    ball = bounds.linf_ball(centers, eps)
    found = {name: method(ball) for name, method in compiled.items()}
    for loose, tight in (('ibp', 'crown_ibp'), ('ibp', 'forward'), ('ibp', 'crown'),
                         ('crown', 'alpha_crown')):
      # To rounding: slack and centres of narrower intervals round anew.
      assert (found[tight].lower >= found[loose].lower - 1e-5).all(), (loose, tight)
      assert (found[tight].upper <= found[loose].upper + 1e-5).all(), (loose, tight)
    mean = {name: (b.upper - b.lower).mean() for name, b in found.items()}
    assert mean['crown'] < mean['crown_ibp'] < mean['ibp']


def test_linear_functions_lie_below_and_above(mlp, centers, points):
  ball = bounds.linf_ball(centers, 0.1)
  found = jax.jit(functools.partial(bounds.crown, mlp, coefficients=True))(ball)
  x = points(ball, 500)
  outputs = mlp.exact(x)
  for line, sign in ((found.below, 1), (found.above, -1)):
    value = np.einsum('bki,nbi->nbk', np.asarray(line.coefficients, np.float64), x)
    assert (sign * (outputs - value - np.asarray(line.constant, np.float64)) >= 0).all()


@pytest.mark.parametrize('method', list(METHODS))
def test_margins(mlp, compiled, centers, points, method):
  """A specification bounds the margins themselves, more tightly than the outputs."""
  labels = np.argmax(mlp.exact(centers), axis=1)
  spec = bounds.margins(labels, 4)
  ball = bounds.linf_ball(centers, 0.1)
  of_spec = functools.partial(METHODS[method], mlp)
  found = jax.jit(of_spec)(ball, spec)
  outputs = mlp.exact(points(ball, 1000))
  margins = np.stack([np.delete(outputs[:, b, [label]] - outputs[:, b], label, axis=1)
                      for b, label in enumerate(labels)], axis=1)
  assert (margins >= np.asarray(found.lower, np.float64)).all()
  assert (margins <= np.asarray(found.upper, np.float64)).all()
  only = jax.jit(functools.partial(of_spec, upper=False))(ball, spec)
  assert only.upper is None
  np.testing.assert_allclose(only.lower, found.lower, atol=1e-3)
  apart = compiled[method](ball)
  for b, label in enumerate(labels):
    loose = np.delete(apart.lower[b, label] - np.asarray(apart.upper[b]), label)
    assert (np.asarray(found.lower[b]) >= loose - 1e-5).all()


def test_a_constant_of_the_specification_is_added(mlp, compiled, centers):
  ball = bounds.linf_ball(centers, 0.1)
  eye = jnp.broadcast_to(jnp.eye(4), (3, 4, 4))
  plain = compiled['crown'](ball)
  moved = jax.jit(functools.partial(bounds.crown, mlp))(
      ball, bounds.Spec(eye, jnp.full((3, 4), 2.0)))
  np.testing.assert_allclose(moved.lower, plain.lower + 2, atol=1e-4)


def test_chunks_change_nothing(mlp, centers):
  ball = bounds.linf_ball(centers, 0.1)
  whole = bounds.crown(mlp, ball)
  for chunk in (1, 500, 3000):
    found = bounds.crown(mlp, ball, chunk=chunk)
    np.testing.assert_allclose(found.lower, whole.lower, rtol=1e-5, atol=1e-6)


def test_vmap(mlp, compiled, centers):
  """A batch axis more: of radii."""
  radii = jnp.array([0.01, 0.1])
  many = jax.jit(jax.vmap(
      lambda eps: bounds.crown(mlp, bounds.linf_ball(centers, eps))))(radii)
  for i, eps in enumerate((0.01, 0.1)):
    one = compiled['crown'](bounds.linf_ball(centers, eps))
    np.testing.assert_allclose(many.lower[i], one.lower, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', ['ibp', 'crown_ibp', 'crown'])
def test_gradients_with_respect_to_weights(centers, method):
  """Against differences in float64."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(3)
    first, second = (jnp.asarray(rng.normal(size=s)) / 2 for s in ((12, 8), (8, 3)))
    ball = bounds.linf_ball(jnp.asarray(centers, jnp.float64), 0.05)

    def loss(first, second):
      fn = lambda x: jax.nn.relu(x @ first) @ second
      return jnp.sum(METHODS[method](fn, ball).lower)

    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(first, second)
    direction = jnp.asarray(rng.normal(size=first.shape))
    step = 1e-6
    slope = (value(first + step * direction, second)
             - value(first - step * direction, second)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-4)


def test_same_bounds_on_a_mesh(mlp, compiled):
  """Eight devices, one example each."""
  x = np.random.default_rng(5).uniform(size=(8, 12)).astype(np.float32)
  ball = bounds.linf_ball(x, 0.1)
  mesh = Mesh(np.asarray(jax.devices()[:8]), ('batch',), axis_types=(AxisType.Auto,))
  spread = jax.device_put(ball, NamedSharding(mesh, PartitionSpec('batch')))
  for method in ('ibp', 'crown'):
    one, many = compiled[method](ball), compiled[method](spread)
    assert len(many.lower.sharding.device_set) == 8
    np.testing.assert_allclose(many.lower, one.lower, rtol=1e-5, atol=1e-6)


def test_float64_has_narrow_slack(mlp, centers):
  with jax.enable_x64(True):
    ball = bounds.linf_ball(jnp.asarray(centers, jnp.float64), 0.0)
    found = jax.jit(functools.partial(bounds.crown, mlp))(ball)
    assert found.lower.dtype == jnp.float64
    assert (found.upper - found.lower).max() < 1e-12


def test_bad_arguments(mlp, centers):
  ball = bounds.linf_ball(centers, 0.1)
  with pytest.raises(ConfigError, match='K = 4 outputs'):
    bounds.crown(mlp, ball, bounds.margins(np.zeros(3, int), 5))
  with pytest.raises(ConfigError, match='steps must be >= 1'):
    bounds.alpha_crown(mlp, ball, steps=0)


# Elementwise, linear, pooling and product layers: each of them in two of these.
FUNCTIONS = (
    ('relu', 'tanh', 'max'), ('exp', 'square', 'relu'), ('product', 'gelu', 'sigmoid'),
    ('gelu', 'softplus', 'mix', 'abs'), ('sigmoid', 'product', 'abs', 'tanh'),
    ('max', 'exp', 'mix', 'softplus', 'square'))


def apply(names, weights, x):
  for name, weight in zip(names, weights):
    x = x @ weight
    x = {'relu': jax.nn.relu, 'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid,
         'abs': jnp.abs, 'square': jnp.square, 'exp': lambda x: jnp.exp(x / 4),
         'softplus': jax.nn.softplus, 'gelu': jax.nn.gelu, 'mix': lambda x: x,
         'product': lambda x: x * x[:, ::-1],
         'max': lambda x: jnp.maximum(x, x[:, ::-1])}[name](x)
  return x


@pytest.mark.parametrize('names', FUNCTIONS, ids=' '.join)
def test_random_functions(names):
  bound = jax.jit(lambda weights, ball: {
      m: METHODS[m](functools.partial(apply, names, weights), ball)
      for m in ('ibp', 'forward', 'crown')})
  exact = jax.jit(jax.vmap(functools.partial(apply, names), in_axes=(None, 0)))
  for seed in range(20):
    rng = np.random.default_rng(seed)
    weights = [(rng.normal(size=(4, 4)) / 2).astype(np.float32) for _ in names]
    center = rng.normal(size=(2, 4)).astype(np.float32)
    for eps in (0.0, 0.03, 0.3):
      ball = bounds.linf_ball(center, eps)
      x = np.clip(center + rng.uniform(-1, 1, size=(400, 2, 4)) * eps,
                  *(np.asarray(edge, np.float64) for edge in ball.hull()))
      with jax.enable_x64(True):
        outputs = np.asarray(exact([w.astype(np.float64) for w in weights], x))
      for method, found in bound(weights, ball).items():
        low, high = (np.asarray(b, np.float64) for b in (found.lower, found.upper))
        assert (outputs >= low).all() and (outputs <= high).all(), (method, seed, eps)
