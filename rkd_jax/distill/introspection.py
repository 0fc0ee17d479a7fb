"""What IAD and AdaIAD share: the student trusts itself where the teacher fails."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill import settings as checks
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.training.schedules import first_epoch

DEFAULTS = {'temperature': 1.0, 'alpha': 1.0, 'beta': 0.1,
            'introspect_from': 60 / 200}


def make(name: str, settings: Mapping[str, Any], *, epochs: int, attack: Callable,
         target: str) -> Method:
  """alpha (L_T + (1 - b) KL(S(x) || S(x'))) + (1 - alpha) CE(S(x), y).

  L_T = T^2 KL(T(x)/T || S(x')/T), or with T(x') as the target, and b = p_T(y|x')^beta,
  the teacher's trustworthiness on x' (Zhu et al. 2022, arXiv:2106.04928; the
  public code's IAD-I). The term with b is on from the share `introspect_from` of the
  training; a gradient flows into S(x) there, as in the public code. All KL are summed
  over the classes. The student forwards run in training mode, first x', then x.

  Args:
    name: of the method.
    settings: keys of `DEFAULTS`: `temperature` T > 0, `alpha` in [0, 1], `beta` >= 0,
      `introspect_from` in [0, 1).
    epochs: epochs of the whole training.
    attack: `attack(student, teacher, batch) -> x'`.
    target: whose prediction the student takes over, the teacher's on 'clean' images
      or on the student's 'adv' ones.

  Raises:
    ConfigError: an invalid setting.
  """
  checks.positive(settings, 'temperature')
  checks.between(settings, 'alpha')
  checks.non_negative(settings, 'beta')
  checks.between(settings, 'introspect_from', upper_open=True)
  temperature, alpha, beta = (settings[k] for k in ('temperature', 'alpha', 'beta'))

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

  start = first_epoch(settings['introspect_from'], epochs)
  phases = {0: lambda *inputs: objective(False, *inputs)}
  if start < epochs:
    phases[start] = lambda *inputs: objective(True, *inputs)
  return Method(name, ('teacher',), tuple(phases.items()))
