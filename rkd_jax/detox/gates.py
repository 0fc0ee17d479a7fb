"""Gates on the deviation from clean averages, against a worst-case trigger.

A static mask scales what the head reads and leaves a trigger's direction in place.
Here every channel's deviation from its clean average is scaled by a gate of its own,
and the head is trained anew with the gates, both against universal perturbations
(one a class) that try to make the network say their class: what carries them is shut.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax.detox import head, universal_training
from rkd_jax.detox import layers as layers_lib
from rkd_jax.models import masked
from rkd_jax.settings import flag, not_negative, text

_OPEN = 3.0  # Gates start at sigmoid(3) = 0.95.

SUMMARY = 'channel gates and a new head against universal perturbations'


@dataclasses.dataclass(frozen=True)
class Settings(universal_training.Settings):
  """Settings of `gates`."""

  penalty: float = not_negative(0.01, 'Weight of the mean of all gates.')
  layers: str = text(
      '', "'stage1,features'; '' for every stage and the penultimate vector.")
  head: bool = flag(
      True, 'Whether the classifier is drawn anew and trained with the gates.')
  weights: bool = flag(
      False, 'Whether all weights of the teacher are trained too.')


def run(network, variables, split, settings: Settings, *, key):
  """A teacher with gates g in [0, 1]^C: F' = P + g (F - P) at each layer.

  Minimises the loss of `universal_training.train` + penalty * mean(g).

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of batches, perturbations and the new head.

  Returns:
    (network, variables), see `models.masked`.

  Raises:
    ConfigError: a layer that is not tapped.
  """
  names = layers_lib.named(network, settings.layers)
  if not settings.layers:
    names = (*names, 'features')
  clean = layers_lib.average(network, variables, split.image)
  params = variables['params']
  if settings.head:
    params = head.drawn_anew(params, key)
  trained = traverse_util.flatten_dict(params) if settings.weights else (
      head.of(params) if settings.head else {})
  state = {
      'gates': {name: jnp.full(clean[name].shape[-1], _OPEN) for name in names},
      'weights': trained}

  def build(free):
    full = head.replaced({**variables, 'params': params}, free['weights'])
    return masked.wrap(network, full, {
        name: {'mask': 1 - jax.nn.sigmoid(free['gates'][name]),
               'reference': clean[name]} for name in names})

  def penalty(free):
    is_open = sum(jnp.mean(jax.nn.sigmoid(g)) for g in free['gates'].values())
    return settings.penalty * is_open

  return build(universal_training.train(
      build, state, split, settings, key=key, penalty=penalty))


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for a layer that the network does not tap."""
  del variables, image_shape
  layers_lib.named(network, settings.layers)
