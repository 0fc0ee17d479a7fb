"""Training parts of a teacher against universal perturbations, one for each class."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.data.dataset import Split
from rkd_jax.detox import head, universal
from rkd_jax.detox.descent import repeat
from rkd_jax.settings import count, not_negative, positive, radius


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `universal_training`."""

  eps: float = radius(0.1, 'L-inf radius of the perturbations; pixels in [0, 1].')
  attack_steps: int = count(
      2, 'Steps of the perturbations, of eps / 5, in every update.', least=0)
  restart_every: int = count(50, 'Updates after which the perturbations start anew.')
  weight: float = not_negative(1.0, 'Weight of the loss on perturbed images.')
  steps: int = count(600, 'Updates.', least=0)
  learning_rate: float = positive(5e-3, 'Learning rate of Adam.')
  batch_size: int = count(64, 'Images in a batch.')


def train(build: Callable, free: Any, split: Split, settings: Settings, *,
          key: jax.Array, penalty: Callable[[Any], jax.Array] | None = None) -> Any:
  """Minimises CE(x, y) + weight * CE(x + d_k, y) + penalty over `free`.

  d_k is a universal perturbation for a wrong class k, drawn for every example; it is
  kept within eps in L-inf and improved by signed steps on every batch.

  Args:
    build: `build(free) -> (network, variables)`, pure; used in evaluation mode.
    free: pytree that is optimised by Adam.
    split: clean images (uint8) and labels.
    settings: Those declared above.
    key: of batches and perturbations.
    penalty: `penalty(free) -> scalar`; None: nothing.

  Returns:
    `free` after the last step.
  """
  tx = optax.adam(settings.learning_rate)
  shape = split.image.shape[1:]
  num_classes = head.num_classes(*build(free), shape)

  def fn_of(free):
    network, variables = build(free)
    return lambda x: network.predict(variables, x)

  def loss_fn(free, image, label, bad):
    logits = fn_of(free)(jnp.concatenate([image, bad]))
    clean, attacked = jnp.split(losses.cross_entropy(
        logits, jnp.concatenate([label, label])), 2)
    loss = jnp.mean(clean + settings.weight * attacked)
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

  deltas = universal.start(num_classes, shape, settings.eps, key)
  return repeat(step, (free, tx.init(free), deltas, jnp.int32(0)), split, key=key,
                steps=settings.steps, batch_size=settings.batch_size)[0]
