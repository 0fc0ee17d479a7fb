"""The classifier of a network of this package: its parameters, drawn anew, replaced."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

_NAME = 'head'  # The last dense layer, also below the masks of `models.masked`.


def of(params: Any) -> dict[tuple[str, ...], jax.Array]:
  """{path: array} of the classifier's part of a parameter tree."""
  flat = traverse_util.flatten_dict(params)
  return {path: leaf for path, leaf in flat.items() if path[-2:-1] == (_NAME,)}


def drawn_anew(params: Any, key: jax.Array) -> Any:
  """The parameters with a kernel [D, K] of N(0, 1 / D) and zero biases there."""
  flat = traverse_util.flatten_dict(params)
  for path, leaf in of(params).items():
    flat[path] = (jax.random.normal(key, leaf.shape) * leaf.shape[0]**-0.5
                  if leaf.ndim == 2 else jnp.zeros_like(leaf))
  return traverse_util.unflatten_dict(flat)


def replaced(variables: Any, arrays: dict[tuple[str, ...], jax.Array]) -> Any:
  """The variables with these parameters, by path, in place of their own."""
  flat = traverse_util.flatten_dict(variables['params'])
  return {**variables, 'params': traverse_util.unflatten_dict({**flat, **arrays})}


def num_classes(network: Any, variables: Any, image_shape: tuple[int, ...]) -> int:
  """How many classes the classifier tells apart, for images [H, W, C]."""
  image = jnp.zeros((1, *image_shape))
  return jax.eval_shape(network.predict, variables, image).shape[-1]
