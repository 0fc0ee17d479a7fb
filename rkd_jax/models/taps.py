"""Features of a network by name: read, or replaced on their way."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# tap(name, feature) -> feature; what it returns is used from there on.
Tap = Callable[[str, jax.Array], jax.Array]


def see(tap: Tap | None, name: str, feature: jax.Array) -> jax.Array:
  """`feature`, or what the tap wants in its place."""
  return feature if tap is None else tap(name, feature)


def with_features(
    module: nn.Module, variables: Any, images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Evaluation-mode logits and every named feature of one forward pass.

  Gradients flow through both. For other modes, or to replace features, give
  `module.apply` a `tap` of your own.

  Args:
    module: a network of this package.
    variables: its variables.
    images: float[B, H, W, C] in [0, 1].

  Returns:
    Logits float32[B, K], and {name: feature} for each of
    `module.feature_names`: 'features' is float32[B, D], the others are
    [B, h, w, c] (dense layers: [B, width]) in the network's dtype.
  """
  seen = {}

  def read(name, feature):
    seen[name] = feature
    return feature

  logits = module.apply(variables, images, train=False, tap=read)
  return logits, seen
