"""Square: its schedule, its windows and its decisions against the paper's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.attacks.square import _exchange
from rkd_jax.attacks.windows import Window, bumps, stripes

pytestmark = pytest.mark.usefixtures('quick_compilation')
B = 4
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(B, 12, 12, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(288, 3)).astype(np.float32) / 10
LABELS = np.argmax(IMAGES.reshape(B, -1) @ WEIGHTS, axis=1)


def linear(images):
  return images.reshape(len(images), -1) @ jnp.asarray(WEIGHTS)


def bump_by_hand(height, width):
  """Eq. 2: two halves of opposite sign, each of Euclidean norm 1."""
  half = np.zeros((height, width))
  cut = height // 2
  for first, count, sign in ((0, cut, 1), (cut, height - cut, -1)):
    n = max(count, width) // 2
    part = np.zeros((count, width))
    for r in range(count):
      for s in range(width):
        m = n - max(abs(r - count // 2), abs(s - width // 2))
        part[r, s] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
    size = np.linalg.norm(part)
    half[first:first + count] = sign * part / (size or 1)
  return half


@pytest.mark.parametrize('side', [1, 2, 3, 6, 7])
def test_bumps(side):
  by_hand, turned = bump_by_hand(side, side), 0
  for row, column in ((0, 5), (1, 0), (3, 2), (5, 4)):
    window = Window(jnp.int32(row), jnp.int32(column), side, side, (12, 12))
    got = np.asarray(bumps(window, jax.random.split(jax.random.key(side), B), 'l2'))
    for image in got:
      inside = image[row:row + side, column:column + side]
      along = np.abs(inside - by_hand).max() < 1e-5
      turned += along
      assert along or np.abs(inside - by_hand.T).max() < 1e-5
      assert np.abs(image).sum() == pytest.approx(np.abs(inside).sum())
  assert turned


@pytest.mark.parametrize('norm,power', [('l2', 2), ('l1', 1)])
def test_exchange_keeps_the_radius(norm, power):
  """Algorithm 3: no mass is lost, the second window is emptied, the rest untouched.

  In L1 what moves counts twice, once a channel.
  """
  eps, side = 2.0, 4
  offset = RNG.normal(size=(B, 12, 12, 2))
  size = (np.abs(offset)**power).sum((1, 2, 3), keepdims=True)**(1 / power)
  offset = (offset / size * 0.9 * eps).astype(np.float32)
  make = lambda row, column: Window(
      jnp.int32(row), jnp.int32(column), side, side, (12, 12))
  new = np.asarray(_exchange(
      jnp.asarray(offset), make(0, 1), make(6, 3), jnp.ones((B, 2)),
      jax.random.split(jax.random.key(0), B), eps, norm), np.float64)
  rest = np.ones((12, 12), bool)
  rest[0:4, 1:5] = rest[6:10, 3:7] = False
  stays = (np.abs(offset[:, rest])**power).sum((1, 2))
  moves = (eps**power - stays) * (2 if norm == 'l1' else 1)
  np.testing.assert_allclose((np.abs(new)**power).sum((1, 2, 3)), stays + moves,
                             rtol=1e-5)
  assert (new[:, 6:10, 3:7] == 0).all()
  np.testing.assert_array_equal(new[:, rest], offset[:, rest])


def test_stripes():
  got = np.asarray(stripes(jax.random.split(jax.random.key(0), B), IMAGES.shape))
  assert set(np.unique(got)) == {-1, 1} and (got == got[:, :1]).all()
  assert np.abs(got.mean()) < 0.5 and (got[0] != got[1]).any()


@pytest.mark.parametrize('norm,eps', [('linf', 0.05), ('l2', 0.4), ('l1', 3.0)])
def test_in_the_ball_better_and_the_same_for_any_batch(norm, eps):
  keys = jax.random.split(jax.random.key(1), B)
  run = jax.jit(lambda x, y, k: attacks.square(
      linear, x, y, key=k, eps=eps, norm=norm, queries=200))
  margin = lambda x: np.asarray(attacks.margin(linear(jnp.asarray(x)), LABELS))
  adv = np.asarray(run(IMAGES, LABELS, keys))
  offset = np.abs(adv.astype(np.float64) - IMAGES).reshape(B, -1)
  size = {'linf': np.abs(adv - IMAGES).reshape(B, -1).max(1),
          'l2': np.sqrt((offset**2).sum(1)), 'l1': offset.sum(1)}[norm]
  assert (size <= np.float32(eps)).all() and adv.min() >= 0 and adv.max() <= 1
  assert (margin(adv) > margin(IMAGES) + 0.01).all()
  part = np.array([3, 0, 0, 3])
  np.testing.assert_allclose(run(IMAGES[part], LABELS[part], keys[part]), adv[part],
                             atol=1e-6)


def test_linf_finds_the_corner_of_a_linear_classifier():
  """Single pixels in the end: almost the worst case, known in closed form."""
  two = lambda x: linear(x)[:, :2]
  labels, eps = np.array([0, 1, 0, 1]), 0.01
  images = (0.3 + 0.4 * IMAGES).astype(np.float32)
  away = (WEIGHTS[:, 1] - WEIGHTS[:, 0])[None] * np.where(labels, -1, 1)[:, None]
  shift = 10.0 * np.where(labels, -1, 1)  # So that no image is ever broken.
  fn = lambda x: two(x) + jnp.asarray(np.stack([shift, 0 * shift], 1), jnp.float32)
  adv = jax.jit(lambda x: attacks.square(
      fn, x, labels, key=jax.random.key(0), eps=eps, queries=3000))(images)
  gained = ((np.asarray(adv, np.float64) - images).reshape(B, -1) * away).sum(1)
  best = eps * np.abs(away.astype(np.float64)).sum(1)
  assert (gained <= best * (1 + 1e-4)).all() and (gained > 0.9 * best).all()
