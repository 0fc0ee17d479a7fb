"""KDIGA: input gradients aligned in distillation (Shao et al. 2021, arXiv:2110.12072)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax import losses
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative, positive, share

SUMMARY = "KDIGA: no attack; the student's loss has the teacher's gradient in the image"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `kdiga`."""

  temperature: float = positive(1.0, 'Temperature T of both softmaxes.')
  alpha: float = share(0.5, "Weight a of the teacher's softened prediction.")
  gamma: float = not_negative(0.5, 'Weight g of the aligned input gradients.')

_NO_NORM = 1e-12  # Where the gradients agree, that of their distance is taken as 0.


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """a T^2 KL(T(x)/T || S(x)/T) + (1 - a) CE(S(x), y) + g |d CE_S/dx - d CE_T/dx|_2.

  The alignment is measured for each example, in the Euclidean norm over its pixels;
  its gradient is one of a gradient, through the student only. There is no
  attack, yet a robust teacher makes a robust student. The student's loss, its input
  gradient and its running statistics come from one forward pass in training mode:
  with BatchNorm the gradient in x_i is that of the whole batch's loss, as in the
  public code. The KL is summed over the classes.

  Args:
    settings: Those declared above.
    threat: not used.
    epochs: not used.
  """
  del threat, epochs
  temperature, alpha, gamma = settings.temperature, settings.alpha, settings.gamma

  def objective(student, teachers, memory, batch):
    def learn(image):
      logits, after = student.train(image)
      loss = losses.cross_entropy(logits, batch.label)
      return jnp.sum(loss), (loss, logits, after.variables['batch_stats'])

    def teach(image):
      logits = teachers['teacher'].predict(image)
      return jnp.sum(losses.cross_entropy(logits, batch.label)), logits

    slope, (loss_clean, logits, stats) = jax.grad(learn, has_aux=True)(batch.image)
    wanted, teacher_logits = jax.grad(teach, has_aux=True)(batch.image)
    apart = (slope - lax.stop_gradient(wanted)).reshape(len(slope), -1)
    alignment = optax.safe_norm(apart, _NO_NORM, axis=-1)
    loss_kd = losses.softened_kl(logits, teacher_logits, temperature=temperature)
    loss = alpha * loss_kd + (1 - alpha) * loss_clean + gamma * alignment
    return Outcome(loss, student.with_statistics(stats), memory, {
        'loss_kd': loss_kd,
        'loss_clean': loss_clean,
        'loss_alignment': alignment,
        'accuracy_clean': losses.correct(logits, batch.label)})

  return Method('kdiga', ('teacher',), ((0, objective),), attacks=False)
