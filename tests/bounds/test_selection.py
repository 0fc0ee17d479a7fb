"""Steps and choices: functions that jump, and derivatives of piecewise linear ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.bounds import selection
from rkd_jax.errors import UnsupportedPrimitiveError

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
N = 3000


def _interval(rng, size=N):
  """Random ends of all sizes from 1e-38 to 1e38, a tenth of them equal."""
  low = rng.normal(size=size) * 10.0**rng.uniform(-38, 38, size)
  low[::3] = rng.normal(size=len(low[::3]))
  width = 10.0**rng.uniform(-38, 38, size)
  width[::3] = 10.0**rng.uniform(-3, 1, len(width[::3]))
  width[::10] = 0
  with np.errstate(over='ignore'):
    low, high = np.float32(low), np.float32(low + width)
  # Subnormal numbers count as zero.
  low, high = (np.where(np.abs(x) < 2e-38, 0, x).astype(np.float32) for x in (low, high))
  return low, np.maximum(low, high)


def _inside(rng, low, high, count=40):
  """Points [count, N], ends first; finite."""
  low, high = (np.clip(np.float64(x), -3e38, 3e38) for x in (low, high))
  share = rng.uniform(size=(count, 1))
  share[:2, 0] = 0, 1
  return np.clip(low + share * (high - low), low, high)


def _violation(lines, values, points):
  """Greatest excess of lines over values, in units of what float64 rounds."""
  worst = -np.inf
  for sign, (slopes, offset) in zip((1, -1), lines):
    terms = [np.float64(s) * x for s, x in zip(slopes, points)]
    terms.append(np.broadcast_to(np.float64(offset), values.shape))
    line = sum(terms)
    rounding = 2.0**-50 * (sum(map(np.abs, terms)) + np.abs(values))
    excess = np.where(np.isfinite(line), sign * (line - values) - rounding, -np.inf)
    worst = max(worst, excess.max())
  return worst


@pytest.mark.parametrize('strict', [True, False])
def test_steps(strict):
  rng = np.random.default_rng(0)
  low, high = _interval(rng)
  threshold = np.where(rng.uniform(size=N) < 0.5, 0, np.float32(rng.normal(size=N)))
  threshold[5::10] = low[5::10]
  threshold = threshold.astype(np.float32)
  x = np.concatenate([_inside(rng, low, high), np.clip(
      np.float64(threshold), low, high)[None], np.clip(np.nextafter(
          np.float64(threshold), np.inf), low, high)[None]])
  truth = (x > threshold if strict else x >= threshold).astype(np.float64)
  rule = selection.step(threshold, strict)
  every = jax.jit(lambda a, b, c: (rule.lines(a, b, c, c), rule.lines(a, b),
                                   rule.interval(a, b)), compiler_options=QUICK)
  for choice in (0.0, 0.4, 1.0):
    chosen, default, (lower, upper) = every(low, high, np.float32(choice))
    assert np.all(lower <= truth) and np.all(truth <= upper)
    for lines in (chosen, default):
      assert not any(np.isnan(part).any() for part in lines)
      pairs = ([lines[0]], lines[1]), ([lines[2]], lines[3])
      assert _violation(pairs, truth, [x]) <= 0
  decided = (low > threshold) | (high < threshold)
  assert np.all((lower == upper)[decided])


def test_step_lines_touch():
  """On [-1, 3], whose middle is right of 0: below x / 3, above 1."""
  lines = selection.step(0.0, True).lines(*np.float32([[-1, -3], [3, 1]]))
  np.testing.assert_allclose(lines.lower_slope, [1 / 3, 0], atol=1e-6)
  np.testing.assert_allclose(lines.upper_slope, [0, 1 / 3], atol=1e-6)
  np.testing.assert_allclose(lines.lower_offset, 0, atol=1e-6)
  np.testing.assert_allclose(lines.upper_offset, 1, atol=1e-6)


@pytest.mark.parametrize('bounded', [(True, True), (True, False), (False, True)])
def test_choices(bounded):
  rng = np.random.default_rng(1)
  f, t = _interval(rng), _interval(rng)
  f, t = (ends if b else (ends[0], ends[0]) for ends, b in zip((f, t), bounded))
  p = np.float32(rng.choice([0, 1], (2, N)))
  p = np.min(p, axis=0), np.max(p, axis=0)
  at_f, at_t = _inside(rng, *f), _inside(rng, *t)[::-1]
  at_p = np.clip(np.round(rng.uniform(size=at_f.shape)), *p)
  y = np.where(at_p > 0, at_t, at_f)
  every = jax.jit(lambda p, f, t, c: (
      selection.choose_lines(p, f, t, bounded, c, c),
      selection.choose_lines(p, f, t, bounded), selection.choose_interval(p, f, t)),
      compiler_options=QUICK)
  for choice in (0.0, 0.3, 1.0):
    *found, (lower, upper) = every(p, f, t, np.float32(choice))
    assert np.all(lower <= y) and np.all(y <= upper)
    for lines in found:
      assert not any(np.isnan(part).any() for part in jax.tree.leaves(lines))
      assert _violation(lines, y, [at_p, at_f, at_t]) <= 0


def test_a_choice_from_zero_is_a_product():
  """With f = 0 the lines are McCormick's: their mean heights are those of the hull."""
  p, f, t = (np.float32(ends)[:, None] for ends in ((0, 1), (0, 0), (-2, 3)))
  for choice in (None, 0.0, 0.5, 1.0):
    (below, low), (above, high) = selection.choose_lines(
        p, f, t, (False, True), choice, choice)
    height = lambda slopes, offset: slopes[0] / 2 + slopes[2] / 2 + offset
    np.testing.assert_allclose(height(below, low), -1, rtol=1e-5)  # (0 - 2) / 2
    np.testing.assert_allclose(height(above, high), 1.5, rtol=1e-5)


W1 = np.float32(np.random.default_rng(2).normal(size=(4, 6)))
W2 = np.float32(np.random.default_rng(3).normal(size=(6, 5)) / 2)
W3 = np.float32(np.random.default_rng(4).normal(size=(5, 2)) / 2)
ACTIVATIONS = {
    'relu': (jax.nn.relu, lambda z: z > 0),
    'maximum': (lambda z: jnp.maximum(z, 0), lambda z: z > 0),
    'leaky_relu': (jax.nn.leaky_relu, lambda z: np.where(z >= 0, 1, 0.01)),
    'abs': (jnp.abs, np.sign),
    'clip': (lambda z: jnp.clip(z, 0, 1), lambda z: (z > 0) & (z < 1)),
}


def _network(activation):
  return lambda v: activation(activation(v @ W1) @ W2) @ W3


def _jacobian(x, activation, slope):
  """float64 [B, 2, 4], by the chain rule."""
  w1, w2, w3 = map(np.float64, (W1, W2, W3))
  z1 = x @ w1
  h = {'clip': lambda z: np.clip(z, 0, 1), 'abs': np.abs,
       'leaky_relu': lambda z: np.where(z > 0, z, 0.01 * z)}.get(
           activation, lambda z: np.maximum(z, 0))(z1)
  d1, d2 = np.float64(slope(z1)), np.float64(slope(h @ w2))
  return np.einsum('ok,bk,hk,bh,ih->boi', w3.T, d2, w2, d1, w1)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if name in ('clip', 'abs') else [])
    for name in ACTIVATIONS])
def test_jacobians_of_piecewise_linear_networks(name, points):
  activation, slope = ACTIVATIONS[name]
  jacobian = jax.jacrev if name != 'maximum' else jax.jacfwd
  fn = lambda x: jax.vmap(jacobian(_network(activation)))(x).reshape(len(x), -1)
  every = jax.jit(lambda ball: [getattr(bounds, m)(fn, ball) for m in (
      ('ibp', 'crown', 'forward') if name == 'relu' else ('crown',))],
      compiler_options=QUICK)
  for center, eps in ((1.0, 0.2), (1.0, 0.0), (1e-30, 1e-30)):
    x = np.float32(np.random.default_rng(5).normal(size=(2, 4)) * center)
    ball = bounds.linf_ball(x, eps)
    y = np.stack([_jacobian(p, name, slope).reshape(2, -1) for p in points(ball, 80)])
    assert eps == 0 or center < 1 or np.ptp(y, axis=0).max() > 0.5
    for lower, upper, *_ in every(ball):
      assert np.all(lower <= y + 1e-12) and np.all(y <= upper + 1e-12)
      assert eps > 0 or np.all(upper - lower < 1e-3)


def test_optimised_lines_of_a_jacobian(points):
  fn = lambda x: jax.vmap(jax.jacrev(_network(jax.nn.relu)))(x).reshape(len(x), -1)
  ball = bounds.linf_ball(np.float32(np.random.default_rng(5).normal(size=(2, 4))), 0.2)
  plain, best = jax.jit(lambda ball: (bounds.crown(fn, ball), bounds.alpha_crown(
      fn, ball, steps=5)), compiler_options=QUICK)(ball)
  assert np.all(best.lower >= plain.lower) and np.all(best.upper <= plain.upper)
  assert np.mean(best.upper - best.lower) < np.mean(plain.upper - plain.lower)
  for x in points(ball, 80):
    y = _jacobian(x, 'relu', lambda z: z > 0).reshape(2, -1)
    assert np.all(best.lower <= y) and np.all(y <= best.upper)


def test_a_lipschitz_bound_of_a_relu_network():
  """It is no less than the steepest of many slopes, and the chain rule's on one piece."""
  fn = lambda x: jnp.linalg.norm(
      jax.vmap(jax.jacrev(lambda v: _network(jax.nn.relu)(v)[:1]))(x)[:, 0], 1, axis=1,
      keepdims=True)
  x = np.float32(np.random.default_rng(5).normal(size=(1, 4)))
  bound = jax.jit(lambda ball: bounds.crown(fn, ball).upper)
  rng = np.random.default_rng(0)
  inside = x + rng.uniform(-0.2, 0.2, (500, 4))
  slopes = np.abs(_jacobian(inside, 'relu', lambda z: z > 0)[:, 0]).sum(1)
  assert slopes.max() <= bound(bounds.linf_ball(x, 0.2))[0, 0]
  here = np.abs(_jacobian(np.float64(x), 'relu', lambda z: z > 0)[:, 0]).sum()
  np.testing.assert_allclose(bound(bounds.linf_ball(x, 1e-5))[0, 0], here, rtol=1e-3)


def test_gradient_of_a_maximum(points):
  """A mask of the largest entry, which the sum of ties divides."""
  fn = lambda x: jax.vmap(jax.grad(lambda v: jnp.max(v @ W1)))(x)
  ball = bounds.linf_ball(np.float32(np.random.default_rng(6).normal(size=(3, 4))), 0.2)
  found = jax.jit(lambda ball: bounds.crown(fn, ball), compiler_options=QUICK)(ball)
  for x in points(ball, 80):
    y = np.float64(W1).T[np.argmax(x @ np.float64(W1), axis=1)]
    assert np.all(found.lower <= y) and np.all(y <= found.upper)
  assert np.isfinite(found.upper).all() and np.isfinite(found.lower).all()


def test_a_maximum_beside_other_rows_is_not_met_from_below(points):
  """x == m only where they are equal: m is the maximum of a column's row here."""
  fn = lambda x: jax.vmap(lambda v: jnp.where(
      (m := v.reshape(2, 2)) == m.max(axis=1)[None], 1.0, 0.0).ravel())(x)
  ball = bounds.linf_ball(jnp.array([[1.0, 2.0, 5.0, 7.0]]), 0.1)
  lower, upper, *_ = bounds.ibp(fn, ball)
  assert np.all(lower <= 0) and np.all(upper >= 0)


def test_integers_made_of_tests_are_refused():
  for fn in (lambda x: jnp.sum(x > 0, axis=1, keepdims=True).astype(jnp.float32),
             lambda x: jnp.argmax(x, axis=1, keepdims=True).astype(jnp.float32)):
    with pytest.raises(UnsupportedPrimitiveError, match='gt|argmax'):
      bounds.ibp(fn, bounds.linf_ball(jnp.zeros((1, 3)), 0.1))
