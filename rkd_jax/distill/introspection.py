"""What IAD and AdaIAD share: the student trusts itself where the teacher fails."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.settings import not_negative, positive, share, share_below_one
from rkd_jax.training.schedules import first_epoch


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `introspection`."""

  temperature: float = positive(1.0, 'Temperature T of both softmaxes.')
  alpha: float = share(1.0, 'Weight of the two KL against the cross-entropy.')
  beta: float = not_negative(0.1, "Exponent of the teacher's trustworthiness.")
  introspect_from: float = share_below_one(
      60 / 200, 'Share of the training after which the student trusts itself too.')


def make(name: str, settings: Settings, *, epochs: int, attack: Callable,
         target: str) -> Method:
  """alpha (L_T + (1 - b) KL(S(x) || S(x'))) + (1 - alpha) CE(S(x), y).

  L_T = T^2 KL(T(x)/T || S(x')/T), or with T(x') as the target, and b = p_T(y|x')^beta,
  the teacher's trustworthiness on x' (Zhu et al. 2022, arXiv:2106.04928; the
  public code's IAD-I). The term with b is on from the share `introspect_from` of the
  training; a gradient flows into S(x) there, as in the public code. All KL are summed
  over the classes. The student forwards run in training mode, first x', then x.

  Args:
    name: of the method.
    settings: Those declared above.
    epochs: epochs of the whole training.
    attack: `attack(student, teacher, batch) -> x'`.
    target: whose prediction the student takes over, the teacher's on 'clean' images
      or on the student's 'adv' ones.
  """
  temperature, alpha, beta = settings.temperature, settings.alpha, settings.beta

  def objective(introspects, student, teachers, memory, batch):
    teacher = teachers['teacher']
    image_adv = attack(student, teacher, batch)
    guide = teacher.predict(image_adv)
    teacher_logits = guide if target == 'adv' else teacher.predict(batch.image)
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_adv = losses.softened_kl(logits_adv, teacher_logits, temperature=temperature)
    loss_clean = losses.cross_entropy(logits, batch.label)
    metrics = {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)}
    loss = alpha * loss_adv + (1 - alpha) * loss_clean
    if introspects:
      # p^beta in log space: p itself may be 0 in float32.
      trust = jnp.exp(-beta * losses.cross_entropy(guide, batch.label))
      loss_own = losses.kl(logits_adv, logits, teacher_gradient=True)
      loss = loss + alpha * (1 - trust) * loss_own
      metrics |= {'trust': trust, 'loss_own': loss_own}
    return Outcome(loss, student, memory, metrics)

  start = first_epoch(settings.introspect_from, epochs)
  phases = {0: lambda *inputs: objective(False, *inputs)}
  if start < epochs:
    phases[start] = lambda *inputs: objective(True, *inputs)
  return Method(name, ('teacher',), tuple(phases.items()))
