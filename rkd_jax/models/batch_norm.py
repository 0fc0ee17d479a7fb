"""Batch normalisation whose sums over examples and pixels are fast everywhere.

On CPU, XLA sums an array [N, C] over N one number at a time, both for the batch
statistics and for the gradients of what is broadcast from [C]. There the sums
are written as products with a row of ones, which run at the speed of memory.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.models.conv import on_cpu


def _mean(rows: jax.Array) -> jax.Array:
  """float32[N, C] -> float32[1, C]."""
  if not on_cpu():
    return jnp.mean(rows, axis=0, keepdims=True)
  return jnp.ones((1, len(rows)), rows.dtype) @ rows / len(rows)


def _spread(row: jax.Array, count: int) -> jax.Array:
  """float32[1, C] -> float32[count, C], so that its gradient is such a sum."""
  if not on_cpu():
    return row
  return jnp.ones((count, 1), row.dtype) @ row


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last (arXiv:1502.03167).

  Statistics, parameters and the normalisation itself are float32 whatever the
  input; the result has `result_dtype`. The running statistics move by a tenth
  towards those of the batch, and the running variance keeps the biased batch
  variance (torch keeps the unbiased one, n / (n - 1) as large). Parameters
  `scale` and `bias`, statistics `mean` and `var`, all float32[C].

  Attributes:
    result_dtype: of the result.
    axis_name: mapped axis over which the batch statistics are averaged.
    momentum: share of the running statistics that stays.
    epsilon: added to the variance.
  """

  result_dtype: Any = jnp.float32
  axis_name: str | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    running_mean = self.variable(
        'batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
    rows = x.astype(jnp.float32).reshape(-1, *shape)
    count = len(rows)
    if train:
      mean = self._average(rows)
      # E[x^2] - E[x]^2 instead would cancel catastrophically in float32.
      centred = rows - _spread(mean, count)
      var = self._average(jnp.square(centred))
      if not self.is_initializing():
        for running, batch in ((running_mean, mean), (running_var, var)):
          running.value = (self.momentum * running.value
                           + (1 - self.momentum) * lax.stop_gradient(batch[0]))
    else:
      centred, var = rows - running_mean.value, running_var.value[None]
    factor = lax.rsqrt(var + self.epsilon) * scale
    out = centred * _spread(factor, count) + _spread(bias[None], count)
    return out.reshape(x.shape).astype(self.result_dtype)

  @nn.nowrap
  def _average(self, rows):
    mean = _mean(rows)
    return mean if self.axis_name is None else lax.pmean(mean, self.axis_name)
