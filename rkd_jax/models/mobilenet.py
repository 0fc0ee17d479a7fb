"""MobileNetV2 for small images.

Sandler et al. 2018, arXiv:1801.04381, table 2, in the form customary for CIFAR:
stride 1 in the stem and in the second row of the table, ReLU instead of ReLU6,
and every block of stride 1 has a shortcut, a 1 x 1 convolution with BN where the
channels change.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from rkd_jax.models import layers
from rkd_jax.models.taps import Tap, see


class Row(NamedTuple):
  """One row of the paper's table: `repeats` blocks, the first with `strides`."""

  expansion: int
  features: int
  repeats: int
  strides: int


# Grouped by resolution: a stage ends before the size is halved again.
STAGES = (
    (Row(1, 16, 1, 1), Row(6, 24, 2, 1)),
    (Row(6, 32, 3, 2),),
    (Row(6, 64, 4, 2), Row(6, 96, 3, 1)),
    (Row(6, 160, 3, 2), Row(6, 320, 1, 1)),
)


class InvertedResidual(layers.Layers):
  """conv1 (expand) - depthwise conv3 - conv1 (project), each with BN.

  ReLU follows the first two; a block of stride 1 adds its shortcut.

  Attributes:
    features: channels of the result.
    expansion: channels in between, as a multiple of the input's.
    strides: of the depthwise convolution.
  """

  features: int
  expansion: int
  strides: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    inner = self.expansion * x.shape[-1]
    y = nn.relu(self.norm('bn1')(self.conv('conv1', inner, 1)(x), train))
    y = self.conv('conv2', inner, strides=self.strides, groups=inner)(y)
    y = nn.relu(self.norm('bn2')(y, train))
    y = self.norm('bn3')(self.conv('conv3', self.features, 1)(y), train)
    if self.strides != 1:
      return y
    if x.shape[-1] != self.features:
      x = self.conv('shortcut', self.features, 1)(x)
      x = self.norm('shortcut_bn')(x, train)
    return x + y


class MobileNetV2(layers.Classifier):
  """Stem (conv3 - BN - ReLU), blocks, conv1 - BN - ReLU, mean, classifier.

  Tapped: 'stem'; 'stage<i>', float[B, h, w, c], the (linear) output of the last
  block at full, half, quarter and eighth resolution; 'features', float32[B, 1280].

  Attributes:
    stages: rows of the table, grouped by resolution.
    stem_features: channels of the stem.
    last_features: channels of the last convolution.
  """

  stages: tuple[tuple[Row, ...], ...] = STAGES
  stem_features: int = 32
  last_features: int = 1280

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.stages), 'stem')

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stem',
                   smallest=layers.smallest_halved(len(self.stages) - 1))
    x = self.conv('stem', self.stem_features)(x)
    x = see(tap, 'stem', nn.relu(self.norm('stem_bn')(x, train)))
    index = 0
    for stage, rows in enumerate(self.stages, 1):
      for row in rows:
        for i in range(row.repeats):
          x = InvertedResidual(
              row.features, row.expansion, row.strides if i == 0 else 1,
              name=f'block{index}', **self.shared())(x, train)
          index += 1
      x = see(tap, f'stage{stage}', x)
    x = self.conv('last', self.last_features, 1)(x)
    return self.pool_and_classify(
        nn.relu(self.norm('last_bn')(x, train)), tap)
