"""Pyramidal residual networks.

Han et al. 2017, "Deep Pyramidal Residual Networks", arXiv:1610.02915: additive
widening (eq. 2), blocks with a BN at both ends and one ReLU less (fig. 6d), and
shortcuts that pad with zero channels (section 3.4).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rkd_jax.models import layers
from rkd_jax.models.conv import avg_pool
from rkd_jax.models.taps import Tap, see

STEM = 16  # Channels of the stem, D_1 in the paper.


class PyramidBlock(layers.Layers):
  """Basic: BN - conv3 - BN - ReLU - conv3 - BN, plus a padded shortcut.

  Bottleneck: BN - conv1 - BN - ReLU - conv3 - BN - ReLU - conv1 - BN.

  Attributes:
    features: channels of the convolutions; a bottleneck's last has four times
      as many.
    strides: of the (first) 3 x 3 convolution and the shortcut.
    bottleneck: which of the two.
  """

  features: int
  strides: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.bottleneck:
      convs = (self.conv('conv1', self.features, 1),
               self.conv('conv2', self.features, strides=self.strides),
               self.conv('conv3', 4 * self.features, 1))
    else:
      convs = (self.conv('conv1', self.features, strides=self.strides),
               self.conv('conv2', self.features))
    y = self.norm('bn1')(x, train)
    for i, conv in enumerate(convs, 2):
      # No ReLU before the first convolution.
      y = self.norm(f'bn{i}')(conv(y if i == 2 else nn.relu(y)), train)
    if self.strides != 1:
      x = halve(x)
    missing = y.shape[-1] - x.shape[-1]
    return y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))


class PyramidNet(layers.Classifier):
  """Stem (conv3 - BN), three stages of blocks, BN - ReLU, mean, classifier.

  Block k of 3n (counted from 1) has round(16 + alpha k / (3n)) channels.

  Tapped: 'stem'; 'stage<i>', float[B, h, w, c], the sum that leaves the stage
  (before any ReLU); 'features', float32[B, 16 + alpha], four times that with
  bottlenecks.

  Attributes:
    depth: blocks in each stage, n.
    alpha: channels added over all blocks.
    bottleneck: bottleneck blocks instead of basic ones.
  """

  depth: int
  alpha: int
  bottleneck: bool = False

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(3, 'stem')

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stem', smallest=layers.smallest_halved(2))
    x = self.norm('stem_bn')(self.conv('stem', STEM)(x), train)
    x = see(tap, 'stem', x)
    index = 0
    for stage in (1, 2, 3):
      for i in range(self.depth):
        index += 1
        x = PyramidBlock(
            round(STEM + self.alpha * index / (3 * self.depth)),
            2 if stage > 1 and i == 0 else 1, self.bottleneck,
            name=f'stage{stage}_block{i}', **self.shared())(x, train)
      x = see(tap, f'stage{stage}', x)
    x = nn.relu(self.norm('last_bn')(x, train))
    return self.pool_and_classify(x, tap)


def halve(x: jax.Array) -> jax.Array:
  """2 x 2 means; at the far edge of an odd size, the mean of what is there."""
  odd = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
  # A repeated edge has the mean of the edge itself.
  return avg_pool(jnp.pad(x, odd, mode='edge'), 2, strides=2)
