"""Projections onto cut balls and cut hyperplanes against solvers of scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rkd_jax.attacks import ball, bisection, hyperplane

D, B = 12, 20
RNG = np.random.default_rng(0)
CLEAN = RNG.uniform(size=(B, D)).astype(np.float32)
CLEAN[0, :4] = [0, 1, 0, 1]
FAR = (CLEAN + RNG.normal(size=(B, D)) * np.linspace(0.02, 1, B)[:, None]).astype(
    np.float32)


def test_l1_ball_with_box():
  """The root of the dual, found by brentq in float64."""
  eps = 0.8
  project = jax.jit(lambda a, x: ball.project(a, x, eps=eps, norm='l1'))
  got = np.asarray(project(FAR, CLEAN))
  clean, far = CLEAN.astype(np.float64), FAR.astype(np.float64)
  shrunk = 0
  for x, a, z in zip(clean, far, got):
    moves = lambda t, x=x, a=a: np.clip(np.clip(np.abs(a - x) - t, 0, None), 0, np.where(
        a > x, 1 - x, x)) * np.sign(a - x)
    excess = lambda t, m=moves: np.abs(m(t)).sum() - eps
    t = 0.0
    if excess(0.0) > 0:
      t, shrunk = optimize.brentq(excess, 0, np.abs(a - x).max(), xtol=1e-13), shrunk + 1
    np.testing.assert_allclose(z, x + moves(t), atol=2e-5)
    assert np.abs(z - x).sum() <= eps and z.min() >= 0 and z.max() <= 1
  assert 5 < shrunk < B
  again = ball.project(got, CLEAN, eps=eps, norm='l1')
  np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize('norm', ['linf', 'l1', 'l2'])
def test_hyperplane_with_box(norm):
  """An LP by HiGHS, or for 'l2' the dual in one unknown."""
  normals = RNG.normal(size=(B, D)).astype(np.float32)
  normals[1] *= 1e-20
  reach = np.maximum(normals * (1 - CLEAN), -normals * CLEAN).sum(1)
  least = np.minimum(normals * (1 - CLEAN), -normals * CLEAN).sum(1)
  share = RNG.uniform(0.05, 0.95, size=B)
  values = np.where(np.arange(B) % 2, -share * reach, -share * least).astype(np.float32)
  got = np.asarray(jax.jit(lambda *a: hyperplane.project(*a, norm=norm))(
      CLEAN, normals, values), np.float64)
  for x, w, v, z in zip(*(a.astype(np.float64) for a in (CLEAN, normals, values)), got):
    scale = np.abs(w).max()
    assert abs(w @ (z - x) + v) < 3e-6 * scale * D
    assert z.min() >= 0 and z.max() <= 1
    best = distance(x, w / scale, v / scale, norm)
    np.testing.assert_allclose(length(z - x, norm), best, rtol=1e-4, atol=1e-6)


def length(offset, norm):
  return np.linalg.norm(offset, ord={'linf': np.inf, 'l2': 2, 'l1': 1}[norm])


def distance(x, w, v, norm):
  if norm == 'l2':
    move = lambda t: np.clip(x - t * np.sign(v) * w, 0, 1) - x
    high = 1.0
    while (w @ move(high) + v) * np.sign(v) > 0:
      high *= 2
    t = optimize.brentq(lambda t: w @ move(t) + v, 0, high, xtol=1e-14)
    return length(move(t), 'l2')
  # Variables: the offset and its size (one for linf, one a pixel for l1).
  extra = 1 if norm == 'linf' else D
  cost = np.r_[np.zeros(D), np.ones(extra)]
  sizes = np.ones((D, 1)) if norm == 'linf' else np.eye(D)
  above = np.block([[np.eye(D), -sizes], [-np.eye(D), -sizes]])
  found = optimize.linprog(
      cost, A_ub=above, b_ub=np.zeros(2 * D), A_eq=np.r_[w, np.zeros(extra)][None],
      b_eq=[-v], bounds=[*zip(-x, 1 - x), *[(0, None)] * extra])
  assert found.status == 0
  return found.fun


def test_l1_hyperplane_takes_pixels_of_one_weight_alike():
  """Two of weight 1 move in full, three of weight 0.5 by what is left of 2.3."""
  w = jnp.array([[0.5, 1.0, 0.5, -1.0, 0.5, 0.0, 0.25]])
  z = hyperplane.project(jnp.array([[0, 0, 0, 1.0, 0, 0, 0]]), w, jnp.array([-2.3]),
                         norm='l1')
  np.testing.assert_allclose(z, [[0.2, 1, 0.2, 0, 0.2, 0, 0]], atol=1e-6)


def test_the_greatest_threshold_is_an_element():
  """The k-th largest of each row, with ties, zeros and the ends of float32."""
  rows = np.abs(RNG.normal(size=(6, 30))).astype(np.float32)
  rows[1, :10] = rows[1, 10]
  rows[2, 5:] = 0
  rows[3] *= 1e-30
  rows[4, :3] = 3e38
  for many in (1, 4, 11, 30):
    got = bisection.greatest(
        lambda t, k=many: jnp.sum(rows >= t[:, None], axis=1) >= k, len(rows))
    want = np.sort(rows, axis=1)[:, -many]
    np.testing.assert_array_equal(np.where(want > 0, got, 0), want)


def test_hyperplane_out_of_reach():
  """The corner of the box nearest to it; no weights: the point itself."""
  x = jnp.full((2, 3), 0.5)
  w = jnp.array([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
  for norm in ('linf', 'l2', 'l1'):
    z = hyperplane.project(x, w, jnp.array([10.0, 1.0]), norm=norm)
    np.testing.assert_allclose(z, [[0, 1, 0.5], [0.5] * 3])
