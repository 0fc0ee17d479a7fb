"""Standard distillation (Hinton et al. 2015, arXiv:1503.02531)."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import positive, share

SUMMARY = 'standard knowledge distillation on clean images; no attack'

# The paper names no values for images; these are common ones for CIFAR.


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `sd`."""

  temperature: float = positive(4.0, 'Temperature T of both softmaxes.')
  alpha: float = share(0.9, "Weight of the teacher's softened prediction.")


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """alpha T^2 KL(T(x)/T || S(x)/T) + (1 - alpha) CE(S(x), y) (sec. 2).

  Args:
    settings: Those declared above.
    threat: not used.
    epochs: not used.
  """
  del threat, epochs
  temperature, alpha = settings.temperature, settings.alpha

  def objective(student, teachers, memory, batch):
    teacher_logits = teachers['teacher'].predict(batch.image)
    logits, student = student.train(batch.image)
    loss_kd = losses.softened_kl(
        logits, teacher_logits, temperature=temperature)
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss = alpha * loss_kd + (1 - alpha) * loss_clean
    return Outcome(loss, student, memory, {
        'loss_kd': loss_kd,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label)})

  return Method('sd', ('teacher',), ((0, objective),), adversarial=False)
