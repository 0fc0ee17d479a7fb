"""Square attack: schedule, windows and proposals against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.attacks import objectives, windows
from rkd_jax.attacks.square import _exchange, _propose, _Search, _sides, search, square
from rkd_jax.errors import ConfigError

B, SHAPE, K = 6, (6, 5, 3), 4
RNG = np.random.default_rng(0)
W1 = RNG.normal(size=(90, 12)).astype(np.float32)
W2 = RNG.normal(size=(12, K)).astype(np.float32)
IMAGES = RNG.uniform(size=(B, *SHAPE)).astype(np.float32)
IMAGES[0, :2] = np.round(IMAGES[0, :2])  # At the ends of the box.


def relu_net(images):
  return jax.nn.relu((images.reshape(len(images), -1) - 0.5) @ W1) @ W2


LABELS = np.argmax(relu_net(jnp.asarray(IMAGES)), axis=1)
KEYS = jax.random.split(jax.random.key(3), B)


def run(images=IMAGES, labels=LABELS, keys=KEYS, *, eps, norm, queries=60):
  return search(relu_net, jnp.asarray(images), jnp.asarray(labels), keys, eps=eps,
                       norm=norm, queries=queries)


def share_by_hand(query):
  """The p of a query from 0, as its released code and AutoAttack halve it."""
  share = 0.8
  for halving in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
    if query > halving:
      share /= 2
  return share


def test_schedule():
  side = 224
  at = np.arange(10_000)
  got = jax.vmap(lambda q: _sides(q + 1, (1, side, side, 3), 'linf')[0])(at)
  expected = [round(math.sqrt(share_by_hand(q) * side * side)) for q in at]
  np.testing.assert_array_equal(got, expected)
  assert len(set(expected)) == 10


def odd(side):
  """As the released code rounds a side: never even, never below 3."""
  side = max(round(side), 3)
  return side + 1 if side % 2 == 0 else side


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('rows,columns', [
    (28, 28), (32, 20), (8, 8), (4, 4), (3, 50), (2, 2), (1, 784), (1, 2)])
def test_odd_windows(norm, rows, columns):
  """In float64: squares, cut at the image; as much longer as the rows are too few."""
  at = np.arange(9000)
  got = jax.vmap(lambda q: jnp.stack(_sides(
      q + 1, (1, rows, columns, 3), norm)))(at)
  expected = []
  for query in at:
    area = share_by_hand(query) * rows * columns
    height = width = odd(math.sqrt(area))
    if height >= rows:
      height = rows
      width = odd(area / rows)
    expected.append((height, min(width, columns)))
  np.testing.assert_array_equal(got, expected)
  if rows == columns > 4:  # Else some are cut at the image.
    assert {side % 2 for pair in expected for side in pair} == {1}
    assert min(map(min, expected)) == 3


@pytest.mark.parametrize('norm,eps,shape', [
    ('l2', 0.4, (1, 90, 1)), ('l2', 0.4, (2, 3, 15)), ('l1', 2.0, (90, 1, 1))])
def test_small_and_flat_images(norm, eps, shape):
  """Windows wider than the image are cut; the attack still gains, inside the ball."""
  images = (IMAGES * 0.6 + 0.2).reshape(B, *shape)
  labels = np.argmax(relu_net(jnp.asarray(images)), axis=1)
  found = run(images, labels, eps=eps, norm=norm, queries=40)
  adv = np.asarray(found.images, np.float64)
  offset = np.abs(adv - images).reshape(B, -1)
  size = {'l2': np.sqrt((offset**2).sum(axis=1)), 'l1': offset.sum(axis=1)}[norm]
  assert (size <= np.float32(eps)).all() and (size > 0.5 * eps).all()
  margin = lambda x: np.asarray(objectives.margin(relu_net(jnp.asarray(x)), labels))
  assert (margin(found.images) > margin(images)).all()


def bump_by_hand(rows, columns, norm):
  """Eq. 2: nested rectangles around the centre, each of 1 / (its number)^2 or ^4."""
  out = np.zeros((rows, columns))
  for i in range(max(rows // 2, columns // 2) + 1):
    top, left = rows // 2 - i, columns // 2 - i
    out[max(top, 0):top + 2 * i + 1, max(left, 0):left + 2 * i + 1] += 1 / (i + 1)**(
        {'l2': 2, 'l1': 4}[norm])
  return out / max(np.linalg.norm(out.ravel(), {'l2': 2, 'l1': 1}[norm]), 1e-300)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('height,width', [(5, 5), (4, 4), (3, 6), (7, 2), (3, 3), (2, 2)])
def test_bumps(height, width, norm):
  """Both halves, by rows or by columns, and nothing outside of the window."""
  count = 12
  window = windows.Window(jnp.int32(1), jnp.int32(2), jnp.int32(height),
                          jnp.int32(width), (9, 10))
  got = np.asarray(windows.bumps(window, jax.random.split(jax.random.key(0), count),
                                 norm))
  inside = got[:, 1:1 + height, 2:2 + width]
  first = height // 2
  rows = np.concatenate([bump_by_hand(first, width, norm),
                         -bump_by_hand(height - first, width, norm)])
  first = width // 2
  columns = np.concatenate([bump_by_hand(height, first, norm),
                            -bump_by_hand(height, width - first, norm)], axis=1)
  as_rows = np.abs(inside - rows).max(axis=(1, 2)) < 1e-5
  as_columns = np.abs(inside - columns).max(axis=(1, 2)) < 1e-5
  assert (as_rows | as_columns).all() and as_rows.any() and as_columns.any()
  np.testing.assert_allclose(np.abs(got).sum(), np.abs(inside).sum(), rtol=1e-6)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_exchange(norm):
  """Algorithm 3 in float64: masses of two windows and what is unused, by channel."""
  power, eps = {'l2': (2, 1.5), 'l1': (1, 6.0)}[norm]
  offset = RNG.normal(size=(B, *SHAPE)) * 0.05
  signs = RNG.choice([-1.0, 1.0], size=(B, 3))
  corner = RNG.integers(0, 3, size=(2, 2))
  make = lambda c: windows.Window(jnp.asarray(c[0]), jnp.asarray(c[1]), jnp.int32(3),
                                  jnp.int32(3), SHAPE[:2])
  here, there = make(corner[0]), make(corner[1])
  keys = jax.random.split(jax.random.key(1), B)
  got = np.asarray(_exchange(jnp.asarray(offset, jnp.float32), here, there,
                                    jnp.asarray(signs, jnp.float32), keys, eps, norm))
  bumps = np.asarray(windows.bumps(here, keys, norm), np.float64)
  size = lambda a: (np.abs(a)**power).sum()**(1 / power)
  for b in range(B):
    cut = lambda c: np.s_[c[0]:c[0] + 3, c[1]:c[1] + 3]
    new = offset[b].copy()
    new[cut(corner[0])] = new[cut(corner[1])] = 0
    stays = size(new)**power
    unused = (eps**power - size(offset[b])**power) / 3
    for channel in range(3):
      kept = new[..., channel]
      mass = size(offset[b, ..., channel])**power - size(kept)**power
      old = offset[b, ..., channel][cut(corner[0])]
      bump = bumps[b][cut(corner[0])]
      mixed = signs[b, channel] * bump / size(bump) + old / size(old)
      new[..., channel][cut(corner[0])] = (
          mixed / size(mixed) * (mass + unused)**(1 / power) * (3 if power == 1 else 1))
    np.testing.assert_allclose(got[b], new, atol=2e-5)
    # In L1 what moves counts three times, once a channel.
    total = stays + (eps**power - stays) * (3 if power == 1 else 1)
    np.testing.assert_allclose(
        size(got[b].astype(np.float64)), total**(1 / power), rtol=1e-5)


def test_linf_starts_with_stripes_and_fills_squares():
  eps = 0.1
  start = np.asarray(search(
      relu_net, jnp.asarray(IMAGES), jnp.asarray(LABELS), KEYS, eps=eps, norm='linf',
      queries=1).images)
  up, down = (np.clip(IMAGES + s * eps, 0, 1) for s in (1, -1))
  is_up = np.isclose(start, up, atol=1e-6)
  assert (is_up | np.isclose(start, down, atol=1e-6)).all()
  free = (up - IMAGES > 0.09) & (IMAGES - down > 0.09)  # Elsewhere both may agree.
  for b, column, channel in np.ndindex(B, *SHAPE[1:]):
    sign = is_up[b, :, column, channel][free[b, :, column, channel]]
    assert sign.all() or not sign.any()
  # One proposal: one square, one sign a channel.
  inner = jnp.full_like(IMAGES, 0.5)
  of = _Search(None, inner, LABELS, KEYS, eps, 'linf', jnp.full((8, 2, 2), 0.5))
  new = np.asarray(_propose(of, inner, 7)) - 0.5
  for b in range(B):
    rows, columns = (np.flatnonzero(new[b].any(axis=axes)) for axes in ((1, 2), (0, 2)))
    assert np.ptp(rows) == np.ptp(columns) == 4 and (new[b] != 0).sum() == 75
    for channel in range(3):
      values = new[b, rows[0]:rows[0] + 5, columns[0]:columns[0] + 5, channel]
      np.testing.assert_allclose(values, np.sign(values[0, 0]) * eps, atol=1e-6)


@pytest.mark.parametrize('norm,eps', [('linf', 0.06), ('l2', 0.4), ('l1', 1.5)])
def test_in_the_ball_counted_and_the_same_for_any_batch(norm, eps):
  program = jax.jit(lambda x, y, k: run(x, y, k, eps=eps, norm=norm))
  found = program(IMAGES, LABELS, KEYS)
  adv = np.asarray(found.images)
  offset = np.abs(adv.astype(np.float64) - IMAGES).reshape(B, -1)
  size = {'linf': np.abs(adv - IMAGES).reshape(B, -1).max(axis=1),
          'l2': np.sqrt((offset**2).sum(axis=1)), 'l1': offset.sum(axis=1)}[norm]
  assert (size <= np.float32(eps)).all() and adv.min() >= 0 and adv.max() <= 1
  broken = np.argmax(relu_net(found.images), axis=1) != LABELS
  np.testing.assert_array_equal(found.broken, broken)
  assert 0 < broken.sum() < B
  spent = np.asarray(found.queries)
  assert (spent[~broken] == 60).all() and (spent[broken] <= 60).all()
  assert not np.asarray(found.gradients).any()
  part = np.array([5, 0, 3])
  again = program(IMAGES[part], LABELS[part], KEYS[part])
  np.testing.assert_allclose(again.images, adv[part], atol=1e-5)
  np.testing.assert_array_equal(again.queries, spent[part])


def test_images_of_another_rank():
  flat = IMAGES.reshape(B, -1)
  adv = np.asarray(square(relu_net, flat, LABELS, key=KEYS, eps=0.05, queries=20))
  assert adv.shape == flat.shape and (np.abs(adv - flat) <= np.float32(0.05)).all()
  assert (adv != flat).any(axis=1).all()


@pytest.mark.parametrize('changed,says', [
    ({'norm': 'l0'}, "unknown norm 'l0'"), ({'queries': 0}, 'queries'),
    ({'key': None}, 'key'), ({'eps': -0.1}, 'eps')])
def test_refused(changed, says):
  given = {'key': jax.random.key(0), 'eps': 0.1, 'queries': 3} | changed
  with pytest.raises(ConfigError, match=says):
    square(relu_net, IMAGES, LABELS, **given)
