"""Checks of what a method is configured with, before anything starts."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from rkd_jax.errors import ConfigError, unknown_name


def complete(defaults: Mapping[str, Any], given: Mapping[str, Any],
             owner: str) -> dict[str, Any]:
  """`given` with the missing keys taken from `defaults`.

  Args:
    defaults: every key that `owner` knows.
    given: the user's values; any mapping, a ConfigDict too.
    owner: whose settings they are, for the message.

  Raises:
    ConfigError: a key that is not in `defaults`, or a value of another kind
      (number, text, yes/no) than the default.
  """
  given = dict(given)
  for key, value in given.items():
    if key not in defaults:
      raise unknown_name(f'setting of {owner}', key, defaults)
    if _kind(value) != _kind(defaults[key]):
      raise ConfigError(
          f'{owner}.{key} must be {_kind(defaults[key])}, like its default '
          f'{defaults[key]!r}; got {value!r}')
  return {**defaults, **given}


def _kind(value):
  if isinstance(value, bool):
    return 'true or false'
  if isinstance(value, numbers.Real):
    return 'a number'
  return 'a text' if isinstance(value, str) else type(value).__name__


def positive(settings: Mapping[str, Any], *keys: str) -> None:
  """Raises ConfigError where a value is not a finite number > 0."""
  for key in keys:
    if not 0 < settings[key] < float('inf'):
      raise ConfigError(f'{key} must be > 0 and finite, got {settings[key]}')


def non_negative(settings: Mapping[str, Any], *keys: str) -> None:
  """Raises ConfigError where a value is not a finite number >= 0."""
  for key in keys:
    if not 0 <= settings[key] < float('inf'):
      raise ConfigError(f'{key} must be >= 0 and finite, got {settings[key]}')


def between(settings: Mapping[str, Any], *keys: str, upper_open=False) -> None:
  """Raises ConfigError where a value is not in [0, 1], or [0, 1)."""
  for key in keys:
    value = settings[key]
    if not 0 <= value <= 1 or (upper_open and value == 1):
      raise ConfigError(
          f'{key} must be in [0, 1{")" if upper_open else "]"}, got {value}')


def one_of(settings: Mapping[str, Any], key: str, known: Iterable[str]) -> None:
  """Raises ConfigError where a value is none of the known ones."""
  known = tuple(known)
  if settings[key] not in known:
    raise unknown_name(f'value of {key}', settings[key], known)
