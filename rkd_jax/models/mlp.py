"""Multi-layer perceptrons."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from rkd_jax.models import layers
from rkd_jax.models.taps import Tap, see


class MLP(layers.Classifier):
  """Flatten, then dense layers with ReLU, then the classifier.

  Tapped: 'stage<i>', float[B, width] after the i-th ReLU, and 'features', the
  last of them again, in float32.

  Attributes:
    widths: units of each hidden layer.
  """

  widths: tuple[int, ...]

  @property
  def feature_names(self) -> tuple[str, ...]:
    return layers.stage_names(len(self.widths))

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    del train  # Nothing here depends on the batch.
    layers.check_images(images, smallest=1)
    self.check_inputs('dense1', math.prod(images.shape[1:]), 'pixel values')
    x = images.reshape(images.shape[0], -1).astype(self.dtype)
    for i, width in enumerate(self.widths, 1):
      x = nn.relu(nn.Dense(
          width, dtype=self.dtype, param_dtype=jnp.float32,
          kernel_init=nn.initializers.he_normal(), name=f'dense{i}')(x))
      x = see(tap, f'stage{i}', x)
    return self.classify(x, tap)
