"""Networks of PyTorch as functions that the attacks here can take."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rkd_jax.attacks import arguments
from rkd_jax.errors import ConfigError


def from_torch(module: Any, num_classes: int, *, channels_first: bool = True) -> Callable:
  """A PyTorch module as `fn`: images float32[B, ...] -> logits float32[B, K].

  Compiled programs call the module on the host, forward and, for gradients, backward
  by its autograd; nothing is translated, so any module will do, at the price of a copy
  of the images and their gradients a call. It works under `jit`, `grad`, `vmap` (one
  call after the other) and on one device; not on a mesh.

  Args:
    module: a `torch.nn.Module` in evaluation mode, with weights on any device. Its
      parameters are left alone and get no gradients.
    num_classes: K.
    channels_first: images [B, H, W, C] reach the module as [B, C, H, W], as its
      convolutions expect; others, and all of them if False, as they are.

  Raises:
    ConfigError: torch is not installed, no module, or one in training mode, whose
      BatchNorm would mix the examples.
  """
  try:
    import torch
  except ImportError as error:
    raise ConfigError('from_torch needs torch: install a build of it') from error
  if not isinstance(module, torch.nn.Module):
    how = 'other functions need no adapter if they are written in JAX'
    if isinstance(module, (str, os.PathLike, Mapping)):
      how = ('a file or a state dict has weights without the network: make the module '
             'and give it them by load_state_dict')
    raise ConfigError(
        f'from_torch takes a torch.nn.Module, got {type(module).__name__}; {how}')
  if any(part.training for part in module.modules()):
    raise ConfigError('the module is in training mode, where BatchNorm mixes the '
                      'examples of a batch and dropout is random: call module.eval()')
  arguments.check_count('num_classes', num_classes, 2)
  device = next((p.device for p in module.parameters()), torch.device('cpu'))

  def to_module(images):
    tensor = torch.from_numpy(np.array(images, np.float32)).to(device)
    return tensor.movedim(-1, 1) if channels_first and tensor.ndim == 4 else tensor

  def forward(images):
    with torch.no_grad():
      output = module(to_module(images))
    if not isinstance(output, torch.Tensor):
      raise ConfigError(f'the module returns a {type(output).__name__}; wrap it in one '
                        'that returns the logits alone')
    logits = output.float().cpu().numpy()
    if logits.shape != (len(images), num_classes):
      raise ConfigError(
          f'the module returns {logits.shape} for {len(images)} images; wanted logits '
          f'({len(images)}, {num_classes})')
    return logits

  def backward(images, cotangent):
    points = to_module(images).requires_grad_(True)
    with torch.enable_grad():
      logits = module(points)
      gradient, = torch.autograd.grad(
          logits, points, torch.from_numpy(np.array(cotangent)).to(logits))
    if channels_first and points.ndim == 4:
      gradient = gradient.movedim(1, -1)
    return gradient.float().cpu().contiguous().numpy()

  @functools.cache
  def check(shape):
    """Calls the module once for a shape of images, where its errors can be told."""
    try:
      forward(np.zeros((2, *shape), np.float32))
    except ConfigError:
      raise
    except Exception as error:  # Whatever its layers say about shapes.
      line = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise ConfigError(
          f'the module cannot take images {list(shape)} (channels_first='
          f'{channels_first}): {line:.300}') from error

  @jax.custom_vjp
  def fn(images):
    check(images.shape[1:])
    return jax.pure_callback(
        forward, jax.ShapeDtypeStruct((len(images), num_classes), np.float32), images,
        vmap_method='sequential')

  def fn_forward(images):
    return fn(images), images

  def fn_backward(images, cotangent):
    return jax.pure_callback(
        backward, jax.ShapeDtypeStruct(images.shape, np.float32), images, cotangent,
        vmap_method='sequential'),

  fn.defvjp(fn_forward, fn_backward)
  return fn
