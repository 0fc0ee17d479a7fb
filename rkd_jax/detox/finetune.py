"""Fine-tuning on clean images: the defence that every other one must beat."""

import dataclasses

import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.detox.descent import descend
from rkd_jax.settings import count, not_negative, positive
from rkd_jax.training.schedules import sgd_direction

SUMMARY = 'fine-tuning on clean images'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `finetune`."""

  steps: int = count(400, 'Updates.', least=0)
  learning_rate: float = positive(0.01, 'Learning rate of SGD, constant.')
  weight_decay: float = not_negative(5e-4, 'Weight decay.')
  batch_size: int = count(64, 'Images in a batch.')


def run(network, variables, split, settings: Settings, *, key):
  """SGD on CE(T(x), y), momentum 0.9, BatchNorm in training mode.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches.

  Returns:
    (network, variables).
  """
  return network, tuned(network, variables, split, settings, key=key)


def tuned(network, variables, split, settings, *, key, extra=None):
  """The variables after fine-tuning.

  Args:
    extra: `extra(variables, images) -> scalar`, added to the loss; None: nothing.
    Others: see `run`.
  """
  rest = {name: tree for name, tree in variables.items() if name != 'params'}

  def loss_fn(params, rest, image, label, key):
    del key
    full = {**rest, 'params': params}
    logits, after = network.train(full, image)
    loss = jnp.mean(losses.cross_entropy(logits, label))
    if extra is not None:
      loss += extra(full, image)
    return loss, {name: after[name] for name in rest}

  params, rest = descend(
      loss_fn, variables['params'], rest, split, optimiser(settings), key=key,
      steps=settings.steps, batch_size=settings.batch_size)
  return {**rest, 'params': params}


def optimiser(settings):
  """SGD of constant rate, momentum 0.9."""
  return optax.chain(
      sgd_direction(momentum=0.9, weight_decay=settings.weight_decay),
      optax.scale(-settings.learning_rate))
