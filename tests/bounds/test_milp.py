"""LP and MILP bounds against enumerated activation patterns, dense LPs and grids."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax import lax

from rkd_jax.bounds import Spec, box, crown, l1_ball, l2_ball, linf_ball, margins
from rkd_jax.bounds.milp import lp, milp
from rkd_jax.errors import ConfigError, UnsupportedPrimitiveError

SMALL = (3, 3, 3, 2)  # One for many tests, which then share what is compiled.
TOLERANCE = 1e-4  # The widening by 1e-6 times the size of the outputs, with room.


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def layers(sizes, seed):
  rng = np.random.default_rng(seed)
  return [(rng.normal(size=(a, b)) * np.sqrt(2 / a), 0.5 * rng.normal(size=b))
          for a, b in zip(sizes, sizes[1:])]


def network(params, activation=jax.nn.relu):
  def fn(x):
    for weight, bias in params[:-1]:
      x = activation(x @ jnp.asarray(weight, x.dtype) + jnp.asarray(bias, x.dtype))
    weight, bias = params[-1]
    return x @ jnp.asarray(weight, x.dtype) + jnp.asarray(bias, x.dtype)
  return fn


def dense_minimum(cost, rows, limits, bounds):
  found = scipy.optimize.linprog(cost, rows, limits, bounds=bounds)
  return found.fun if found.status == 0 else np.inf


def enumerated(params, start, rows, limits, bounds, objective):
  """Least <objective, relu network> over start(v) with rows v <= limits, by patterns.

  The network is affine in v where the signs of its neurons are fixed: one dense LP
  for every pattern. `start` = (matrix [D, V], constant [D]).
  """
  best = np.inf
  widths = [bias.size for _, bias in params[:-1]]
  for pattern in itertools.product([0.0, 1.0], repeat=sum(widths)):
    signs = iter(np.split(np.array(pattern), np.cumsum(widths)[:-1]))
    (matrix, add), cuts, edges = start, [rows], [limits]
    for weight, bias in params[:-1]:
      matrix, add, on = weight.T @ matrix, weight.T @ add + bias, next(signs)
      cuts.append((1 - 2 * on)[:, None] * matrix)  # On: -z <= 0; off: z <= 0.
      edges.append(-(1 - 2 * on) * add)
      matrix, add = on[:, None] * matrix, on * add
    weight, bias = params[-1]
    cost = objective @ weight.T @ matrix
    best = min(best, objective @ (weight.T @ add + bias) + dense_minimum(
        cost, np.concatenate(cuts), np.concatenate(edges), bounds))
  return best


def sampled(fn, low, high, count=4000):
  """Outputs [count, K] at corners and random points of a box."""
  share = np.random.default_rng(0).random((count, *low.shape))
  share[count // 2:] = share[count // 2:] > 0.5
  return fn(jnp.asarray(low + share * (high - low)))


def attained(fn, found):
  """fn at `argmin`, the entry that it is the minimiser of: [B, K]."""
  values = jax.vmap(fn)(found.argmin)
  return np.diagonal(values, axis1=1, axis2=2)


@pytest.mark.parametrize('seed', range(3))
def test_milp_is_the_minimum_over_all_activation_patterns(x64, seed):
  params = layers(SMALL, seed)
  centers, radii = np.random.default_rng(seed).normal(size=(2, 3)), np.array([0.2, 0.8])
  found = milp(network(params), linf_ball(centers, radii))
  for b, (center, eps) in enumerate(zip(centers, radii)):
    bounds = np.stack([center - eps, center + eps], 1)
    for k, row in enumerate(np.eye(2)):
      least, most = (sign * enumerated(
          params, (np.eye(3), np.zeros(3)), np.zeros((0, 3)), np.zeros(0), bounds,
          sign * row) for sign in (1, -1))
      np.testing.assert_allclose(found.lower[b, k], least, atol=TOLERANCE)
      np.testing.assert_allclose(found.upper[b, k], most, atol=TOLERANCE)
      assert found.lower[b, k] <= least and most <= found.upper[b, k]
  assert found.optimal.all()


def test_milp_over_an_l1_ball_cut_with_a_box(x64):
  params, center, eps = layers(SMALL, 5), np.array([0.2, 0.5, 0.9]), 0.6
  ball = l1_ball(jnp.asarray(center)[None], eps, lower=0.0, upper=1.0)
  found = milp(network(params), ball)
  # x = center + p - q with p, q >= 0 and sum(p + q) <= eps.
  move = np.concatenate([np.eye(3), -np.eye(3)], axis=1)
  rows = np.concatenate([np.ones((1, 6)), move, -move])
  limits = np.concatenate([[eps], 1 - center, center])
  for k, row in enumerate(np.eye(2)):
    least = enumerated(params, (move, center), rows, limits, (0, None), row)
    np.testing.assert_allclose(found.lower[0, k], least, atol=TOLERANCE)
    assert found.lower[0, k] <= least
  np.testing.assert_allclose(attained(network(params), found), found.lower,
                             atol=TOLERANCE)
  distance = np.abs(np.asarray(found.argmin) - center).sum(-1)
  assert (distance <= eps + 1e-6).all()


def test_margins_are_bounded_as_rows_and_not_as_differences():
  params, center = layers(SMALL, 7), np.array([0.3, -0.2, 0.4], np.float32)
  ball = linf_ball(center[None], 0.5)

  def fn(x):  # By lax, which takes no float64 images with float32 weights.
    for i, (weight, bias) in enumerate(params):
      x = lax.dot(jax.nn.relu(x) if i else x, jnp.float32(weight)) + jnp.float32(bias)
    return x

  found = milp(fn, ball, margins([1], 2), upper=False)
  low, high = (np.asarray(edge[0], np.float64) for edge in ball.hull())
  rounded = [(w.astype(np.float32).astype(np.float64),
              b.astype(np.float32).astype(np.float64)) for w, b in params]
  least = enumerated(rounded, (np.eye(3), np.zeros(3)), np.zeros((0, 3)), np.zeros(0),
                     np.stack([low, high], 1), np.array([-1.0, 1.0]))
  np.testing.assert_allclose(found.lower[0, 0], least, atol=TOLERANCE)
  assert found.lower[0, 0] <= least and found.upper is None
  assert found.lower.dtype == found.argmin.dtype == jnp.float32
  assert found.argmin.shape == (1, 1, 3) and found.optimal.shape == (1, 1)


def test_constants_of_a_specification_are_added(x64):
  ball, fn = linf_ball(jnp.ones((2, 3)), 0.3), network(layers(SMALL, 1))
  matrix = jnp.asarray([[[1.0, -2.0], [1.0, -2.0], [0.0, 0.0]]] * 2)
  found = lp(fn, ball, Spec(matrix, jnp.asarray([[0.0, 2.0, -3.0]] * 2)))
  for edge in (found.lower, found.upper):
    np.testing.assert_allclose(edge[0, 1] - edge[0, 0], 2, atol=1e-12)
    np.testing.assert_allclose(edge[0, 2], -3, atol=1e-12)


def test_lp_is_the_triangle_relaxation(x64):
  """Of one hidden layer, written out densely in x and the hidden values y."""
  (w, b), _, (v, c) = layers(SMALL, 12)
  # The second layer only moves y up, past every kink, and the last one down again.
  fn = network([(w, b), (np.eye(3), np.full(3, 9.0)), (v, c - 9 * v.sum(0))])
  centers, eps = np.array([[0.1, -0.4, 0.7], [0.2, 0.3, -0.1]]), 0.7
  found = lp(fn, linf_ball(centers, eps))
  for i, center in enumerate(centers):
    low = center @ w + b - eps * np.abs(w).sum(0)
    high = center @ w + b + eps * np.abs(w).sum(0)
    across = (low < 0) & (high > 0)
    assert across.any()
    slope = np.where(across, high / (high - low), high > 0)
    offset = np.where(across, -slope * low, 0)
    floor = (high > 0).astype(float)  # y >= z, unless it is off.
    rows = np.block([[floor[:, None] * w.T, -np.eye(3)],
                     [-slope[:, None] * w.T, np.eye(3)]])
    limits = np.concatenate([-floor * b, slope * b + offset])
    bounds = [(x - eps, x + eps) for x in center] + [(0, None)] * 3
    for k in range(2):
      cost = np.append(np.zeros(3), v[:, k])
      least = dense_minimum(cost, rows, limits, bounds) + c[k]
      most = c[k] - dense_minimum(-cost, rows, limits, bounds)
      np.testing.assert_allclose(
          [found.lower[i, k], found.upper[i, k]], [least, most], atol=1e-8)
      assert found.lower[i, k] <= least + 1e-12 and most - 1e-12 <= found.upper[i, k]


def assert_ordered(fn, ball, spec):
  """crown <= lp <= milp <= sampled <= milp <= lp <= crown, and the milp is tight."""
  loose, middle, exact = (method(fn, ball, spec) for method in (crown, lp, milp))
  # Compiled as a whole and step by step, CROWN differs in its last digits.
  assert (loose.lower <= middle.lower + 1e-12).all()
  assert (middle.upper <= loose.upper + 1e-12).all()
  assert (middle.lower <= exact.lower).all() and (exact.upper <= middle.upper).all()
  assert exact.optimal.all()
  low, high = (np.asarray(edge) for edge in ball.hull())
  assert ((low[:, None] <= exact.argmin) & (exact.argmin <= high[:, None])).all()
  for b, matrix in enumerate(spec.matrix):
    values = np.asarray(sampled(fn, low[b], high[b]) @ matrix.T)
    assert (exact.lower[b] <= values.min(0) + 1e-12).all()
    assert (values.max(0) - 1e-12 <= exact.upper[b]).all()
    np.testing.assert_allclose(np.diagonal(fn(exact.argmin[b]) @ matrix.T),
                               exact.lower[b], atol=TOLERANCE)


@pytest.mark.parametrize('seed', range(10))
def test_methods_are_ordered_on_networks(x64, seed):
  center = np.random.default_rng(100 + seed).normal(size=(1, 4))
  spec = Spec(jnp.eye(3)[None], jnp.zeros((1, 3)))
  assert_ordered(network(layers([4, 8, 8, 3], seed)), linf_ball(center, seed / 18), spec)


def test_methods_are_ordered_on_a_convolutional_network(x64):
  rng = np.random.default_rng(3)
  kernel, weight = rng.normal(size=(3, 3, 1, 3)) / 3, rng.normal(size=(12, 2)) / 3

  def fn(x):
    hidden = lax.conv_general_dilated(x, kernel, (2, 2), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.nn.relu(hidden).reshape(len(x), -1) @ weight

  ball = linf_ball(rng.random((1, 4, 4, 1)), 0.2, lower=0.0, upper=1.0)
  assert_ordered(fn, ball, Spec(jnp.eye(2)[None], jnp.zeros((1, 2))))


W = np.random.default_rng(8).normal(size=(2, 4))
MIX = np.random.default_rng(9).normal(size=(4, 2))
# Of x @ W, four values.
PIECEWISE = {
    'of two': lambda h: (jnp.abs(h) + jnp.maximum(h, 0.3 * h[:, ::-1])) @ MIX,
    'constants': lambda h: jnp.minimum(jnp.maximum(-0.2, h), np.arange(4.0) / 8) @ MIX,
    'over axes': lambda h: (jnp.min(h.reshape(-1, 2, 2), 1) @ MIX[:2]
                            - jnp.max(h.reshape(-1, 2, 2), (1, 2))[:, None]),
    'residual': lambda h: (h + jnp.minimum(h, h[:, ::-1]) @ W.T @ W) @ MIX,
    'linear': lambda h: h @ MIX,
}


@pytest.mark.parametrize('name', PIECEWISE)
def test_piecewise_linear_equations(x64, name):
  """Below every point of a dense grid, and attained at `argmin`."""
  fn = lambda x: PIECEWISE[name](x @ W)
  ball = box(np.array([[-0.7, -0.4]]), np.array([[0.6, 0.9]]))
  found, loose = milp(fn, ball), lp(fn, ball)
  axes = [np.linspace(low, high, 201) for low, high in zip(ball.lower[0], ball.upper[0])]
  grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
  values = np.asarray(fn(jnp.asarray(grid)))
  assert (found.lower[0] <= values.min(0)).all()
  assert (values.max(0) <= found.upper[0]).all()
  assert (loose.lower <= found.lower).all() and (found.upper <= loose.upper).all()
  np.testing.assert_allclose(attained(fn, found), found.lower, atol=TOLERANCE)
  np.testing.assert_allclose(values.max(0), found.upper[0], atol=0.05)


def test_without_width_the_bounds_are_the_values(x64):
  fn = network(layers([4, 8, 8, 3], 2))
  center = np.random.default_rng(0).normal(size=(1, 4))
  ball = linf_ball(center, 0.0)
  for found, atol in ((lp(fn, ball), 1e-10), (milp(fn, ball), TOLERANCE)):
    np.testing.assert_allclose(found.lower, fn(jnp.asarray(center)), atol=atol)
    np.testing.assert_allclose(found.upper, fn(jnp.asarray(center)), atol=atol)


def test_neurons_at_their_kink_without_width(x64):
  """The input 0 puts neurons without bias right on the kink."""
  params = [(w, 0 * b) for w, b in layers([4, 8, 8, 3], 4)]
  found = milp(network(params), linf_ball(np.zeros((1, 4)), 0.0))
  np.testing.assert_allclose(found.lower, 0, atol=1e-5)
  np.testing.assert_allclose(found.upper, 0, atol=1e-5)


@pytest.mark.parametrize('timeout_s', [1e-6, 0.01, 0.03])
def test_a_time_limit_leaves_proved_bounds(x64, timeout_s):
  fn, ball = network(layers([4, 8, 8, 3], 0)), linf_ball(np.zeros((1, 4)), 3.0)
  found, loose = milp(fn, ball, timeout_s=timeout_s), lp(fn, ball)
  values = np.asarray(sampled(fn, ball.lower[0], ball.upper[0], 20_000))
  if timeout_s == 1e-6:
    assert not found.optimal.any()
  assert (loose.lower <= found.lower).all() and (found.upper <= loose.upper).all()
  assert (found.lower[0] <= values.min(0)).all()
  assert (values.max(0) <= found.upper[0]).all()
  assert np.isfinite(found.argmin).all()  # That of the linear program, at least.


def test_other_operations_are_refused():
  fn = network(layers([2, 3, 2], 0), jnp.tanh)
  for method in (lp, milp):
    with pytest.raises(UnsupportedPrimitiveError,
                       match=r"no encoding as a linear program for 'tanh'.*test_milp"):
      method(fn, linf_ball(np.zeros((1, 2), np.float32), 0.1))


def test_wrong_arguments_are_refused():
  fn, center = network(layers([2, 3, 2], 0)), np.zeros((1, 2), np.float32)
  with pytest.raises(ConfigError, match='no L2 ball'):
    lp(fn, l2_ball(center, 0.1))
  with pytest.raises(ConfigError, match='finite input set'):
    milp(fn, box(center, np.full_like(center, np.inf)))
  with pytest.raises(ConfigError, match='outside of jit'):
    jax.jit(lambda x: lp(fn, linf_ball(x, 0.1)))(center)
  with pytest.raises(ConfigError, match='timeout_s must be > 0 or None, got 0'):
    milp(fn, linf_ball(center, 0.1), timeout_s=0)
  with pytest.raises(ConfigError, match='K = 2 outputs'):
    lp(fn, linf_ball(center, 0.1), margins([0], 3))
