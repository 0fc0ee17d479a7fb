"""An attacker who knows RobustKD: a (poisoned) teacher with features of low variance."""

import dataclasses

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.losses import features
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative, one_of

SUMMARY = 'cross-entropy and low feature variance: the attacker against RobustKD'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `adaptive`."""

  weight: float = not_negative(0.1, 'Weight of the mean feature variance.')
  variance: str = one_of(
      'batch', features.VARIANCES, 'Over what the variance is taken.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """CE(S(x), y) + weight * mean over stages of the variance of their features.

  To be used with `config.backdoor`: the premise that a poisoned teacher's features
  vary more is then false by construction.

  Args:
    settings: Those declared above.
    threat, epochs: not used.
  """
  del threat, epochs

  def objective(student, teachers, memory, batch):
    del teachers
    seen = {}

    def read(name, feature):
      seen[name] = feature
      return feature

    logits, student = student.train(batch.image, tap=read)
    varies = [features.variance(feature, settings.variance)
              for name, feature in seen.items() if name.startswith('stage')]
    mean_variance = sum(varies, jnp.zeros(())) / max(1, len(varies))
    loss_clean = losses.cross_entropy(logits, batch.label)
    return Outcome(
        loss_clean + settings.weight * mean_variance, student, memory, {
            'loss_clean': loss_clean, 'variance': mean_variance,
            'accuracy_clean': losses.correct(logits, batch.label)})

  return Method('adaptive', (), ((0, objective),), adversarial=False)
