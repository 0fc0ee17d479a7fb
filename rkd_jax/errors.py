"""Errors that a person can act on: the value seen, the value wanted, the cause."""

import difflib
from collections.abc import Iterable


class RkdError(Exception):
  """Base of every error that rkd_jax raises on purpose."""


class ConfigError(RkdError, ValueError):
  """A setting, name or argument is wrong; nothing was started."""


class DataError(RkdError):
  """A data set is missing, incomplete or corrupt."""


class CheckpointError(RkdError):
  """A checkpoint, weight file or working directory cannot be used."""


class NonFiniteError(RkdError):
  """Training produced a NaN or an infinity and was stopped."""


class ContradictionError(RkdError):
  """Two results that cannot both be true: a bug of this library, to be reported."""


class UnsupportedPrimitiveError(RkdError, NotImplementedError):
  """A function holds an operation for which no sound bound is known."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The names in `known` closest to `name`, best first; may be empty."""
  return difflib.get_close_matches(str(name), list(known), n=count, cutoff=0.5)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
  """Error for a name that is in no registry, with the nearest valid ones.

  Args:
    kind: what the name should be, for example 'method'.
    name: the name given.
    known: every valid name.
  """
  known = sorted(known)
  close = nearest(name, known)
  hint = f'did you mean {" or ".join(map(repr, close))}? ' if close else ''
  return ConfigError(f'unknown {kind} {name!r}: {hint}valid: {", ".join(known)}')
