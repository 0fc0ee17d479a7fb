"""The BatchNorm that a tapped feature goes through before its ReLU."""

from typing import NamedTuple

import flax.linen as nn
import jax
from jax import lax

from rkd_jax.errors import ConfigError
from rkd_jax.models.cnn import CNN
from rkd_jax.models.masked import unwrap
from rkd_jax.models.mlp import MLP
from rkd_jax.models.network import Variables
from rkd_jax.models.preact_resnet import PreActResNet
from rkd_jax.models.pyramidnet import PyramidNet
from rkd_jax.models.resnet import ResNet
from rkd_jax.models.vgg import VGG
from rkd_jax.models.wide_resnet import WideResNet

_AFTER_RELU = (CNN, MLP, ResNet, VGG)  # Their stages are tapped after a ReLU.
_EPSILON = 1e-5


class Affine(NamedTuple):
  """BatchNorm in evaluation mode; each float32[C]."""

  mean: jax.Array
  var: jax.Array
  scale: jax.Array
  bias: jax.Array

  def __call__(self, x: jax.Array) -> jax.Array:
    return (x - self.mean) * lax.rsqrt(self.var + _EPSILON) * self.scale + self.bias


def following_norm(module: nn.Module, variables: Variables, stage: str) -> Affine | None:
  """The BatchNorm between a tapped stage and the ReLU after it.

  Args:
    module: a network of this package, possibly with masks.
    variables: its variables.
    stage: 'stage<i>'.

  Returns:
    None where the stage is tapped after its ReLU already.

  Raises:
    ConfigError: a network or stage for which it is not known.
  """
  module, variables = unwrap(module, variables)
  if isinstance(module, _AFTER_RELU):
    return None
  stages = [n for n in module.feature_names if n.startswith('stage')]
  if stage not in stages or not isinstance(
      module, PreActResNet | PyramidNet | WideResNet):
    raise ConfigError(
        f'it is not known which BatchNorm follows {stage!r} of '
        f"{type(module).__name__}; use the feature loss 'plain' or 'attention'")
  following = stages.index(stage) + 1
  if following < len(stages):
    path = (f'{stages[following]}_block0', 'bn1')
  elif isinstance(module, PreActResNet):
    return None  # Averaged as it is, without BN or ReLU.
  else:
    path = ('last_bn',)
  params, stats = variables['params'], variables['batch_stats']
  for name in path:
    params, stats = params[name], stats[name]
  return Affine(stats['mean'], stats['var'], params['scale'], params['bias'])
