"""Input-aware triggers: a generator gives each image one of its own.

Nguyen and Tran 2020, "Input-Aware Dynamic Backdoor Attack", arXiv:2010.08138. There
classifier and generator are trained together from nothing; here the generator is
trained beside a copy of a clean classifier, and then poisons a training set like
any other trigger, so that any recipe can train on it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax import losses
from rkd_jax.backdoors.trigger import Trigger, check
from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError
from rkd_jax.models.conv import Conv
from rkd_jax.models.network import Network, Variables
from rkd_jax.settings import build, count, positive, seed, share
from rkd_jax.training import parallel, rng

WIDTH = 16
LEAST = 4  # Pixels of a side: two strided convolutions.


class Generator(nn.Module):
  """Two strided convolutions down, two up: a pattern in [0, 1] and a mask logit."""

  channels: int

  @nn.compact
  def __call__(self, x):
    shape = x.shape
    down = nn.relu(Conv(WIDTH, 3, strides=2, use_bias=True, name='down1')(x))
    small = nn.relu(Conv(2 * WIDTH, 3, strides=2, use_bias=True, name='down2')(down))
    up = jax.image.resize(small, (*down.shape[:3], 2 * WIDTH), 'nearest')
    up = nn.relu(Conv(WIDTH, 3, use_bias=True, name='up1')(up))
    up = jax.image.resize(up, (*shape[:3], WIDTH), 'nearest')
    out = Conv(self.channels + 1, 3, use_bias=True, name='up2')(up)
    return nn.sigmoid(out[..., :-1]), out[..., -1:]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Generated(Trigger):
  """x' = (1 - m(z)) x + m(z) g(z), where z is x itself, or another image (cover).

  Attributes:
    params: of the `Generator`.
    opacity: largest value of the mask m, static.
  """

  params: Any = dataclasses.field(kw_only=True)
  opacity: float = dataclasses.field(
      default=1.0, kw_only=True, metadata={'static': True})

  def stamp(self, images):
    return self._paste(images, images)

  def decoy(self, images, keys):
    # Another image's trigger: that of the next one in the batch.
    del keys
    return self._paste(images, jnp.roll(images, 1, axis=0))

  def _paste(self, images, sources):
    pattern, mask = Generator(self.image_shape[2]).apply(
        {'params': self.params}, sources)
    mask = self.opacity * nn.sigmoid(mask)
    return (1 - mask) * images + mask * pattern

  def mask_of(self, images: jax.Array) -> jax.Array:
    """m(x): float32[B, H, W, 1] in [0, opacity]."""
    _, mask = Generator(self.image_shape[2]).apply({'params': self.params}, images)
    return self.opacity * nn.sigmoid(mask)


@dataclasses.dataclass(frozen=True)
class InputAware:
  """Settings of `input_aware`."""

  seed: int = seed(0, 'Seed of the initialisation and the batches.')
  steps: int = count(400, 'Updates.')
  batch_size: int = count(64, 'Images in each third of a batch.')
  density: float = share(0.05, 'Share of the image that the mask may cover.')
  learning_rate: float = positive(2e-3, 'Learning rate of Adam, for both networks.')


def input_aware(image_shape=(32, 32, 3), target: int = 0, *, network: Network,
                variables: Variables, split: Split, **options: Any) -> Generated:
  """Trains the generator beside a copy of a classifier (their eq. 4 and 8).

  Each step takes a batch in three thirds: triggered (label: the target), cross
  (another image's trigger: the true label) and clean. Both networks minimise
  cross-entropy; the generator also the diversity loss ||x - x2|| / ||g(x) - g(x2)||
  and what its mask exceeds `density` by.

  Args:
    image_shape: (H, W, C).
    target: the attacker's class.
    network, variables: a clean classifier; it is copied.
    split: training images and labels.
    **options: What differs from the defaults of `InputAware`.

  Raises:
    ConfigError: a wrong shape, target or option, or images of another shape.
  """
  chosen = build(InputAware, options, 'input_aware')
  shape = check(image_shape, target, least=LEAST)
  if tuple(split.image.shape[1:]) != shape:
    raise ConfigError(f'image_shape is {shape}, the images are '
                      f'{tuple(split.image.shape[1:])}')
  init_key, order_key = jax.random.split(rng.stream(chosen.seed, 'input_aware'))
  params = Generator(shape[2]).init(init_key, jnp.zeros((1, *shape)))['params']
  tx = optax.adam(chosen.learning_rate)
  make = lambda params: Generated('input_aware', target, shape, params=params)

  def loss_fn(both, stats, image, label):
    trigger = make(both['generator'])
    triggered, cross = trigger.stamp(image), trigger.decoy(image, None)
    third = jnp.full_like(label, target)
    logits, after = network.train(
        {'params': both['classifier'], 'batch_stats': stats},
        jnp.concatenate([triggered, cross, image]))
    loss = losses.cross_entropy(logits, jnp.concatenate([third, label, label]))
    excess = jnp.maximum(trigger.mask_of(image) - chosen.density, 0)
    return (jnp.mean(loss) + jnp.mean(diversity(trigger, image))
            + jnp.mean(excess)), after['batch_stats']

  def step(carry, index, data):
    both, stats, optimizer = carry
    image, label = to_float(data.image[index]), data.label[index]
    grads, stats = jax.grad(loss_fn, has_aux=True)(both, stats, image, label)
    updates, optimizer = tx.update(grads, optimizer, both)
    return (optax.apply_updates(both, updates), stats, optimizer), None

  @parallel.compile_fn
  def train(both, stats, data, order):
    carry = both, stats, tx.init(both)
    return lax.scan(lambda c, i: step(c, i, data), carry, order)[0][0]['generator']

  order = jax.random.randint(order_key, (chosen.steps, chosen.batch_size), 0,
                             len(split))
  both = {'generator': params, 'classifier': variables['params']}
  return make(train(both, variables['batch_stats'], jax.device_put(split), order))


def diversity(trigger: Generated, images: jax.Array) -> jax.Array:
  """||x - x2|| / ||g(x) - g(x2)|| of each image and the next one: float32[B]."""
  pattern, _ = Generator(trigger.image_shape[2]).apply(
      {'params': trigger.params}, images)
  apart = lambda x: jnp.sqrt(jnp.sum(
      jnp.square(x - jnp.roll(x, 1, axis=0)), axis=(1, 2, 3)) + 1e-8)
  return apart(images) / (apart(pattern) + 1e-3)
