"""Softmax, log-softmax and logsumexp against SciPy in float64, without a tolerance.

Float32 bounds count as exact numbers. 1e-15 is what the reference itself errs.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rkd_jax.bounds import softmax

FUNCTIONS = {'softmax': scipy.special.softmax, 'log_softmax': scipy.special.log_softmax,
             'logsumexp': scipy.special.logsumexp}
BOXES = 40
_jitted = {f'{name}_{kind}': jax.jit(functools.partial(
    getattr(softmax, f'{name}_{kind}'), **{
        'axes' if name == 'logsumexp' else 'axis': -1}))
    for name in FUNCTIONS for kind in ('interval', 'lines')}


def boxes(length, width, scale, seed=0):
  rng = np.random.default_rng([seed, length, int(width * 1e6), int(scale)])
  center = rng.normal(size=(BOXES, length)) * scale
  radius = width * rng.uniform(size=(BOXES, length)) / 2
  lo = (center - radius).astype(np.float32)
  return lo, lo if not width else np.maximum(lo, (center + radius).astype(np.float32))


def points(lo, hi, count=150):
  """[N, B, K] float64 points of boxes: inside, corners, on edges, the middle."""
  rng = np.random.default_rng(1)
  share = np.concatenate([
      rng.uniform(size=(count, *lo.shape)), rng.integers(0, 2, (count, *lo.shape)),
      np.clip(rng.uniform(-1, 2, (count, *lo.shape)), 0, 1), np.full((1, *lo.shape), .5)])
  lo = lo.astype(np.float64)
  return np.clip(lo + share * (hi - lo), lo, hi)


def run(name, kind, lo, hi):
  return [np.asarray(a, np.float64) for a in _jitted[f'{name}_{kind}'](lo, hi)]


def heights(name, lines, x):
  """Values of the lower and the upper lines at x."""
  spec = 'bk,nbk->nb' if name == 'logsumexp' else 'bok,nbk->nbo'
  s_low, b_low, s_high, b_high = lines
  return np.einsum(spec, s_low, x) + b_low, np.einsum(spec, s_high, x) + b_high


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('length', [1, 2, 3, 10])
def test_sound(name, length):
  for width, scale in itertools.product(
      (0, 1e-6, 1e-3, 1, 5, 20, 200), (1, 10, 1e4)):
    lo, hi = boxes(length, width, scale)
    x = points(lo, hi)
    exact = FUNCTIONS[name](x, axis=-1)
    err = 1e-15 * (1 + np.abs(exact) + np.abs(x).max())
    low, high = run(name, 'interval', lo, hi)
    assert (low <= exact + err).all() and (exact <= high + err).all(), (width, scale)
    low, high = heights(name, run(name, 'lines', lo, hi), x)
    assert (low <= exact + err).all() and (exact <= high + err).all(), (width, scale)


def test_slopes_that_are_computed_twice():
  """Ends one ulp apart at 1e4: XLA once rounded slope and offset differently."""
  for seed in range(20):
    lo, hi = boxes(10, 1e-3, 1e4, seed)
    x = points(lo, hi, 10)
    low, high = heights('softmax', run('softmax', 'lines', lo, hi), x)
    exact = scipy.special.softmax(x, axis=-1)
    assert (low <= exact + 1e-15).all() and (exact <= high + 1e-15).all()


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_zero_width(name, dtype):
  with jax.enable_x64(dtype == np.float64):
    eps = float(jnp.finfo(dtype).eps)
    x = np.random.default_rng(0).normal(size=(BOXES, 10)).astype(dtype) * 3
    exact = FUNCTIONS[name](x.astype(np.float64), axis=-1)
    low, high = run(name, 'interval', x, x)
    assert np.abs(low - exact).max() < 200 * eps
    assert np.abs(high - exact).max() < 200 * eps
    lines = run(name, 'lines', x, x)
    for height in heights(name, lines, x[None].astype(np.float64)):
      assert np.abs(height[0] - exact).max() < 2000 * eps


def test_intervals_are_the_extremes_at_corners():
  lo, hi = boxes(4, 3, 1)
  corners = np.array(list(itertools.product((0, 1), repeat=4)))[:, None]
  x = np.where(corners, hi, lo).astype(np.float64)
  for name, f in FUNCTIONS.items():
    y = f(x, axis=-1)
    low, high = run(name, 'interval', lo, hi)
    np.testing.assert_allclose(low, y.min(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(high, y.max(axis=0), rtol=1e-5, atol=1e-5)


def test_tangents_touch_at_the_middle():
  lo, hi = boxes(5, 4, 1)
  x = (0.5 * (lo.astype(np.float64) + hi))[None]
  low, _ = heights('logsumexp', run('logsumexp', 'lines', lo, hi), x)
  np.testing.assert_allclose(low[0], scipy.special.logsumexp(x[0], axis=-1), atol=1e-4)
  _, high = heights('log_softmax', run('log_softmax', 'lines', lo, hi), x)
  np.testing.assert_allclose(
      high[0], scipy.special.log_softmax(x[0], axis=-1), atol=1e-4)
  # Against the formulas of Wei et al., in float64: exp(x_i) / C(x) ...
  c, low, high = x[0], lo.astype(np.float64), hi.astype(np.float64)
  total = (0.5 * (np.exp(low) + np.exp(high))).sum(-1, keepdims=True)
  by_sum = np.exp(c) / total
  # ... and 1 / (1 + chords of exp(x_j - x_i)).
  d_low = low[:, None] - high[:, :, None]
  d_high = high[:, None] - low[:, :, None]
  same = np.eye(5, dtype=bool)
  by_ratio = 1 / np.where(same, 1, 0.5 * (np.exp(d_low) + np.exp(d_high))).sum(-1)
  others = np.where(same, -np.inf, high[:, None]).max(-1)
  low, high = heights('softmax', run('softmax', 'lines', lo, hi), x)
  np.testing.assert_allclose(low[0], np.where(c > others, by_ratio, by_sum), atol=3e-5)
  p_low, p_high = run('softmax', 'interval', lo, hi)
  y = scipy.special.log_softmax(c, axis=-1)
  share = (y - np.log(p_low)) / (np.log(p_high) - np.log(p_low))
  np.testing.assert_allclose(high[0], p_low + share * (p_high - p_low), atol=1e-4)


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('length', [2, 10])
def test_lines_are_tighter_than_constants(name, length):
  for width in (.01, .1, 1, 5, 20):
    lo, hi = boxes(length, width, 1)
    x = points(lo, hi)[:150]
    low, high = heights(name, run(name, 'lines', lo, hi), x)
    least, most = run(name, 'interval', lo, hi)
    gap, constant = (high - low).mean(), (most - least).mean()
    assert gap < constant * (0.2 if width < 1 else 1), (width, gap, constant)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_huge_and_infinite_ends(name):
  lo = np.array([[0, 0, 0], [-1e38, 0, 1], [-np.inf, 0, 0], [0, 0, 0], [-1e4, 0, 1e4]],
                np.float32)
  hi = np.array([[0, 0, 1e30], [1e38, 0, 2], [0, 0, 0], [np.inf, 0, 0], [1e4, 0, 1e4]],
                np.float32)
  ends = {'softmax': (0, 1), 'log_softmax': (-np.inf, 0),
          'logsumexp': (-np.inf, np.inf)}[name]
  for kind in ('interval', 'lines'):
    found = run(name, kind, lo, hi)
    assert not any(np.isnan(a).any() for a in found)
    for row in (1, 2, 3):
      if kind == 'interval' or row != 1:
        low, high = found if kind == 'interval' else (found[1], found[3])
        assert (low[row] == ends[0]).all() and (high[row] == ends[1]).all()


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('kind', ['interval', 'lines'])
def test_gradients_are_finite(name, kind):
  def total(lo, radius):
    return sum(jnp.sum(a) for a in _jitted[f'{name}_{kind}'](lo - radius, lo + radius))
  gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
  for width, scale in itertools.product((0, 1e-20, 1e-6, .1, 10), (1, 1e4)):
    lo = np.random.default_rng(0).normal(size=4).astype(np.float32) * scale
    found = gradient(lo, np.full(4, width, np.float32))
    assert all(np.isfinite(g).all() for g in found), (width, scale)


def test_axes_and_vmap():
  rng = np.random.default_rng(0)
  lo = rng.normal(size=(2, 3, 4)).astype(np.float32)
  hi = lo + rng.uniform(size=lo.shape).astype(np.float32)
  lines = jax.jit(softmax.softmax_lines, static_argnums=2)
  last = lines(lo.transpose(0, 2, 1), hi.transpose(0, 2, 1), -1)
  middle = lines(lo, hi, 1)
  assert middle.lower_slopes.shape == (2, 3, 4, 3)
  for a, b in zip(middle, last):  # [2, 4, out, (k)] against [2, out, 4, (k)].
    np.testing.assert_allclose(a, np.swapaxes(b, 1, 2), rtol=1e-6, atol=1e-6)
  mapped = jax.vmap(lambda a, b: lines(a, b, 0))(lo, hi)
  for a, b in zip(mapped, middle):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  lines = jax.jit(softmax.logsumexp_lines, static_argnums=2)(lo, hi, (0, 2))
  assert lines.lower_slope.shape == lo.shape and lines.lower_offset.shape == (3,)
  x = 0.3 * lo + 0.7 * hi
  exact = scipy.special.logsumexp(x, axis=(0, 2))
  assert ((lines.lower_slope * x).sum((0, 2)) + lines.lower_offset <= exact).all()
  assert ((lines.upper_slope * x).sum((0, 2)) + lines.upper_offset >= exact).all()
  low, high = softmax.logsumexp_interval(lo, hi, (0, 2))
  assert (low <= exact).all() and (exact <= high).all()
