"""TRADES (Zhang et al. 2019, arXiv:1901.08573)."""

import dataclasses

from rkd_jax import attacks, losses
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative

SUMMARY = 'TRADES: clean cross-entropy + beta KL(clean || adversarial prediction)'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `trades`."""

  beta: float = not_negative(6.0, 'Weight of the KL, 1 / lambda in the paper.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """CE(S(x), y) + beta KL(S(x) || S(x')), gradients through both (eq. 5).

  x' maximises KL(S(x) || S(x')) from x + 0.001 N(0, 1). The KL is summed over
  the classes. The student forwards run in training mode, first x', then x.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  beta = settings.beta
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    del teachers
    reference = student.frozen().predict(batch.image)
    image_adv = adversary(student, batch, attacks.kl_to(reference))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss_adv = losses.kl(logits_adv, logits, teacher_gradient=True)
    return Outcome(loss_clean + beta * loss_adv, student, memory, {
        'loss_clean': loss_clean,
        'loss_adv': loss_adv,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('trades', (), ((0, objective),))
