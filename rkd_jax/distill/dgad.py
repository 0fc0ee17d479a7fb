"""DGAD: dynamic guidance in adversarial distillation (Park & Min, arXiv:2409.01627)."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill.adversary import NEARBY, disagreement, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative

SUMMARY = 'DGAD: AdaAD where the teacher is right, its corrected clean prediction else'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `dgad`."""

  beta: float = not_negative(1.0, 'Weight of the predictive consistency.')


def swap_where_wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The logits with the label's and the largest exchanged where they differ (ELS).

  Args:
    logits: float[B, K].
    labels: int[B] in [0, K).

  Returns:
    float[B, K]; the label's logit is the largest, the values of each row are the same.
  """
  place = jnp.arange(logits.shape[-1])[None]
  top = jnp.argmax(logits, axis=-1)[:, None]
  label = labels[:, None]
  most = jnp.take_along_axis(logits, top, axis=-1)
  own = jnp.take_along_axis(logits, label, axis=-1)
  return jnp.where(place == label, most, jnp.where(place == top, own, logits))


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """KL(T'(x) || S(x)) where T is wrong on x, else KL(T'(x') || S(x')); + beta PCR.

  Misclassification-aware partitioning: the examples that the teacher gets wrong are
  learned from clean images. Error-corrective label swapping: T' is T corrected by
  `swap_where_wrong`, on x and on x'. Predictive consistency: PCR is the mean over the
  classes of (softmax S(x') - softmax S(x))^2. Both KL are summed over the classes, as in
  the public code. x' maximises KL(T(x') || S(x')), T as it is, along the gradients of
  both networks, from x + 0.001 N(0, 1). The student forwards run in training mode, first
  x', then x.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  beta = settings.beta
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    teacher, label = teachers['teacher'], batch.label
    image_adv = adversary(student, batch, disagreement, teacher)
    teacher_adv, teacher_clean = map(teacher.predict, (image_adv, batch.image))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    right = losses.correct(teacher_clean, label)
    loss_adv = losses.kl(logits_adv, swap_where_wrong(teacher_adv, label))
    loss_clean = losses.kl(logits, swap_where_wrong(teacher_clean, label))
    apart = jax.nn.softmax(logits_adv) - jax.nn.softmax(logits)
    consistency = jnp.mean(jnp.square(apart), axis=-1)
    loss = right * loss_adv + (1 - right) * loss_clean + beta * consistency
    return Outcome(loss, student, memory, {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'loss_consistency': consistency,
        'teacher_accuracy_clean': right,
        'teacher_accuracy_adv': losses.correct(teacher_adv, label),
        'accuracy_clean': losses.correct(logits, label),
        'accuracy_adv': losses.correct(logits_adv, label)})

  return Method('dgad', ('teacher',), ((0, objective),))
