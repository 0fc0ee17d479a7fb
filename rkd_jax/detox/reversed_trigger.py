"""A new classifier for a teacher, trained against the trigger found by reversal.

The suspects of `detection` are taken for the attacker's classes, the class that stands
out most where there are none: a classifier drawn anew learns that the patches which turn
images into them mean nothing, and from the old classifier what clean images are. Against
one class instead of all, that costs less accuracy than `new_head`; against the wrong
class, it does nothing.
"""

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.detox import detection, head, neural_cleanse
from rkd_jax.detox.descent import descend
from rkd_jax.errors import ConfigError

SUMMARY = 'a new classifier against the trigger that detection finds'

DEFAULTS = {
    'classes': 0, 'eps': 0.1, 'search_steps': 300, 'temperature': 2.0, 'weight': 1.0,
    'steps': 600, 'learning_rate': 5e-3, 'batch_size': 64}


def run(network, variables, split, settings, *, key):
  """The teacher with a classifier that minimises T^2 KL(old(x), new(x)) + w CE(x', y).

  x' = (1 - m) x + m t, with the mask m and pattern t that `detection.detect` finds for
  one of the attacker's classes, drawn for every image. Adam, with a learning
  rate that falls to 0 along a cosine.

  Args:
    network, variables: the teacher; its other weights do not change.
    split: clean images and labels.
    settings:
      classes: how many are taken for the attacker's, those that stand out most; 0: the
        suspects, or one where there are none.
      eps: of the perturbations that detection compares, >= 0.
      temperature: T > 0.
      weight: w >= 0.
      search_steps: of the reversal, >= 1.
      steps, learning_rate, batch_size: of the new classifier.
    key: of the reversal, the classifier and the batches.

  Returns:
    (network, variables).

  Raises:
    ConfigError: a setting out of its range, or more classes than the teacher has.
  """
  old = lambda images: network.predict(variables, images)
  found = search(network, variables, split, settings, key)
  attacked = found.attacked(settings['classes'])
  masks, patterns = (jnp.asarray(of[attacked]) for of in (found.masks, found.patterns))

  def loss_fn(free, carried, image, label, key):
    which = jax.random.randint(key, label.shape, 0, len(attacked))
    bad = neural_cleanse.paste(image, masks[which], patterns[which])
    new = lambda x: network.predict(head.replaced(variables, free), x)
    return loss(new, old, image, label, bad, settings), carried

  rate = optax.cosine_decay_schedule(settings['learning_rate'], max(settings['steps'], 1))
  free, _ = descend(
      loss_fn, head.of(head.drawn_anew(variables['params'], key)), (), split,
      optax.adam(rate), key=key, steps=settings['steps'],
      batch_size=settings['batch_size'])
  return network, head.replaced(variables, free)


def loss(new, old, image, label, bad, settings) -> jax.Array:
  """Mean of T^2 KL(old(x), new(x)) + w CE(new(x'), y), of functions images -> logits."""
  clean, triggered = jnp.split(new(jnp.concatenate([image, bad])), 2)
  kept = losses.softened_kl(clean, old(image), temperature=settings['temperature'])
  unlearnt = losses.cross_entropy(triggered, label)
  return jnp.mean(kept + settings['weight'] * unlearnt)


def search(network, variables, split, settings, key) -> detection.Report:
  """What `detection.detect` finds in a teacher, once the settings are checked."""
  num_classes = head.num_classes(network, variables, split.image.shape[1:])
  _check(settings, num_classes)
  return detection.detect(
      lambda images: network.predict(variables, images), split, num_classes,
      eps=settings['eps'], steps=settings['search_steps'],
      seed=int(jax.random.bits(key, dtype=jnp.uint32)))


def _check(settings, num_classes):
  if not 0 <= settings['classes'] <= num_classes:
    raise ConfigError(f'classes must be from 0 to the {num_classes} classes of the '
                      f'teacher, got {settings["classes"]}')
  if not settings['temperature'] > 0 or not settings['weight'] >= 0:
    raise ConfigError('temperature must be > 0 and weight >= 0, got '
                      f'{settings["temperature"]} and {settings["weight"]}')
  if settings['search_steps'] < 1 or not settings['eps'] >= 0:
    raise ConfigError('search_steps must be >= 1 and eps >= 0, got '
                      f'{settings["search_steps"]} and {settings["eps"]}')
