"""All weights of a teacher, trained to forget what detection finds.

A trigger that was made against features, as CKD's is, can leave all triggered images with
one feature vector; then no classifier on top tells them apart, however it is trained. So
the features have to change: on clean images the network copies what it was, and a patch
and a perturbation that turn images into the attacker's classes come to mean nothing. The
perturbation follows the weights, so that it is not merely moved.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rkd_jax.detox import neural_cleanse, reversed_trigger, universal
from rkd_jax.detox.descent import repeat
from rkd_jax.settings import count, positive

check = reversed_trigger.check  # The same search comes first.

SUMMARY = 'all weights against the patch and perturbation that detection finds'


@dataclasses.dataclass(frozen=True)
class Settings(reversed_trigger.Settings):
  """Settings of `unlearning`."""

  attack_steps: int = count(
      2, 'Steps of the perturbations, of eps / 5, in every update.', least=0)
  restart_every: int = count(50, 'Updates after which the perturbations start anew.')
  steps: int = count(1000, 'Updates.', least=0)
  learning_rate: float = positive(
      1e-3, 'Learning rate of Adam at the start; the default is for small networks, a '
      'WRN-28-4 takes 1e-4 with a temperature of 4. A rate that is too high shows in '
      'the accuracy on clean images.')


def run(network, variables, split, settings: Settings, *, key):
  """The teacher with weights that minimise T^2 KL(old(x), new(x)) + w CE(x', y).

  For every image one of the attacker's classes k is drawn, and x' is either
  (1 - m_k) x + m_k t_k, with the patch that `detection.detect` finds, or x + d_k, with a
  universal perturbation |d_k| <= eps that signed steps drive towards k on every batch.
  Adam, with a learning rate that falls to 0 along a cosine; BatchNorm keeps its running
  statistics.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of the reversal, the batches and the perturbations.

  Returns:
    (network, variables).

  Raises:
    ConfigError: more classes than the teacher has.
  """
  old = lambda images: network.predict(variables, images)
  found = reversed_trigger.search(network, variables, split, settings, key)
  attacked = jnp.asarray(found.attacked(settings.classes))
  masks, patterns = jnp.asarray(found.masks), jnp.asarray(found.patterns)
  tx = optax.adam(optax.cosine_decay_schedule(
      settings.learning_rate, max(settings.steps, 1)))
  fn_of = lambda params: lambda x: network.predict({**variables, 'params': params}, x)

  def loss_fn(params, image, label, bad):
    return reversed_trigger.loss(fn_of(params), old, image, label, bad, settings)

  def step(state, image, label, key):
    params, optimizer, deltas, count = state
    keys = jax.random.split(key, 3)
    which = jax.random.choice(keys[1], attacked, label.shape)
    deltas = universal.chase(
        fn_of(params), image, which, deltas, count, keys[0], settings)
    patched = neural_cleanse.paste(image, masks[which], patterns[which])
    perturbed = universal.perturb(image, deltas, which)
    patch = jax.random.bernoulli(keys[2], shape=(*label.shape, 1, 1, 1))
    grads = jax.grad(loss_fn)(params, image, label, jnp.where(patch, patched, perturbed))
    updates, optimizer = tx.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), optimizer, deltas, count + 1

  params = variables['params']
  deltas = universal.start(
      len(found.size), split.image.shape[1:], settings.eps, key)
  state = (params, tx.init(params), deltas, jnp.int32(0))
  params = repeat(step, state, split, key=key, steps=settings.steps,
                  batch_size=settings.batch_size)[0]
  return network, {**variables, 'params': params}
