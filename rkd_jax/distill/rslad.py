"""RSLAD: robust soft labels (Zi et al. 2021, arXiv:2108.07969)."""

import dataclasses

from rkd_jax import attacks, losses
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import positive, share

SUMMARY = "RSLAD: the robust teacher's clean soft labels in place of all hard ones"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `rslad`."""

  weight_adv: float = share(5 / 6, 'Weight w of the term on adversarial images.')
  kl_scale: float = positive(
      1.0, 'Factor of both KL: 1 for 10 classes, 10 for 100 in the public code.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """w KL(T(x) || S(x')) + (1 - w) KL(T(x) || S(x)), each / C.

  x' maximises KL(T(x) || S(x')) from x + 0.001 N(0, 1). The division by the
  number of classes C is the public code's (PyTorch's mean). The student
  forwards run in training mode, first x', then x.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  weight, scale = settings.weight_adv, settings.kl_scale
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    teacher_logits = teachers['teacher'].predict(batch.image)
    image_adv = adversary(student, batch, attacks.kl_to(teacher_logits))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_adv = scale * losses.kl(logits_adv, teacher_logits, classes='mean')
    loss_clean = scale * losses.kl(logits, teacher_logits, classes='mean')
    loss = weight * loss_adv + (1 - weight) * loss_clean
    return Outcome(loss, student, memory, {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('rslad', ('teacher',), ((0, objective),))
