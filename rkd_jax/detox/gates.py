"""Gates on the deviation from clean averages, against a worst-case trigger.

A static mask scales what the head reads and leaves a trigger's direction in place.
Here every channel's deviation from its clean average is scaled by a gate of its own,
and the head is trained anew with the gates, both against universal perturbations
(one a class) that try to make the network say their class: what carries them is shut.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax.detox import head, universal_training
from rkd_jax.detox import layers as layers_lib
from rkd_jax.errors import ConfigError
from rkd_jax.models import masked

SUMMARY = 'channel gates and a new head against universal perturbations'

DEFAULTS = {
    **universal_training.DEFAULTS,
    'penalty': 0.01, 'layers': '', 'head': True, 'weights': False}
_OPEN = 3.0  # Gates start at sigmoid(3) = 0.95.


def run(network, variables, split, settings, *, key):
  """A teacher with gates g in [0, 1]^C: F' = P + g (F - P) at each layer.

  Minimises the loss of `universal_training.train` + penalty * mean(g).

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings:
      those of `universal_training.train`, and
      penalty: on open gates, >= 0.
      layers: 'stage1,features'; '' for every stage and the penultimate vector.
      head: whether the classifier is drawn anew and trained with the gates.
      weights: whether all weights of the teacher are trained too.
    key: of batches, perturbations and the new head.

  Returns:
    (network, variables), see `models.masked`.

  Raises:
    ConfigError: a setting out of its range, or a layer that is not tapped.
  """
  if not settings['penalty'] >= 0:
    raise ConfigError(f'penalty must be >= 0, got {settings["penalty"]}')
  names = layers_lib.named(network, settings['layers'])
  if not settings['layers']:
    names = (*names, 'features')
  clean = layers_lib.average(network, variables, split.image)
  params = variables['params']
  if settings['head']:
    params = head.drawn_anew(params, key)
  trained = traverse_util.flatten_dict(params) if settings['weights'] else (
      head.of(params) if settings['head'] else {})
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
    return settings['penalty'] * is_open

  return build(universal_training.train(
      build, state, split, settings, key=key, penalty=penalty))
