"""Variables in safetensors files, read as the untrusted input that they are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from rkd_jax import files, untrusted
from rkd_jax.errors import CheckpointError
from rkd_jax.models.network import Network

_DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16',
           'BF16': 'bfloat16', 'I64': 'int64', 'I32': 'int32'}
_MOST_LINES = 200  # Of the differences that an error lists.


class Spec(NamedTuple):
  """Shape and dtype of one array."""

  shape: tuple[int, ...]
  dtype: str

  def __str__(self):
    return f'{self.dtype}{list(self.shape)}'


def flatten(variables: Any) -> dict[str, Any]:
  """{'params/stem/kernel': array, ...} of nested variables."""
  return traverse_util.flatten_dict(variables, sep='/')


def template(module: nn.Module, image_shape: tuple[int, int, int]) -> Any:
  """Shapes and dtypes of a network's variables; computes nothing.

  Args:
    module: a linen network.
    image_shape: (H, W, C).

  Returns:
    {'params': ..., 'batch_stats': ...} of `jax.ShapeDtypeStruct`.
  """
  return jax.eval_shape(
      lambda key: Network(module).init(key, image_shape), jax.random.key(0))


def save(path: str | os.PathLike, variables: Any) -> None:
  """Writes variables to a safetensors file, whole or not at all.

  Args:
    path: of the file; an existing one is replaced.
    variables: nested dictionaries of arrays, such as {'params': ...,
      'batch_stats': ...}. The names in the file are the keys joined by '/'.

  Raises:
    CheckpointError: an array holds NaN or infinity, or the file cannot be
      written.
  """
  path = Path(path)
  arrays = {name: np.asarray(value, order='C')
            for name, value in flatten(jax.device_get(variables)).items()}
  check_finite(arrays, f'{path} (not written)')
  files.write_tensors(path, arrays)


def fingerprint(variables: Any) -> str:
  """SHA-256 of names, dtypes, shapes and values of variables, in hexadecimal."""
  return files.digest_arrays(flatten(jax.device_get(variables)))


def load(path: str | os.PathLike, like: Any) -> Any:
  """Variables from a safetensors file, if they are exactly those expected.

  Names, shapes and dtypes are compared before any value is read.

  Args:
    path: of a file as written by `save`.
    like: variables or `template(...)` of the network they are meant for.

  Returns:
    Variables with the structure of `like`, NumPy arrays.

  Raises:
    CheckpointError: no such file, not a safetensors file, a name missing,
      unexpected, mis-shaped or of another dtype (they are listed), a value that
      is NaN or infinite, or a negative variance.
  """
  path = Path(path)
  untrusted.check_file(path, CheckpointError)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      found = {}
      for name in file.keys():
        view = file.get_slice(name)
        dtype = view.get_dtype()
        found[name] = Spec(tuple(view.get_shape()), _DTYPES.get(dtype, dtype))
      check_specs(found, like, path)
      arrays = {name: file.get_tensor(name) for name in found}
      files.check_tensors(path, arrays, file.metadata())
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise CheckpointError(
        f'{path}: not a readable safetensors file ({line:.200}); {_advice(path)}'
    ) from error
  return build(arrays, like, path)


def _advice(path):
  """What a file that is no safetensors file seems to be, and what to do."""
  kind = untrusted.describe(path)
  if kind.startswith('a zip archive') or 'pickle' in kind:
    return (f'it is {kind}: read torch weights with models.read_torch and '
            'models.from_torch, and store them with models.save')
  if kind in ('', 'a safetensors file'):
    return 'was it cut off, or is it in another format?'
  return f'it is {kind}'


def build(arrays: Mapping[str, np.ndarray], like: Any, source: Any) -> Any:
  """Variables with the structure of `like` from flat arrays, all checked.

  Args:
    arrays: {'params/stem/kernel': array, ...}.
    like: variables or shapes and dtypes.
    source: what to call the origin of the arrays in an error.

  Raises:
    CheckpointError: as in `load`.
  """
  check_specs({name: Spec(array.shape, str(array.dtype))
               for name, array in arrays.items()}, like, source)
  check_finite(arrays, source)
  variables = traverse_util.unflatten_dict(dict(arrays), sep='/')
  return {collection: variables.get(collection, {}) for collection in like}


def check_specs(found: Mapping[str, Spec], like: Any, source: Any) -> None:
  """Raises one CheckpointError that lists every difference."""
  wanted = {name: Spec(tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in flatten(like).items()}
  problems = [f'missing {name} {spec}'
              for name, spec in wanted.items() if name not in found]
  problems += [f'unexpected {name if name.isprintable() else ascii(name)} {spec}'
               for name, spec in found.items() if name not in wanted]
  problems += [f'{name} is {found[name]}, wanted {spec}'
               for name, spec in wanted.items()
               if name in found and found[name] != spec]
  if problems:
    raise CheckpointError(
        f'{source}: {len(problems)} of its arrays do not fit; is it another '
        'architecture, image shape or number of classes?\n  '
        + '\n  '.join(problems[:_MOST_LINES])
        + (f'\n  and {len(problems) - _MOST_LINES} more' * (len(problems) > _MOST_LINES)))


def check_finite(arrays: Mapping[str, np.ndarray], source: Any) -> None:
  """Refuses arrays with NaN, infinity or a negative running variance."""
  problems = []
  for name, array in arrays.items():
    bad = int(np.sum(~np.isfinite(array)))
    if bad:
      problems.append(f'{name}: {bad} of {array.size} values are NaN or infinite')
    elif name.startswith('batch_stats/') and name.endswith('/var'):
      if np.any(array < 0):
        problems.append(f'{name}: a variance is negative')
  if problems:
    raise CheckpointError(
        f'{source}: refused; did its training diverge?\n  ' + '\n  '.join(problems))
