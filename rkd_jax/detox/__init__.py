"""Defences that turn a teacher into one without its backdoor, found by name.

Each is one file with `run(network, variables, split, settings, *, key)`, which
returns a network and variables that any method can learn from.
"""

from collections.abc import Mapping
from typing import Any

import jax

from rkd_jax import settings as declarations
from rkd_jax.data.dataset import Split
from rkd_jax.detox import (
    anp,
    fine_pruning,
    finetune,
    ft_sam,
    gates,
    i_bau,
    masks,
    nad,
    new_head,
    reversed_trigger,
    unlearning,
)
from rkd_jax.detox.detection import detect
from rkd_jax.errors import unknown_name
from rkd_jax.models.network import Network, Variables

METHODS = {'masks': masks, 'gates': gates, 'new_head': new_head,
           'reversed_trigger': reversed_trigger, 'unlearning': unlearning,
           'finetune': finetune, 'fine_pruning': fine_pruning, 'nad': nad, 'anp': anp,
           'i_bau': i_bau, 'ft_sam': ft_sam}

__all__ = ['METHODS', 'check', 'check_settings', 'defaults', 'describe', 'detect', 'run']


def run(name: str, network: Network, variables: Variables, split: Split,
        settings: Mapping[str, Any] | None = None, *, key: jax.Array
        ) -> tuple[Network, Variables]:
  """Detoxifies a teacher.

  Args:
    name: a key of `METHODS`.
    network, variables: the teacher; not changed.
    split: clean images (uint8) and labels.
    settings: what differs from `defaults(name)`.
    key: typed PRNG key.

  Raises:
    ConfigError: unknown name or setting, or a value out of its range.
  """
  return _module(name).run(network, variables, split,
                           check_settings(name, settings or {}), key=key)


def check_settings(name: str, settings: Mapping[str, Any]) -> Any:
  """The settings, checked; ConfigError for an unknown name or a bad value."""
  return declarations.build(_module(name).Settings, settings, name)


def check(name: str, settings: Mapping[str, Any], network: Network, variables: Variables,
          image_shape: tuple[int, ...]) -> None:
  """Raises ConfigError where a defence would refuse a teacher or the settings.

  Args:
    name: a key of `METHODS`.
    settings: what differs from `defaults(name)`.
    network: the teacher.
    variables: Variables of the network, or their shapes.
    image_shape: (H, W, C).
  """
  complete = check_settings(name, settings)
  if hasattr(METHODS[name], 'check'):
    METHODS[name].check(complete, network, variables, image_shape)


def defaults(name: str) -> dict[str, Any]:
  """A defence's settings; ConfigError for an unknown name."""
  return declarations.defaults(_module(name).Settings)


def describe() -> dict[str, str]:
  """One line about every defence, by name."""
  return {name: module.SUMMARY for name, module in METHODS.items()}


def _module(name):
  if name not in METHODS:
    raise unknown_name('defence', name, METHODS)
  return METHODS[name]
