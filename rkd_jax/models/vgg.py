"""VGG networks with BatchNorm for small images.

Simonyan and Zisserman 2014, arXiv:1409.1556, table 1, in the form customary for
CIFAR: BN after each convolution, and one linear classifier on the averaged
features in place of the three dense layers.
"""

import flax.linen as nn
import jax

from rkd_jax.models import layers
from rkd_jax.models.conv import max_pool
from rkd_jax.models.taps import Tap, see

WIDTHS = (64, 128, 256, 512, 512)


class VGG(layers.Classifier):
  """Stages of conv3 - BN - ReLU, each followed by 2 x 2 max-pooling.

  The convolutions have no bias, which BN would take out again. An odd size is
  halved upwards, so that 28 x 28 images can be used.

  Tapped: 'stage<i>', float[B, h, w, c] after the last ReLU of the stage, before
  the pooling; 'features', float32[B, c].

  Attributes:
    depths: convolutions in each stage.
    widths: channels of each stage.
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...] = WIDTHS

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.depths))

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    x = self.start(images, 'stage1_conv0',
                   smallest=layers.smallest_halved(len(self.depths)))
    for stage, (depth, width) in enumerate(
        zip(self.depths, self.widths, strict=True), 1):
      for i in range(depth):
        x = self.conv(f'stage{stage}_conv{i}', width)(x)
        x = nn.relu(self.norm(f'stage{stage}_bn{i}')(x, train))
      x = see(tap, f'stage{stage}', x)
      odd = (x.shape[1] % 2, x.shape[2] % 2)
      x = max_pool(x, 2, strides=2, padding=odd)
    return self.pool_and_classify(x, tap)
