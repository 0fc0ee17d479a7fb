"""Auto-PGD in the L1 norm, step by step against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rkd_jax.attacks import apgd_l1, ball, objectives
from rkd_jax.attacks.apgd import search
from rkd_jax.attacks.probe import gradient_probe

B, D, H, K = 5, 40, 6, 4
RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(size=(D, H)), RNG.normal(size=(H, K)) * 2
IMAGES = RNG.uniform(size=(B, D)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1])


def mlp(images):
  hidden = jnp.tanh((images - 0.5) @ jnp.asarray(W1, jnp.float32) / 2)
  return hidden @ jnp.asarray(W2, jnp.float32)


def by_hand(point, label):
  """Cross-entropy and its gradient, from the chain rule."""
  hidden = np.tanh((point - 0.5) @ W1 / 2)
  logits = hidden @ W2
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  back = W2 @ (probs - np.eye(K)[label]) * (1 - hidden**2)
  return -np.log(probs[label]), W1 @ back / 2


def project_by_hand(point, clean, radius):
  """Nearest point of the L1 ball cut with the box, by a root of the dual."""
  room = np.where(point > clean, 1 - clean, clean)
  move = lambda t: np.clip(np.abs(point - clean) - t, 0, room)
  t = 0.0
  if move(0.0).sum() > radius:
    t = optimize.brentq(lambda t: move(t).sum() - radius, 0, np.abs(point - clean).max(),
                        xtol=1e-14)
  return clean + np.sign(point - clean) * move(t)


def ascent_by_hand(start, clean, label, radius, steps):
  """Best value, best point and how often the ascent began anew from it."""
  support_of = lambda point: (np.abs(point - clean) > 1e-9).sum()
  every = max(int(0.04 * steps + 1e-3), 1)
  point, size, anew = start.astype(np.float64), radius, 0
  value, gradient = by_hand(point, label)
  best = value, point, gradient
  support = support_of(point)
  moved = support / 1.5
  for k in range(1, steps + 1):
    count = max(int(np.floor(moved)), 1)
    sign = np.zeros(D)
    top = np.argsort(-np.abs(gradient))[:count]
    sign[top] = np.sign(gradient[top])
    point = project_by_hand(point + size * sign / count, clean, radius)
    value, gradient = by_hand(point, label)
    if value > best[0]:
      best = value, point, gradient
    if k % every == 0:
      now = support_of(best[1])
      if now < 0.95 * support:
        size, (_, point, gradient), anew = radius, best, anew + 1
      else:
        size = max(size / 1.5, radius / 10)
      moved, support = now / 1.5, now
  return best[0], best[1], anew


@pytest.mark.parametrize('radius', [1.5, 6.0])
def test_ascent(radius):
  steps = 6
  rng = np.random.default_rng(5)
  start = np.stack([project_by_hand(a, b, radius) for a, b in zip(
      rng.normal(size=(B, D)) + IMAGES, IMAGES.astype(np.float64))]).astype(np.float32)
  see = gradient_probe(mlp, lambda z: objectives.cross_entropy(z, LABELS), LABELS, None,
                       0)
  found = jax.jit(lambda x: apgd_l1._ascend(
      see, jnp.asarray(IMAGES), x, radius, steps, 0, False))(
          jnp.asarray(start))
  began = 0
  for b in range(B):
    value, point, anew = ascent_by_hand(
        start[b], IMAGES[b].astype(np.float64), LABELS[b], radius, steps)
    np.testing.assert_allclose(found.value[b], value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.best[b], point, atol=1e-3)
    began += anew
  assert began > 0  # The sparsity fell, so the step size began anew.


def test_three_radii():
  """3 eps, 2 eps and eps, each from the best point of the one before; no other start."""
  eps, steps = 0.8, 10
  keys = jax.random.split(jax.random.key(2), B)
  clean = IMAGES.astype(np.float64)
  point = list(np.asarray(
      ball.random_start(jnp.asarray(IMAGES), keys, eps=3 * eps, norm='l1'), np.float64))
  value = np.zeros(B)
  for radius, count in ((3 * eps, 3), (2 * eps, 3), (eps, 4)):
    for b in range(B):
      start = project_by_hand(point[b], clean[b], radius)
      value[b], point[b], _ = ascent_by_hand(start, clean[b], LABELS[b], radius, count)
  found, values = jax.jit(lambda x: search(
      mlp, x, jnp.asarray(LABELS), keys, eps=eps, norm='l1', loss='ce', steps=steps,
      until_broken=False))(jnp.asarray(IMAGES))
  np.testing.assert_allclose(values, value, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.images, point, atol=1e-3)


def test_every_evaluation_of_the_larger_balls_is_paid_for():
  """Counted while it runs; an image that breaks in a larger ball is not yet broken."""
  calls = []

  def counted(images):
    jax.debug.callback(lambda: calls.append(1))
    return mlp(images)

  right = np.argmax(mlp(IMAGES), axis=1)
  keys = jax.random.split(jax.random.key(0), B)
  run = lambda eps: search(counted, jnp.asarray(IMAGES), jnp.asarray(right), keys,
                           eps=eps, norm='l1', loss='ce', steps=20)[0]
  for eps in (0.01, 2.5):
    calls.clear()
    found = run(eps)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(calls) == int(np.asarray(found.queries).max())
    # Balls of 3 eps and 2 eps: 6 steps and a start each, then at least a start.
    assert (found.queries >= 7 + 7 + 1).all()
    np.testing.assert_array_equal(found.queries, found.gradients)
    if eps == 0.01:
      assert not found.broken.any() and (found.queries == 23).all()
    else:
      assert found.broken.any()
