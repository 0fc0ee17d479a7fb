"""FAB: its steps against float64 definitions, its distances against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.attacks import hyperplane
from rkd_jax.attacks.fab import _move, fab, search
from rkd_jax.errors import ConfigError

B, D, K = 8, 20, 4
RNG = np.random.default_rng(0)
W = RNG.normal(size=(D, K)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, size=(B, D)).astype(np.float32)
CENTRE = np.float32(0.5)
NORMS = {'linf': np.inf, 'l2': 2, 'l1': 1}
DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}


def linear(images):
  return (images - CENTRE) @ W


LABELS = np.argmax((IMAGES.astype(np.float64) - 0.5) @ W, axis=1)
W1 = RNG.normal(size=(D, 10)).astype(np.float32)
W2 = RNG.normal(size=(10, K)).astype(np.float32)


def relu_net(images):
  return jax.nn.relu((images - CENTRE) @ W1) @ W2


def length(offset, norm):
  return np.linalg.norm(np.asarray(offset, np.float64), ord=NORMS[norm], axis=-1)


def by_enumeration(x, w, v, norm):
  """The least move onto `<w, z - x> + v = 0` in the box, over all sets of pixels that
  the box stops: 3 choices (free, at 0, at 1) for 'l2'; LP corners otherwise."""
  best = np.inf
  n = len(x)
  for choice in itertools.product((None, 0.0, 1.0), repeat=n):
    free = np.array([c is None for c in choice])
    z = np.array([a if c is None else c for a, c in zip(x, choice)])
    rest = v + w @ (z - x)
    if not free.any():
      options = [z] if abs(rest) < 1e-9 else []
    elif norm == 'l2':
      move = -rest * w * free / (w[free] @ w[free])
      options = [z + move]
    elif norm == 'linf':  # All free pixels move by one length, with or against w.
      move = -rest * np.sign(w) * free / np.abs(w[free]).sum()
      options = [z + move]
    else:  # One free pixel takes the rest, the others stay.
      options = []
      for i in np.flatnonzero(free):
        options.append(z - rest / w[i] * np.eye(n)[i])
    for z in options:
      if z.min() > -1e-9 and z.max() < 1 + 1e-9 and abs(w @ (z - x) + v) < 1e-9:
        best = min(best, length(z - x, norm))
  return best


@pytest.mark.parametrize('norm', NORMS)
def test_projection_by_enumeration(norm):
  """Small boxes, so that in most cases the box stops a pixel."""
  rng = np.random.default_rng(1)
  count, n = 12, 5
  x = rng.uniform(size=(count, n)).astype(np.float32)
  w = rng.normal(size=(count, n)).astype(np.float32)
  ends = np.stack([np.minimum(w * (1 - x), -w * x).sum(axis=1),
                   np.maximum(w * (1 - x), -w * x).sum(axis=1)])
  side = np.arange(count) % 2
  share = rng.uniform(0.3, 0.95, size=count)
  v = (-share * ends[side, np.arange(count)]).astype(np.float32)
  got = np.asarray(hyperplane.project(*map(jnp.asarray, (x, w, v)), norm=norm))
  assert got.min() >= 0 and got.max() <= 1
  wide = [a.astype(np.float64) for a in (got, x, w, v)]
  stopped = 0
  for z, a, b, c in zip(*wide):
    assert abs(b @ (z - a) + c) < 1e-5
    np.testing.assert_allclose(length(z - a, norm), by_enumeration(a, b, c, norm),
                               rtol=1e-5, atol=1e-6)
    stopped += bool(((z == 0) | (z == 1)).any())
  assert stopped > count / 3


def least_linear(norm):
  """`min_k |f_k| / ||w_y - w_k||_q`, the distance where the box is far."""
  logits = (IMAGES.astype(np.float64) - 0.5) @ W
  out = []
  for x, y in zip(logits, LABELS):
    others = [k for k in range(K) if k != y]
    out.append(min((x[y] - x[k]) / np.linalg.norm(
        W[:, y].astype(np.float64) - W[:, k], ord=DUAL[norm]) for k in others))
  return np.array(out)


@pytest.mark.parametrize('norm', NORMS)
def test_distance_of_a_linear_classifier(norm):
  least = least_linear(norm)
  near = least < 0.25  # No pixel can leave [0, 1] on the way.
  assert near.sum() >= B // 2
  found = jax.jit(lambda x: fab(linear, x, LABELS, key=jax.random.key(0), norm=norm,
                                    steps=15))(IMAGES)
  adv, distance = np.asarray(found.images), np.asarray(found.distance)
  assert (np.argmax(linear(adv), axis=1) != LABELS).all()
  assert adv.min() >= 0 and adv.max() <= 1
  np.testing.assert_allclose(length(adv - IMAGES, norm), distance, rtol=1e-5)
  # Float32 rounds the logits: nothing is nearer than the minimum by more than that.
  assert (distance[near] >= least[near] - 1e-4).all()
  assert (distance[near] <= 1.02 * least[near] + 1e-4).all()


def test_targeted_approaches_one_class():
  targets = (LABELS + 1) % K
  found = fab(linear, IMAGES, LABELS, key=jax.random.key(0), norm='l2', steps=30,
                  targets=targets)
  logits = (IMAGES.astype(np.float64) - 0.5) @ W
  rows = np.arange(B)
  away = (W[:, LABELS] - W[:, targets]).T.astype(np.float64)
  towards = (logits[rows, LABELS] - logits[rows, targets]) / np.linalg.norm(away, axis=1)
  least = least_linear('l2')
  # On the way to the target another class may win; the target is the longest way.
  assert (found.distance >= least - 1e-4).all()
  near = towards < 0.25
  assert (np.asarray(found.distance)[near] <= 1.02 * towards[near] + 1e-4).all()


def move_by_hand(point, clean, w, v, norm):
  """Eq. 9 of the paper where the box is far: closed-form projections, float64."""
  def onto(x, value):
    if norm == 'l2':
      return -value * w / (w @ w)
    if norm == 'linf':
      return -value * np.sign(w) / np.abs(w).sum()
    i = np.argmax(np.abs(w))
    return -value / w[i] * np.eye(len(w))[i]

  here, there = onto(point, v), onto(clean, v + w @ (clean - point))
  a, b = length(here, norm), length(there, norm)
  bias = min(a / (a + b), 0.1)
  return (1 - bias) * (point + 1.05 * here) + bias * (clean + 1.05 * there)


@pytest.mark.parametrize('norm', NORMS)
def test_step(norm):
  rng = np.random.default_rng(4)
  clean = rng.uniform(0.4, 0.6, size=(B, D)).astype(np.float32)
  point = (clean + rng.uniform(-0.02, 0.02, size=(B, D))).astype(np.float32)
  w = rng.normal(size=(B, D)).astype(np.float32)
  v = rng.uniform(-0.3, 0.3, size=B).astype(np.float32)
  got = _move(*map(jnp.asarray, (point, clean, v, w)), norm)
  for z, x, c, a, b in zip(np.asarray(got), *(
      array.astype(np.float64) for array in (point, clean, w, v))):
    np.testing.assert_allclose(z, move_by_hand(x, c, a, b, norm), atol=2e-5)


@pytest.mark.parametrize('norm,eps', [('linf', 0.02), ('l2', 0.12), ('l1', 0.5)])
def test_search_in_the_ball_counted_and_the_same_for_any_batch(norm, eps):
  labels = np.argmax(relu_net(IMAGES), axis=1)
  keys = jax.random.split(jax.random.key(1), B)
  program = jax.jit(lambda x, y, k: search(
      relu_net, x, y, k, eps=eps, norm=norm, steps=12))
  found = program(IMAGES, labels, keys)
  adv = np.asarray(found.images)
  size = (np.abs(adv - IMAGES).max(axis=1) if norm == 'linf'
          else length(adv.astype(np.float64) - IMAGES, norm))
  assert (size <= np.float32(eps)).all() and adv.min() >= 0 and adv.max() <= 1
  np.testing.assert_array_equal(
      found.broken, np.argmax(relu_net(adv), axis=1) != labels)
  broken = np.asarray(found.broken)
  assert 0 < broken.sum() < B
  # Two passes a step, five for the way to the boundary; K gradients a step.
  assert (np.asarray(found.queries)[~broken] == 12 * 2 + 5).all()
  assert (np.asarray(found.gradients)[~broken] == 12 * K).all()
  assert (adv[~broken] == IMAGES[~broken]).all()
  part = np.array([6, 1, 2])
  again = program(IMAGES[part], labels[part], keys[part])
  np.testing.assert_array_equal(again.broken, broken[part])
  np.testing.assert_allclose(again.images, adv[part], atol=1e-4)


def test_forward_passes_are_those_that_are_counted():
  """Counted while it runs: a loop traces the network once, however long it is."""
  calls = []

  def counted(images):
    jax.debug.callback(lambda: calls.append(1))
    return linear(images)

  found = search(counted, jnp.asarray(IMAGES), jnp.asarray(LABELS),
                     jax.random.split(jax.random.key(1), B), eps=1e-4, norm='l2',
                     steps=4)
  jax.block_until_ready(found)
  jax.effects_barrier()
  assert len(calls) == int(np.asarray(found.queries).max()) == 4 * 2 + 5


def test_restarts_never_lengthen_and_a_wrong_image_has_distance_zero():
  labels = np.array(np.argmax(relu_net(IMAGES), axis=1))
  labels[2] = (labels[2] + 1) % K
  run = lambda restarts: fab(relu_net, IMAGES, labels, key=jax.random.key(2),
                                 norm='l2', steps=8, restarts=restarts)
  one, three = run(1), run(3)
  assert (three.distance <= one.distance).all()
  assert one.distance[2] == 0 and (one.images[2] == IMAGES[2]).all()
  assert (np.asarray(one.distance)[np.arange(B) != 2] > 0).all()


@pytest.mark.parametrize('changed,says', [
    ({'norm': 'l0'}, "unknown norm 'l0'"), ({'restarts': 0}, 'restarts'),
    ({'key': None}, 'key'), ({'eps': -1.0}, 'eps')])
def test_refused(changed, says):
  given = {'key': jax.random.key(0)} | changed
  with pytest.raises(ConfigError, match=says):
    fab(linear, IMAGES, LABELS, **given)
