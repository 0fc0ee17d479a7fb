"""A network whose tapped features are mixed with fixed ones on their way."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network, Variables
from rkd_jax.models.taps import Tap, see

FORMS = ('mix', 'add')
COLLECTION = 'detox'  # {layer: {'mask': array, 'reference': array}}


def mixed(feature: jax.Array, mask: jax.Array, reference: jax.Array,
          form: str = 'mix') -> jax.Array:
  """(1 - M) F + M P for 'mix', F + M P for 'add'; F is float[B, ...].

  With M = 1 - g the first is P + g (F - P): a gate on the deviation from P.
  """
  if form == 'add':
    return feature + mask * reference
  return (1 - mask) * feature + mask * reference


class Masked(nn.Module):
  """`base`, where each of `layers` hands a detoxified feature on to what follows.

  Called as any network of this package; a tap sees the detoxified features. The
  variables of `base` are below the name 'base', masks and references in a
  collection of their own, which does not train.

  Attributes:
    base: a network of this package.
    layers: tapped features that are changed.
    form: see `mixed`.
  """

  base: nn.Module
  layers: tuple[str, ...]
  form: str = 'mix'

  @property
  def feature_names(self) -> tuple[str, ...]:
    return self.base.feature_names

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    def detoxify(name, feature):
      if name in self.layers:
        found = self.get_variable(COLLECTION, name)
        feature = mixed(feature, found['mask'], found['reference'],
                        self.form).astype(feature.dtype)
      return see(tap, name, feature)

    return self.base(images, train, detoxify)


def wrap(network: Network, variables: Variables, masks: Mapping[str, Any],
         form: str = 'mix') -> tuple[Network, Variables]:
  """A network with masks at its taps, and its variables.

  Args:
    network, variables: of this package; may have masks already.
    masks: {layer: {'mask', 'reference'}}, arrays that broadcast to a feature.
    form: see `mixed`.

  Raises:
    ConfigError: a layer that the network does not tap, or an unknown form.
  """
  for name in masks:
    if name not in network.module.feature_names:
      raise ConfigError(
          f'the network has no tapped layer {name!r}, it has '
          f'{", ".join(network.module.feature_names)}')
  if form not in FORMS:
    raise ConfigError(f'form must be one of {FORMS}, got {form!r}')
  # In the order of computation: masks may come out of a sorted pytree.
  layers = tuple(n for n in network.module.feature_names if n in masks)
  nested = {name: {'base': tree} for name, tree in variables.items()}
  nested[COLLECTION] = {**nested.get(COLLECTION, {}), **masks}
  return Network(Masked(network.module, layers, form)), nested


def unwrap(module: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
  """The network inside, and its own variables; any depth, also none."""
  while isinstance(module, Masked):
    module = module.base
    variables = {name: tree['base'] for name, tree in variables.items()
                 if 'base' in tree or name != COLLECTION}
  return module, variables
