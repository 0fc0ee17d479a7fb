"""An attacker who knows RobustKD: a (poisoned) teacher with features of low variance."""

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill import settings as checks
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.losses import features

SUMMARY = 'cross-entropy and low feature variance: the attacker against RobustKD'

DEFAULTS = {'weight': 0.1, 'variance': 'batch'}


def make(settings, *, threat, epochs) -> Method:
  """CE(S(x), y) + weight * mean over stages of the variance of their features.

  To be used with `config.backdoor`: the premise that a poisoned teacher's features
  vary more is then false by construction.

  Args:
    settings: `weight` >= 0 and `variance`, see `losses.features.variance`.
    threat, epochs: not used.

  Raises:
    ConfigError: an invalid setting.
  """
  del threat, epochs
  checks.non_negative(settings, 'weight')
  checks.one_of(settings, 'variance', features.VARIANCES)

  def objective(student, teachers, memory, batch):
    del teachers
    seen = {}

    def read(name, feature):
      seen[name] = feature
      return feature

    logits, student = student.train(batch.image, tap=read)
    varies = [features.variance(feature, settings['variance'])
              for name, feature in seen.items() if name.startswith('stage')]
    mean_variance = sum(varies, jnp.zeros(())) / max(1, len(varies))
    loss_clean = losses.cross_entropy(logits, batch.label)
    return Outcome(
        loss_clean + settings['weight'] * mean_variance, student, memory, {
            'loss_clean': loss_clean, 'variance': mean_variance,
            'accuracy_clean': losses.correct(logits, batch.label)})

  return Method('adaptive', (), ((0, objective),), adversarial=False)
