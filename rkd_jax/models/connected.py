"""A student with what is trained beside it: connectors to its teacher's features."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from rkd_jax.models.batch_norm import BatchNorm
from rkd_jax.models.conv import Conv
from rkd_jax.models.layers import he_fan_out
from rkd_jax.models.network import Variables
from rkd_jax.models.taps import Tap

VECTOR = 'features'  # The penultimate vectors.


class Connected(nn.Module):
  """`base` with 1 x 1 convolutions (and BatchNorm) from its taps to given widths.

  Called as any network of this package: the logits are those of `base`, or, with
  `reused`, those of the teacher's head on the connected vectors. Its variables are
  below 'base'; `detached` gives a student on its own.

  Attributes:
    base: the student.
    widths: ((tapped feature, channels of its connector), ...); of 'features' the
      connector is a dense layer.
    reused: whether the teacher's classifier is used, see `init_head`.
  """

  base: nn.Module
  widths: tuple[tuple[str, int], ...]
  reused: bool = False

  @property
  def feature_names(self) -> tuple[str, ...]:
    return self.base.feature_names

  def __call__(self, images: jax.Array, train: bool = False,
               tap: Tap | None = None) -> jax.Array:
    return self.connected(images, train, tap)[0]

  @nn.compact
  def connected(self, images: jax.Array, train: bool = False, tap: Tap | None = None
                ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits, and {tapped feature: what its connector makes of it}."""
    seen = {}

    def read(name, feature):
      seen[name] = feature
      return feature if tap is None else tap(name, feature)

    logits = self.base(images, train, read)
    found = {}
    for name, width in self.widths:
      if name == VECTOR:
        found[name] = nn.Dense(width, name='connect_features')(seen[name])
      else:
        x = seen[name]
        flat = x.ndim == 2
        x = x[:, None, None] if flat else x
        x = Conv(width, 1, padding=0, kernel_init=he_fan_out,
                 name=f'connect_{name}')(x)
        x = BatchNorm(name=f'connect_{name}_bn')(x, train)
        found[name] = x[:, 0, 0] if flat else x
    if self.reused:
      # Beside the running statistics: state that no gradient moves.
      kernel, bias = (self.variable(
          'batch_stats', f'head_{kind}', jnp.zeros, shape).value
          for kind, shape in (('kernel', (found[VECTOR].shape[-1], logits.shape[-1])),
                              ('bias', logits.shape[-1:])))
      logits = found[VECTOR] @ kernel + bias
    return logits, found


def init_head(variables: Variables, head: Mapping[str, jax.Array]) -> Variables:
  """The variables of a `Connected` with the teacher's `kernel` and `bias`."""
  stats = {**variables['batch_stats'], 'head_kernel': jnp.asarray(head['kernel']),
           'head_bias': jnp.asarray(head['bias'])}
  return {**variables, 'batch_stats': stats}


def detached(variables: Variables) -> Variables:
  """The student's own variables, without connectors.

  A reused head and the dense connector before it are one affine map, which becomes
  the student's head: its logits are the same to rounding.
  """
  params = dict(variables['params']['base'])
  stats = variables['batch_stats']
  if 'head_kernel' in stats:
    project = variables['params']['connect_features']
    params['head'] = {
        'kernel': project['kernel'] @ stats['head_kernel'],
        'bias': project['bias'] @ stats['head_kernel'] + stats['head_bias']}
  return {'params': params, 'batch_stats': stats.get('base', {})}
