"""The one place that compiles: jit, donation, meshes, compiler options."""

import os
import warnings
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rkd_jax import files
from rkd_jax.errors import ConfigError
from rkd_jax.models import conv

BATCH_AXIS = 'batch'


def make_mesh(count: int = 0) -> Mesh | None:
  """A one-axis mesh of the first `count` devices (0: all), None for a single one.

  Raises:
    ConfigError: more devices asked for than there are.
  """
  devices = jax.devices()
  if count < 0 or count > len(devices):
    raise ConfigError(
        f'devices = {count}, but {len(devices)} {devices[0].platform} '
        f'device(s) are visible; use 0 for all or 1 to {len(devices)}')
  devices = devices[:count or len(devices)]
  if len(devices) == 1:
    return None
  return Mesh(np.asarray(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: Mesh | None) -> None:
  """Refuses a global batch that the mesh cannot share out evenly."""
  if mesh is not None and batch_size % mesh.size:
    raise ConfigError(
        f'batch_size {batch_size} does not divide by the {mesh.size} devices; '
        f'use {batch_size // mesh.size * mesh.size or mesh.size}, or set '
        'devices to a divisor')


def replicate(tree, mesh: Mesh | None):
  """Puts a pytree on the device, or a copy of it on every device of the mesh."""
  if mesh is None:
    return jax.device_put(tree)
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def compile_fn(fn: Callable, *, static_argnames=()) -> Callable:
  """`jax.jit` with this backend's compiler options, on the devices of the arguments."""
  return jax.jit(fn, static_argnames=static_argnames,
                 compiler_options=conv.cpu_compiler_options() or None)


def compile_scan(scan: Callable, mesh: Mesh | None) -> Callable:
  """Compiles `scan(state, frozen, data, order)`; the state is donated.

  On a mesh the examples of every step are shared out over the devices while
  state, teachers and data are replicated: arrays are global, so BatchNorm and
  every batch mean see the whole batch, as on one device.
  """
  options = conv.cpu_compiler_options() or None
  if mesh is None:
    return jax.jit(scan, donate_argnums=0, compiler_options=options)
  whole = NamedSharding(mesh, PartitionSpec())
  shared = NamedSharding(mesh, PartitionSpec(None, BATCH_AXIS))
  return jax.jit(
      scan, donate_argnums=0, compiler_options=options,
      in_shardings=(whole, whole, whole, shared), out_shardings=whole)


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes, unless the user chose a place."""
  if jax.config.jax_compilation_cache_dir is None:
    try:
      root = files.local_path(
          os.environ.get('RKD_CACHE_DIR') or '~/.cache/rkd_jax', 'RKD_CACHE_DIR')
    except ConfigError as error:
      warnings.warn(f'compiled programs are not kept: {error}', stacklevel=2)
      return
    jax.config.update('jax_compilation_cache_dir', str(root / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
