"""Square attack: random search with squares, without gradients."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.attacks import arguments, ball, local, network, objectives, probe
from rkd_jax.attacks.probe import Outcome, choose, wide
from rkd_jax.attacks.windows import Window, bumps, stripes, tiles

_FIRST_SHARE = 0.8  # p: the share of the pixels in the first square.
_SMALLEST_BUMP = 3  # The least side of a window in L2 and L1.
# After so many queries, whatever their number, as AutoAttack has it: stretching the
# schedule over 5,000 makes the attack weaker.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Following a window compiles a program: worth it for so many queries, below such a
# share of the network's work.
_FOLLOWED_QUERIES, _FOLLOWED_COST = 200, 0.6


def square(fn: Callable, images, labels, *, key, eps, norm: str = 'linf',
           queries: int = 5000) -> jax.Array:
  """Adversarial images by random search (Andriushchenko 2020, arXiv:1912.00049).

  Starts from vertical stripes ('linf') or a grid of bumps, then proposes one square at
  a time, which is kept where the margin falls: it is set to +-eps for each channel
  ('linf', Algorithm 2), or gets the mass of another square and what is left of the
  radius ('l2', Algorithm 3; for 'l1' the same with sums instead of roots of squares,
  projected as in arXiv:2103.01208). An image rests once it is misclassified.

  What fills a square is drawn for each example by its key. Where the squares lie is one
  random sequence for all examples, as in AutoAttack's code, and here for all keys. So
  in 'linf' a query only computes what its square reaches of the network, where `local`
  can tell, and the image that is found is evaluated again as a whole.

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
  ball.check_norm(norm)
  arguments.check_radius('eps', arguments.check_size('eps', eps, above_zero=True), norm,
                         images.shape)
  found = search(fn, images, labels, keys, eps=jnp.float32(eps), norm=norm,
                 queries=queries)
  arguments.check_finite(found.finite, 'square')
  return found.images


class _State(NamedTuple):
  query: jax.Array
  best: jax.Array
  value: jax.Array
  broken: jax.Array
  spent: jax.Array
  finite: jax.Array


class _Search(NamedTuple):
  """What does not change during a search; images [B, H, W, C]."""

  network: local.Program
  images: jax.Array
  labels: jax.Array
  keys: jax.Array
  eps: jax.Array
  norm: str
  places: jax.Array

  def fit(self, point, images):
    return ball.project(point, images, eps=self.eps, norm=self.norm)

  def see(self, logits):
    """(margin, wrong, finite) of every example."""
    return objectives.margin(logits, self.labels), *probe.judge(logits, self.labels)

  def sides(self, query):
    return _sides(query, self.images.shape, self.norm)


def search(fn, images, labels, keys, *, eps, norm, queries: int) -> Outcome:
  """`square` as an outcome."""
  ball.check_norm(norm)
  arguments.check_count('queries', queries, 1)
  shape = images.shape
  images = images if images.ndim == 4 else images.reshape(len(images), 1, -1, 1)
  # Not of the keys: the same for an example in any batch.
  places = jax.random.uniform(jax.random.key(0), (queries, 2, 2))
  fn = network.checked(fn, labels)
  program = local.read(lambda point: fn(point.reshape(shape)), images.shape)
  of = _Search(program, images, labels, keys, eps, norm, places)
  first = of.fit(_start(images, keys, eps, norm), images)
  value, wrong, finite = of.see(local.evaluate(program, first))
  state = _State(jnp.int32(1), first, value, wrong,
                 jnp.ones(len(images), jnp.int32), finite)
  plans = _plans(of, queries) if norm == 'linf' else [(queries, None)]
  for end, plan in plans:
    state = _whole(of, state, end) if plan is None else _followed(of, state, end, plan)
  return Outcome(state.best.reshape(shape), state.broken, state.spent,
                 jnp.zeros_like(state.spent), state.finite)


def _sides(query, shape, norm):
  """(height, width) int32 of the windows at a query, which may be traced."""
  halvings = jnp.sum(query - 1 > jnp.asarray(_HALVINGS, jnp.int32))
  table = [_sides_after(n, shape, norm) for n in range(len(_HALVINGS) + 1)]
  return tuple(jnp.asarray(table, jnp.int32)[halvings])


def _sides_after(halvings, shape, norm):
  """(height, width) of the windows by the schedule of the paper.

  For 'l2' and 'l1' the next odd number of at least 3, as in the released code. No side
  is longer than the image's; where it has too few rows, the width makes up for them.
  """
  rows, columns = shape[1:3]
  area = _FIRST_SHARE * 0.5**halvings * rows * columns

  def fit(side, most):
    side = round(side)
    if norm != 'linf':
      side = max(side, _SMALLEST_BUMP) // 2 * 2 + 1
    return min(max(side, 1), most)

  height = fit(math.sqrt(area), rows)
  width = fit(area / height, columns)
  return height, min(height, columns) if height < rows else width


def _plans(of, queries):
  """[(first query after, plan or None)], one for each stretch of queries."""
  stretches, current, begin = [], None, 1
  for halvings, last in enumerate((*_HALVINGS, queries)):
    end = min(last + 2, queries) if last < queries else queries
    plan = None
    if end - begin >= _FOLLOWED_QUERIES:
      plan = local.Plan.of(
          of.network, _sides_after(halvings, of.images.shape, of.norm))
      if current is not None and plan.cost > 0.7 * current.cost:
        plan = current  # A smaller window would hardly be quicker.
      plan = current = plan if plan.cost < _FOLLOWED_COST else None
    if stretches and stretches[-1][1] is plan:
      stretches.pop()
    stretches.append((end, plan))
    if end >= queries:
      return stretches
    begin = end
  return stretches


def _goes_on(end):
  return lambda state: (state.query < end) & ~jnp.all(state.broken)


def _kept(state, better, best, seen):
  """The state after a query whose point is `best` where it is better."""
  value, wrong, finite = seen
  return _State(state.query + 1, best, jnp.where(better, value, state.value),
                state.broken | wrong & better, state.spent + ~state.broken,
                state.finite & (finite | state.broken))


def _better(state, seen):
  value, wrong, _ = seen
  return ~state.broken & ((value > state.value) | wrong)


def _whole(of, state, end):
  """Queries until `end`, each a whole forward pass."""
  def step(state):
    point = of.fit(_propose(of, state.best, state.query), of.images)
    seen = of.see(local.evaluate(of.network, point))
    better = _better(state, seen)
    return _kept(state, better, choose(better, point, state.best), seen)

  return lax.while_loop(_goes_on(end), step, state)


def _followed(of, state, end, plan):
  """Queries until `end`, each as far as its square reaches in the network."""
  rows, columns = plan.side

  def again(state):
    """By a whole pass, as rounding adds up."""
    logits, layers = plan.start(state.best)
    value, wrong, _ = of.see(logits)
    return state._replace(value=value, broken=wrong), layers

  def step(carry):
    state, layers = carry
    window = Window.at(of.places[state.query, 0], of.sides(state.query), of.images.shape)
    start = (jnp.minimum(window.top, of.images.shape[1] - rows),
             jnp.minimum(window.left, of.images.shape[2] - columns))
    cut = lambda values: lax.dynamic_slice(
        values, (0, *start, 0), (len(values), rows, columns, values.shape[3]))
    old, clean = cut(state.best), cut(of.images)
    inside = lax.dynamic_slice(window.mask(), start, (rows, columns))[None, ..., None]
    new = jnp.where(inside, of.fit(_corner(of, clean, state.query), clean), old)
    logits, keep = plan.follow(layers, new - old, start)
    seen = of.see(logits)
    better = _better(state, seen)
    best = lax.dynamic_update_slice(
        state.best, choose(better, new, old), (0, *start, 0))
    return _kept(state, better, best, seen), keep(better)

  goes_on = _goes_on(end)
  state, _ = lax.while_loop(lambda carry: goes_on(carry[0]), step, again(state))
  return again(state)[0]


def _start(images, keys, eps, norm):
  if norm == 'linf':
    return images + eps * stripes(keys, images.shape)
  offset = tiles(keys, images.shape, norm)
  size = ball.length(offset, norm)
  return images + eps * offset / wide(jnp.where(size > 0, size, 1), images)


def _propose(of, best, query):
  """The next point to try, before it is projected."""
  sides = of.sides(query)
  here = Window.at(of.places[query, 0], sides, best.shape)
  if of.norm == 'linf':
    return jnp.where(here.mask()[None, ..., None], _corner(of, of.images, query), best)
  there = Window.at(of.places[query, 1], sides, best.shape)
  parts = jax.vmap(jax.random.split)(probe.fold(of.keys, query))
  return of.images + _exchange(best - of.images, here, there, _signs(
      parts[:, 0], best.shape[-1]), parts[:, 1], of.eps, of.norm)


def _corner(of, images, query):
  """A corner of the ball around images, the same way for all pixels of a channel."""
  signs = _signs(probe.fold(of.keys, query), images.shape[-1])
  return images + of.eps * signs[:, None, None]


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
  inside = here.mask()[None, ..., None]
  either = inside | there.mask()[None, ..., None]
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
