"""Networks by name. A name carries the sizes: 'wide_resnet28_4', 'mlp_256_256'."""

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.models.cnn import CNN
from rkd_jax.models.mlp import MLP
from rkd_jax.models.mobilenet import MobileNetV2
from rkd_jax.models.preact_resnet import PreActResNet
from rkd_jax.models.pyramidnet import PyramidNet
from rkd_jax.models.resnet import ResNet
from rkd_jax.models.vgg import VGG
from rkd_jax.models.wide_resnet import WideResNet

# Blocks in each stage: He et al. 2015, arXiv:1512.03385, table 1.
_FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3),
                101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Convolutions in each stage: Simonyan and Zisserman 2014, arXiv:1409.1556.
_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3),
        19: (2, 2, 4, 4, 4)}


# Beyond these a name is a typing error, and the network would not fit into any memory.
_DEEPEST, _WIDEST, _MOST_LAYERS = 1202, 65536, 100  # He et al. trained 1,202 layers.


def _widths(name, text):
  widths = tuple(int(width) for width in text.split('_')[1:])
  if min(widths) < 1 or max(widths) > _WIDEST or len(widths) > _MOST_LAYERS:
    raise ConfigError(
        f'{name!r:.200}: every width must be >= 1 and <= {_WIDEST}, and there must be at '
        f'most {_MOST_LAYERS} of them')
  return widths


def _blocks(name, depth, per_block, extra, also=''):
  """Blocks in each of three stages of a network of `depth` layers."""
  if depth > _DEEPEST:
    raise ConfigError(f'{name!r}: the depth must be at most {_DEEPEST}, got {depth}')
  blocks, rest = divmod(depth - extra, 3 * per_block)
  if rest or blocks < 1:
    valid = ', '.join(str(3 * per_block * n + extra) for n in range(1, 6))
    raise ConfigError(
        f'{name!r}: there is no such network of depth {depth}; the depth must be '
        f'{also}{3 * per_block} n + {extra}: {valid}, ...')
  return blocks


def _mlp(name, widths):
  return MLP, {'widths': _widths(name, widths)}


def _cnn(name, pooled, widths):
  return CNN, {'widths': _widths(name, widths), 'pooled': bool(pooled)}


def _resnet(name, depth):
  depth = int(depth)
  if depth in _FOUR_STAGES:
    return ResNet, {'depths': _FOUR_STAGES[depth], 'width': 64,
                    'bottleneck': depth >= 50}
  four = ', '.join(map(str, _FOUR_STAGES))
  blocks = _blocks(name, depth, 2, 2, also=f'one of {four}, or ')
  return ResNet, {'depths': (blocks,) * 3, 'width': 16, 'padded': True}


def _preact_resnet(name, depth):
  if depth not in ('18', '34'):
    raise ConfigError(f'{name!r}: the depth must be 18 or 34, got {depth}')
  return PreActResNet, {'depths': _FOUR_STAGES[int(depth)], 'width': 64}


def _wide_resnet(name, depth, widening):
  if not 1 <= int(widening) <= 100:
    raise ConfigError(f'{name!r}: the widening factor must be >= 1 and <= 100')
  return WideResNet, {'depth': _blocks(name, int(depth), 2, 4),
                      'widening': int(widening)}


def _mobilenet(name):
  del name
  return MobileNetV2, {}


def _pyramidnet(name, depth, alpha, bottleneck):
  if not 1 <= int(alpha) <= 10_000:
    raise ConfigError(
        f'{name!r}: alpha, the channels added, must be >= 1 and <= 10000')
  return PyramidNet, {
      'depth': _blocks(name, int(depth), 3 if bottleneck else 2, 2),
      'alpha': int(alpha), 'bottleneck': bool(bottleneck)}


def _vgg(name, depth):
  if int(depth) not in _VGG:
    raise ConfigError(
        f'{name!r}: the depth must be one of {", ".join(map(str, _VGG))}, '
        f'got {depth}')
  return VGG, {'depths': _VGG[int(depth)]}


class _Family(NamedTuple):
  pattern: str
  summary: str
  regex: str
  build: Callable[..., tuple[type[nn.Module], dict[str, Any]]]
  examples: tuple[str, ...]


_FAMILIES = (
    _Family('mlp_<width>_...', 'dense layers with ReLU',
            r'mlp((?:_\d+)+)', _mlp,
            ('mlp_64', 'mlp_256_256', 'mlp_1024_1024')),
    _Family('cnn_<width>_...', '4x4 convolutions of stride 2, a dense layer',
            r'cnn()((?:_\d+)+)', _cnn, ('cnn_16_32',)),
    _Family('cnn_pool_<width>_...', '3x3 convolutions, max-pooling, a dense layer',
            r'cnn(_pool)((?:_\d+)+)', _cnn,
            ('cnn_pool_16_32', 'cnn_pool_32_64_128')),
    _Family('resnet<depth>', 'CIFAR ResNet: 18, 34, 50, 101, 152, or 6n + 2 '
            'layers (20, 32, 44, 56, 110) with padded shortcuts',
            r'resnet(\d+)', _resnet,
            ('resnet18', 'resnet34', 'resnet50', 'resnet20', 'resnet32',
             'resnet44', 'resnet56', 'resnet110')),
    _Family('preact_resnet<depth>', 'pre-activation ResNet: 18, 34',
            r'preact_resnet(\d+)', _preact_resnet,
            ('preact_resnet18', 'preact_resnet34')),
    _Family('wide_resnet<depth>_<widening>', 'Wide ResNet, depth 6n + 4',
            r'wide_resnet(\d+)_(\d+)', _wide_resnet,
            ('wide_resnet16_2', 'wide_resnet16_4', 'wide_resnet28_4',
             'wide_resnet28_10', 'wide_resnet34_10', 'wide_resnet34_20',
             'wide_resnet70_16')),
    _Family('mobilenet_v2', 'MobileNetV2 with the strides for 32x32 images',
            r'mobilenet_v2', _mobilenet, ('mobilenet_v2',)),
    _Family('pyramidnet<depth>_a<alpha>[_bottleneck]', 'PyramidNet, depth 6n + 2 '
            '(bottleneck: 9n + 2), alpha channels added',
            r'pyramidnet(\d+)_a(\d+)(_bottleneck)?', _pyramidnet,
            ('pyramidnet110_a84', 'pyramidnet110_a270',
             'pyramidnet200_a240_bottleneck')),
    _Family('vgg<depth>', 'VGG with BatchNorm: 11, 13, 16, 19',
            r'vgg(\d+)', _vgg, ('vgg11', 'vgg13', 'vgg16', 'vgg19')),
)


def create(name: str, *, num_classes: int, dtype: Any = jnp.float32,
           bn_axis_name: str | None = None) -> nn.Module:
  """The network of a name, as a linen module without variables.

  Args:
    name: as in `names()`, or with other sizes as in `describe()`.
    num_classes: K >= 2.
    dtype: compute precision, for example jnp.bfloat16; parameters, BatchNorm
      statistics, the classifier and the logits stay float32.
    bn_axis_name: mapped axis over which training-mode BatchNorm averages its
      batch statistics, where the network runs inside `pmap` or `shard_map`.

  Returns:
    A module called as `apply(variables, images, train=False, tap=None)`: see
    `layers.Classifier`.

  Raises:
    ConfigError: unknown name, sizes that cannot be built, num_classes < 2, or a
      dtype that is not floating point.
  """
  try:
    num_classes = operator.index(num_classes)
  except TypeError:
    raise ConfigError(
        f'num_classes must be an integer, got {num_classes!r}') from None
  if num_classes < 2:
    raise ConfigError(
        f'num_classes must be >= 2, got {num_classes}; a binary problem has 2')
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ConfigError(
        f'dtype must be floating point, such as float32 or bfloat16, got {dtype}')
  module, sizes = _resolve(name)
  return module(**sizes, num_classes=num_classes, dtype=dtype,
                bn_axis_name=bn_axis_name)


def _resolve(name):
  """The module class and its sizes."""
  name = str(name)
  if re.search(r'\d{7}', name):
    raise ConfigError(f'{name!r:.100}: no size of a network has more than six digits')
  for family in _FAMILIES:
    match = re.fullmatch(family.regex, name, re.ASCII)
    if match:
      return family.build(name, *match.groups())
  patterns = [family.pattern for family in _FAMILIES]
  raise unknown_name('model', name, {*names(), *patterns})


def names() -> tuple[str, ...]:
  """Well-known names; other sizes are valid too, see `describe()`."""
  return tuple(name for family in _FAMILIES for name in family.examples)


def describe() -> list[tuple[str, str]]:
  """(pattern of names, one line about it) for each family."""
  return [(family.pattern, family.summary) for family in _FAMILIES]


def feature_names(name: str) -> tuple[str, ...]:
  """Names of the features that a network shows to a tap, first to last.

  Raises:
    ConfigError: as in `create`.
  """
  return create(name, num_classes=2).feature_names
