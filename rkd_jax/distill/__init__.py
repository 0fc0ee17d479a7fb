"""Distillation methods: one file each, found by name."""

from collections.abc import Mapping
from typing import Any

from rkd_jax import settings as declarations
from rkd_jax.distill import (
    adaad,
    adaiad,
    adaptive,
    adba,
    ard,
    b_mtard,
    certified,
    cfd,
    ciard,
    consistency,
    dgad,
    fd,
    iad,
    kdiga,
    mtard,
    pgd_at,
    robustkd,
    rslad,
    sd,
    standard,
    trades,
)
from rkd_jax.distill.method import Batch, Method, Outcome, weighted_mean
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.sections import Attack

METHODS = {
    module.__name__.rsplit('.', 1)[-1]: module
    for module in (standard, pgd_at, trades, consistency, certified, sd, kdiga, ard,
                   iad, rslad, adaad, adaiad, dgad, mtard, b_mtard, ciard, fd, cfd,
                   robustkd, adaptive, adba)
}

__all__ = ['METHODS', 'Batch', 'Method', 'Outcome',
           'defaults', 'describe', 'make', 'weighted_mean']


def make(name: str, settings: Mapping[str, Any], *, threat: Mapping[str, Any],
         epochs: int) -> Method:
  """Builds a method.

  Args:
    name: a key of `METHODS`.
    settings: the method's own settings; missing keys take the values of
      `defaults(name)`.
    threat: the inner maximisation of training; missing keys take the defaults of
      `sections.Attack`.
    epochs: epochs of the whole training, >= 1.

  Raises:
    ConfigError: unknown name or key, or a value out of its range.
  """
  module = _module(name)
  if epochs < 1:
    raise ConfigError(f'epochs must be >= 1, got {epochs}')
  return module.make(declarations.build(module.Settings, settings, name),
                     threat=declarations.build(Attack, threat, 'attack'), epochs=epochs)


def defaults(name: str) -> dict[str, Any]:
  """A method's settings with their published values; ConfigError if unknown."""
  return declarations.defaults(_module(name).Settings)


def describe() -> dict[str, str]:
  """One line about every method, by name."""
  return {name: module.SUMMARY for name, module in METHODS.items()}


def _module(name):
  if name not in METHODS:
    raise unknown_name('method', name, METHODS)
  return METHODS[name]
