"""The convolution that XLA's own is on every backend."""

import jax
from jax import lax

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def plain_conv(x: jax.Array, kernel: jax.Array, strides, padding,
               groups: int = 1) -> jax.Array:
  """`conv` of `models.conv`; checked arguments, strides and padding as pairs."""
  return lax.conv_general_dilated(
      x, kernel, strides, [(p, p) for p in padding], dimension_numbers=_LAYOUT,
      feature_group_count=groups)
