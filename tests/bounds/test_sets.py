import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from rkd_jax import bounds
from rkd_jax.errors import ConfigError

MAKERS = {'linf': bounds.linf_ball, 'l2': bounds.l2_ball, 'l1': bounds.l1_ball}
EDGES = {'uncut': (-np.inf, np.inf), 'cut': (0.0, 1.0)}


def least(kind, center, eps, low, high, row):
  """min <row, x> over the set, by SciPy in float64."""
  n = len(center)
  if kind == 'linf':
    low, high = np.maximum(low, center - eps), np.minimum(high, center + eps)
    return np.sum(np.where(row > 0, row * low, row * high))
  if kind == 'l1':  # x = center + p - q.
    result = scipy.optimize.linprog(
        np.concatenate([row, -row]), A_ub=np.ones((1, 2 * n)), b_ub=[eps],
        bounds=[(0, h - c) for h, c in zip(np.full(n, high), center)]
        + [(0, c - least) for least, c in zip(np.full(n, low), center)])
    return row @ center + result.fun
  if not np.isfinite(low):
    return row @ center - eps * np.linalg.norm(row)
  result = scipy.optimize.minimize(
      lambda x: row @ x, center, jac=lambda x: row, method='SLSQP',
      bounds=[(low, high)] * n, options={'maxiter': 500, 'ftol': 1e-14},
      constraints={'type': 'ineq', 'fun': lambda x: eps**2 - np.sum((x - center)**2),
                   'jac': lambda x: -2 * (x - center)})
  return result.fun


@pytest.mark.parametrize('edge', list(EDGES))
@pytest.mark.parametrize('kind', list(MAKERS))
def test_minimum_is_the_exact_one(kind, edge):
  rng = np.random.default_rng(1)
  low, high = EDGES[edge]
  for eps in (0.01, 0.3, 1.5):
    center = rng.uniform(size=(3, 6)).astype(np.float32)
    center[:, 0] = 0  # On the border.
    rows = rng.normal(size=(3, 5, 6)).astype(np.float32)
    rows[:, 1, :4] = 0
    ball = MAKERS[kind](center, eps, lower=low, upper=high)
    found = np.asarray(jax.vmap(lambda b, r: b.minimum(r))(ball, rows))
    for b in range(3):
      for r in range(5):
        want = least(kind, center[b].astype(float), eps, low, high,
                     rows[b, r].astype(float))
        assert found[b, r] <= want + 1e-9, 'unsound'
        np.testing.assert_allclose(found[b, r], want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('edge', list(EDGES))
@pytest.mark.parametrize('kind', list(MAKERS))
def test_projected_points_are_in_the_set(kind, edge):
  rng = np.random.default_rng(2)
  low, high = EDGES[edge]
  center = rng.uniform(size=(4, 50)).astype(np.float32)
  ball = MAKERS[kind](center, 0.25, lower=low, upper=high)
  x = (center + rng.normal(size=center.shape)).astype(np.float32)
  x = np.asarray(jax.vmap(lambda b, x: b.project(x))(ball, x), np.float64)
  offset = x - center.astype(np.float64)
  norm = np.linalg.norm(offset, {'linf': np.inf, 'l2': 2, 'l1': 1}[kind], axis=1)
  assert (norm <= 0.25 + (1e-6 if kind == 'linf' else 0)).all()
  assert (x >= low).all() and (x <= high).all()
  hull = [np.asarray(edge, np.float64) for edge in ball.hull()]
  assert (x >= hull[0]).all() and (x <= hull[1]).all()


def test_radius_is_rounded_up():
  """0.1 is between two floats: the exact ball is inside the set."""
  center = np.linspace(0, 1, 101, dtype=np.float32)[None]
  ball = bounds.linf_ball(center, 0.1)
  exact = center.astype(np.float64)
  assert (np.asarray(ball.lower, np.float64) <= exact - 0.1).all()
  assert (np.asarray(ball.upper, np.float64) >= exact + 0.1).all()


def test_no_radius_is_a_point():
  center = np.linspace(0, 1, 11, dtype=np.float32)[None]
  ball = bounds.linf_ball(center, 0.0, lower=0.0, upper=1.0)
  assert (ball.lower == center).all() and (ball.upper == center).all()


def test_a_radius_for_each_example():
  ball = bounds.linf_ball(np.zeros((2, 3), np.float32), np.array([0.0, 0.5]))
  np.testing.assert_allclose(ball.upper[0], 0)
  np.testing.assert_allclose(ball.upper[1], 0.5, rtol=1e-6)


def test_sets_pass_through_jit_with_traced_radius():
  image = np.full((2, 3), 0.5, np.float32)

  @jax.jit
  def top(eps):
    ball = bounds.l2_ball(image, eps, lower=0.0, upper=1.0)
    return jax.vmap(lambda b: -b.minimum(-jnp.ones((1, 3))))(ball)

  np.testing.assert_allclose(top(0.1), 1.5 + 0.1 * np.sqrt(3), rtol=1e-5)


@pytest.mark.parametrize('make, message', [
    (lambda: bounds.linf_ball(np.zeros((2, 3), np.uint8), 0.1), 'floating point'),
    (lambda: bounds.linf_ball(np.full((2, 3), 2.0, np.float32), 0.1, lower=0.0,
                              upper=1.0), 'outside the box'),
    (lambda: bounds.linf_ball(np.full((2, 3), np.nan, np.float32), 0.1), 'NaN'),
    (lambda: bounds.linf_ball(np.zeros((2, 3), np.float32), -0.1), 'eps must be >= 0'),
    (lambda: bounds.linf_ball(np.zeros((2, 3), np.float32), [0.1] * 3), 'one number'),
    (lambda: bounds.box(np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)),
     'lower > upper'),
    (lambda: bounds.box(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)),
     'alike'),
])
def test_bad_sets_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
