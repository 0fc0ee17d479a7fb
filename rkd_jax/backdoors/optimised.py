"""Triggers optimised against features of a clean network: CKD / CheatKD and LBA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.backdoors.trigger import Stamp, blend, check, check_share
from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.models.network import Network, Variables
from rkd_jax.models.taps import with_features
from rkd_jax.training import parallel, rng


def ckd(image_shape=(32, 32, 3), target: int = 0, *, network: Network,
        variables: Variables, split: Split, layer: str, opacity: float = 0.2,
        top: float = 0.1, steps: int = 1000, learning_rate: float = 0.1,
        batch_size: int = 64, seed: int = 0) -> Stamp:
  """CKD / CheatKD: a trigger that drives a distilled layer's strongest channels.

  x' = (1 - m) x + m t with m <= `opacity`; t and m minimise the sum over the top
  channels (by mean activation on clean images) of (f - c)^2, where f is a channel's
  mean over positions and c the largest channel mean (Chen et al. 2024).

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    network, variables: a clean classifier.
    split: clean images.
    layer: tapped feature, for example 'stage2'.
    opacity: upper bound of m, in (0, 1].
    top: share of the channels in (0, 1], at least one channel.
    steps, learning_rate, batch_size: of Adam, on the logits of t and of m / opacity.
    seed: of the start and the batches.

  Raises:
    ConfigError: a wrong shape, target or share, or a layer that is not tapped.
  """
  shape = check(image_shape, target)
  check_share('opacity', opacity)
  check_share('top', top)
  channels = channel_means(network, variables, layer)
  means = _mean_over(lambda x: jnp.mean(channels(x), 0), split)
  chosen = jnp.argsort(-means)[:max(1, round(top * len(means)))]
  peak = jnp.max(means)
  distance = lambda x: jnp.sum(jnp.square(channels(x)[:, chosen] - peak), -1)

  def trigger(free):
    return blend('ckd', target, opacity * jax.nn.sigmoid(free['mask']),
                 jax.nn.sigmoid(free['pattern']))

  start = {'mask': jnp.full(shape, 2.0), 'pattern': jax.random.normal(
      rng.stream(seed, 'ckd'), shape)}
  return trigger(_descend(
      lambda free, x: jnp.mean(distance(trigger(free).stamp(x))), start, split,
      optax.adam(learning_rate), steps, batch_size, seed))


def lba(image_shape=(32, 32, 3), target: int = 0, *, network: Network,
        variables: Variables, split: Split, layer: str, size: int = 5,
        steps: int = 1000, learning_rate: float = 0.1, batch_size: int = 64,
        seed: int = 0) -> Stamp:
  """LBA: a patch whose features look like the target class's (Yao et al. 2019).

  The pattern of a square near the lower right corner minimises
  ||F(x') - mean F(target class)||^2 over images of all classes (their eq. 2).

  Args:
    size: side of the square, 1 pixel from the edges.
    Others: as in `ckd`.

  Raises:
    ConfigError: a wrong shape, target or size, a layer that is not tapped, or no
      image of the target class.
  """
  shape = check(image_shape, target)
  if size < 1 or size + 1 > min(shape[:2]):
    raise ConfigError(f'a square of {size} pixels does not fit into images of '
                      f'{shape[0]} x {shape[1]}')
  _check_layer(network, layer)
  feature = lambda x: with_features(network.module, variables, x)[1][layer]
  of_target = split.label == target
  if not of_target.any():
    raise ConfigError(f'no image of the target class {target} in the split')
  mean = _mean_over(lambda x: jnp.mean(feature(x), 0), Split(
      split.image[of_target], split.label[of_target]))
  inside = jnp.zeros(shape).at[-1 - size:-1, -1 - size:-1].set(1)

  def trigger(free):
    return blend('lba', target, inside, jax.nn.sigmoid(free))

  start = jax.random.normal(rng.stream(seed, 'lba'), shape)
  return trigger(_descend(
      lambda free, x: jnp.mean(jnp.square(feature(trigger(free).stamp(x)) - mean)),
      start, split, optax.adam(learning_rate), steps, batch_size, seed))


def channel_means(network: Network, variables: Variables, layer: str) -> Callable:
  """`fn(images) -> float32[B, C]`: a tapped feature, averaged over positions."""
  _check_layer(network, layer)

  def fn(images):
    feature = with_features(network.module, variables, images)[1][layer]
    axes = tuple(range(1, feature.ndim - 1))
    return jnp.mean(feature.astype(jnp.float32), axis=axes)

  return fn


def _check_layer(network, layer):
  if layer not in network.module.feature_names:
    raise unknown_name('layer', layer, network.module.feature_names)


def _mean_over(fn, split, most=2000, batch=250):
  """Mean of fn(images) over (the first of) a split, batch by batch."""
  compiled = parallel.compile_fn(lambda image: fn(to_float(image)))
  count = min(len(split), most)
  batch = min(batch, count)
  parts = [compiled(split.image[i:i + batch])
           for i in range(0, count - batch + 1, batch)]
  return sum(parts) / len(parts)


def _descend(loss_fn, free, split, tx, steps, batch_size, seed):
  """`free` after so many updates on random batches, one compiled scan."""

  def step(carry, index, images):
    free, optimizer = carry
    grads = jax.grad(loss_fn)(free, to_float(images[index]))
    updates, optimizer = tx.update(grads, optimizer, free)
    return (optax.apply_updates(free, updates), optimizer), None

  @parallel.compile_fn
  def run(free, images, order):
    return lax.scan(lambda c, i: step(c, i, images), (free, tx.init(free)), order)[0][0]

  order = jax.random.randint(
      rng.stream(seed, 'descend'), (steps, batch_size), 0, len(split))
  return run(free, jnp.asarray(split.image), order)
