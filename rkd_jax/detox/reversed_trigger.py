"""A new classifier for a teacher, trained against the trigger found by reversal.

The suspects of `detection` are taken for the attacker's classes, the class that stands
out most where there are none: a classifier drawn anew learns that the patches which turn
images into them mean nothing, and from the old classifier what clean images are. Against
one class instead of all, that costs less accuracy than `new_head`; against the wrong
class, it does nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.detox import detection, head, neural_cleanse
from rkd_jax.detox.descent import descend
from rkd_jax.errors import ConfigError
from rkd_jax.settings import count, not_negative, positive, radius

SUMMARY = 'a new classifier against the trigger that detection finds'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `reversed_trigger`."""

  classes: int = count(
      0, "How many classes are taken for the attacker's, those that stand out most; 0: "
      'the suspects, or one where there are none.', least=0)
  eps: float = radius(
      0.1, 'L-inf radius of the perturbations that are compared; pixels in [0, 1].')
  search_steps: int = count(300, 'Updates of the search for the trigger.')
  temperature: float = positive(2.0, 'Temperature T of both softmaxes.')
  weight: float = not_negative(1.0, 'Weight w of the triggered images.')
  steps: int = count(600, 'Updates.', least=0)
  learning_rate: float = positive(5e-3, 'Learning rate of Adam at the start.')
  batch_size: int = count(64, 'Images in a batch.')


def run(network, variables, split, settings: Settings, *, key):
  """The teacher with a classifier that minimises T^2 KL(old(x), new(x)) + w CE(x', y).

  x' = (1 - m) x + m t, with the mask m and pattern t that `detection.detect` finds for
  one of the attacker's classes, drawn for every image. Adam, with a learning
  rate that falls to 0 along a cosine.

  Args:
    network, variables: the teacher; its other weights do not change.
    split: clean images and labels.
    settings: Those declared above.
    key: of the reversal, the classifier and the batches.

  Returns:
    (network, variables).

  Raises:
    ConfigError: more classes than the teacher has.
  """
  old = lambda images: network.predict(variables, images)
  found = search(network, variables, split, settings, key)
  attacked = found.attacked(settings.classes)
  masks, patterns = (jnp.asarray(of[attacked]) for of in (found.masks, found.patterns))

  def loss_fn(free, carried, image, label, key):
    which = jax.random.randint(key, label.shape, 0, len(attacked))
    bad = neural_cleanse.paste(image, masks[which], patterns[which])
    new = lambda x: network.predict(head.replaced(variables, free), x)
    return loss(new, old, image, label, bad, settings), carried

  rate = optax.cosine_decay_schedule(settings.learning_rate, max(settings.steps, 1))
  free, _ = descend(
      loss_fn, head.of(head.drawn_anew(variables['params'], key)), (), split,
      optax.adam(rate), key=key, steps=settings.steps,
      batch_size=settings.batch_size)
  return network, head.replaced(variables, free)


def loss(new, old, image, label, bad, settings) -> jax.Array:
  """Mean of T^2 KL(old(x), new(x)) + w CE(new(x'), y), of functions images -> logits."""
  clean, triggered = jnp.split(new(jnp.concatenate([image, bad])), 2)
  kept = losses.softened_kl(clean, old(image), temperature=settings.temperature)
  unlearnt = losses.cross_entropy(triggered, label)
  return jnp.mean(kept + settings.weight * unlearnt)


def search(network, variables, split, settings, key) -> detection.Report:
  """What `detection.detect` finds in a teacher."""
  check(settings, network, variables, split.image.shape[1:])
  num_classes = head.num_classes(network, variables, split.image.shape[1:])
  return detection.detect(
      lambda images: network.predict(variables, images), split, num_classes,
      eps=settings.eps, steps=settings.search_steps,
      seed=int(jax.random.bits(key, dtype=jnp.uint32)))


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for more classes than the teacher has."""
  num_classes = head.num_classes(network, variables, image_shape)
  if settings.classes > num_classes:
    raise ConfigError(f'classes must be from 0 to the {num_classes} classes of the '
                      f'teacher, got {settings.classes}')
