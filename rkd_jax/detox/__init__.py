"""Defences that turn a teacher into one without its backdoor, found by name.

Each is one file with `run(network, variables, split, settings, *, key)`, which
returns a network and variables that any method can learn from.
"""

from collections.abc import Mapping
from typing import Any

import jax

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
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.models.network import Network, Variables

METHODS = {'masks': masks, 'gates': gates, 'new_head': new_head,
           'reversed_trigger': reversed_trigger, 'unlearning': unlearning,
           'finetune': finetune, 'fine_pruning': fine_pruning, 'nad': nad, 'anp': anp,
           'i_bau': i_bau, 'ft_sam': ft_sam}

__all__ = ['METHODS', 'complete', 'defaults', 'describe', 'detect', 'run']


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
  settings = complete(name, settings or {})
  return METHODS[name].run(network, variables, split, settings, key=key)


def complete(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings with their defaults; ConfigError for an unknown name or kind."""
  known = defaults(name)
  for key, value in settings.items():
    if key not in known:
      raise unknown_name(f'setting of {name}', key, known)
    if isinstance(known[key], float) and type(value) is int:
      continue
    if type(value) is not type(known[key]):
      raise ConfigError(f'{name}.{key} must be {type(known[key]).__name__} like its '
                        f'default {known[key]!r}, got {value!r}')
  return {**known, **settings}


def defaults(name: str) -> dict[str, Any]:
  """A defence's settings; ConfigError for an unknown name."""
  if name not in METHODS:
    raise unknown_name('defence', name, METHODS)
  return dict(METHODS[name].DEFAULTS)


def describe() -> dict[str, str]:
  """One line about every defence, by name."""
  return {name: module.SUMMARY for name, module in METHODS.items()}
