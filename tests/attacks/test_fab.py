"""FAB: the nearest adversarial images of classifiers for which they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rkd_jax import attacks

pytestmark = pytest.mark.usefixtures('quick_compilation')
B, D, K = 8, 10, 4
RNG = np.random.default_rng(3)
WEIGHTS = RNG.normal(size=(D, K)).astype(np.float32)
IMAGES = RNG.uniform(size=(B, D)).astype(np.float32)
LABELS = np.argmax(IMAGES @ WEIGHTS, axis=1)


def linear(images):
  return images @ jnp.asarray(WEIGHTS)


def least_distance(image, label, norm, targets=None):
  """The least norm of an offset to any (or one) other class within the box, by an LP;
  'l2' by minimising a quadratic."""
  image, found = image.astype(np.float64), np.inf
  for rival in range(K) if targets is None else [targets]:
    if rival == label:
      continue
    w = (WEIGHTS[:, label] - WEIGHTS[:, rival]).astype(np.float64)
    bounds = [*zip(-image, 1 - image)]
    if norm == 'l2':
      start = np.clip(-w * 10, -image, 1 - image)  # Far on the other side.
      result = optimize.minimize(
          lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=bounds, method='SLSQP',
          constraints={'type': 'ineq', 'fun': lambda d, w=w: -w @ (image + d),
                       'jac': lambda d, w=w: -w}, options={'ftol': 1e-12, 'maxiter': 500})
      size = np.sqrt(result.fun)
    else:
      extra = 1 if norm == 'linf' else D
      sizes = np.ones((D, 1)) if norm == 'linf' else np.eye(D)
      rows = np.block([[np.eye(D), -sizes], [-np.eye(D), -sizes]])
      result = optimize.linprog(
          np.r_[np.zeros(D), np.ones(extra)],
          A_ub=np.r_[rows, np.r_[w, np.zeros(extra)][None]],
          b_ub=np.r_[np.zeros(2 * D), -w @ image], bounds=[*bounds, *[(0, None)] * extra])
      size = result.fun
    if result.success:
      found = min(found, size)
  return found


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('targeted', [False, True])
def test_least_distance_of_a_linear_classifier(norm, targeted):
  order = np.argsort(-(IMAGES @ WEIGHTS), axis=1)
  targets = order[:, 1] if targeted else None
  found = jax.jit(lambda x: attacks.fab(
      linear, x, LABELS, key=jax.random.key(0), norm=norm, targets=targets,
      steps=60))(IMAGES)
  got = np.asarray(found.distance)
  assert np.isfinite(got).all()
  assert (np.argmax(found.images @ WEIGHTS, axis=1) != LABELS).all()
  assert found.images.min() >= 0 and found.images.max() <= 1
  size = np.linalg.norm(np.asarray(found.images, np.float64) - IMAGES, axis=1,
                        ord={'linf': np.inf, 'l2': 2, 'l1': 1}[norm])
  np.testing.assert_allclose(got, size, rtol=1e-5)
  every = np.array([least_distance(*pair, norm) for pair in zip(IMAGES, LABELS)])
  assert (got >= every * (1 - 1e-4)).all()  # Nothing is nearer than the optimum.
  best = every if not targeted else np.array([
      least_distance(*triple[:2], norm, triple[2])
      for triple in zip(IMAGES, LABELS, targets)])
  assert (got <= 1.02 * best).all()


def test_what_was_found_is_kept_by_more_restarts():
  few, many = (jax.jit(lambda x, r=r: attacks.fab(
      lambda x: jnp.tanh(3 * linear(x)), x, LABELS, key=jax.random.key(1), norm='l2',
      steps=5, restarts=r))(IMAGES).distance for r in (1, 3))
  assert (np.asarray(many) <= np.asarray(few)).all()


def test_nothing_found():
  """A constant classifier has no other class: the clean images, at distance inf."""
  constant = lambda x: jnp.array([[1.0, 0, 0, 0]]) + 0 * x[:, :4]
  found = attacks.fab(constant, IMAGES, np.zeros(B, int), key=jax.random.key(0), steps=3)
  np.testing.assert_array_equal(found.images, IMAGES)
  assert np.isinf(found.distance).all()


@pytest.mark.slow
def test_least_distance_of_a_relu_network():
  """Against the exact least distance: bisection over branch and bound's verdicts."""
  from rkd_jax import bounds
  rng = np.random.default_rng(3)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0]**0.5, jnp.float32)
  first, second, head = draw(6, 10), draw(10, 10), draw(10, 4)

  def fn(x):
    hidden = jnp.maximum((x - 0.5) @ (3 * first), 0)
    return jnp.maximum(hidden @ second, 0) @ head

  images = rng.uniform(size=(12, 6)).astype(np.float32)
  labels = np.argmax(fn(images), axis=1)
  low, high = np.zeros(len(images)), np.ones(len(images))
  for _ in range(10):
    radius = (low + high) / 2
    ball = bounds.box(jnp.maximum(images - radius[:, None], 0.0).astype(jnp.float32),
                      jnp.minimum(images + radius[:, None], 1.0).astype(jnp.float32))
    status = np.asarray(bounds.verify(
        fn, ball, bounds.margins(jnp.asarray(labels), 4), timeout_s=20.0).status)
    low = np.where(status == 'verified', radius, low)
    high = np.where(status == 'falsified', radius, high)
  reached = high < 1  # Some images keep their class in the whole box.
  exact = high - low < 2e-3  # Elsewhere a margin was within rounding of zero.
  assert (reached & exact).sum() >= 6
  near = jax.jit(lambda x: attacks.fab(
      fn, x, labels, key=jax.random.key(0), steps=100, restarts=5))(images)
  distance = np.asarray(near.distance)
  assert (distance >= low - 1e-5).all()
  assert (distance <= 1.02 * high + 1e-3)[reached & exact].all()
