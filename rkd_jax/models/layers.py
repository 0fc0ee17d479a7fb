"""What the layers of every network share: precision, BatchNorm, checks, head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rkd_jax.errors import ConfigError
from rkd_jax.models.batch_norm import BatchNorm
from rkd_jax.models.conv import Conv
from rkd_jax.models.taps import Tap, see

# Normal with variance 2 / fan-out (He et al. 2015, arXiv:1502.01852, eq. 14).
he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Layers(nn.Module, kw_only=True):
  """Base of blocks and networks; makes layers in the network's precision.

  Attributes:
    dtype: compute precision of convolutions and hidden dense layers;
      parameters are float32.
    bn_axis_name: mapped axis over which BatchNorm averages its batch
      statistics; None outside `pmap` and `shard_map`.
  """

  dtype: Any = jnp.float32
  bn_axis_name: str | None = None

  @nn.nowrap
  def shared(self) -> dict[str, Any]:
    """The attributes that a block takes over from its network."""
    return {'dtype': self.dtype, 'bn_axis_name': self.bn_axis_name}

  @nn.nowrap
  def conv(self, name: str, features: int, size: int = 3, strides: int = 1,
           padding: int | None = None, groups: int = 1,
           use_bias: bool = False) -> nn.Module:
    """A convolution; without `padding`, one that keeps the size at stride 1."""
    padding = size // 2 if padding is None else padding
    return Conv(features, (size, size), strides=strides, padding=padding,
                groups=groups, use_bias=use_bias, dtype=self.dtype,
                kernel_init=he_fan_out, name=name)

  @nn.nowrap
  def norm(self, name: str) -> nn.Module:
    """A BatchNorm, called with (x, train)."""
    return BatchNorm(
        result_dtype=self.dtype, axis_name=self.bn_axis_name, name=name)


class Classifier(Layers, kw_only=True):
  """Base of the networks: checked images in, float32 logits out.

  A network is called as `module.apply(variables, images, train=False,
  tap=None)` on float[B, H, W, C] in [0, 1] and returns float32[B, K]. `tap` is
  called as `tap(name, feature)` at each of `feature_names`, in that order, and
  its return value replaces the feature.

  Attributes:
    num_classes: K.
  """

  num_classes: int

  @property
  def feature_names(self) -> tuple[str, ...]:
    """The names of the tapped features, in order of computation."""
    raise NotImplementedError

  @nn.nowrap
  def start(self, images: jax.Array, first: str, smallest: int) -> jax.Array:
    """The images in compute precision, once they are seen to fit.

    Args:
      images: what the network was called with.
      first: name of the first convolution, whose kernel tells the channels.
      smallest: the least height and width that the network can take.

    Raises:
      ConfigError: wrong rank, dtype, size or number of channels.
    """
    check_images(images, smallest)
    self.check_inputs(first, images.shape[-1], 'channels')
    return images.astype(self.dtype)

  @nn.nowrap
  def check_inputs(self, layer: str, found: int, what: str) -> None:
    """Refuses inputs other than those that a layer's kernel was made for."""
    kernel = self.variables.get('params', {}).get(layer, {}).get('kernel')
    if kernel is not None and kernel.shape[-2] != found:  # HWIO and IO alike
      raise ConfigError(
          f'these images give layer {layer!r} {found} {what}, but its weights '
          f'were made for {kernel.shape[-2]}; were the variables initialised '
          'or loaded for another image shape?')

  @nn.nowrap
  def pool_and_classify(self, x: jax.Array, tap: Tap | None) -> jax.Array:
    """Global average pooling, in float32, and the classifier."""
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), tap)

  @nn.nowrap
  def classify(self, vectors: jax.Array, tap: Tap | None) -> jax.Array:
    """float32 logits of penultimate vectors, after tap 'features' (float32)."""
    vectors = see(tap, 'features', vectors.astype(jnp.float32))
    return nn.Dense(self.num_classes, dtype=jnp.float32, name='head')(vectors)


def stage_names(count: int, *before: str) -> tuple[str, ...]:
  """`before`, 'stage1' ... 'stage<count>', 'features'."""
  stages = tuple(f'stage{i}' for i in range(1, count + 1))
  return (*before, *stages, 'features')


def smallest_halved(halvings: int) -> int:
  """The least size for which no halving (rounded up) meets a single pixel."""
  return 2 ** (halvings - 1) + 1


def check_images(images: jax.Array, smallest: int) -> None:
  """Refuses what is no float[B, H, W, C] with H and W >= smallest.

  Raises:
    ConfigError: naming shape and dtype, and what the network takes.
  """
  if images.ndim != 4:
    raise ConfigError(
        f'images must be float[B, H, W, C], got shape {images.shape}; '
        'is the batch or the channel axis missing?')
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ConfigError(
        f'images must be floating point in [0, 1], got {images.dtype}; '
        'divide uint8 images by 255 first')
  if min(images.shape[1:3]) < smallest:
    raise ConfigError(
        f'images are {images.shape[1]} x {images.shape[2]}, but this network '
        f'needs at least {smallest} x {smallest} (images are [B, H, W, C]); '
        'choose a network with fewer down-samplings')
