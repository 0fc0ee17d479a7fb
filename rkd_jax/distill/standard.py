"""Cross-entropy training without an attack: how a clean teacher is made."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack

SUMMARY = 'cross-entropy on clean images; no teacher, no attack'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `standard`."""


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """CE(S(x), y); `settings` is empty and `threat` is not used."""
  del settings, threat, epochs

  def objective(student, teachers, memory, batch):
    del teachers
    logits, student = student.train(batch.image)
    loss = losses.cross_entropy(logits, batch.label)
    return Outcome(loss, student, memory, {
        'loss_clean': loss,
        'accuracy_clean': losses.correct(logits, batch.label)})

  return Method('standard', (), ((0, objective),), adversarial=False)
