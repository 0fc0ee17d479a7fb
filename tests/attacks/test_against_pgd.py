"""AutoAttack finds what PGD with many steps and restarts finds, image by image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rkd_jax import attacks
from rkd_jax.data import digits

EPS, HIDDEN, K = 0.1, 32, 10


def mlp(params, images):
  hidden = jax.nn.relu(images.reshape(len(images), -1) @ params['w1'] + params['b1'])
  return hidden @ params['w2'] + params['b2']


def trained(images, labels, steps=300):
  """Parameters after adversarial training, by gradient descent on all images."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0]**0.5, jnp.float32)
  params = {'w1': draw(64, HIDDEN), 'b1': jnp.zeros(HIDDEN),
            'w2': draw(HIDDEN, K), 'b2': jnp.zeros(K)}

  def step(params, key):
    adv = attacks.pgd(functools.partial(mlp, params), images, labels, key=key, eps=EPS,
                      step_size=EPS / 2, steps=4)
    loss = lambda params: jnp.mean(attacks.cross_entropy(mlp(params, adv), labels))
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params)), None

  return jax.jit(lambda params: lax.scan(
      step, params, jax.random.split(jax.random.key(1), steps))[0])(params)


def margin_by_hand(params, images, labels):
  """Right logit less the greatest other one, float64[N]."""
  w = {name: np.asarray(value, np.float64) for name, value in params.items()}
  hidden = np.maximum(images.reshape(len(images), -1).astype(np.float64) @ w['w1']
                      + w['b1'], 0)
  logits = hidden @ w['w2'] + w['b2']
  rows = np.arange(len(labels))
  right = logits[rows, labels]
  logits[rows, labels] = -np.inf
  return right - logits.max(axis=1)


@pytest.mark.slow
def test_not_weaker_than_pgd_100_with_10_restarts():
  """On the 359 test digits; a broken image counts by its margin in float64."""
  data = digits.read()
  scale = lambda split: (split.image / np.float32(255), np.asarray(split.label))
  params = trained(*scale(data.train))
  fn = functools.partial(mlp, params)
  images, labels = scale(data.test)
  by_pgd = jax.jit(lambda: attacks.pgd(
      fn, images, labels, key=jax.random.key(2), eps=EPS, step_size=EPS / 10, steps=100,
      restarts=10))()
  found = attacks.autoattack(fn, images, labels, key=jax.random.key(3), eps=EPS)
  clean = margin_by_hand(params, images, labels) > 0
  after_pgd = margin_by_hand(params, np.asarray(by_pgd), labels) > 0
  after_aa = margin_by_hand(params, found.images, labels) > 0
  assert 0.85 < clean.mean() and 0.4 < after_pgd.mean() < clean.mean() - 0.1
  np.testing.assert_array_equal(found.survived, after_aa)
  offset = np.abs(found.images.astype(np.float64) - images)
  assert offset.max() <= np.float32(EPS) * (1 + 1e-6)
  missed = np.flatnonzero(after_aa & ~after_pgd)
  assert after_aa.sum() <= after_pgd.sum() and len(missed) <= 1, missed
