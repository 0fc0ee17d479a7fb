"""Pre-activation residual networks for small images.

He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027,
in the form customary for CIFAR: no BN after the stem, and none after the last
block, whose output is averaged as it is.
"""

import flax.linen as nn
import jax

from rkd_jax.models import layers
from rkd_jax.models.taps import Tap, see


class PreActBlock(layers.Layers):
  """BN - ReLU - conv3 - BN - ReLU - conv3, plus shortcut.

  A shortcut that changes the shape is a 1 x 1 convolution of the activated
  input; else it is the input itself. Wide residual networks use this block too.

  Attributes:
    features: channels of the result.
    strides: of the first convolution and the shortcut.
  """

  features: int
  strides: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(self.norm('bn1')(x, train))
    if self.strides != 1 or x.shape[-1] != self.features:
      x = self.conv('shortcut', self.features, 1, self.strides)(y)
    y = self.conv('conv1', self.features, strides=self.strides)(y)
    y = nn.relu(self.norm('bn2')(y, train))
    return x + self.conv('conv2', self.features)(y)


class PreActResNet(layers.Classifier):
  """Stem (conv3), stages of pre-activation blocks, mean, classifier.

  Every stage but the first halves the size and doubles the channels.

  Tapped: 'stem'; 'stage<i>', float[B, h, w, c], the sum that leaves the stage
  (before any BN or ReLU); 'features', float32[B, c].

  Attributes:
    depths: blocks in each stage.
    width: channels of the stem and of the first stage.
  """

  depths: tuple[int, ...]
  width: int

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.depths), 'stem')

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stem',
                   smallest=layers.smallest_halved(len(self.depths) - 1))
    x = see(tap, 'stem', self.conv('stem', self.width)(x))
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        strides = 2 if stage > 1 and i == 0 else 1
        x = PreActBlock(
            self.width * 2 ** (stage - 1), strides,
            name=f'stage{stage}_block{i}', **self.shared())(x, train)
      x = see(tap, f'stage{stage}', x)
    return self.pool_and_classify(x, tap)
