"""EmpLB <= D <= FaithUB on networks so small that D is found on a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds, faithfulness
from rkd_jax.bounds.crown import Bounds
from rkd_jax.errors import ConfigError, NonFiniteError, UnsupportedPrimitiveError
from rkd_jax.faithfulness import certified, exact

pytestmark = pytest.mark.usefixtures('quick_compilation')

K = 3


def network(seed, sizes):
  rng = np.random.default_rng(seed)
  layers = [(rng.normal(size=(n, m)).astype(np.float32) * 1.5 / np.sqrt(n),
             rng.normal(size=m).astype(np.float32) * 0.3)
            for n, m in zip(sizes, sizes[1:])]

  def fn(x, array=jnp):
    for i, (weight, bias) in enumerate(layers):
      x = x @ weight + bias
      x = array.maximum(x, 0) if i < len(layers) - 1 else x
    return x

  return fn


TEACHER, STUDENT = network(0, (2, 6, 6, K)), network(1, (2, 5, K))
CENTERS = np.random.default_rng(2).uniform(size=(3, 2)).astype(np.float32)
CLASSES = np.array([0, 2, 1])


def on_a_grid(ball, classes=None):
  """D, up to the distance of the points, in float64: a lower bound."""
  line = np.linspace(0, 1, 201)
  grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2)
  low, high = (np.asarray(edge, np.float64) for edge in ball.hull())
  points = low + grid * (high - low)
  softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  apart = np.abs(softmax(TEACHER(points, np)) - softmax(STUDENT(points, np))).max(0)
  return apart.max(1) if classes is None else apart[np.arange(len(apart)), classes]


@functools.cache
def compiled(method, single):
  steps = {'steps': 5} if method in ('alpha_crown', 'best') else {}

  def run(ball, classes):
    return faithfulness.faith_ub(TEACHER, STUDENT, ball, method=method,
                                 classes=classes if single else None, **steps)

  return jax.jit(run)


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize('method', certified.PURE)
def test_bounds_are_above_every_point(method, single):
  for eps in (0.0, 1e-3, 0.1, 0.5):
    ball = bounds.linf_ball(CENTERS, eps)
    upper = np.asarray(compiled(method, single)(ball, CLASSES), np.float64)
    true = on_a_grid(ball, CLASSES if single else None)
    assert (upper >= true).all() and (upper <= 1).all(), eps
    if eps == 0:
      np.testing.assert_allclose(upper, true, atol=1e-3)


def test_the_best_is_no_looser_than_the_others():
  for eps in (0.05, 0.3):
    ball = bounds.linf_ball(CENTERS, eps)
    found = {m: np.asarray(compiled(m, False)(ball, CLASSES)) for m in certified.PURE}
    for other in ('margins', 'crown', 'alpha_crown'):
      assert (found['best'] <= found[other] + 1e-5).all(), (eps, other)
    assert (found['crown'] <= found['crown_ibp'] + 1e-5).all()


def test_the_attack_finds_the_greatest_disagreement():
  ball = bounds.linf_ball(CENTERS, 0.3)
  found = faithfulness.witness(TEACHER, STUDENT, ball, key=jax.random.key(0))
  true = on_a_grid(ball)
  np.testing.assert_allclose(found.distance, true, atol=2e-3)
  low, high = ball.hull()
  assert (found.point >= low).all() and (found.point <= high).all()
  np.testing.assert_allclose(
      faithfulness.exactly(TEACHER, STUDENT, found.point), found.distance, atol=1e-6)


def test_agreement():
  """Certified only where no point of the grid has two answers."""
  line = np.linspace(-1, 1, 101)
  grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2)
  seen = []
  agreement = jax.jit(lambda ball: faithfulness.agreement(TEACHER, STUDENT, ball))
  for eps in (1e-4, 0.05, 0.3):
    found = np.asarray(agreement(bounds.linf_ball(CENTERS, eps)))
    points = CENTERS + eps * grid
    same = (TEACHER(points, np).argmax(-1) == STUDENT(points, np).argmax(-1)).all(0)
    assert not (found & ~same).any()
    seen.append((found, same))
  np.testing.assert_array_equal(*seen[0])


def test_agreement_in_one_go_with_the_distance():
  centers = np.random.default_rng(3).uniform(-1, 2, (24, 2)).astype(np.float32)
  ball = bounds.linf_ball(centers, 0.05)
  apart, agree = jax.jit(lambda ball: certified.with_agreement(
      TEACHER, STUDENT, ball, method='crown'))(ball)
  np.testing.assert_allclose(
      apart.max(1), compiled('crown', False)(ball, None), atol=1e-5)
  np.testing.assert_array_equal(agree, jax.jit(
      lambda ball: faithfulness.agreement(TEACHER, STUDENT, ball))(ball))
  assert agree.any() and not agree.all()


def test_in_band():
  """Against the greatest value on a fine grid of (u, v)."""
  rng = np.random.default_rng(0)
  sigmoid = lambda u: 1 / (1 + np.exp(-u))
  for _ in range(200):
    u, v = (np.sort(rng.normal(size=2) * 3) for _ in range(2))
    most = rng.uniform(u[0] - v[1], u[1] - v[0] + 1)
    a, b = np.meshgrid(np.linspace(*u, 400), np.linspace(*v, 400))
    inside = a - b <= most
    true = (sigmoid(a) - sigmoid(b))[inside].max()
    got = float(certified.in_band(Bounds(*np.float32(u)), Bounds(*np.float32(v)),
                                  jnp.float32(most)))
    assert true - 1e-6 <= got <= true + 0.02 * (u[1] - u[0] + v[1] - v[0]), (u, v, most)


def test_branch_and_bound_meets_the_attack():
  ball = bounds.linf_ball(CENTERS[:1], 0.2)
  seen = []
  found = faithfulness.branch_and_bound(
      TEACHER, STUDENT, ball, gap=0.01, timeout_s=60, batch=16,
      progress=lambda *line: seen.append(line))
  true = on_a_grid(ball)
  assert (found.upper >= true).all()
  assert (found.upper <= 1.01 * found.lower + 2e-4).all()
  np.testing.assert_allclose(found.lower, true, atol=2e-3)
  uppers = [upper for _, upper, _ in seen]
  assert uppers == sorted(uppers, reverse=True)


def test_out_of_time_leaves_a_sound_bound():
  ball = bounds.linf_ball(CENTERS[:1], 0.5)
  found = faithfulness.branch_and_bound(
      TEACHER, STUDENT, ball, gap=0.0, timeout_s=1e-3, batch=16)
  assert (found.upper >= on_a_grid(ball)).all() and (found.lower <= found.upper).all()


@pytest.mark.slow
def test_programs_of_whole_numbers_confirm_branch_and_bound():
  ball = bounds.linf_ball(CENTERS, 0.3)
  reference = faithfulness.milp(TEACHER, STUDENT, ball, error=1e-3)
  found = faithfulness.branch_and_bound(TEACHER, STUDENT, ball, gap=0.001, timeout_s=60)
  true = on_a_grid(ball)
  most = 2e-3 * (1 + (K - 2) / 4) + 1e-4
  assert (reference.upper >= true).all() and (reference.upper <= true + most + 2e-3).all()
  assert (found.upper >= reference.lower).all() and (found.lower <= reference.upper).all()
  assert (found.upper - reference.upper <= 1e-3).all()


@pytest.mark.parametrize('error', [1e-2, 1e-3])
def test_interpolations_keep_their_error(error):
  x = np.linspace(-20, 20, 100_001)
  with jax.enable_x64(True):
    soft = exact._interpolated(
        jnp.asarray(np.abs(x)), lambda t: np.log1p(np.exp(-t)),
        exact._knots(error, exact._bend_of_softplus))
    step = exact._interpolated(
        jnp.asarray(x), lambda u: 1 / (1 + np.exp(-u)),
        exact._knots(error, exact._bend_of_logistic, symmetric=True))
  # As NumPy: jax.Arrays would be subtracted in float32 here.
  off = (np.abs(np.asarray(soft) - np.log1p(np.exp(-np.abs(x)))).max(),
         np.abs(np.asarray(step) - 1 / (1 + np.exp(-x))).max())
  assert 0.3 * error < min(off) and max(off) <= error * (1 + 1e-9)


def test_bad_arguments():
  ball = bounds.linf_ball(CENTERS, 0.1)
  run = functools.partial(faithfulness.faith_ub, method='crown')
  with pytest.raises(ConfigError, match='branch_and_bound'):
    run(TEACHER, STUDENT, ball, method='branch')
  with pytest.raises(ConfigError, match='teacher has 3 classes, the student 4'):
    run(TEACHER, network(0, (2, 4)), ball)
  with pytest.raises(NonFiniteError, match='student'):
    run(TEACHER, lambda x: STUDENT(x) * jnp.nan, ball)
  with pytest.raises(UnsupportedPrimitiveError, match='argmax'):
    jax.eval_shape(lambda ball: run(
        TEACHER, lambda x: STUDENT(x) * jnp.argmax(STUDENT(x), 1)[:, None], ball), ball)
  with pytest.raises(ConfigError, match='eps must be >= 0'):
    run(TEACHER, STUDENT, bounds.linf_ball(CENTERS, -0.1))
  with pytest.raises(ConfigError, match='timeout_s'):
    faithfulness.branch_and_bound(TEACHER, STUDENT, ball, timeout_s=0.0)
  with pytest.raises(ConfigError, match='error'):
    faithfulness.milp(TEACHER, STUDENT, ball, error=0.0)
  with pytest.raises(ConfigError, match='ReLU'):
    faithfulness.branch_and_bound(network(0, (2, K)), network(1, (2, K)), ball)
  with pytest.raises(ConfigError, match='restarts'):
    faithfulness.emp_lb(TEACHER, STUDENT, ball, key=jax.random.key(0), restarts=0)
