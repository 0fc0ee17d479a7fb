"""What people write, against the same functions of NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.bounds import reading, sorting
from rkd_jax.errors import UnsupportedPrimitiveError

QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
METHODS = ('ibp', 'crown', 'forward')
# Centres, radii: ordinary, of zero width, tiny, huge.
SCALES = ((1.0, 0.3), (1.0, 0.0), (1e-30, 0.5), (1e-38, 2.0), (1e15, 0.1), (1e38, 0.5))


def check(fn, reference, center, points, scales=SCALES, methods=METHODS, shift=0.0):
  """All methods by one compiled program, at several scales; their bounds at the first.

  Bounds may be infinite where the numbers are huge, never NaN. What float64 itself may
  err is 1e-12 of the result.

  Args:
    fn: [B, n] -> [B, K].
    reference: the same function in float64.
    center: [B, n].
    points: the fixture.
    scales: (factor of the centre, radius in units of it).
    methods: names of methods.
    shift: added to everything after scaling, to stay in the domain.
  """
  every = jax.jit(lambda ball: [getattr(bounds, m)(fn, ball) for m in methods],
                  compiler_options=QUICK)
  first = None
  for scale, radius in scales:
    at = np.float32(np.asarray(center) * scale + shift)
    ball = bounds.linf_ball(at, np.float32(radius * scale))
    found = [(np.asarray(lower), np.asarray(upper)) for lower, upper, *_ in every(ball)]
    first = first or found
    x = points(ball, 60)
    with np.errstate(all='ignore'):
      y = np.stack([reference(one) for one in x])
    size = np.where(np.isfinite(y), np.abs(y), 0)
    for method, (lower, upper) in zip(methods, found):
      assert not np.isnan(lower).any() and not np.isnan(upper).any(), (method, scale)
      with np.errstate(invalid='ignore'):  # inf - inf.
        excess = np.maximum(lower - y, y - upper) - 1e-12 * size
      assert not np.any(excess > 0), (method, scale, np.nanmax(excess))
      if radius == 0:
        width = np.float64(upper) - lower
        assert np.all(width <= 1e-4 * (1 + size.max())), (method, width)
  return first


def widths(found):
  return [float(np.max(np.float64(upper) - lower)) for lower, upper in found]


CENTER = np.random.default_rng(0).normal(size=(2, 4))
AWAY = np.abs(CENTER) + 0.5
COLUMN = {'axis': -1, 'keepdims': True}

POWERS = {
    'x * x': (lambda x: x * x, np.square, CENTER),
    'x * x * x': (lambda x: x * x * x, lambda x: x**3, CENTER),
    '(-2 x) * x * x / 3 * x': (
        lambda x: (-2 * x) * x * x / 3 * x, lambda x: -2 / 3 * x**4, CENTER),
    'x ** 0.5': (lambda x: x**0.5, np.sqrt, AWAY),
    'power 2.': (lambda x: jnp.power(x, 2.0), np.square, CENTER),
    'power 3.': (lambda x: jnp.power(x, 3.0), lambda x: x**3, CENTER),
    'power 2.5': (lambda x: jnp.power(x, 2.5), lambda x: x**2.5, AWAY),
    'cbrt': (jnp.cbrt, np.cbrt, CENTER),
    'bounded exponent': (lambda x: x[:, :2]**x[:, 2:], lambda x: x[:, :2]**x[:, 2:],
                         AWAY),
    'constant base': (lambda x: 2.5**x, lambda x: 2.5**x, CENTER),
    'an exponent each': (
        lambda x: x**jnp.array([1.0, 2.0, 0.5, -1.0]),
        lambda x: x**np.array([1.0, 2.0, 0.5, -1.0]), AWAY),
    'norm': (lambda x: jnp.linalg.norm(x, **COLUMN),
             lambda x: np.linalg.norm(x, **COLUMN), CENTER),
    'norm 1': (lambda x: jnp.linalg.norm(x, 1, **COLUMN),
               lambda x: np.linalg.norm(x, 1, **COLUMN), CENTER),
    'norm inf': (lambda x: jnp.linalg.norm(x, jnp.inf, **COLUMN),
                 lambda x: np.linalg.norm(x, np.inf, **COLUMN), CENTER),
    'norm 3': (lambda x: jnp.linalg.norm(x, 3, **COLUMN),
               lambda x: np.linalg.norm(x, 3, **COLUMN), CENTER),
}


@pytest.mark.parametrize('name', POWERS)
def test_powers(name, points):
  fn, reference, center = POWERS[name]
  methods = METHODS if name in ('x * x * x', 'cbrt') else ('ibp', 'crown')
  check(fn, reference, center, points, SCALES, methods)


def test_a_product_of_equal_factors_is_a_power():
  """x**4 is in [0, 1] on [-1, 1]; of two bounded factors it would be in [-1, 1]."""
  for fn in (lambda x: x * x * x * x, lambda x: (x * x) * (x * x), lambda x: x**2 * x**2):
    node, = reading.read(fn, bounds.linf_ball(jnp.zeros((1, 1)), 1.0)).nodes
    assert node.name == 'integer_pow' and node.params['y'] == 4


def test_a_norm_is_not_negative():
  norms = lambda x: jnp.concatenate([
      jnp.linalg.norm(x, order, **COLUMN) for order in (None, 1, 2, 3, jnp.inf)], axis=1)
  found = jax.jit(lambda ball: bounds.crown(norms, ball), compiler_options=QUICK)(
      bounds.linf_ball(jnp.zeros((1, 4)), 1.0))
  assert np.all(found.lower >= -1e-5)
  assert np.all(found.upper <= 1.0001 * np.array([2, 4, 2, 4**(1 / 3), 1]))


def test_a_traced_exponent(points):
  ball = bounds.linf_ball(jnp.float32(AWAY), 0.1)
  found = jax.jit(lambda ball, p: bounds.crown(lambda x: x**p, ball))(ball, 2.5)
  y = points(ball, 60)**2.5
  assert np.all(found.lower <= y) and np.all(y <= found.upper)
  assert np.all(found.upper - found.lower <= 1.2 * (y.max(0) - y.min(0)))


def test_a_base_that_may_be_negative_has_no_bound():
  """(-2)**3 = -8 although exp is positive."""
  ball = bounds.box(jnp.array([[-2.0, 3.0]]), jnp.array([[-2.0, 3.0]]))
  for found in jax.jit(lambda ball: [getattr(bounds, m)(
      lambda x: x[:, :1]**x[:, 1:], ball) for m in METHODS])(ball):
    assert found.lower <= -8


JUMPS = {
    'a step': (lambda x: jnp.where(x > 0, 1.0, 0.0), lambda x: np.float64(x > 0)),
    'two constants': (lambda x: jnp.where(x <= 0.3, 0.7, -2.5),
                      lambda x: np.where(x <= np.float32(0.3), 0.7, -2.5)),
    'a side is 0': (lambda x: jnp.where(x > 0, x[:, ::-1], 0.0),
                    lambda x: np.where(x > 0, x[:, ::-1], 0)),
    'both sides': (lambda x: jnp.where(x < x[:, ::-1], jnp.sin(x), x + 1),
                   lambda x: np.where(x < x[:, ::-1], np.sin(x), x + 1)),
    'as a number': (lambda x: x * (x >= 0.25), lambda x: x * (x >= 0.25)),
    'and': (lambda x: jnp.where((x > 0) & (x[:, ::-1] < 1), x, -1.0),
            lambda x: np.where((x > 0) & (x[:, ::-1] < 1), x, -1)),
    'or, not, xor': (
        lambda x: jnp.where(~(x > 0) | ((x < 1) ^ (x[:, ::-1] > 0)), x, -1.0),
        lambda x: np.where(~(x > 0) | ((x < 1) ^ (x[:, ::-1] > 0)), x, -1)),
    'all': (lambda x: jnp.where(jnp.all(x > -1, axis=1, keepdims=True), x, 0.0),
            lambda x: np.where(np.all(x > -1, axis=1, keepdims=True), x, 0)),
    'by an array': (
        lambda x: jnp.where((x > 0) & jnp.array([True, False, True, True]), 1.0, x),
        lambda x: np.where((x > 0) & np.array([True, False, True, True]), 1, x)),
    'trunc': (jnp.trunc, np.trunc),
    'hypot': (lambda x: jnp.hypot(x, 3 - jnp.abs(x)),
              lambda x: np.hypot(x, 3 - np.abs(x))),
}


@pytest.mark.parametrize('name', JUMPS)
def test_jumps(name, points):
  fn, reference = JUMPS[name]
  found = check(fn, reference, CENTER, points,
                SCALES[:4] if name in ('hypot', 'both sides') else SCALES,
                ('ibp', 'crown'))
  assert all(np.isfinite(width) for width in widths(found))


def _set(index, value):
  def reference(x):
    x = x.copy()
    x[:, index] = value(x)
    return x
  return reference


TWO = np.array([1, 2])
SPREAD = np.array([[-2.0, -0.6, 0.9, 2.0], [1.2, 0.1, -0.7, -1.9]])  # Some order decided.
ARRAYS = {
    'convolution': (
        lambda x: jax.vmap(lambda v: jnp.convolve(v[:3], v[1:]))(x),
        lambda x: np.stack([np.convolve(v[:3], v[1:]) for v in x]), CENTER),
    'strided convolution': (
        lambda x: jax.vmap(lambda v: jax.lax.conv_general_dilated(
            v.reshape(1, 4, 1), v[1:3].reshape(2, 1, 1), (2,), ((1, 1),),
            dimension_numbers=('NWC', 'WIO', 'NWC'))[0, :, 0])(x),
        lambda x: np.stack([v[2] * np.array([v[0], v[2], 0]) + v[1] * np.array(
            [0, v[1], v[3]]) for v in x]), CENTER),
    'outer': (lambda x: jnp.einsum('bi,bj->bij', x, x).reshape(len(x), -1),
              lambda x: (x[:, :, None] * x[:, None]).reshape(len(x), -1), CENTER),
    'set': (lambda x: x.at[:, 1].set(0.5), _set(1, lambda x: 0.5), CENTER),
    'set to bounded': (lambda x: x.at[:, TWO].set(2 * x[:, 2:]),
                       _set(TWO, lambda x: 2 * x[:, 2:]), CENTER),
    'set in constants': (
        lambda x: jnp.ones((len(x), 6)).at[:, 2:4].set(x[:, :2]),
        lambda x: np.concatenate([np.ones((len(x), 2)), x[:, :2], np.ones((len(x), 2))],
                                 axis=1), CENTER),
    'add, repeated': (
        lambda x: x.at[:, jnp.array([1, 1])].add(x[:, :2]),
        lambda x: x + np.array([0, 1, 0, 0]) * (x[:, :1] + x[:, 1:2]), CENTER),
    'subtract': (lambda x: x.at[:, 1].subtract(x[:, 0]),
                 _set(1, lambda x: x[:, 1] - x[:, 0]), CENTER),
    'multiply, repeated': (
        lambda x: x.at[:, jnp.array([1, 1])].multiply(x[:, 2:]),
        _set(1, lambda x: x[:, 1] * x[:, 2] * x[:, 3]), CENTER),
    'at max': (lambda x: x.at[:, 1].max(x[:, 0]),
               _set(1, lambda x: np.maximum(x[:, 1], x[:, 0])), CENTER),
    'segment sum': (
        lambda x: jax.vmap(lambda v: jax.ops.segment_sum(
            v, jnp.array([0, 1, 0, 1]), 2))(x), lambda x: x[:, :2] + x[:, 2:], CENTER),
    'sort': (lambda x: jnp.sort(x, axis=1), lambda x: np.sort(x, axis=1), SPREAD),
    'top_k': (lambda x: jax.lax.top_k(x, 2)[0], lambda x: np.sort(x)[:, :1:-1], SPREAD),
    'median': (lambda x: jnp.median(x, axis=1, keepdims=True),
               lambda x: np.median(x, axis=1, keepdims=True), SPREAD),
    'prod': (lambda x: jnp.prod(x, **COLUMN), lambda x: np.prod(x, **COLUMN), CENTER),
    'cumprod': (lambda x: jnp.cumprod(x, axis=1), lambda x: np.cumprod(x, axis=1),
                CENTER),
    'cummax': (lambda x: jax.lax.cummax(x, axis=1, reverse=True),
               lambda x: np.maximum.accumulate(x[:, ::-1], axis=1)[:, ::-1], SPREAD),
    'cummin': (lambda x: jax.lax.cummin(x, axis=1),
               lambda x: np.minimum.accumulate(x, axis=1), SPREAD),
    'cumlogsumexp': (lambda x: jax.lax.cumlogsumexp(x, axis=1),
                     lambda x: np.logaddexp.accumulate(x, axis=1), CENTER),
    'mod': (lambda x: x % 1.5, lambda x: x % 1.5, CENTER),
    'mod, negative': (lambda x: x % -1.5, lambda x: x % -1.5, CENTER),
    'fmod': (lambda x: jnp.fmod(x, jnp.array([0.3, 1.0, 2.0, 3.0])),
             lambda x: np.fmod(x, np.float64(np.float32([0.3, 1, 2, 3]))), CENTER),
    'floor_divide': (lambda x: x // 2.0, lambda x: x // 2, CENTER),
    'while': (lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1]) * c[0]), (1, x))[1],
              lambda x: 2 * np.tanh(np.tanh(x)), CENTER),
}
PRODUCTS = {'convolution', 'strided convolution', 'outer', 'multiply, repeated', 'prod',
            'cumprod'}


@pytest.mark.parametrize('name', ARRAYS)
def test_arrays(name, points):
  fn, reference, center = ARRAYS[name]
  found = check(fn, reference, center, points,
                SCALES[:4] if name in PRODUCTS else SCALES,
                METHODS if name in ('sort', 'mod', 'set') else ('ibp', 'crown'))
  assert all(np.isfinite(width) for width in widths(found))


def test_decided_orders_are_exact():
  """Lines of sorted values are the values where intervals do not meet."""
  low, high = np.float32([3, -1, 0.5, -5]), np.float32([4, 0, 2, -2])
  below, least, above, most = sorting.sort_lines(low, high, 0)
  order = np.eye(4)[[3, 1, 2, 0]]
  np.testing.assert_array_equal(below, order)
  np.testing.assert_array_equal(above, order)
  assert not np.any(least) and not np.any(most)


def test_sorted_lines():
  rng = np.random.default_rng(0)
  lines = jax.jit(lambda a, b: sorting.sort_lines(a, b, 1))
  for scale in (1e-37, 1e-3, 1, 1e30):
    low = np.float32(rng.normal(size=(30, 5)) * scale)
    width = rng.uniform(size=low.shape) * rng.integers(0, 2, (30, 1))
    high = np.float32(low + scale * width)
    low, high = (np.where(abs(x) < 2e-38, 0, x).astype(np.float32) for x in (low, high))
    below, least, above, most = (np.float64(p) for p in lines(low, high))
    for k in range(200):
      share = rng.uniform(size=low.shape) if k > 20 else rng.integers(0, 2, low.shape)
      x = np.clip(np.float64(low) + share * (np.float64(high) - low), low, high)
      y = np.sort(x, axis=1)
      rounding = 1e-14 * np.abs(x).max()
      assert np.all(np.einsum('nko,no->nk', below, x) + least <= y + rounding)
      assert np.all(np.einsum('nko,no->nk', above, x) + most >= y - rounding)


@pytest.mark.parametrize('fn, name', [
    (lambda x: jax.lax.top_k(x, 2)[1].astype(jnp.float32), 'top_k'),
    (lambda x: jnp.take_along_axis(x, jnp.argsort(x, axis=1), 1), 'sort'),
    (lambda x: x.at[:, jnp.array([1, 1])].set(x[:, :2]), 'scatter'),
    (lambda x: x.at[:, 1].apply(jnp.tanh), 'scatter'),
    (lambda x: x[:, 0:1] % x[:, 1:2], 'rem'),
])
def test_what_is_refused_is_named(fn, name):
  with pytest.raises(UnsupportedPrimitiveError, match=f"no rule for '{name}'"):
    bounds.ibp(fn, bounds.linf_ball(jnp.ones((1, 4)), 0.1))
