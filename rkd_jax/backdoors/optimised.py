"""Triggers optimised against features of a clean network: CKD / CheatKD and LBA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.backdoors.trigger import Stamp, blend, check
from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.models.network import Network, Variables
from rkd_jax.models.taps import with_features
from rkd_jax.settings import build, count, positive, positive_share, seed
from rkd_jax.training import parallel, rng


@dataclasses.dataclass(frozen=True)
class Descent:
  """How a trigger is optimised by Adam."""

  steps: int = count(1000, 'Updates.')
  learning_rate: float = positive(0.1, 'Learning rate of Adam.')
  batch_size: int = count(64, 'Images in a batch.')
  seed: int = seed(0, 'Seed of the start and the batches.')


@dataclasses.dataclass(frozen=True)
class Ckd(Descent):
  """Settings of `ckd`."""

  opacity: float = positive_share(0.2, 'Upper bound of the mask m.')
  top: float = positive_share(0.1, 'Share of the channels, at least one channel.')


@dataclasses.dataclass(frozen=True)
class Lba(Descent):
  """Settings of `lba`."""

  size: int = count(5, 'Side of the square, 1 pixel from the edges.')


def ckd(image_shape=(32, 32, 3), target: int = 0, *, network: Network,
        variables: Variables, split: Split, layer: str, **options: Any) -> Stamp:
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
    **options: What differs from the defaults of `Ckd`; Adam moves the logits of t and
      of m / opacity.

  Raises:
    ConfigError: a wrong shape, target or option, or a layer that is not tapped.
  """
  shape = check(image_shape, target)
  chosen = build(Ckd, options, 'ckd')
  channels = channel_means(network, variables, layer)
  means = _mean_over(lambda x: jnp.mean(channels(x), 0), split)
  strongest = jnp.argsort(-means)[:max(1, round(chosen.top * len(means)))]
  peak = jnp.max(means)
  distance = lambda x: jnp.sum(jnp.square(channels(x)[:, strongest] - peak), -1)

  def trigger(free):
    return blend('ckd', target, chosen.opacity * jax.nn.sigmoid(free['mask']),
                 jax.nn.sigmoid(free['pattern']))

  start = {'mask': jnp.full(shape, 2.0), 'pattern': jax.random.normal(
      rng.stream(chosen.seed, 'ckd'), shape)}
  return trigger(_descend(
      lambda free, x: jnp.mean(distance(trigger(free).stamp(x))), start, split, chosen))


def lba(image_shape=(32, 32, 3), target: int = 0, *, network: Network,
        variables: Variables, split: Split, layer: str, **options: Any) -> Stamp:
  """LBA: a patch whose features look like the target class's (Yao et al. 2019).

  The pattern of a square near the lower right corner minimises
  ||F(x') - mean F(target class)||^2 over images of all classes (their eq. 2).

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    network, variables: a clean classifier.
    split: clean images.
    layer: tapped feature, for example 'stage2'.
    **options: What differs from the defaults of `Lba`.

  Raises:
    ConfigError: a wrong shape, target or option, a layer that is not tapped, or no
      image of the target class.
  """
  shape = check(image_shape, target)
  chosen = build(Lba, options, 'lba')
  check_fits(chosen, shape)
  size = chosen.size
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

  start = jax.random.normal(rng.stream(chosen.seed, 'lba'), shape)
  return trigger(_descend(
      lambda free, x: jnp.mean(jnp.square(feature(trigger(free).stamp(x)) - mean)),
      start, split, chosen))


def check_fits(chosen: Lba, image_shape: tuple[int, ...]) -> None:
  """Raises ConfigError where the square is larger than images [H, W, C]."""
  if chosen.size + 1 > min(image_shape[:2]):
    raise ConfigError(f'a square of {chosen.size} pixels, 1 from the edge, does not fit '
                      f'into images of {image_shape[0]} x {image_shape[1]}')


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


def _descend(loss_fn, free, split, chosen: Descent):
  """`free` after so many updates on random batches, one compiled scan."""
  tx = optax.adam(chosen.learning_rate)

  def step(carry, index, images):
    free, optimizer = carry
    grads = jax.grad(loss_fn)(free, to_float(images[index]))
    updates, optimizer = tx.update(grads, optimizer, free)
    return (optax.apply_updates(free, updates), optimizer), None

  @parallel.compile_fn
  def run(free, images, order):
    return lax.scan(lambda c, i: step(c, i, images), (free, tx.init(free)), order)[0][0]

  order = jax.random.randint(
      rng.stream(chosen.seed, 'descend'), (chosen.steps, chosen.batch_size), 0,
      len(split))
  return run(free, jnp.asarray(split.image), order)
