"""Relaxations against float64 functions of SciPy: soundness, tightness, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd_jax.bounds import elementwise as ew

INF = np.inf
SLOPES = (0.125, 1.5, -0.5)


def _softplus(x):
  return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu_tanh(x):
  v = np.sqrt(2 / np.pi) * (x + 0.044715 * np.clip(x, -1e3, 1e3)**3)
  return x * scipy.special.expit(2 * v)


def _gelu(x):
  return 0.5 * x * scipy.special.erfc(-x * np.sqrt(0.5))


# name -> (rule, float64 reference, domain)
CASES = {
    'abs': (ew.RULES['abs'], np.abs, (-INF, INF)),
    'sign': (ew.RULES['sign'], np.sign, (-INF, INF)),
    'floor': (ew.RULES['floor'], np.floor, (-INF, INF)),
    'ceil': (ew.RULES['ceil'], np.ceil, (-INF, INF)),
    'round': (ew.RULES['round'], np.round, (-INF, INF)),
    'exp': (ew.RULES['exp'], np.exp, (-INF, INF)),
    'exp2': (ew.RULES['exp2'], np.exp2, (-INF, INF)),
    'expm1': (ew.RULES['expm1'], np.expm1, (-INF, INF)),
    'softplus': (ew.RULES['softplus'], _softplus, (-INF, INF)),
    'log': (ew.RULES['log'], np.log, (0, INF)),
    'log1p': (ew.RULES['log1p'], np.log1p, (-1, INF)),
    'sqrt': (ew.RULES['sqrt'], np.sqrt, (0, INF)),
    'rsqrt': (ew.RULES['rsqrt'], lambda x: 1 / np.sqrt(x), (0, INF)),
    'square': (ew.RULES['square'], np.square, (-INF, INF)),
    'reciprocal': (ew.RULES['reciprocal'], lambda x: 1 / x, (0, INF)),
    'logistic': (ew.RULES['logistic'], scipy.special.expit, (-INF, INF)),
    'tanh': (ew.RULES['tanh'], np.tanh, (-INF, INF)),
    'erf': (ew.RULES['erf'], scipy.special.erf, (-INF, INF)),
    'erfc': (ew.RULES['erfc'], scipy.special.erfc, (-INF, INF)),
    'sin': (ew.RULES['sin'], np.sin, (-INF, INF)),
    'cos': (ew.RULES['cos'], np.cos, (-INF, INF)),
    'cbrt': (ew.RULES['cbrt'], np.cbrt, (-INF, INF)),
    'tan': (ew.RULES['tan'], np.tan, (-INF, INF)),
    'atan': (ew.RULES['atan'], np.arctan, (-INF, INF)),
    'asin': (ew.RULES['asin'], np.arcsin, (-INF, INF)),
    'acos': (ew.RULES['acos'], np.arccos, (-INF, INF)),
    'sinh': (ew.RULES['sinh'], np.sinh, (-INF, INF)),
    'cosh': (ew.RULES['cosh'], np.cosh, (-INF, INF)),
    'asinh': (ew.RULES['asinh'], np.arcsinh, (-INF, INF)),
    'acosh': (ew.RULES['acosh'], np.arccosh, (1, INF)),
    'atanh': (ew.RULES['atanh'], np.arctanh, (-INF, INF)),
    'gelu': (ew.RULES['gelu'], _gelu, (-INF, INF)),
    'gelu_tanh': (ew.RULES['gelu_tanh'], _gelu_tanh, (-INF, INF)),
    'silu': (ew.RULES['silu'], lambda x: x * scipy.special.expit(x), (-INF, INF)),
    'relu': (ew.max_const(0.0), lambda x: np.maximum(x, 0), (-INF, INF)),
    'max_const': (ew.max_const(0.75), lambda x: np.maximum(x, 0.75), (-INF, INF)),
    'min_const': (ew.min_const(-0.75), lambda x: np.minimum(x, -0.75), (-INF, INF)),
    'clamp': (ew.clamp(-1.0, 0.5), lambda x: np.clip(x, -1, 0.5), (-INF, INF)),
    'relu6': (ew.clamp(0.0, 6.0), lambda x: np.clip(x, 0, 6), (-INF, INF)),
    'power -0.5': (ew.power(-0.5), lambda x: x**-0.5, (0, INF)),
    'power 0.25': (ew.power(0.25), lambda x: x**0.25, (0, INF)),
    'power 1.5': (ew.power(1.5), lambda x: x**1.5, (0, INF)),
    'power 4.5': (ew.power(4.5), lambda x: x**4.5, (0, INF)),
    'power -2.75': (ew.power(-2.75), lambda x: x**-2.75, (0, INF)),
}
CASES |= {f'leaky {s}': (
    ew.leaky_relu(s), lambda x, s=s: np.where(x >= 0, x, s * x),
    (-INF, INF)) for s in SLOPES}
CASES |= {f'integer_pow {y}': (
    ew.integer_pow(y), lambda x, y=y: x**float(y), (-INF if y >= 0 else 0, INF))
    for y in (-3, -2, 0, 1, 3, 4, 7)}
EACH = pytest.mark.parametrize('name', CASES)
# Compiling takes longer than running: some of every kind, the others with -m slow.
TYPICAL = {'relu', 'exp', 'log1p', 'sqrt', 'tanh', 'gelu', 'reciprocal'}
MOST = pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in TYPICAL else pytest.mark.slow)
    for name in CASES])
# Without the slow steps of the compiler.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
STEPS = {'sign', 'floor', 'ceil', 'round'}
PARTIAL = {'tan', 'asin', 'acos', 'atanh'}  # Defined between two finite ends.


def _intervals(domain, seed, size=600, dtype=np.float32):
  """Random intervals of all widths, signs and sizes, kept within the domain."""
  rng = np.random.default_rng(seed)
  center = rng.choice([-1, 1], size) * 10.0**rng.uniform(-8, 5, size)
  center[: size // 3] = rng.normal(size=size // 3) * 3
  width = 10.0**rng.uniform(-7, 6, size)
  width[: size // 2] = 10.0**rng.uniform(-3, 1.3, size // 2)
  far = slice(size - size // 4, None)  # All that float32 has.
  center[far] = rng.choice([-1, 1], size // 4) * 10.0**rng.uniform(-37, 37, size // 4)
  width[far] = np.abs(center[far]) * 10.0**rng.uniform(-7, 1, size // 4)
  width[::10] = 0
  low, high = center - width * rng.uniform(size=size), center + width / 2
  edges = [(0, 0), (0, 1), (-1, 0), (0, 1e-7), (-1e-7, 0), (-1, 1), (-1e30, 1e30),
           (0, 1e30), (-1e30, 0), (1e30, 1e30), (1e-30, 1), (1e-30, 2e-30),
           (-1e-30, 1e-30), (-3, 3), (-0.75, -0.75), (-100, 100), (0.5, 0.5), (88, 89),
           (-90, -80), (-1e-30, 1), (-1, 1e-30), (-2.5, 2.5), (1.5, 1.5)]
  low = np.concatenate([low, [e[0] for e in edges]])
  high = np.concatenate([high, [e[1] for e in edges]])
  if domain[0] > -INF:  # Reflect into the domain.
    low, high = np.abs(low), np.abs(high)
    low, high = domain[0] + np.minimum(low, high), domain[0] + np.maximum(low, high)
  low, high = low.astype(dtype), np.maximum(low.astype(dtype), high.astype(dtype))
  if domain[0] > -INF:
    keep = low > domain[0]
    low, high = low[keep], high[keep]
  return low, high


def _points(low, high):
  """float64 points [K, ...] in [low, high], the ends and neighbourhoods included."""
  low, high = np.float64(low), np.float64(high)
  share = np.concatenate([np.linspace(0, 1, 81), 10.0**np.arange(-9, -2),
                          1 - 10.0**np.arange(-9, -2)])[:, None]
  inner = [np.full_like(low, c) for c in (-1, -0.75179, 0, 0.5, 0.75, 1.2784, 6)]
  return np.clip(np.concatenate([low + share * (high - low), inner]), low, high)


def _excess(name, low, high, lines, interval):
  """Greatest violation over points, each less what float64 itself may err."""
  _, reference, _ = CASES[name]
  x = _points(low, high)
  with np.errstate(all='ignore'):
    f = reference(x)
    known = np.isfinite(f)
    error = 1e-15 * np.abs(f)
    worst = -INF
    if lines is not None:
      for sign, slope, offset in ((1, *lines[:2]), (-1, *lines[2:])):
        slope, offset = np.float64(slope), np.float64(offset)
        line = slope * x + offset
        rounding = 2.0**-51 * (np.abs(slope * x) + np.abs(offset)) + error
        rounding = np.where(np.isfinite(rounding), rounding, 0)
        worst = max(worst, np.max(np.where(known, sign * (line - f) - rounding, -INF)))
    for sign, bound in ((1, interval[0]), (-1, interval[1])):
      worst = max(worst, np.max(
          np.where(known, sign * (np.float64(bound) - f) - error, -INF)))
  assert not any(np.isnan(b).any() for b in (*interval, *(lines or ())))
  return worst


_COMPILED = {}
_SIZE = 640


def _apply(name, low, high, choice=None, options=QUICK):
  """(lines, interval) by one program for each rule and dtype: compiling is slow."""
  key = name, low.dtype.name, options is None
  if key not in _COMPILED:
    rule = CASES[name][0]
    _COMPILED[key] = jax.jit(lambda a, b, c: (
        rule.lines(a, b), rule.lines(a, b, c, c), rule.interval(a, b)),
        compiler_options=options)
  padded = [np.pad(x, (0, _SIZE - len(low)), constant_values=1.5) for x in (low, high)]
  default, chosen, interval = jax.tree.map(
      lambda part: np.asarray(part)[:len(low)],
      _COMPILED[key](*padded, np.asarray(0.5 if choice is None else choice, low.dtype)))
  assert all(part.dtype == low.dtype for part in (*default, *chosen, *interval))
  return (default if choice is None else chosen), interval


@EACH
def test_sound_in_float32(name):
  for seed, choice in enumerate((None, None, None, 0.0, 0.3, 1.0)):
    low, high = _intervals(CASES[name][2], seed=seed)
    found = _apply(name, low, high, choice)
    assert _excess(name, low, high, *found) <= 0, (seed, choice)


@pytest.mark.slow
@EACH
def test_sound_in_float32_fully_optimised(name):
  for seed in range(100, 106):
    low, high = _intervals(CASES[name][2], seed=seed)
    for choice in (None, 0.0, 0.1 * seed - 10, 1.0):
      found = _apply(name, low, high, choice, options=None)
      assert _excess(name, low, high, *found) <= 0, (seed, choice)


@MOST
def test_sound_in_float64(name):
  low, high = _intervals(CASES[name][2], seed=7, size=150, dtype=np.float64)
  with jax.enable_x64(True):
    for choice in (None, 0.3):
      found = _apply(name, low, high, choice)
      assert _excess(name, low, high, *found) <= 0, choice


@EACH
def test_zero_width_is_the_value(name):
  _, reference, domain = CASES[name]
  rng = np.random.default_rng(1)
  x = (rng.choice([-1, 1], 200) * 10.0**rng.uniform(-3, 1, 200)).astype(np.float32)
  x = np.abs(x) + max(domain[0], 0) if domain[0] > -INF else x
  x = x[np.abs(x) < 0.99] if name in PARTIAL else x
  with np.errstate(all='ignore'):
    f = reference(np.float64(x))
  lines, (lower, upper) = _apply(name, x, x)
  slope = np.maximum(np.abs(lines.lower_slope), np.abs(lines.upper_slope))
  allowed = 2e-5 * (np.abs(f) + np.abs(slope * x)) + 1e-6
  for low, high in ((lower, upper), (
      np.float64(lines.lower_slope) * x + lines.lower_offset,
      np.float64(lines.upper_slope) * x + lines.upper_offset)):
    assert np.all(high - low <= allowed)


@pytest.mark.parametrize('name', sorted(set(CASES) - STEPS))
def test_close_to_the_best_line(name):
  """At the middle, where the best is the convex hull of 101 points (hence 2%)."""
  _, reference, domain = CASES[name]
  rng = np.random.default_rng(2)
  low = rng.uniform(-4, 3, 100)
  high = low + 10.0**rng.uniform(-1, 0.8, 100)
  if domain[0] > -INF:
    low, high = domain[0] + 0.2 + np.abs(low), domain[0] + 0.2 + np.abs(low) + high - low
  if name in PARTIAL:
    low, high = low / 15, np.minimum(high / 15, 0.95)
  low, high = np.float32(low), np.float32(high)
  lines, _ = _apply(name, low, high)
  middle = 0.5 * (np.float64(low) + high)
  share = np.linspace(0, 1, 101)[:, None]
  f = reference(np.float64(low) + share * (np.float64(high) - low))
  # Chords from the left half to the right one, at the middle.
  left, right = share[:50, None], share[None, 51:]
  at_middle = f[:50, None] * (right - 0.5) + f[None, 51:] * (0.5 - left)
  at_middle /= right - left
  hull_low = np.minimum(at_middle.min((0, 1)), f[50])
  hull_high = np.maximum(at_middle.max((0, 1)), f[50])
  ours_low = np.float64(lines.lower_slope) * middle + lines.lower_offset
  ours_high = np.float64(lines.upper_slope) * middle + lines.upper_offset
  size = 1e-5 * (1 + np.abs(f).max(0))
  gap = 0.02 * (hull_high - hull_low)
  assert np.all(hull_low - ours_low <= size + gap)
  assert np.all(ours_high - hull_high <= size + gap)


@MOST
def test_gradients_are_finite(name):
  rule, _, domain = CASES[name]
  low, high = _intervals(domain, seed=3, size=200)
  low = np.concatenate([low, np.float32([-1, -2, 0, -5])])  # Outside some domains.
  high = np.concatenate([high, np.float32([1, -1, 0, 1e20])])

  def total(low, high, choice):
    parts = (*rule.lines(low, high, choice, choice), *rule.lines(low, high),
             *rule.interval(low, high))
    return sum(jnp.sum(jnp.where(jnp.isfinite(p), p * 1e-6, 0)) for p in parts)
  gradients = jax.jit(jax.grad(total, (0, 1, 2)), compiler_options=QUICK)
  for gradient in gradients(low, high, np.full_like(low, 0.4)):
    assert not np.isnan(gradient).any()


@pytest.mark.parametrize('name', ['tanh', 'exp', 'gelu', 'relu'])
def test_gradients_match_differences(name):
  rule, *_ = CASES[name]
  with jax.enable_x64(True):
    low, high = jnp.array([-1.3, -2.0, 0.4]), jnp.array([1.7, 0.7, 2.0])
    total = lambda low, high: sum(
        jnp.sum(p * w) for p, w in zip(rule.lines(low, high), (1.0, 2.0, 3.0, 0.5)))
    both = jax.jit(jax.value_and_grad(total, (0, 1)), compiler_options=QUICK)
    _, grads = both(low, high)
    for i in range(3):
      step = jnp.zeros(3).at[i].set(1e-5)
      for j, (dl, dh) in enumerate(((step, 0 * step), (0 * step, step))):
        wanted = (both(low + dl, high + dh)[0] - both(low - dl, high - dh)[0]) / 2e-5
        np.testing.assert_allclose(grads[j][i], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('name', ['relu', 'tanh', 'gelu'])
def test_vmap_and_shapes(name):
  rule, _, domain = CASES[name]
  low, high = (x[:24].reshape(2, 3, 4) for x in _intervals(domain, seed=5))
  chosen = lambda a, b: rule.lines(a, b, np.float32(0.5), np.full((4,), 0.5, np.float32))
  whole = jax.jit(chosen, compiler_options=QUICK)(low, high)
  mapped = jax.jit(jax.vmap(chosen), compiler_options=QUICK)(low, high)
  for a, b in zip(whole, mapped):
    assert a.shape == low.shape
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(st.sampled_from(sorted(CASES)), st.lists(
    st.tuples(*2 * [st.floats(-2.0**99, 2.0**99, width=32, allow_subnormal=False)]),
    min_size=8, max_size=8))
def test_sound_wherever_hypothesis_looks(name, pairs):
  low, high = np.sort(np.float32(pairs), axis=1).T
  lines, interval = _apply(name, low, high)
  keep = low > CASES[name][2][0]
  if keep.any():
    kept = lambda parts: [part[keep] for part in parts]
    assert _excess(name, low[keep], high[keep], kept(lines), kept(interval)) <= 0


@pytest.mark.parametrize('name, low, high', [
    ('log', -1, 1), ('log', 0, 1), ('log1p', -1, 1), ('sqrt', -1e-6, 1),
    ('rsqrt', 0, 1), ('reciprocal', -1, 1), ('reciprocal', 0, 1),
    ('integer_pow -2', -1, 2), ('integer_pow -3', -1, 0), ('power 1.5', -1, 1),
    ('power -2.75', 0, 1)])
def test_undefined_is_vacuous(name, low, high):
  lines, (lower, upper) = _apply(name, np.float32([low]), np.float32([high]))
  assert upper == INF and lines.upper_offset == INF and lines.upper_slope == 0
  # x**-2 >= 0 would do as well.
  assert lower == -INF and lines.lower_offset == -INF and lines.lower_slope == 0


@pytest.mark.parametrize('name', ['reciprocal', 'integer_pow -2', 'integer_pow -3'])
def test_negative_side(name):
  low, high = (-x[::-1] for x in reversed(_intervals((0, INF), seed=4)))
  for choice in (None, 0.0, 1.0):
    assert _excess(name, low, high, *_apply(name, low, high, choice)) <= 0


def test_sqrt_at_zero():
  low, high = np.zeros(3, np.float32), np.float32([0, 1e-20, 4])
  lines, interval = _apply('sqrt', low, high)
  assert _excess('sqrt', low, high, lines, interval) <= 0
  assert np.isfinite(lines.upper_slope).all()
  np.testing.assert_allclose(lines.lower_slope[2], 0.5, rtol=1e-6)


def test_relu_lines_are_the_triangle():
  lines, _ = _apply('relu', *np.float32([[-1, -3, 1, -2], [3, 1, 2, -1]]))
  np.testing.assert_array_equal(lines.lower_slope, [1, 0, 1, 0])
  np.testing.assert_array_equal(lines.lower_offset, 0)
  np.testing.assert_allclose(lines.upper_slope, [0.75, 0.25, 1, 0], rtol=1e-6)
  np.testing.assert_allclose(lines.upper_offset, [0.75, 0.75, 0, 0], rtol=2e-6)
  chosen, _ = _apply('relu', *np.float32([[-1], [3]]), 0.3)
  np.testing.assert_allclose(chosen.lower_slope, 0.3, rtol=1e-6)


def test_tanh_lines_touch():
  """Tangent from (-1, tanh(-1)): the root of its definition, by Newton in float64."""
  lines, _ = _apply('tanh', *np.float32([[-1], [1.2]]))
  t = 0.5
  for _ in range(50):
    bend = 1 - np.tanh(t)**2
    t -= ((np.tanh(t) - np.tanh(-1) - bend * (t + 1))
          / (2 * np.tanh(t) * bend * (t + 1)))
  np.testing.assert_allclose(lines.upper_slope, 1 - np.tanh(t)**2, rtol=1e-4)
  np.testing.assert_allclose(lines.upper_offset - lines.upper_slope, np.tanh(-1),
                             atol=1e-5)


def _boxes(rng, size):
  low = rng.normal(size=(2, size)) * 10.0**rng.uniform(-4, 4, (2, size))
  width = 10.0**rng.uniform(-5, 4, (2, size))
  width[:, ::7] = 0
  return np.float32(low), np.maximum(np.float32(low), np.float32(low + width))


@pytest.mark.parametrize('name, reference', [
    ('mul', np.multiply), ('max', np.maximum), ('min', np.minimum)])
@pytest.mark.parametrize('choice', [None, 0.0, 0.3, 1.0])
def test_binary_sound_and_tight(name, reference, choice):
  rng = np.random.default_rng(6)
  (lx, ly), (ux, uy) = _boxes(rng, 2000)
  rule = ew.BINARY[name]
  lines = jax.jit(rule.lines)(lx, ux, ly, uy, choice, choice)
  lower, upper = rule.interval(lx, ux, ly, uy)
  share = rng.uniform(size=(2, 40, 1))
  share[0, :4, 0], share[1, :4, 0] = (0, 0, 1, 1), (0, 1, 0, 1)
  lx, ux, ly, uy = map(np.float64, (lx, ux, ly, uy))
  x = np.clip(lx + share[0] * (ux - lx), lx, ux)
  y = np.clip(ly + share[1] * (uy - ly), ly, uy)
  f = reference(x, y)
  assert np.all(np.float64(lower) <= f) and np.all(f <= np.float64(upper))
  heights = []
  for sign, slopes, offset in ((1, *lines[:2]), (-1, *lines[2:])):
    terms = [np.float64(slopes[0]) * x, np.float64(slopes[1]) * y,
             np.broadcast_to(np.float64(offset), x.shape)]
    rounding = 2.0**-50 * (sum(map(np.abs, terms)) + np.abs(f))
    assert np.all(sign * (sum(terms) - f) <= rounding)
    heights.append(np.float64(slopes[0]) * (lx + ux) / 2
                   + np.float64(slopes[1]) * (ly + uy) / 2 + offset)
  size = np.maximum(abs(lx), abs(ux)), np.maximum(abs(ly), abs(uy))
  if name == 'mul':  # McCormick is the convex hull.
    wanted = (lx * uy + ux * ly) / 2, (lx * ly + ux * uy) / 2
    for height, hull in zip(heights, wanted):
      assert np.all(np.abs(height - hull) <= 5e-6 * size[0] * size[1] + 1e-30)
  else:
    flat = (ux == lx) & (uy == ly)
    assert np.all((heights[1] - heights[0])[flat] <= 1e-5 * (size[0] + size[1])[flat])


@pytest.mark.parametrize('axes', [(1,), (0, 2), (-1,), (0, 1, 2)])
@pytest.mark.parametrize('name', ['max', 'min'])
def test_reduce_sound_and_no_worse_than_constant(axes, name):
  rng = np.random.default_rng(8)
  reduce = getattr(np, name)
  relax = jax.jit(lambda a, b: getattr(ew, f'reduce_{name}_lines')(a, b, axes))
  for scale in (0, 1e-3, 1, 1e3):
    low = np.float32(rng.normal(size=(4, 3, 5)))
    high = np.maximum(low, np.float32(low + scale * rng.uniform(size=low.shape)))
    lines = ew.Lines(*(np.float64(p) for p in relax(low, high)))
    assert lines.lower_slope.shape == low.shape
    for k in range(60):
      share = rng.uniform(size=low.shape) if k > 20 else rng.integers(0, 2, low.shape)
      x = np.clip(np.float64(low) + share * (np.float64(high) - low), low, high)
      f = reduce(x, axis=axes)
      below = np.sum(lines.lower_slope * x, axis=axes) + lines.lower_offset
      above = np.sum(lines.upper_slope * x, axis=axes) + lines.upper_offset
      assert np.all(below <= f + 1e-14) and np.all(f <= above + 1e-14)
      if name == 'max':
        assert np.all(above <= np.max(high, axis=axes) * (1 + 1e-6) + 2e-5)
    if scale == 0:
      np.testing.assert_allclose(below, f, rtol=1e-6)
      np.testing.assert_allclose(above, f, rtol=1e-6)
