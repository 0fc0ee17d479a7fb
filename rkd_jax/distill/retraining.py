"""A robust teacher that changes while it teaches (CIARD, arXiv:2509.12633)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.distill.method import Batch
from rkd_jax.models.network import BoundNetwork, Variables
from rkd_jax.training.schedules import ciard_shape, sgd_direction

# forward(teacher, images) -> (logits float32[B, K], teacher)
Forward = Callable[[BoundNetwork, jax.Array], tuple[jax.Array, BoundNetwork]]


def forward_in(mode: str) -> Forward:
  """The teacher's forward pass with its BatchNorm in 'train' or 'eval' mode.

  'train' normalises with the statistics of the batch and moves the running
  ones, as the public code does from the first epoch: a teacher whose weights
  are frozen then still drifts in evaluation mode.
  """
  if mode == 'train':
    return BoundNetwork.train
  return lambda teacher, images: (teacher.predict(images), teacher)


def make_retrain(settings, *, epochs: int, forward: Forward):
  """Builds the robust teacher's own training.

  SGD on CE(R(x'), y) with the student's x', every step. The learning rate is
  `retrain_learning_rate` times `schedules.ciard_shape` from `retrain_from` on.

  Args:
    settings: `retrain_from`, `retrain_learning_rate`, `retrain_momentum`,
      `retrain_weight_decay`.
    epochs: epochs of the whole training.
    forward: from `forward_in`.

  Returns:
    (init, retrain). `init(params)` is the optimiser's state; `retrain(teacher,
    optimizer, batch, image_adv) -> (logits, variables, optimizer, loss)` gives
    the logits on x' *before* the update, from the same forward pass as its
    gradient, the variables after it, and CE of each example.
  """
  direction = sgd_direction(
      momentum=settings.retrain_momentum,
      weight_decay=settings.retrain_weight_decay)

  def retrain(teacher: BoundNetwork, optimizer, batch: Batch, image_adv
              ) -> tuple[jax.Array, Variables, optax.OptState, jax.Array]:
    params = teacher.variables['params']

    def mean_loss(params):
      bound = BoundNetwork(
          teacher.network, {**teacher.variables, 'params': params})
      logits, after = forward(bound, image_adv)
      loss = losses.cross_entropy(logits, batch.label)
      return batch.mean(loss), (logits, after.variables, loss)

    grads, (logits, variables, loss) = jax.grad(mean_loss, has_aux=True)(params)
    updates, optimizer = direction.update(grads, optimizer, params)
    rate = settings.retrain_learning_rate * ciard_shape(
        batch.epoch, epochs, start=settings.retrain_from)
    params = optax.apply_updates(
        params, jax.tree.map(lambda update: -rate * update, updates))
    return logits, {**variables, 'params': params}, optimizer, loss

  return direction.init, retrain


def copy_of(variables: Variables) -> Variables:
  """The same values in buffers of their own.

  What a method carries along is donated with the training state every step; the
  frozen teacher, from which the copy is made, is not.
  """
  return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), variables)
