"""FD: faithful distillation, teacher and student compared at the same worst point."""

import dataclasses

from rkd_jax import losses
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import positive, share

SUMMARY = 'FD: the student says what the teacher says at the worst point for that'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `fd`."""

  weight_adv: float = share(5 / 6, 'Weight a of the term on adversarial images.')
  temperature: float = positive(1.0, 'Temperature T of both softmaxes.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """a KL(T(x') || S(x')) + (1 - a) KL(T(x) || S(x)), with x' maximising the former.

  This project's reading of "Faithful Knowledge Distillation" (arXiv:2306.04431), whose
  loss is not public. Other than in RSLAD the teacher sees x' too: the student
  is not to be right there, but to say what the teacher says, and the inner
  maximisation moves along the gradients of both networks. Both KL are softened, times
  T**2. No label is used. The student's forwards run in training mode, x' first.

  Args:
    settings: Those declared above.
    threat: see `adversary.make_adversary`; x' starts at x + 0.001 N(0, 1).
    epochs: epochs of the whole training.
  """
  return Method('fd', ('teacher',), ((0, objective(settings, threat, epochs)),))


def objective(settings, threat, epochs):
  """The objective, which `cfd` adds to."""
  weight, temperature = settings.weight_adv, settings.temperature
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def differ(logits, teacher_logits):
    return losses.kl(logits, teacher_logits, student_temperature=temperature,
                     teacher_temperature=temperature, teacher_gradient=True)

  def of_batch(student, teachers, memory, batch):
    teacher = teachers['teacher']
    image_adv = adversary(student, batch, lambda both: differ(*both), teacher)
    teacher_adv, teacher_clean = map(teacher.predict, (image_adv, batch.image))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    soft = lambda *both: losses.softened_kl(*both, temperature=temperature)
    loss_adv, loss_clean = soft(logits_adv, teacher_adv), soft(logits, teacher_clean)
    return Outcome(weight * loss_adv + (1 - weight) * loss_clean, student, memory, {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return of_batch
