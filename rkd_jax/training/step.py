"""One training step: augment, attack, compare, differentiate, update.

The step is a pure function `(state, frozen, batch) -> (state, metrics)` that
knows nothing of devices; `training.parallel` compiles it. What the student
minimises and what the attacker maximises is the method's objective
(`rkd_jax.distill`), so this file is the same for all methods.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.data.batches import to_float
from rkd_jax.models.network import BoundNetwork, Network
from rkd_jax.training import averaging as averaging_lib
from rkd_jax.training import awp, rng

_AUGMENT = 0  # Stream tags below an example's key.
_METHOD = 1
_VIEWS = 2


def make_train_step(objective: Callable, make_batch: Callable,
                    student: Network, teachers: Mapping[str, Network],
                    tx: optax.GradientTransformation, *,
                    augment: Callable, steps_per_epoch: int,
                    gradient: awp.Gradient = awp.plain_gradient,
                    averaging: averaging_lib.Averaging = averaging_lib.OFF):
  """Builds the pure step of one objective.

  Args:
    objective: see `rkd_jax.distill.method.Objective`.
    make_batch: the constructor of what the objective takes as its batch.
    student: the network that is trained.
    teachers: the networks of the teachers, by role.
    tx: the student's optimiser.
    augment: `(key, image) -> image` on one image [H, W, C], dtype kept.
    steps_per_epoch: batches in an epoch.
    gradient: at which weights the gradient is taken, see `training.awp`.
    averaging: of the student, see `training.averaging`.

  Returns:
    `step(state, frozen, batch) -> (state, metrics)`: `frozen` holds the
    teachers' variables by role, `batch` uint8 'image' [B, H, W, C], int32
    'label' [B] and int32 'index' [B] (positions in the training split);
    metrics are float32 scalars with at least 'loss' and 'grad_norm'.
  """

  def step(state, frozen, batch):
    keys = rng.example_keys(state.key, state.step, batch['index'])
    split = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    images = lambda keys: to_float(jax.vmap(augment)(keys, batch['image']))
    image = images(split(keys, _AUGMENT))
    filled = functools.partial(
        make_batch, image=image, label=batch['label'],
        key=split(keys, _METHOD), step=state.step,
        epoch=state.step // steps_per_epoch,
        progress=state.step / steps_per_epoch,
        views=lambda number: images(split(split(keys, _VIEWS), number)))
    bound = {role: BoundNetwork(network, frozen[role])
             for role, network in teachers.items()}

    def loss_fn(params, found=None):
      once, made = awp.reuse(found)
      learner = BoundNetwork(student, {**state.variables, 'params': params})
      outcome = objective(learner, bound, state.memory, filled(once=once))
      loss = jnp.mean(outcome.loss)
      return loss, ({'loss': loss, **outcome.metrics}, made,
                    outcome.student.variables['batch_stats'], outcome.memory)

    grads, (metrics, _, stats, memory) = gradient(loss_fn, state.variables['params'])
    updates, opt_state = tx.update(
        grads, state.opt_state, state.variables['params'])
    params = optax.apply_updates(state.variables['params'], updates)
    metrics = {name: jnp.mean(value).astype(jnp.float32)
               for name, value in metrics.items()}
    metrics['grad_norm'] = optax.tree.norm(grads)
    variables = {'params': params, 'batch_stats': stats}
    return state.replace(
        step=state.step + 1, variables=variables, opt_state=opt_state,
        memory=lax.stop_gradient(memory),
        averaged=averaging.update(state.averaged, variables, state.step)), metrics

  return step


def make_scan(step: Callable) -> Callable:
  """K steps as one program over device-resident data.

  Returns:
    `scan(state, frozen, data, order) -> (state, metrics)`: `data` holds the
    whole training split ('image' uint8[N, ...], 'label' int32[N]), `order`
    int32[K, B] the examples of each step; metrics are stacked to [K].
  """

  def scan(state, frozen, data, order):
    def body(state, index):
      batch = {'image': data['image'][index], 'label': data['label'][index],
               'index': index}
      return step(state, frozen, batch)
    return lax.scan(body, state, order)

  return scan
