"""RobustKD's mask: features mixed with clean averages so that they vary less.

"Robust Knowledge Distillation Based on Feature Variance Against Backdoored Teacher
Model", arXiv:2406.03409. How its authors optimise the mask was not released; this is
a reconstruction from the text, with the open choices as settings.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.detox import layers as layers_lib
from rkd_jax.detox.descent import descend
from rkd_jax.losses import features
from rkd_jax.models import masked
from rkd_jax.models.taps import with_features
from rkd_jax.settings import count, not_negative, one_of, positive, share, text

SUMMARY = 'RobustKD: static masks towards mean features, against feature variance'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `masks`."""

  cap: float = share(
      0.05, "The paper's mask threshold m; its stored masks have 0.05.")
  weight: float = not_negative(1.0, 'Weight lambda of the variance.')
  form: str = one_of(
      'mix', masked.FORMS, "'mix', or 'add' for F + M P (the paper's PyramidNets).")
  variance: str = one_of(
      'batch', (*features.VARIANCES, 'all'), "What L_f is; 'all' is the sum.")
  layers: str = text('', "'stage1,stage3'; '' for every stage.")
  steps: int = count(400, 'Updates.', least=0)
  learning_rate: float = positive(0.05, 'Learning rate of Adam on z.')
  batch_size: int = count(64, 'Images in a batch.')


def run(network, variables, split, settings: Settings, *, key):
  """A teacher whose features F' = (1 - M) F + M P feed what follows them.

  P [H, W, C] is the mean of F over the clean images, M in [0, cap]^[H, W, C]
  minimises CE(head(F'), y) + weight * sum over layers of the variance of F'. The
  teacher's own weights do not change. M = cap * sigmoid(z), from z = 0.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches.

  Returns:
    (network, variables), see `models.masked`.

  Raises:
    ConfigError: a layer that is not tapped.
  """
  over = features.VARIANCES if settings.variance == 'all' else (settings.variance,)
  names = layers_lib.named(network, settings.layers)
  clean = layers_lib.average(network, variables, split.image)
  reference = {name: clean[name] for name in names}
  wrap = lambda mask: masked.wrap(network, variables, {
      name: {'mask': mask[name], 'reference': reference[name]} for name in names},
      settings.form)

  def bounded(free):
    return jax.tree.map(lambda z: settings.cap * jax.nn.sigmoid(z), free)

  def loss_fn(free, carried, image, label, key):
    del key
    inside, its_variables = wrap(bounded(free))
    logits, seen = with_features(inside.module, its_variables, image)
    varies = sum(features.variance(seen[name], kind) for name in names for kind in over)
    return (jnp.mean(losses.cross_entropy(logits, label))
            + settings.weight * varies), carried

  free, _ = descend(
      loss_fn, jax.tree.map(jnp.zeros_like, reference), (), split,
      optax.adam(settings.learning_rate), key=key,
      steps=settings.steps, batch_size=settings.batch_size)
  return wrap(bounded(free))


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for a layer that the network does not tap."""
  del variables, image_shape
  layers_lib.named(network, settings.layers)
