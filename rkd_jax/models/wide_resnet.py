"""Wide residual networks.

Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1, without dropout: the
teachers of most adversarial distillation papers (WRN-34-10, WRN-28-10).
"""

import flax.linen as nn
import jax

from rkd_jax.models import layers
from rkd_jax.models.preact_resnet import PreActBlock
from rkd_jax.models.taps import Tap, see


class WideResNet(layers.Classifier):
  """Stem (conv3, 16), three groups of blocks, BN - ReLU, mean, classifier.

  Group i has 16 k 2^(i - 1) channels; the second and third halve the size.

  Tapped: 'stem'; 'stage<i>', float[B, h, w, c], the sum that leaves group i
  (before any BN or ReLU); 'features', float32[B, 64 k].

  Attributes:
    depth: blocks in each group, n; the network has 6n + 4 layers.
    widening: k.
  """

  depth: int
  widening: int

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(3, 'stem')

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stem', smallest=layers.smallest_halved(2))
    x = see(tap, 'stem', self.conv('stem', 16)(x))
    for stage in (1, 2, 3):
      features = 16 * self.widening * 2 ** (stage - 1)
      for i in range(self.depth):
        strides = 2 if stage > 1 and i == 0 else 1
        x = PreActBlock(
            features, strides, name=f'stage{stage}_block{i}',
            **self.shared())(x, train)
      x = see(tap, f'stage{stage}', x)
    x = nn.relu(self.norm('last_bn')(x, train))
    return self.pool_and_classify(x, tap)
