"""Random programs stay within their bounds, and the fuzz notices if one does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from benchmarks.fuzz import check, programs, reference, regions, templates
from rkd_jax import bounds
from rkd_jax.bounds import elementwise

pytestmark = pytest.mark.usefixtures('quick_compilation')
Real = np.longdouble


def real(fn, *args):
  """`fn` in real arithmetic."""
  abstract = [jax.ShapeDtypeStruct(np.shape(a), jnp.float32) for a in args]
  return reference.evaluate(jax.make_jaxpr(fn)(*abstract), *args)[0]


@pytest.mark.parametrize('first', [256 * check.CASES, 502 * check.CASES])
def test_random_programs(first):
  tally = check.run(0, first, 40)
  assert not tally.failures, '\n\n'.join(f.text for f in tally.failures)
  assert tally.programs == 40 and tally.samples > 50_000
  assert tally.finite > 0.5 * tally.outputs


@pytest.mark.slow
def test_random_programs_of_every_rule():
  tally = check.run(1, 0, 3000)
  assert not tally.failures, '\n\n'.join(f.text for f in tally.failures)
  assert set(elementwise.RULES) | set(elementwise.BINARY) <= set(tally.rules)


def test_reference_has_no_overflow_nor_underflow():
  x = np.array([[1e-30, 100.0, -100.0]], Real)
  found = real(lambda x: jnp.exp(x) * 1e-30, x)
  np.testing.assert_allclose(found, [[1e-30, np.exp(Real(100)) * np.float32(1e-30),
                                      np.exp(Real(-100)) * np.float32(1e-30)]])
  tiny = real(lambda x: jnp.square(jnp.square(x)) * 1e30 * 1e30, x)
  assert float(tiny[0, 0]) == pytest.approx(1e-60, rel=1e-6)


@pytest.mark.parametrize('fn', [
    lambda x: 1 / x, jnp.log, lambda x: jnp.where(1 / x > 0, 1., 2.),
    lambda x: jnp.sort(jnp.stack([x[:, 0], 1 / x[:, 0]], 1), axis=1)])
def test_reference_has_no_value_where_none_is(fn):
  assert np.isnan(real(fn, np.zeros((1, 1), Real))).all()


def test_reference_of_equations_that_are_more_than_elementwise():
  """Against float64 definitions: SciPy's, NumPy's, and sums written out."""
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(5, 4)), rng.normal(size=(4, 4))
  image, kernel = rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(2, 2, 2, 3))
  padded = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))
  conv = sum(padded[:, i:i + 3, j:j + 4] @ kernel[i, j] for i in (0, 1) for j in (0, 1))
  pairs = [
      (real(lambda x, w: x @ w, x, w), x @ w),
      (real(jax.nn.softmax, x), scipy.special.softmax(x, axis=1)),
      (real(lambda x: jax.nn.logsumexp(x, axis=1), x),
       scipy.special.logsumexp(x, axis=1)),
      (real(lambda x, k: jax.lax.conv_general_dilated(
          x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
            image, kernel), conv),
      (real(lambda x: jax.lax.reduce_window(
          x, -jnp.inf, jax.lax.max, (1, 2), (1, 1), 'VALID'), x),
       np.maximum(x[:, 1:], x[:, :-1])),
      (real(lambda x: jnp.sort(x, axis=1), x), np.sort(x, axis=1)),
      (real(lambda x: jax.lax.top_k(x, 2)[0], x), np.sort(x, axis=1)[:, :1:-1]),
      (real(lambda x: x[:, jnp.array([2, 0, 2])], x), x[:, [2, 0, 2]]),
      (real(lambda x: x.at[:, 1].add(3.).at[:, 0].set(2.), x),
       np.stack([np.full(5, 2.), x[:, 1] + 3, x[:, 2], x[:, 3]], 1)),
      (real(lambda x: jnp.cumsum(x, axis=1), x), np.cumsum(x, axis=1)),
      (real(lambda x: jax.lax.fori_loop(0, 3, lambda _, h: h @ h.T @ h, x), x),
       functools.reduce(lambda h, _: h @ h.T @ h, range(3), x)),
      (real(lambda x: jnp.pad(x, ((0, 0), (1, 1)), constant_values=7.), x),
       np.pad(x, ((0, 0), (1, 1)), constant_values=7.))]
  for found, want in pairs:
    np.testing.assert_allclose(found, want, rtol=1e-12)


@pytest.mark.slow
def test_reference_of_every_expression():
  """Against the same text in float64 by JAX, at numbers around 1."""
  for table in [t for t, _ in templates.KINDS.values()]:
    for template in table:
      rng = np.random.default_rng(0)
      step = programs._fill(rng, template, 4, 0)
      weights = programs.weigh(rng, step, 1.0)
      x, e = rng.uniform(0.1, 2, (2, 3, 4)).astype(np.float32)
      try:
        found = real(lambda x, e, step=step, weights=weights: step(weights, x, e), x, e)
      except TypeError:  # For other widths.
        continue
      with jax.enable_x64(True):
        as_double = lambda a: jnp.asarray(a, jnp.float64)
        want = step(jax.tree.map(as_double, weights), as_double(x), as_double(e))
      np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-30, err_msg=template)


@pytest.mark.parametrize('kind', regions.KINDS)
def test_points_are_members(kind):
  """By the definition of each set, in exact rational arithmetic for its centre."""
  for seed in range(20):
    rng = np.random.default_rng(seed)
    region = regions.draw(rng, kind, (3, 4))
    x = regions.points(rng, region, 50)
    assert (x >= region.lower).all() and (x <= region.upper).all()
    if kind != 'box':
      ord_ = {'linf_ball': np.inf, 'l2_ball': 2, 'l1_ball': 1}[kind]
      norm = np.linalg.norm(x - region.center.astype(Real), ord_, axis=2)
      assert (norm <= region.eps).all()
    finite = np.isfinite(region.upper) & np.isfinite(region.lower)
    if kind == 'box' and finite.all():  # Corners are among them.
      assert (x == region.upper).any(0).all() and (x == region.lower).any(0).all()


def chain(text, method, mixes=False):
  """A chain of one step with this method."""
  found = check.Chain(0, 0)
  step = programs.Step(text, {})
  found.program = programs.Program((step,), (3,), mixes)
  found.methods, found.kind, found.rows = (method,), 'linf_ball', False
  return found


def damaged(change):
  def method(fn, ball, spec):
    del spec
    found = bounds.ibp(fn, ball)
    return change(found.lower, found.upper)
  return method


@pytest.mark.parametrize('kind,change', [
    (None, lambda low, high: (low, high)),
    ('violation', lambda low, high: (low, high - 0.01 * (high - low))),
    ('violation', lambda low, high: (low + 0.01 * (high - low), high)),
    ('violation', lambda low, high: (low, jnp.minimum(high, jnp.finfo(low.dtype).max))),
    ('NaN', lambda low, high: (low, jnp.where(jnp.isinf(high), jnp.nan, high))),
    ('crash', lambda low, high: low.no_such_attribute)])
def test_faults_are_found(monkeypatch, kind, change):
  monkeypatch.setitem(check.METHODS, 'ibp', damaged(change))
  one = chain('jax.nn.relu(x)', 'ibp')
  found = []
  for number in range(check.CASES):
    found += check._case(one, number, check.Tally())
    if any(f.kind == kind for f in found):
      break
  assert bool(found) == bool(kind)
  if kind:
    text = next(f.text for f in found if f.kind == kind)
    exec(text, {'jax': jax, 'jnp': jnp, 'np': np, 'B': bounds})  # It is Python.


def test_functions_of_a_whole_batch_are_refused():
  tally = check.Tally()
  for text in templates.MIXING:
    one = chain(text.replace('$v', '2.'), 'ibp', mixes=True)
    assert list(check._case(one, 0, tally)) == [], text
  assert sum(tally.refused.values()) == len(templates.MIXING)
