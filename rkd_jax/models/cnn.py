"""Small convolutional networks without BatchNorm."""

import flax.linen as nn
import jax

from rkd_jax.models import layers
from rkd_jax.models.conv import max_pool
from rkd_jax.models.taps import Tap, see

HIDDEN = 100  # Units of the dense layer between convolutions and classifier.


class CNN(layers.Classifier):
  """Convolutions with ReLU, each halving the size, a dense layer, a classifier.

  A width is a 4 x 4 convolution with stride 2 and padding 1, or, where `pooled`,
  a 3 x 3 convolution with padding 1 followed by 2 x 2 max-pooling. The dense
  layer has 100 units; all layers have biases. Because of it, the variables fit
  one image size.

  Tapped: 'stage<i>', float[B, h, w, width] after the i-th ReLU (and pooling);
  'features', float32[B, 100].

  Attributes:
    widths: channels of each convolution.
    pooled: halve by max-pooling instead of by stride.
  """

  widths: tuple[int, ...]
  pooled: bool = False

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.widths))

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    del train  # Nothing here depends on the batch.
    x = self.start(images, 'conv1', smallest=2 ** len(self.widths))
    for i, width in enumerate(self.widths, 1):
      x = see(tap, f'stage{i}', self.halve(f'conv{i}', width, x))
    x = x.reshape(x.shape[0], -1)
    self.check_inputs('dense', x.shape[-1], 'values')
    x = nn.relu(nn.Dense(
        HIDDEN, dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(), name='dense')(x))
    return self.classify(x, tap)

  @nn.nowrap
  def halve(self, name: str, width: int, x: jax.Array) -> jax.Array:
    """One convolution with ReLU; half the height and width, rounded down."""
    if self.pooled:
      x = nn.relu(self.conv(name, width, 3, use_bias=True)(x))
      return max_pool(x, 2, strides=2)
    return nn.relu(
        self.conv(name, width, 4, strides=2, padding=1, use_bias=True)(x))
