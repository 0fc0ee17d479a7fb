"""Learning-rate schedules and optimisers by name.

Every shape is a function of the whole epochs finished and of the length of the
training, in shares of which its turning points are given: a run of 30 epochs
then has the published shape of one of 300. Shapes take traced epochs, so that a
method which trains a teacher of its own follows the same one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.sections import Optimizer, Schedule
from rkd_jax.settings import build

# Learning rate, loss weights and temperatures all fall here in RSLAD, MTARD,
# B-MTARD and CIARD.
PUBLISHED_MILESTONES = (215 / 300, 260 / 300, 285 / 300)


def first_epoch(share: float, epochs: int) -> int:
  """The first whole epoch at or after a share of the training.

  `first_epoch(50 / 300, 300)` is 50; the tolerance keeps it from becoming 51
  where the quotient is rounded up.
  """
  return math.ceil(share * epochs - 1e-6)


def step_shape(epoch, epochs: int, *,
               milestones: Sequence[float] = PUBLISHED_MILESTONES,
               factor: float = 0.1) -> jax.Array:
  """`factor` to the number of milestones passed: float32, like `epoch`.

  Args:
    epoch: whole epochs finished, a number or an array.
    epochs: epochs of the whole training.
    milestones: shares of the training in [0, 1].
    factor: multiplied on at every milestone.
  """
  passed = sum((jnp.asarray(epoch) >= first_epoch(share, epochs)
                for share in milestones), start=jnp.zeros((), jnp.int32))
  return jnp.float32(factor) ** passed


def ciard_shape(epoch, epochs: int, *, start: float = 150 / 300) -> jax.Array:
  """1 until `start`, then (1 + cos(pi p)) / 2 * exp(-0.01 p**2): float32.

  p is the share of the way from `start` to the end, so that the published
  values are p = (e - 150) / 150 for the student and (e - 50) / 250 for the
  retrained teacher (CIARD, arXiv:2509.12633, public code). Epochs count from 0
  here and from 1 there: there, the whole last epoch has a rate of 0.

  Args:
    epoch: whole epochs finished, a number or an array.
    epochs: epochs of the whole training.
    start: share of the training in [0, 1).
  """
  share = jnp.asarray(epoch, jnp.float32) / epochs
  progress = jnp.clip((share - start) / (1 - start), 0, 1)
  return (0.5 + 0.5 * jnp.cos(jnp.pi * progress)) * jnp.exp(
      -0.01 * progress**2)


def _constant_shape(epoch, epochs):
  del epochs
  return jnp.ones_like(jnp.asarray(epoch, jnp.float32))


def _cosine_shape(epoch, epochs):
  progress = jnp.clip(jnp.asarray(epoch, jnp.float32) / epochs, 0, 1)
  return 0.5 + 0.5 * jnp.cos(jnp.pi * progress)


# Shape, its options with their defaults, and whether it moves within an epoch.
_SHAPES = {
    'constant': (_constant_shape, {}, False),
    'step': (step_shape,
             {'milestones': PUBLISHED_MILESTONES, 'factor': 0.1}, False),
    'cosine': (_cosine_shape, {}, True),
    'ciard': (ciard_shape, {'start': 150 / 300}, False),
}


def names() -> list[str]:
  """The names of the schedules."""
  return sorted(_SHAPES)


def options(name: str) -> dict[str, Any]:
  """The options of a schedule with their defaults; ConfigError if unknown."""
  if name not in _SHAPES:
    raise unknown_name('schedule', name, _SHAPES)
  return dict(_SHAPES[name][1])


def make_schedule(name: str, *, learning_rate: float, epochs: int,
                  steps_per_epoch: int, warmup: float = 0.0,
                  **shape_options: Any) -> optax.Schedule:
  """A learning rate by update count.

  Args:
    name: 'constant', 'step' (options `milestones`, shares of the training, and
      `factor`), 'cosine' (down to 0, every update) or 'ciard' (option `start`);
      all but 'cosine' change between epochs only.
    learning_rate: the largest value, > 0.
    epochs: epochs of the whole training, >= 1.
    steps_per_epoch: updates in an epoch, >= 1.
    warmup: share of the training in [0, 1) over which the rate is multiplied by
      a line that reaches 1, update by update; 0 for none.
    **shape_options: the `options` of the name; others are refused.

  Returns:
    `schedule(count) -> float32`, `count` being the updates taken before.

  Raises:
    ConfigError: unknown name or option, or a value out of its range.
  """
  known = options(name)
  for option in shape_options:
    if option not in known:
      raise unknown_name(f'option of schedule {name!r}', option, known)
  shape_options = {**known, **shape_options}
  shape, _, within_epoch = _SHAPES[name]
  _check(learning_rate, epochs, steps_per_epoch, {'warmup': warmup, **shape_options})
  warmup_steps = round(warmup * epochs * steps_per_epoch)

  def schedule(count):
    count = jnp.asarray(count)
    epoch = count / steps_per_epoch if within_epoch else count // steps_per_epoch
    rate = learning_rate * shape(epoch, epochs, **shape_options)
    if warmup_steps:
      rate = rate * jnp.minimum(1.0, (count + 1) / warmup_steps)
    return jnp.asarray(rate, jnp.float32)

  return schedule


def _check(learning_rate, epochs, steps_per_epoch, shape):
  build(Optimizer, {'learning_rate': learning_rate}, 'optimizer')
  build(Schedule, shape, 'schedule')
  if epochs < 1 or steps_per_epoch < 1:
    raise ConfigError(
        f'epochs and steps_per_epoch must be >= 1, got {epochs} and '
        f'{steps_per_epoch}; is batch_size larger than the training split?')


def sgd_direction(*, momentum: float, weight_decay: float,
                  nesterov: bool = False) -> optax.GradientTransformation:
  """What torch's SGD multiplies by the learning rate.

  g <- grad + weight_decay * param; buffer <- momentum * buffer + g; the
  direction is the buffer, or g + momentum * buffer with `nesterov`. Scale by
  -rate and add to the parameters. All parameters decay, as in torch.
  """
  return optax.chain(
      optax.add_decayed_weights(weight_decay),
      optax.trace(decay=momentum, nesterov=nesterov))


def make_optimizer(settings: Mapping[str, Any],
                   schedule: optax.Schedule) -> optax.GradientTransformation:
  """The optimiser that a config names.

  Args:
    settings: What differs from the defaults of `sections.Optimizer`, whose learning
      rate is the schedule's. The decay is added to the gradient by 'sgd' and 'adam',
      as torch does, and decoupled from it by 'adamw'; all parameters decay. Gradients
      are clipped before it is added.
    schedule: `count -> learning rate`.

  Raises:
    ConfigError: unknown key or name, or a value out of its range.
  """
  chosen = build(Optimizer, settings, 'optimizer')
  decay, clip = chosen.weight_decay, chosen.clip_norm
  directions = {
      'sgd': lambda: sgd_direction(momentum=chosen.momentum, weight_decay=decay,
                                   nesterov=chosen.nesterov),
      'adam': lambda: optax.chain(
          optax.add_decayed_weights(decay), optax.scale_by_adam()),
      'adamw': lambda: optax.chain(
          optax.scale_by_adam(), optax.add_decayed_weights(decay)),
  }
  return optax.chain(
      optax.clip_by_global_norm(clip) if clip else optax.identity(),
      directions[chosen.name](),
      optax.scale_by_learning_rate(schedule))
