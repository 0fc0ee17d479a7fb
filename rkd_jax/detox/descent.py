"""The loop that all defences share: updates on random batches, one compiled scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.training import parallel


def repeat(step: Callable, state: Any, split: Split, *, steps: int, batch_size: int,
           key: jax.Array) -> Any:
  """`state` after `steps` calls of `step(state, images, labels, key) -> state`.

  Args:
    step: pure; images float32[B, H, W, C] in [0, 1], labels int32[B].
    state: any pytree.
    split: clean examples, uint8.
    steps: number of updates.
    batch_size: B, cut to the number of examples.
    key: of the batches, whose examples are drawn independently, and the steps.
  """
  batch_size = min(batch_size, len(split))
  order_key, step_key = jax.random.split(key)

  def body(state, number, data):
    index = jax.random.randint(
        jax.random.fold_in(order_key, number), (batch_size,), 0, len(data.label))
    image = to_float(data.image[index])
    label = jnp.asarray(data.label, jnp.int32)[index]
    return step(state, image, label, jax.random.fold_in(step_key, number)), None

  @parallel.compile_fn
  def run(state, data):
    return lax.scan(lambda s, n: body(s, n, data), state, jnp.arange(steps))[0]

  return run(state, jax.device_put(split)) if steps else state


def descend(loss_fn: Callable, free: Any, carried: Any, split: Split,
            tx: optax.GradientTransformation, **settings: Any) -> tuple[Any, Any]:
  """Minimises over `free`; (free, carried) at the end.

  Args:
    loss_fn: `loss_fn(free, carried, images, labels, key) -> (scalar, carried)`.
    free: pytree that is optimised.
    carried: pytree that only moves along, such as running statistics.
    split: clean examples.
    tx: the optimiser.
    **settings: of `repeat`.
  """

  def step(state, image, label, key):
    free, carried, optimizer = state
    grads, carried = jax.grad(loss_fn, has_aux=True)(free, carried, image, label, key)
    updates, optimizer = tx.update(grads, optimizer, free)
    return optax.apply_updates(free, updates), carried, optimizer

  return repeat(step, (free, carried, tx.init(free)), split, **settings)[:2]
