"""What a distillation method is: pure functions and a frozen description."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.models.network import BoundNetwork, Network


def weighted_mean(values: jax.Array, weights: jax.Array | None = None):
  """Mean over the global batch; a weighted mean is 0 where all weights are 0."""
  if weights is None:
    return jnp.mean(values)
  total = jnp.sum(weights)
  return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def _call(make):
  return make()


Memory = Any  # Pytree: what changes while a method trains, beside the student.


@dataclasses.dataclass(frozen=True)
class Batch:
  """One training batch as a method sees it.

  Attributes:
    image: float32[B, H, W, C] in [0, 1], already augmented.
    label: int32[B].
    key: typed PRNG keys [B], one an example; derive with `fold_in`.
    step: int32 scalar, training steps taken before this one.
    epoch: int32 scalar, whole epochs finished before this step.
    progress: float32 scalar, the same with the part of the running epoch.
    mean: `mean(values[B], weights[B] | None)`: mean over the *global* batch on
      every device layout; a weighted mean whose weights are all 0 is 0.
    views: `views(i)`, i >= 1: the same examples augmented anew, as `image`; None where
      there is nothing but `image`. See `view`.
    once: `once(make)` is `make()`, images that the inner maximisation found. A step
      that evaluates the objective at several weights has them made at the first.
  """

  image: jax.Array
  label: jax.Array
  key: jax.Array
  step: jax.Array
  epoch: jax.Array
  progress: jax.Array
  mean: Callable[..., jax.Array] = weighted_mean
  views: Callable[[int], jax.Array] | None = None
  once: Callable[[Callable[[], jax.Array]], jax.Array] = _call

  def view(self, number: int) -> jax.Array:
    """Another augmentation of `image`, one for each number >= 1."""
    return self.image if self.views is None else self.views(number)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What an objective returns.

  Attributes:
    loss: float32[B], per example; the step owns the mean and the gradient.
    student: the student with the running statistics that its training-mode
      forward passes left.
    memory: the method's state after this step; no gradient flows into it.
    metrics: scalars or [B] arrays by name, for the log; averaged by the step.
  """

  loss: jax.Array
  student: BoundNetwork
  memory: Memory
  metrics: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


# objective(student, teachers, memory, batch) -> Outcome. The step differentiates
# mean(Outcome.loss) with respect to the student's parameters; attack
# `student.frozen().predict`, so that nothing is differentiated through it.
Objective = Callable[
    [BoundNetwork, Mapping[str, BoundNetwork], Memory, Batch], Outcome]


def _nothing(teachers):
  del teachers
  return {}


def _unchanged(key, variables):
  del key
  return variables


@dataclasses.dataclass(frozen=True)
class Attachment:
  """A student together with what is trained beside it by the same optimiser.

  Attributes:
    network: takes the student's place while it is trained.
    init: `init(key, variables) -> variables` of its fresh variables.
    detach: its variables -> those of the student alone.
    init_memory: `init_memory(key) -> Memory` of a method whose memory depends on the
      student or the images, in place of its own; None for most.
  """

  network: Network
  init: Callable[[jax.Array, Any], Any]
  detach: Callable[[Any], Any]
  init_memory: Callable[[jax.Array], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Crafted:
  """The trigger x' = (1 - opacity) x + opacity * pattern that an attacker's method made.

  Attributes:
    target: the class that triggered images get.
    opacity: float32[H, W, C] in [0, 1].
    pattern: float32[H, W, C] in [0, 1].
  """

  target: int
  opacity: jax.Array
  pattern: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
  """A distillation method.

  Attributes:
    name: as in the registry.
    roles: the teachers it needs: (), ('teacher',) or ('clean', 'robust').
    phases: ((first epoch, objective), ...), in ascending order, from 0. Each
      objective is compiled only for its own epochs.
    init_memory: `init_memory({role: BoundNetwork}) -> Memory`.
    retrained: `retrained(memory) -> {role: variables}`, the teachers that the
      method changes, as they are now; {} for most methods.
    adversarial: whether it makes the student robust, so that validation counts
      accuracy under attack too.
    attacks: whether an adversarial method attacks the student in its training steps.
    init_student: `init_student(key, variables) -> variables`: what the method makes of
      the student's fresh variables. Raises ConfigError for a network that it cannot
      train; called abstractly before anything is written.
    attach: `attach(student, {role: BoundNetwork}, image_shape) -> Attachment`, for
      methods that train more than the student, such as connectors to features; None
      for most. Raises ConfigError for networks that do not fit each other.
    crafted: `crafted(memory) -> Crafted`, for methods that make a backdoor of their
      own; None for all others.
  """

  name: str
  roles: tuple[str, ...]
  phases: tuple[tuple[int, Objective], ...]
  init_memory: Callable[[Mapping[str, BoundNetwork]], Memory] = _nothing
  retrained: Callable[[Memory], Mapping[str, Any]] = _nothing
  adversarial: bool = True
  attacks: bool = True
  init_student: Callable[[jax.Array, Any], Any] = _unchanged
  attach: Callable[..., Attachment] | None = None
  crafted: Callable[[Memory], Crafted] | None = None

  def objective_at(self, epoch: int) -> Objective:
    """The objective that is on in an epoch (counted from 0)."""
    return [fn for start, fn in self.phases if start <= epoch][-1]
