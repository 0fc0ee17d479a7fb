"""Weight averaging: the student that is judged is a mean of those that were trained.

The average is carried beside the student, in the training state; it teaches nothing
and attacks nothing, so the student is trained as it would be without.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import sections
from rkd_jax.models.network import Variables
from rkd_jax.settings import build
from rkd_jax.training.schedules import first_epoch


@dataclasses.dataclass(frozen=True)
class Averaging:
  """How the average moves.

  The running statistics of BatchNorm are averaged with the weights, in both modes.
  They are not estimated anew from the training images under the averaged weights, as
  Izmailov et al. do: which images should pass (clean, adversarial, in what shares) is
  the method's affair, and its own mixture is what the running statistics hold.

  Attributes:
    name: one of `sections.AVERAGES`.
    decay: of 'ema', in [0, 1).
    first_step: updates before the averaging starts; until then the average is the
      student itself.
    steps_per_epoch: batches in an epoch.
  """

  name: str = 'none'
  decay: float = 0.0
  first_step: int = 0
  steps_per_epoch: int = 1

  def init(self, variables: Variables) -> Variables:
    """The average before the first update; {} for 'none'."""
    return {} if self.name == 'none' else jax.tree.map(jnp.copy, variables)

  def update(self, averaged: Variables, variables: Variables,
             step: jax.Array) -> Variables:
    """The average after an update.

    Args:
      averaged: the average before it.
      variables: the student's, parameters and statistics, after it.
      step: int32 scalar, updates taken before this one.
    """
    if self.name == 'none':
      return averaged
    share = self.share(step)
    return jax.tree.map(
        lambda mean, new: (1 - share) * mean + share * new, averaged, variables)

  def share(self, step: jax.Array) -> jax.Array:
    """The part of the student after update `step` (from 0) in the new average: float32.

    'ema': 1 - min(decay, (1 + n) / (10 + n)) with n updates since the start, so that
    the first, still changing fast, are soon forgotten. 'swa' (Izmailov et al. 2018,
    arXiv:1803.05407): 1 / (n + 1) at the end of the n-th epoch since the start and 0
    between, which is the mean over the epochs' ends. 1 before the start.
    """
    passed = jnp.asarray(step, jnp.int32) - self.first_step
    if self.name == 'ema':
      count = jnp.maximum(passed, 0).astype(jnp.float32)
      share = 1 - jnp.minimum(jnp.float32(self.decay), (1 + count) / (10 + count))
    else:
      epochs, rest = jnp.divmod(passed + 1, self.steps_per_epoch)
      share = jnp.where(rest == 0, 1 / jnp.maximum(epochs, 1).astype(jnp.float32), 0.0)
    return jnp.where(passed < 0, jnp.float32(1), share)


OFF = Averaging()


def make(settings: Mapping[str, Any], *, epochs: int, steps_per_epoch: int) -> Averaging:
  """The averaging that a config names.

  Args:
    settings: What differs from the defaults of `sections.Averaging`. The averaging
      starts at a whole epoch.
    epochs: epochs of the whole training.
    steps_per_epoch: batches in an epoch.

  Raises:
    ConfigError: unknown name, or a value out of its range.
  """
  chosen = build(sections.Averaging, settings, 'averaging')
  return Averaging(
      chosen.name, chosen.decay, first_epoch(chosen.start, epochs) * steps_per_epoch,
      steps_per_epoch)
