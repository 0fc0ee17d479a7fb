"""Compiled stages of an evaluation, and the seconds that they run and compile."""

import functools
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.tree_util import Partial


def as_partial(fn: Callable) -> Partial:
  """A function as a pytree: what `functools.partial` binds becomes its leaves.

  So the arrays of `functools.partial(predict, variables)` are arguments of a program,
  not constants in it, and the program serves all variables.
  """
  if isinstance(fn, Partial):
    return fn
  if isinstance(fn, functools.partial):
    bound = Partial(fn.func, *fn.args, **fn.keywords)
    if all(hasattr(leaf, 'dtype') for leaf in jax.tree.leaves(bound)):
      return bound
  return Partial(fn)


class Programs:
  """Compiles a function once for each name and shape of its arguments."""

  def __init__(self, compile_fn: Callable | None = None):
    """`compile_fn` takes a function, as `jax.jit` does."""
    self._compile_fn = compile_fn or jax.jit
    self._programs = {}

  def __call__(self, name: Hashable, function: Callable,
               *args: Any) -> tuple[Any, float, float]:
    """(result, seconds that it ran, seconds that it compiled)."""
    leaves, structure = jax.tree.flatten(args)
    key = (name, structure, tuple(
        (leaf.shape, leaf.dtype, getattr(leaf, 'sharding', None)) for leaf in leaves))
    compiling = time.monotonic()
    if key not in self._programs:
      self._programs[key] = self._compile_fn(function).lower(*args).compile()
    start = time.monotonic()
    result = jax.block_until_ready(self._programs[key](*args))
    return result, time.monotonic() - start, start - compiling


@functools.lru_cache(maxsize=8)
def _shared(func: Callable, compile_fn: Callable | None) -> Programs:
  del func
  return Programs(compile_fn)


def programs(fn: Partial, compile_fn: Callable | None) -> Programs:
  """Programs for a function, those of an earlier call where it binds its arrays."""
  if fn.args or fn.keywords:
    return _shared(fn.func, compile_fn)
  return Programs(compile_fn)
