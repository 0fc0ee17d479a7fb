"""Compiled parts of a search, and the time that they take without compilation."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Compiled:
  """Compiles each named function once; all calls of a name have the same shapes."""

  def __init__(self):
    self._programs = {}

  def __call__(self, name: str, function: Callable, *args: Any) -> tuple[Any, float]:
    """(result, seconds that it took to run)."""
    if name not in self._programs:
      self._programs[name] = jax.jit(function).lower(*args).compile()
    start = time.monotonic()
    result = jax.block_until_ready(self._programs[name](*args))
    return result, time.monotonic() - start
