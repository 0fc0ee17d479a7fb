"""NAD: a fine-tuned copy teaches the network where to look (arXiv:2101.05930)."""

from rkd_jax.detox import finetune
from rkd_jax.detox import layers as layers_lib
from rkd_jax.errors import ConfigError
from rkd_jax.losses import features
from rkd_jax.models.taps import with_features

SUMMARY = 'NAD: attention transfer from a fine-tuned copy'

DEFAULTS = {**finetune.DEFAULTS, 'beta': 1000.0, 'layers': ''}


def run(network, variables, split, settings, *, key):
  """CE + beta * sum over layers of the attention distance to a fine-tuned copy.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: those of `finetune`, for the copy and for the network; `beta` >= 0;
      `layers`, '' for every stage.
    key: of the batches.

  Returns:
    (network, variables).

  Raises:
    ConfigError: beta < 0, or a layer that is not a tapped feature map.
  """
  if not settings['beta'] >= 0:
    raise ConfigError(f'beta must be >= 0, got {settings["beta"]}')
  names = layers_lib.named(network, settings['layers'])
  copy = finetune.tuned(network, variables, split, settings, key=key)

  def distance(mine, image):
    ours = with_features(network.module, mine, image)[1]
    theirs = with_features(network.module, copy, image)[1]
    return settings['beta'] * sum(
        features.attention(ours[name], theirs[name]).mean() for name in names)

  return network, finetune.tuned(
      network, variables, split, settings, key=key, extra=distance)
