"""Everything that changes during training, as one pytree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rkd_jax.models.network import Network, Variables
from rkd_jax.training import averaging as averaging_lib


@flax.struct.dataclass
class TrainState:
  """A run at one moment; saving it and nothing else suffices to go on.

  Attributes:
    step: int32 scalar, updates taken.
    key: typed PRNG key of the run; constant, `step` is folded in where used.
    variables: the student's {'params', 'batch_stats'}.
    opt_state: the student's optimiser state.
    memory: what the method carries along (loss weights, temperatures, a
      retrained teacher with its optimiser); {} for most methods.
    averaged: the mean of the student over the training, like `variables`; {}
      where none is kept.
  """

  step: jax.Array
  key: jax.Array
  variables: Variables
  opt_state: Any
  memory: Any
  averaged: Variables = flax.struct.field(default_factory=dict)

  @property
  def judged(self) -> Variables:
    """What is validated and exported: the averaged student where there is one."""
    return self.averaged or self.variables


def create(network: Network, image_shape: tuple[int, ...],
           tx: optax.GradientTransformation, memory: Any, *,
           init_key: jax.Array, train_key: jax.Array,
           init_student: Callable | None = None,
           averaging: averaging_lib.Averaging = averaging_lib.OFF) -> TrainState:
  """A fresh state. `init_key` draws the weights, `train_key` all the rest.

  `init_student(key, variables) -> variables` changes the fresh variables. `averaging`
  is that of the step.
  """
  variables = network.init(init_key, image_shape)
  if init_student is not None:
    variables = init_student(jax.random.fold_in(init_key, 0), variables)
  return TrainState(
      step=jnp.zeros((), jnp.int32), key=train_key, variables=variables,
      opt_state=tx.init(variables['params']), memory=memory,
      averaged=averaging.init(variables))
