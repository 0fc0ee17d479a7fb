"""PGD adversarial training (Madry et al. 2018, arXiv:1706.06083)."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.adversary import UNIFORM, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack

SUMMARY = 'PGD adversarial training: cross-entropy on adversarial images'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `pgd_at`."""


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """CE(S(x'), y), x' maximising CE(S(x'), y) from a uniform start (eq. 2.1).

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: an invalid threat.
  """
  del settings
  adversary = make_adversary(threat, epochs=epochs, start=UNIFORM)

  def objective(student, teachers, memory, batch):
    del teachers
    image_adv = adversary(student, batch)
    logits_adv, student = student.train(image_adv)
    loss = losses.cross_entropy(logits_adv, batch.label)
    return Outcome(loss, student, memory, {
        'loss_adv': loss,
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('pgd_at', (), ((0, objective),))
