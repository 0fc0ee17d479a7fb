"""A network as pure functions of its variables, whatever library wrote it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.models.taps import Tap

Variables = Any  # {'params': pytree, 'batch_stats': pytree (may be empty)}


@dataclasses.dataclass(frozen=True)
class Network:
  """A linen module behind three pure functions; no variables inside."""

  module: nn.Module

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
    """Fresh variables for images [H, W, C]; always float32."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = self.module.init(key, images, train=False)
    return {'params': variables['params'],
            'batch_stats': variables.get('batch_stats', {})}

  def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
    """Logits float32[B, K] of float images [B, H, W, C] in [0, 1].

    Evaluation mode: BatchNorm uses its running statistics, so examples do not
    influence each other.
    """
    return self.module.apply(variables, images, train=False)

  def train(self, variables: Variables, images: jax.Array, tap: Tap | None = None):
    """Training mode: (logits float32[B, K], variables).

    BatchNorm uses the statistics of this batch and updates its running ones;
    the returned variables differ from the given ones in `batch_stats` alone. A
    `tap` sees the features, see `models.taps`.
    """
    logits, updated = self.module.apply(
        variables, images, train=True, mutable=['batch_stats'],
        **({} if tap is None else {'tap': tap}))
    stats = updated.get('batch_stats', variables['batch_stats'])
    return logits, {**variables, 'batch_stats': stats}


@dataclasses.dataclass(frozen=True)
class BoundNetwork:
  """A network with the variables that it has at one moment of one step."""

  network: Network
  variables: Variables

  def predict(self, images: jax.Array) -> jax.Array:
    """Evaluation-mode logits float32[B, K]."""
    return self.network.predict(self.variables, images)

  def train(self, images: jax.Array, tap: Tap | None = None
            ) -> tuple[jax.Array, 'BoundNetwork']:
    """Training-mode logits, and the network with its new running statistics."""
    logits, variables = self.network.train(self.variables, images, tap)
    return logits, dataclasses.replace(self, variables=variables)

  def with_statistics(self, batch_stats) -> 'BoundNetwork':
    """The same weights with these running statistics."""
    return dataclasses.replace(
        self, variables={**self.variables, 'batch_stats': batch_stats})

  def frozen(self) -> 'BoundNetwork':
    """The same network, through which no gradient reaches the variables."""
    return dataclasses.replace(
        self, variables=jax.tree.map(lax.stop_gradient, self.variables))
