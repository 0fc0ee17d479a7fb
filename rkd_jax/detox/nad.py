"""NAD: a fine-tuned copy teaches the network where to look (arXiv:2101.05930)."""

import dataclasses

from rkd_jax.detox import finetune
from rkd_jax.detox import layers as layers_lib
from rkd_jax.errors import ConfigError
from rkd_jax.losses import features
from rkd_jax.models.taps import with_features
from rkd_jax.settings import not_negative, text

SUMMARY = 'NAD: attention transfer from a fine-tuned copy'


@dataclasses.dataclass(frozen=True)
class Settings(finetune.Settings):
  """Settings of `nad`."""

  beta: float = not_negative(1000.0, 'Weight of the attention distance.')
  layers: str = text('', "'stage1,stage3'; '' for every stage.")


def run(network, variables, split, settings: Settings, *, key):
  """CE + beta * sum over layers of the attention distance to a fine-tuned copy.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above; those of `finetune` are for the copy too.
    key: of the batches.

  Returns:
    (network, variables).

  Raises:
    ConfigError: a layer that is not a tapped feature map.
  """
  check(settings, network, variables, split.image.shape[1:])
  names = layers_lib.named(network, settings.layers)
  copy = finetune.tuned(network, variables, split, settings, key=key)

  def distance(mine, image):
    ours = with_features(network.module, mine, image)[1]
    theirs = with_features(network.module, copy, image)[1]
    return settings.beta * sum(
        features.attention(ours[name], theirs[name]).mean() for name in names)

  return network, finetune.tuned(
      network, variables, split, settings, key=key, extra=distance)


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for a layer that is not a tapped feature map."""
  shapes = layers_lib.shapes(network, variables, image_shape)
  for name in layers_lib.named(network, settings.layers):
    if len(shapes[name]) != 3:
      raise ConfigError(
          f'nad: layer {name!r} is a vector {shapes[name]}, but attention needs feature '
          'maps [h, w, C]; choose other layers, or another defence for this network')
