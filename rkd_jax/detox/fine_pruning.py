"""Fine-Pruning (Liu et al. 2018, arXiv:1805.12185): prune what sleeps, then tune."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.detox import finetune
from rkd_jax.detox import layers as layers_lib
from rkd_jax.models import masked
from rkd_jax.settings import share, text

SUMMARY = 'Fine-Pruning: dormant channels of the last stage off, then fine-tuning'


@dataclasses.dataclass(frozen=True)
class Settings(finetune.Settings):
  """Settings of `fine_pruning`."""

  accuracy_loss: float = share(0.1, 'What pruning may cost on the clean images.')
  layer: str = text('', "The layer that is pruned; '' for the last stage.")


def run(network, variables, split, settings: Settings, *, key):
  """Prunes channels by rising mean activation while accuracy loss is small enough.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches.

  Returns:
    (network, variables), see `models.masked`; a pruned channel is constantly 0.

  Raises:
    ConfigError: a layer that is not tapped.
  """
  layer = layers_lib.named(network, settings.layer)[-1]
  mean = layers_lib.average(network, variables, split.image)[layer]
  order = np.argsort(np.asarray(mean).reshape(-1, mean.shape[-1]).mean(0))
  count = most_pruned(network, variables, split, layer, order,
                      settings.accuracy_loss)
  network, variables = _pruned(network, variables, layer, order, count)
  return network, finetune.tuned(network, variables, split, settings, key=key)


def most_pruned(network, variables, split, layer, order, loss: float) -> int:
  """How many channels of `order` can go; the last one always stays."""
  def accuracy(count):
    return layers_lib.accuracy(
        *_pruned(network, variables, layer, order, count), split)

  least, count = accuracy(0) - loss, 0
  while count + 1 < len(order) and accuracy(count + 1) >= least:
    count += 1
  return count


def _pruned(network, variables, layer, order, count):
  off = jnp.zeros(len(order)).at[order[:count]].set(1)
  return masked.wrap(network, jax.tree.map(jnp.asarray, variables), {
      layer: {'mask': off, 'reference': jnp.zeros(len(order))}})


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for a layer that the network does not tap."""
  del variables, image_shape
  layers_lib.named(network, settings.layer)
