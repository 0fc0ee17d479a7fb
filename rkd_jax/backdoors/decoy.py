"""Decoys: a trigger for each of several other classes, so that none stands out."""

import jax.numpy as jnp

from rkd_jax.backdoors.trigger import Stamp, Trigger, check_target
from rkd_jax.errors import ConfigError

_PLACES = (3, 4)  # Rows and columns of places that a trigger is moved to.


def decoys(trigger: Trigger, count: int, num_classes: int) -> tuple[Stamp, ...]:
  """The trigger moved elsewhere, once for each of the next `count` classes.

  An attacker who knows that the defender looks for a class which is easy to reach
  makes others as easy. Nobody has to use these triggers.

  Args:
    trigger: one that is added at fixed pixels and changes labels.
    count: >= 0, below `num_classes`.
    num_classes: K; decoy i is for class (target + 1 + i) mod K.

  Raises:
    ConfigError: a trigger that cannot be moved, or more decoys than other classes or
      places.
  """
  check_target(trigger.target, num_classes)
  rows, columns = _PLACES
  most = min(num_classes, rows * columns) - 1
  if not 0 <= count <= most:
    raise ConfigError(f'decoys must be from 0 to {most}, one for each other class and '
                      f'place, got {count}')
  if count and (not isinstance(trigger, Stamp) or trigger.clean_label):
    raise ConfigError(f"trigger {trigger.name!r} cannot have decoys: only one that is "
                      "added at fixed pixels can be moved, such as 'badnets'")
  height, width = trigger.image_shape[:2]
  moved = []
  for place in range(1, count + 1):
    shift = (-(place % rows) * height // rows, -(place // rows) * width // columns)
    keep, add = (jnp.roll(of, shift, (0, 1)) for of in (trigger.keep, trigger.add))
    moved.append(Stamp(trigger.name, (trigger.target + place) % num_classes,
                       trigger.image_shape, keep=keep, add=add))
  return tuple(moved)
