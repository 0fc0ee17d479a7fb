"""Weights of well-known torch definitions, renamed for the networks here.

Known are the names of the common CIFAR definitions: ResNet and PreActResNet
('conv1.weight', 'layer1.0.conv1.weight', 'layer2.0.shortcut.0.weight', ...,
'linear.weight'), MobileNetV2 ('layers.0.conv1.weight', ...), PyramidNet
('layer1.0.bn1.weight', ..., 'bn_final.weight', 'fc.weight') and the WideResNet of
TRADES ('block1.layer.0.conv1.weight', ..., 'fc.weight').

torch's BatchNorm keeps the unbiased running variance, n / (n - 1) times the
batch variance, and linen's the biased one. Converted values are kept as they
are, so evaluation agrees exactly; further training moves them towards the
biased variance. torch's momentum 0.1 is linen's 0.9.
"""

import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rkd_jax import untrusted
from rkd_jax.errors import CheckpointError, ConfigError
from rkd_jax.models import registry, weights

_STEM = {r'conv1': 'stem', r'bn1': 'stem_bn'}
_PARTS = {r'\.shortcut\.0$': '/shortcut', r'\.shortcut\.1$': '/shortcut_bn',
          r'\.convShortcut$': '/shortcut', r'\.((?:conv|bn)\d)$': r'/\1'}
# By family: the pattern of a whole layer's name -> its name here.
_LAYERS = {
    'resnet': {**_STEM, r'layer(\d+)\.(\d+)': r'stage\1_block\2',
               r'linear|fc': 'head'},
    'wide_resnet': {r'conv1': 'stem', r'block(\d+)\.layer\.(\d+)':
                    r'stage\1_block\2', r'bn1': 'last_bn', r'fc': 'head'},
    'mobilenet_v2': {**_STEM, r'layers\.(\d+)': r'block\1', r'conv2': 'last',
                     r'bn2': 'last_bn', r'linear': 'head'},
    'pyramidnet': {**_STEM, r'layer(\d+)\.(\d+)': r'stage\1_block\2',
                   r'bn_final': 'last_bn', r'fc': 'head'},
}
_LAYERS['preact_resnet'] = _LAYERS['resnet']
# The WideResNet of TRADES holds a copy of its first group that it never calls.
_WRAPPERS = ('state_dict', 'model', 'net')  # Under which files keep a state dict.
_UNUSED = r'sub_block1\..*|.*\.num_batches_tracked'


def read_torch(path: str | os.PathLike) -> dict[str, Any]:
  """The state dict in a torch file; tensors only, no code is unpickled.

  A dictionary that holds the state dict under 'state_dict', 'model' or 'net' is
  opened.

  Raises:
    ConfigError: torch is not installed.
    CheckpointError: the file is missing, damaged, or holds anything but a state dict.
  """
  untrusted.check_file(path, CheckpointError)
  kind = untrusted.describe(path)
  if kind and not kind.startswith(('a zip archive, such as', 'a Python pickle', 'a tar')):
    how = ': read it with models.load' if kind == 'a safetensors file' else ''
    raise CheckpointError(f'{path}: not a torch file: it is {kind}{how}')
  _check_archive(path)
  try:
    import torch
  except ImportError as error:
    raise ConfigError(
        'reading a torch file needs torch: install the CPU build of torch, or '
        'convert the file to safetensors elsewhere') from error
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # torch raises a different kind for each damage.
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise CheckpointError(
        f'{path}: not a torch file of plain tensors: {line:.300}. A whole model that was '
        'pickled is never unpickled, as it can run any program: load it where you trust '
        'it, and store model.state_dict()') from error
  for key in _WRAPPERS:
    if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
      state = state[key]
  if not isinstance(state, Mapping):
    raise CheckpointError(
        f'{path}: holds a {type(state).__name__}, not a state dict')
  return state


def _check_archive(path) -> None:
  """Compares the checksums of a zip archive, which torch itself leaves out."""
  if not zipfile.is_zipfile(path):
    return
  try:
    with zipfile.ZipFile(path) as archive:
      bad = archive.testzip()
  except Exception as error:  # A broken archive raises almost anything.
    raise CheckpointError(f'{path}: damaged ({error})') from error
  if bad is not None:
    raise CheckpointError(f'{path}: damaged, the checksum of its part {bad!r} is wrong: '
                          'get the file again')


def from_torch(module_name: str, state_dict: Mapping[str, Any]) -> Any:
  """Variables for `create(module_name, ...)` from a torch state dict.

  Args:
    module_name: a resnet, preact_resnet, wide_resnet, pyramidnet or mobilenet_v2
      of the registry. The classes are counted from the classifier.
    state_dict: {name: tensor or NumPy array}, with or without the prefix
      'module.' that DataParallel adds.

  Returns:
    {'params': ..., 'batch_stats': ...}, NumPy float32. A normalisation of the
    images that the torch model was trained with is not part of it.

  Raises:
    ConfigError: unknown network, no torch names are known for it, or anything but a
      state dict, such as a path or a module.
    CheckpointError: as in `weights.load`, with the names used here.
  """
  _check_state_dict(state_dict)
  registry.create(module_name, num_classes=2)  # Refuses unknown names.
  family = next((f for f in _LAYERS if module_name.startswith(f)), None)
  if family is None:
    raise ConfigError(
        f'no torch names are known for {module_name!r}; known: '
        f'{", ".join(sorted(_LAYERS))}')
  arrays = rename(family, state_dict)
  source = f'torch weights for {module_name}'
  return weights.build(arrays, _template(module_name, arrays, source), source)


def _check_state_dict(value):
  if isinstance(value, (str, bytes, os.PathLike)):
    raise ConfigError(
        f'from_torch takes a state dict, got the path {os.fspath(value)!r}: give '
        'models.read_torch(path)')
  if hasattr(value, 'state_dict'):
    raise ConfigError(f'from_torch takes a state dict, got a {type(value).__name__}: '
                      'give its .state_dict()')
  if not isinstance(value, Mapping):
    raise ConfigError('from_torch takes a state dict {name: tensor}, got '
                      f'{type(value).__name__}')
  inner = next((key for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
  if inner is not None:
    raise ConfigError(f'from_torch takes a state dict, got a dictionary that holds it '
                      f'under {inner!r}: give that entry')
  odd = [name for name in value if not isinstance(name, str)]
  if odd:
    raise ConfigError(f'the names of a state dict are text, got {odd[0]!r}')


def rename(family: str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Flat variables {'params/stem/kernel': float32 array} of a state dict.

  Args:
    family: 'resnet', 'preact_resnet', 'wide_resnet', 'pyramidnet' or
      'mobilenet_v2'.
    state_dict: as in `from_torch`. Names that the family does not have are kept,
      so that the check against a network reports them.

  Raises:
    CheckpointError: an entry is no tensor, or two stand for one array.
  """
  arrays = {}
  for name, tensor in state_dict.items():
    name = name.removeprefix('module.')
    if not re.fullmatch(_UNUSED, name):
      path, array = _convert(name, _to_numpy(name, tensor), _LAYERS[family])
      if path in arrays:
        raise CheckpointError(f'two entries of the state dict stand for {path!r}, one of '
                              f'them {name!r}; which one is meant?')
      arrays[path] = array
  return arrays


def _to_numpy(name, tensor):
  if hasattr(tensor, 'detach'):
    try:
      tensor = tensor.detach().cpu().float().numpy()
    except Exception as error:  # Sparse, quantised and meta tensors have no array.
      raise CheckpointError(f'{name!r} cannot become an array: {error}') from error
  if not isinstance(tensor, np.ndarray) or tensor.dtype.kind not in 'fiub':
    kind = getattr(tensor, 'dtype', None) or type(tensor).__name__
    raise CheckpointError(
        f'{name!r} is a {kind}, not a tensor of numbers; give the state dict itself')
  return np.asarray(tensor, np.float32)


def _template(module_name, arrays, source):
  """Shapes of the network with the classes and channels that the arrays have."""
  head, stem = (arrays.get(f'params/{layer}/kernel') for layer in ('head', 'stem'))
  if head is None or stem is None:
    raise CheckpointError(
        f'{source}: no classifier or no first convolution among '
        f'{sorted(arrays)[:8]} ...; is it another architecture?')
  module = registry.create(module_name, num_classes=head.shape[-1])
  return weights.template(module, (32, 32, stem.shape[-2]))


def _convert(name, array, layers):
  """(name here, array in this layout) of one torch parameter or buffer."""
  layer, _, leaf = name.rpartition('.')
  for part, renamed in _PARTS.items():
    within = re.search(part, layer)
    if within and within.start() > 0:
      layer, suffix = layer[:within.start()], within.expand(renamed)
      break
  else:
    suffix = ''
  for pattern, renamed in layers.items():
    match = re.fullmatch(pattern, layer)
    if match:
      layer = match.expand(renamed)
      break
  path = layer + suffix
  if leaf == 'weight' and array.ndim == 4:  # OIHW -> HWIO
    return f'params/{path}/kernel', array.transpose(2, 3, 1, 0)
  if leaf == 'weight' and array.ndim == 2:
    return f'params/{path}/kernel', array.T
  if leaf in ('weight', 'bias'):
    return f'params/{path}/{"scale" if leaf == "weight" else "bias"}', array
  statistics = {'running_mean': 'mean', 'running_var': 'var'}
  return f'batch_stats/{path}/{statistics.get(leaf, leaf)}', array
