"""Residual networks for small images.

He et al. 2015, "Deep Residual Learning for Image Recognition",
arXiv:1512.03385: the four-stage networks of table 1 with a 3 x 3 stem at stride
1 and no max-pooling, and the 6n + 2 networks of section 4.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rkd_jax.models import layers
from rkd_jax.models.taps import Tap, see


class BasicBlock(layers.Layers):
  """conv3 - BN - ReLU - conv3 - BN, plus shortcut, then ReLU.

  Attributes:
    features: channels of the result.
    strides: of the first convolution and the shortcut.
    padded: where the shape changes, subsample and pad with zero channels
      (option A of the paper), else a 1 x 1 convolution with BN (option B).
  """

  features: int
  strides: int = 1
  padded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = self.conv('conv1', self.features, strides=self.strides)(x)
    y = nn.relu(self.norm('bn1')(y, train))
    y = self.norm('bn2')(self.conv('conv2', self.features)(y), train)
    if self.strides != 1 or x.shape[-1] != self.features:
      if self.padded:
        x = pad_channels(x[:, ::self.strides, ::self.strides], self.features)
      else:
        x = self.conv('shortcut', self.features, 1, self.strides)(x)
        x = self.norm('shortcut_bn')(x, train)
    return nn.relu(x + y)


class BottleneckBlock(layers.Layers):
  """conv1 - conv3 - conv1 with BN, plus shortcut, then ReLU.

  Attributes:
    features: channels of the result, four times those in between.
    strides: of the 3 x 3 convolution and the shortcut.
  """

  features: int
  strides: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    inner = self.features // 4
    y = nn.relu(self.norm('bn1')(self.conv('conv1', inner, 1)(x), train))
    y = self.conv('conv2', inner, strides=self.strides)(y)
    y = nn.relu(self.norm('bn2')(y, train))
    y = self.norm('bn3')(self.conv('conv3', self.features, 1)(y), train)
    if self.strides != 1 or x.shape[-1] != self.features:
      x = self.conv('shortcut', self.features, 1, self.strides)(x)
      x = self.norm('shortcut_bn')(x, train)
    return nn.relu(x + y)


class ResNet(layers.Classifier):
  """Stem (conv3 - BN - ReLU), stages of residual blocks, mean, classifier.

  Every stage but the first halves the size and doubles the channels.

  Tapped: 'stem'; 'stage<i>', float[B, h, w, c] after the last ReLU of the
  stage; 'features', float32[B, c].

  Attributes:
    depths: blocks in each stage.
    width: channels of the stem and of the first stage's 3 x 3 convolutions.
    bottleneck: bottleneck blocks instead of basic ones.
    padded: shortcuts without parameters (option A) instead of projections;
      basic blocks only.
  """

  depths: tuple[int, ...]
  width: int
  bottleneck: bool = False
  padded: bool = False

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.depths), 'stem')

  @nn.nowrap
  def block(self, name: str, features: int, strides: int) -> nn.Module:
    """The residual block of a name."""
    if self.bottleneck:
      return BottleneckBlock(4 * features, strides, name=name, **self.shared())
    return BasicBlock(
        features, strides, self.padded, name=name, **self.shared())

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stem',
                   smallest=layers.smallest_halved(len(self.depths) - 1))
    x = nn.relu(self.norm('stem_bn')(self.conv('stem', self.width)(x), train))
    x = see(tap, 'stem', x)
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        strides = 2 if stage > 1 and i == 0 else 1
        features = self.width * 2 ** (stage - 1)
        x = self.block(f'stage{stage}_block{i}', features, strides)(x, train)
      x = see(tap, f'stage{stage}', x)
    return self.pool_and_classify(x, tap)


def pad_channels(x: jax.Array, features: int) -> jax.Array:
  """x with zero channels before and after, `features` in all."""
  missing = features - x.shape[-1]
  before = missing // 2
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, missing - before)))
