"""The function that is attacked, checked where it is first called."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.attacks.arguments import check_below, known
from rkd_jax.errors import ConfigError

_TRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError,
           jax.errors.TracerIntegerConversionError,
           jax.errors.NonConcreteBooleanIndexError)


def checked(fn: Callable, labels=None, targets=None, *, draws: int = 0,
            logits: bool = True) -> Callable:
  """`fn` whose mistakes are named: nothing more is computed or traced.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], with `draws` of (images, keys).
    labels: int[B] or None. Where their values are known they are compared with K.
    targets: int[B] or None, likewise, and other than the labels.
    draws: 0, or for a randomised network the draws an attack averages over.
    logits: False where the output may be anything, for an objective that is a function.

  Raises:
    ConfigError: here, if it is no function of so many arguments; when it is called, if
      it cannot be traced or returns no logits.
  """
  _check_callable(fn, 2 if draws else 1)

  traced_fn = traced('fn', fn)

  def call(images, *keys):
    output = traced_fn(images, *keys)
    if logits:
      check_logits(output, images, labels, targets)
    return output
  return call


def traced(name: str, function: Callable) -> Callable:
  """A function that raises one ConfigError where JAX cannot trace it."""
  def call(*args):
    try:
      return function(*args)
    except _TRACED as error:
      raise ConfigError(
          f'{name} cannot be traced by JAX: it hands its argument to NumPy, another '
          'library or a Python `if` (write it with jax.numpy; for a PyTorch module there '
          f'is attacks.from_torch): {str(error).splitlines()[0]:.300}') from error
  return call


def check_logits(output: Any, images, labels=None, targets=None) -> None:
  """Refuses what are no logits float[B, K], K >= 2, or labels that are none of them."""
  shape, kind = getattr(output, 'shape', None), getattr(output, 'dtype', None)
  seen = type(output).__name__ if shape is None else f'{kind}{list(shape)}'
  if isinstance(output, (tuple, list)):
    seen = f'a {seen} of {len(output)}; take the logits out of it: lambda x: fn(x)[0]'
  elif isinstance(output, dict):
    seen = f"a {seen} with {list(output)[:5]}; take the logits out of it"
  if shape is None or len(shape) != 2 or shape[0] != len(images):
    raise ConfigError(f'fn must return logits [B, K] for B = {len(images)} images, got '
                      f'{seen}; give a callable objective for any other output')
  if not jnp.issubdtype(kind, jnp.floating):
    raise ConfigError(f'fn must return floating-point logits, got {seen}: predicted '
                      'classes have no gradient')
  if shape[1] < 2:
    raise ConfigError(f'fn must tell classes apart, but its logits {list(shape)} have '
                      'only one')
  for name, values in (('labels', labels), ('targets', targets)):
    if values is not None:
      check_below(name, values, shape[1])
  if labels is not None and targets is not None and known(labels) and known(targets):
    same = np.asarray(labels) == np.asarray(targets)
    if same.any():
      raise ConfigError(f'the target of example {np.argmax(same)} is its label; an '
                        'attack needs another class')


def _check_callable(fn, count):
  if hasattr(fn, 'state_dict') and hasattr(fn, 'parameters'):
    raise ConfigError(f'fn is a {type(fn).__name__}, a PyTorch module: give '
                      'attacks.from_torch(module, num_classes)')
  if hasattr(fn, 'apply') and hasattr(fn, 'init') and getattr(fn, 'scope', 0) is None:
    raise ConfigError(f'fn is a {type(fn).__name__} without variables: give '
                      'lambda x: module.apply(variables, x)')
  if not callable(fn):
    raise ConfigError(f'fn must be a function of images, got {type(fn).__name__}')
  try:
    signature = inspect.signature(fn)
  except (TypeError, ValueError):  # Built in: it has none.
    return
  try:
    signature.bind(*range(count))
  except TypeError as error:
    wanted = '(images, keys)' if count == 2 else '(images)'
    raise ConfigError(f'fn{signature} cannot be called as fn{wanted}: {error}') from error
