"""AdaAD: adaptive adversarial distillation (Huang et al. 2023, CVPR)."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.adversary import NEARBY, disagreement, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import positive, share

SUMMARY = 'AdaAD: attacks where student and teacher disagree most, teacher on x\' too'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `adaad`."""

  alpha: float = share(1.0, 'Weight of the term on adversarial images.')
  kl_scale: float = positive(
      1.0, 'Factor of both KL: 1 for CIFAR-10, C for CIFAR-100 in the public code.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x)), each / C.

  x' maximises KL(T(x') || S(x')) along the gradients of both networks, from
  x + 0.001 N(0, 1) (Huang et al., "Boosting Accuracy and Robustness of Student Models
  via Adaptive Adversarial Distillation"). The division by the number of
  classes C is the public code's for CIFAR-10; with `kl_scale` C and the same alpha this
  is `fd` at temperature 1. The student forwards run in training mode, first x', then x;
  the second one at alpha = 1 too, for its running statistics, as in the public code.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  alpha, scale = settings.alpha, settings.kl_scale
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    teacher = teachers['teacher']
    image_adv = adversary(student, batch, disagreement, teacher)
    teacher_adv, teacher_clean = map(teacher.predict, (image_adv, batch.image))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_adv = scale * losses.kl(logits_adv, teacher_adv, classes='mean')
    loss_clean = scale * losses.kl(logits, teacher_clean, classes='mean')
    return Outcome(alpha * loss_adv + (1 - alpha) * loss_clean, student, memory, {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('adaad', ('teacher',), ((0, objective),))
