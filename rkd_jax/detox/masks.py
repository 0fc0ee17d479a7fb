"""RobustKD's mask: features mixed with clean averages so that they vary less.

"Robust Knowledge Distillation Based on Feature Variance Against Backdoored Teacher
Model", arXiv:2406.03409. How its authors optimise the mask was not released; this is
a reconstruction from the text, with the open choices as settings.
"""

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses
from rkd_jax.detox import layers as layers_lib
from rkd_jax.detox.descent import descend
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.losses import features
from rkd_jax.models import masked
from rkd_jax.models.taps import with_features

SUMMARY = 'RobustKD: static masks towards mean features, against feature variance'

DEFAULTS = {
    'cap': 0.05, 'weight': 1.0, 'form': 'mix', 'variance': 'batch', 'layers': '',
    'steps': 400, 'learning_rate': 0.05, 'batch_size': 64}


def run(network, variables, split, settings, *, key):
  """A teacher whose features F' = (1 - M) F + M P feed what follows them.

  P [H, W, C] is the mean of F over the clean images, M in [0, cap]^[H, W, C]
  minimises CE(head(F'), y) + weight * sum over layers of the variance of F'. The
  teacher's own weights do not change. M = cap * sigmoid(z), from z = 0.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings:
      cap: the paper's mask threshold m in [0, 1]; its stored masks have 0.05.
      weight: lambda >= 0.
      form: 'mix', or 'add' for F + M P (its PyramidNets).
      variance: what L_f is, 'batch', 'spatial', 'channel' (see
        `losses.features.variance`), or 'all', their sum.
      layers: 'stage1,stage3'; '' for every stage.
      steps, learning_rate, batch_size: of Adam on z.
    key: of the batches.

  Returns:
    (network, variables), see `models.masked`.

  Raises:
    ConfigError: a setting out of its range, or a layer that is not tapped.
  """
  if not 0 <= settings['cap'] <= 1 or not settings['weight'] >= 0:
    raise ConfigError(f'cap must be in [0, 1] and weight >= 0, got {settings["cap"]} '
                      f'and {settings["weight"]}')
  over = features.VARIANCES if settings['variance'] == 'all' else (settings['variance'],)
  if not set(over) <= set(features.VARIANCES):
    raise unknown_name('variance', settings['variance'], (*features.VARIANCES, 'all'))
  names = layers_lib.named(network, settings['layers'])
  clean = layers_lib.average(network, variables, split.image)
  reference = {name: clean[name] for name in names}
  wrap = lambda mask: masked.wrap(network, variables, {
      name: {'mask': mask[name], 'reference': reference[name]} for name in names},
      settings['form'])

  def bounded(free):
    return jax.tree.map(lambda z: settings['cap'] * jax.nn.sigmoid(z), free)

  def loss_fn(free, carried, image, label, key):
    del key
    inside, its_variables = wrap(bounded(free))
    logits, seen = with_features(inside.module, its_variables, image)
    varies = sum(features.variance(seen[name], kind) for name in names for kind in over)
    return (jnp.mean(losses.cross_entropy(logits, label))
            + settings['weight'] * varies), carried

  free, _ = descend(
      loss_fn, jax.tree.map(jnp.zeros_like, reference), (), split,
      optax.adam(settings['learning_rate']), key=key,
      steps=settings['steps'], batch_size=settings['batch_size'])
  return wrap(bounded(free))
