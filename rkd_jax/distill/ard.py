"""ARD: adversarially robust distillation (Goldblum et al. 2019, arXiv:1905.09747)."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.adversary import UNIFORM, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import positive, share

SUMMARY = "ARD: the teacher's softened clean prediction for adversarial images"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `ard`."""

  temperature: float = positive(30.0, 'Temperature T of both softmaxes.')
  alpha: float = share(1.0, "Weight of the teacher's softened prediction.")


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """alpha T^2 KL(T(x)/T || S(x')/T) / C + (1 - alpha) CE(S(x), y).

  x' maximises CE(S(x'), y) from a uniform start. The division by the number of
  classes C is the public code's (PyTorch's mean). The student forwards run in
  training mode, first x', then x; the second one at alpha = 1 too, for its
  running statistics, as in the public code.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  temperature, alpha = settings.temperature, settings.alpha
  adversary = make_adversary(threat, epochs=epochs, start=UNIFORM)

  def objective(student, teachers, memory, batch):
    image_adv = adversary(student, batch)
    teacher_logits = teachers['teacher'].predict(batch.image)
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_adv = losses.softened_kl(
        logits_adv, teacher_logits, temperature=temperature, classes='mean')
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss = alpha * loss_adv + (1 - alpha) * loss_clean
    return Outcome(loss, student, memory, {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('ard', ('teacher',), ((0, objective),))
