"""A teacher on clean data: its tapped features, their averages, its accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.data.batches import padded_batches, to_float
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network, Variables
from rkd_jax.models.taps import with_features
from rkd_jax.training import parallel


def named(network: Network, layers: str) -> tuple[str, ...]:
  """Layers of a text such as 'stage1,stage3'; every stage where it is empty.

  Raises:
    ConfigError: a layer that the network does not tap.
  """
  known = network.module.feature_names
  if not layers:
    return tuple(name for name in known if name.startswith('stage'))
  chosen = tuple(name.strip() for name in layers.split(','))
  for name in chosen:
    if name not in known:
      raise ConfigError(f'the teacher has no tapped layer {name!r}, it has '
                        f'{", ".join(known)}; see `layers`')
  return chosen


def shapes(network: Network, variables: Variables, image_shape: tuple[int, ...]
           ) -> dict[str, tuple[int, ...]]:
  """The shape of every tapped feature of one image [H, W, C]; nothing is computed."""
  image = jnp.zeros((1, *image_shape))
  _, seen = jax.eval_shape(
      lambda variables: with_features(network.module, variables, image), variables)
  return {name: feature.shape[1:] for name, feature in seen.items()}


def average(network: Network, variables: Variables, images, *,
            power: int = 1, batch_size: int = 250) -> dict[str, jax.Array]:
  """Mean over images of every tapped feature (of its absolute power): [...].

  A streaming average: one batch is on the device at a time.

  Args:
    network, variables: in evaluation mode.
    images: uint8[N, H, W, C], N >= 1.
    power: 1 for the mean itself, 2 for the mean square.
    batch_size: images at a time; the last batch is padded and weighted.
  """

  def sums(variables, images, weight):
    _, seen = with_features(network.module, variables, to_float(images))
    return {name: jnp.einsum('b,b...->...', weight, feature.astype(jnp.float32)**power)
            for name, feature in seen.items()}

  compiled, total = parallel.compile_fn(sums), None
  for index, mask in zip(*padded_batches(len(images), batch_size), strict=True):
    part = compiled(variables, images[index], mask.astype('float32'))
    total = part if total is None else jax.tree.map(jnp.add, total, part)
  return jax.tree.map(lambda value: value / len(images), total)


def accuracy(network, variables, split) -> float:
  """Share of a split (uint8 images, labels) that is classified as labelled."""
  hits = 0
  for index, mask in zip(*padded_batches(len(split), 500), strict=True):
    right = _judge(network)(variables, split.image[index], split.label[index])
    hits += int(np.asarray(right)[mask].sum())
  return hits / len(split)


@functools.lru_cache(maxsize=4)
def _judge(network):
  """Compiled `right(variables, images, labels)`, bool[B]."""
  return parallel.compile_fn(lambda variables, images, labels: (
      jnp.argmax(network.predict(variables, to_float(images)), -1) == labels))
