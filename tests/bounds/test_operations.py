"""What people write, against the same functions of NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.bounds import reading

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
  huge = 'norm' not in name
  check(fn, reference, center, points, SCALES if huge else SCALES[:4])


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
