"""Training parts of a teacher against universal perturbations, one for each class."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.data.dataset import Split
from rkd_jax.detox import head, universal
from rkd_jax.detox.descent import repeat
from rkd_jax.errors import ConfigError

DEFAULTS = {
    'eps': 0.1, 'attack_steps': 2, 'restart_every': 50, 'weight': 1.0, 'steps': 600,
    'learning_rate': 5e-3, 'batch_size': 64}


def train(build: Callable, free: Any, split: Split, settings: Mapping[str, Any], *,
          key: jax.Array, penalty: Callable[[Any], jax.Array] | None = None) -> Any:
  """Minimises CE(x, y) + weight * CE(x + d_k, y) + penalty over `free`.

  d_k is a universal perturbation for a wrong class k, drawn for every example; it is
  kept within eps in L-inf and improved by signed steps on every batch.

  Args:
    build: `build(free) -> (network, variables)`, pure; used in evaluation mode.
    free: pytree that is optimised by Adam.
    split: clean images (uint8) and labels.
    settings:
      eps: radius in pixel units, >= 0.
      attack_steps: steps of the perturbations, of eps / 5, in every update.
      restart_every: updates after which the perturbations start anew, >= 1.
      weight: of the loss on perturbed images, >= 0.
      steps, learning_rate, batch_size: of Adam.
    key: of batches and perturbations.
    penalty: `penalty(free) -> scalar`; None: nothing.

  Returns:
    `free` after the last step.

  Raises:
    ConfigError: a setting out of its range.
  """
  universal.check(settings)
  if not settings['weight'] >= 0:
    raise ConfigError(f'weight must be >= 0, got {settings["weight"]}')
  tx = optax.adam(settings['learning_rate'])
  shape = split.image.shape[1:]
  num_classes = head.num_classes(*build(free), shape)

  def fn_of(free):
    network, variables = build(free)
    return lambda x: network.predict(variables, x)

  def loss_fn(free, image, label, bad):
    logits = fn_of(free)(jnp.concatenate([image, bad]))
    clean, attacked = jnp.split(losses.cross_entropy(
        logits, jnp.concatenate([label, label])), 2)
    loss = jnp.mean(clean + settings['weight'] * attacked)
    return loss if penalty is None else loss + penalty(free)

  def step(state, image, label, key):
    free, optimizer, deltas, count = state
    classes = universal.assign(label, num_classes, jax.random.fold_in(key, 1))
    deltas = universal.chase(fn_of(free), image, classes, deltas, count,
                             jax.random.fold_in(key, 0), settings)
    grads = jax.grad(loss_fn)(
        free, image, label, universal.perturb(image, deltas, classes))
    updates, optimizer = tx.update(grads, optimizer, free)
    return optax.apply_updates(free, updates), optimizer, deltas, count + 1

  deltas = universal.start(num_classes, shape, settings['eps'], key)
  return repeat(step, (free, tx.init(free), deltas, jnp.int32(0)), split, key=key,
                steps=settings['steps'], batch_size=settings['batch_size'])[0]
