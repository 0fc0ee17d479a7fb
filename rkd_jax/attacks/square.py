"""Square attack: random search with squares, without gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import arguments, ball, objectives, probe
from rkd_jax.attacks.probe import Outcome, choose, wide
from rkd_jax.attacks.windows import Window, bumps, stripes, tiles

_FIRST_SHARE = 0.8  # p: the share of the pixels in the first square.
_SMALLEST_BUMP = 3  # The least side of a window in L2 and L1.
# After so many queries, whatever their number, as AutoAttack has it: stretching the
# schedule over 5,000 makes the attack weaker.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(fn: Callable, images, labels, *, key, eps, norm: str = 'linf',
           queries: int = 5000) -> jax.Array:
  """Adversarial images by random search (Andriushchenko 2020, arXiv:1912.00049).

  Starts from vertical stripes ('linf') or a grid of bumps, then proposes one square at
  a time, which is kept where the margin falls: it is set to +-eps for each channel
  ('linf', Algorithm 2), or gets the mass of another square and what is left of the
  radius ('l2', Algorithm 3; for 'l1' the same with sums instead of roots of squares,
  projected as in arXiv:2103.01208). Queries and squares are drawn for each example by
  its key. An image rests once it is misclassified.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], K >= 2; no gradient is taken.
    images: float[B, H, W, C], clean, within [0, 1]; of another rank: flattened and seen
      as one row.
    labels: int[B].
    key: a typed key, or one an image, [B]; see `pgd`.
    eps: radius > 0 in pixel units; may be traced.
    norm: 'linf', 'l2' or 'l1'.
    queries: most evaluations of an example.

  Returns:
    float32[B, ...], in the ball and in [0, 1]; where the attack failed, the image with
    the least margin.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  images, labels = arguments.check_images(images, labels)
  keys = arguments.example_keys(key, len(images), 'uniform')
  eps = arguments.check_size('eps', eps)
  return search(fn, images, labels, keys, eps=eps, norm=norm, queries=queries).images


class _State(NamedTuple):
  query: jax.Array
  best: jax.Array
  value: jax.Array
  broken: jax.Array
  spent: jax.Array
  finite: jax.Array


def search(fn, images, labels, keys, *, eps, norm, queries: int) -> Outcome:
  """`square` as an outcome."""
  ball.check_norm(norm)
  arguments.check_count('queries', queries, 1)
  shape = images.shape
  images = images if images.ndim == 4 else images.reshape(len(images), 1, -1, 1)
  fit = lambda point: ball.project(point, images, eps=eps, norm=norm)

  def see(point):
    logits = fn(point.reshape(shape))
    return objectives.margin(logits, labels), *probe.judge(logits, labels)

  first = fit(_start(images, keys, eps, norm))
  value, wrong, finite = see(first)
  state = _State(jnp.int32(1), first, value, wrong,
                 jnp.ones(len(images), jnp.int32), finite)

  def step(state):
    window = _sides(state.query, images.shape, norm)
    point = fit(_propose(state.best, images, probe.fold(keys, state.query), window,
                         eps, norm))
    value, wrong, finite = see(point)
    better = ~state.broken & ((value > state.value) | wrong)
    best, value = choose(better, (point, value), (state.best, state.value))
    return _State(state.query + 1, best, value, state.broken | wrong & better,
                  state.spent + ~state.broken, state.finite & (finite | state.broken))

  state = lax.while_loop(
      lambda state: (state.query < queries) & ~jnp.all(state.broken), step, state)
  return Outcome(state.best.reshape(shape), state.broken, state.spent,
                 jnp.zeros_like(state.spent), state.finite)


def _sides(query, shape, norm):
  """(height, width) int32 of the windows at a query, by the schedule of the paper.

  For 'l2' and 'l1' the next odd number of at least 3, as in the released code. No side
  is longer than the image's; where it has too few rows, the width makes up for them.
  """
  rows, columns = shape[1:3]
  halvings = jnp.sum(query - 1 > jnp.asarray(_HALVINGS, jnp.int32))
  area = _FIRST_SHARE * 0.5**halvings * rows * columns

  def fit(side, most):
    side = jnp.round(side).astype(jnp.int32)
    if norm != 'linf':
      side = jnp.maximum(side, _SMALLEST_BUMP) // 2 * 2 + 1
    return jnp.clip(side, 1, most)

  height = fit(jnp.sqrt(area), rows)
  width = fit(area / height, columns)
  return height, jnp.where(height < rows, jnp.minimum(height, columns), width)


def _start(images, keys, eps, norm):
  if norm == 'linf':
    return images + eps * stripes(keys, images.shape)
  offset = tiles(keys, images.shape, norm)
  size = ball.length(offset, norm)
  return images + eps * offset / wide(jnp.where(size > 0, size, 1), images)


def _propose(best, images, keys, sides, eps, norm):
  """The next point to try, before it is projected."""
  parts = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
  signs = _signs(parts[:, 0], images.shape[-1])
  here = Window.random(parts[:, 1], sides, images.shape)
  if norm == 'linf':
    new = images + eps * signs[:, None, None]
    return jnp.where(here.mask()[..., None], new, best)
  there = Window.random(parts[:, 2], sides, images.shape)
  return images + _exchange(best - images, here, there, signs, parts[:, 3], eps, norm)


def _signs(keys, channels):
  """float32[B, C] of +-1."""
  draw = lambda key: jax.random.rademacher(key, (channels,), jnp.float32)
  return jax.vmap(draw)(keys)


def _exchange(offset, here, there, signs, keys, eps, norm):
  """Algorithm 3: the mass of two windows, and what is unused, goes to the first.

  A channel's share of the radius is `(mass of both windows^p + unused^p / C)^(1/p)`; in
  'l1' C times as much, as in the released code, which the projection makes sparse.
  """
  power = 2 if norm == 'l2' else 1
  mass = lambda values, axes: jnp.sum(jnp.abs(values)**power, axis=axes)
  root = (lambda a: jnp.sqrt(a)) if power == 2 else (lambda a: a)
  inside, either = here.mask()[..., None], (here.mask() | there.mask())[..., None]
  old = jnp.where(inside, offset, 0)
  old_size = root(mass(old, (1, 2)))[:, None, None]
  unused = jnp.maximum(eps**power - mass(offset, (1, 2, 3)), 0) / offset.shape[-1]
  available = root(mass(jnp.where(either, offset, 0), (1, 2)) + unused[:, None])
  if norm == 'l1':
    available = available * offset.shape[-1]
  bump = bumps(here, keys, norm)[..., None]
  bump = bump / jnp.maximum(root(mass(bump, (1, 2, 3))), 1e-12)[:, None, None, None]
  mixed = signs[:, None, None] * bump + old / jnp.maximum(old_size, 1e-12)
  size = root(mass(mixed, (1, 2)))[:, None, None]
  fresh = mixed / jnp.maximum(size, 1e-12) * available[:, None, None]
  return jnp.where(inside, fresh, jnp.where(either, 0, offset))
