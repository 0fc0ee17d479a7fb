"""Triggers in files: arrays in safetensors, the rest in JSON."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import load_file

from rkd_jax import files
from rkd_jax.backdoors.generated import Generated
from rkd_jax.backdoors.trigger import Stamp, Trigger
from rkd_jax.backdoors.warping import Warp
from rkd_jax.errors import CheckpointError

_REMEDY = 'the command that started the run makes it again'
_KINDS = {kind.__name__: kind for kind in (Stamp, Warp, Generated)}


def save(folder: pathlib.Path, trigger: Trigger, more: dict | None = None) -> None:
  """Writes `trigger.safetensors` and `trigger.json` (last) into a folder.

  Args:
    folder: made if absent.
    trigger: any.
    more: JSON values kept beside it, such as the mode of the labels.
  """
  static, arrays = {}, {}
  for field in dataclasses.fields(trigger):
    value = getattr(trigger, field.name)
    if field.metadata.get('static'):
      static[field.name] = value
    else:
      arrays |= traverse_util.flatten_dict({field.name: value}, sep='/')
  arrays = {name: np.asarray(value, order='C') for name, value in arrays.items()}
  files.write_tensors(folder / 'trigger.safetensors', arrays)
  files.write_json(folder / 'trigger.json', {
      'kind': type(trigger).__name__, 'static': static, 'more': more or {},
      'arrays': files.digest_arrays(arrays)})


def load(folder: pathlib.Path) -> tuple[Trigger, dict]:
  """(trigger, what was kept beside it) as `save` wrote them.

  Raises:
    CheckpointError: not there, damaged, or holding NaN.
  """
  try:
    meta = files.read_json(folder / 'trigger.json', _REMEDY)
    arrays = load_file(folder / 'trigger.safetensors')
    if meta.get('arrays') not in (None, files.digest_arrays(arrays)):
      raise ValueError('trigger.safetensors does not match trigger.json')
    kind, static = _KINDS[meta['kind']], meta['static']
    static['image_shape'] = tuple(static['image_shape'])
    for name, value in arrays.items():
      if not np.isfinite(value).all():
        raise ValueError(f'{name} holds NaN or infinity')
    leaves = traverse_util.unflatten_dict(
        {tuple(name.split('/')): jnp.asarray(value) for name, value in arrays.items()})
    return jax.device_put(kind(**static, **leaves)), meta['more']
  except (OSError, ValueError, KeyError, TypeError,
          safetensors.SafetensorError) as error:
    raise CheckpointError(
        f'{folder}: no usable trigger there ({error}): {_REMEDY}') from error
