"""CIARD: cyclic iterative distillation from two teachers (arXiv:2509.12633).

The student learns from a robust teacher R on adversarial images and from a
clean teacher N on clean ones, is pushed away from N where N falls for the
student's adversarial image, and R is retrained on those images meanwhile. Every
part has its switch.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax import losses
from rkd_jax.distill import balance, dual, retraining
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Batch, Method, Outcome
from rkd_jax.models.network import BoundNetwork
from rkd_jax.sections import Attack
from rkd_jax.settings import flag, not_negative, one_of, positive, share_below_one
from rkd_jax.training.schedules import first_epoch

SUMMARY = 'CIARD: two teachers; a push off the fooled one, the robust one retrained'


@dataclasses.dataclass(frozen=True)
class Settings(dual.Temperatures, dual.Weights):
  """Settings of `ciard`."""

  WHEN: ClassVar = {
      'weight_step': {'weights': ('mtard',)},
      **dict.fromkeys(('temperature_step', 'temperature_min', 'temperature_max'),
                      {'temperatures': True})}
  weights: str = one_of(
      'mtard', ('mtard', 'fixed'), "Loss weights: 'mtard' (the published tables), or "
      "'fixed' (the last commit of the public code).")
  weight_adv: float = not_negative(
      1.0, 'Fixed weight of L1.', when={'weights': ('fixed',)})
  weight_clean: float = not_negative(
      1.0, 'Fixed weight of L2.', when={'weights': ('fixed',)})
  temperatures: bool = flag(True, 'Whether tau_r and tau_n move as in B-MTARD.')
  push: bool = flag(True, 'Whether the third term is on.')
  push_temperature: float = positive(
      5.0, "The student's temperature in the third term.", when={'push': True})
  teacher_batch_norm: str = one_of(
      'train', ('train', 'eval'), "BatchNorm of the robust teacher: 'train' (published) "
      "or 'eval'. That of the clean teacher is in evaluation mode.")
  retrain: bool = flag(True, 'Whether the robust teacher is retrained.')
  retrain_from: float = share_below_one(
      50 / 300, 'Share of the training after which it is.', when={'retrain': True})
  retrain_learning_rate: float = positive(
      1e-4, 'Learning rate of its SGD.', when={'retrain': True})
  retrain_momentum: float = share_below_one(
      0.1, 'Momentum of its SGD.', when={'retrain': True})
  retrain_weight_decay: float = not_negative(
      2e-4, 'Weight decay of its SGD.', when={'retrain': True})


def push_scale(mean_adv: jax.Array, mean_clean: jax.Array,
               mean_push: jax.Array) -> jax.Array:
  """k = 10**(min(floor(log10 L1), floor(log10 L2)) - floor(log10 L3)).

  Brings L3 to the decade of the smaller of the others. Discontinuous where a
  loss crosses a power of ten. Losses below 1e-7 count as 1e-7 (the public code
  does so for 0), which keeps k finite.

  Args:
    mean_adv, mean_clean, mean_push: means over the batch, float32 scalars.

  Returns:
    float32 scalar; no gradient.
  """
  decade = [jnp.floor(jnp.log10(jnp.maximum(loss, balance.ZERO_LOSS)))
            for loss in (mean_adv, mean_clean, mean_push)]
  return lax.stop_gradient(
      10.0 ** (jnp.minimum(decade[0], decade[1]) - decade[2]))


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """w_a L1 + w_n L2 - k L3, and SGD on CE(R(x'), y) for the robust teacher.

  L1 = KL(R(x') / tau_r || S(x')) / C and L2 = KL(N(x) / tau_n || S(x)) / C, see
  `dual.make_compare`; L3 = KL(N(x') || S(x') / push_temperature) / C, averaged
  over the examples whose x' the clean teacher gets wrong (0 where there is
  none), k from `push_scale`. x' maximises CE(S(x'), y) from x + 0.001 N(0, 1).

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  compare = dual.make_compare(
      settings, epochs=epochs,
      fixed_weights=(settings.weight_adv, settings.weight_clean))
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)
  forward = retraining.forward_in(settings.teacher_batch_norm)
  init_optimizer, retrain = retraining.make_retrain(
      settings, epochs=epochs, forward=forward)
  start = first_epoch(settings.retrain_from, epochs)
  retrains = settings.retrain and start < epochs
  changes = retrains or settings.teacher_batch_norm == 'train'

  def init_memory(teachers):
    memory = dual.init_memory(
        weights=settings.weights == 'mtard',
        temperatures=settings.temperatures)
    if changes:
      memory['robust'] = retraining.copy_of(teachers['robust'].variables)
    if retrains:
      memory['optimizer'] = init_optimizer(memory['robust']['params'])
    return memory

  def robust_pass(teacher, memory, batch, image_adv, retraining_on):
    """Targets on x' and the parts of the memory that they leave changed."""
    if not changes:
      return teacher.predict(image_adv), {}, {}
    teacher = BoundNetwork(teacher.network, memory['robust'])
    if retraining_on:
      logits, variables, optimizer, loss = retrain(
          teacher, memory['optimizer'], batch, image_adv)
      return logits, {'robust': variables, 'optimizer': optimizer}, {
          'loss_retrain': loss}
    logits, teacher = forward(teacher, image_adv)
    return logits, {'robust': teacher.variables}, {}

  def objective(retraining_on, student, teachers, memory, batch):
    image_adv = adversary(student, batch)
    robust_logits, changed, retrain_metrics = robust_pass(
        teachers['robust'], memory, batch, image_adv, retraining_on)
    out = compare(student, memory, batch, image_adv, robust_logits,
                  teachers['clean'].predict(batch.image))
    loss, metrics = out.loss, {
        **out.metrics, **retrain_metrics,
        'teacher_accuracy_adv': losses.correct(robust_logits, batch.label)}
    if settings.push:
      push, push_metrics = _push(
          out, teachers['clean'].predict(image_adv), batch,
          temperature=settings.push_temperature, scale=settings.kl_scale)
      loss, metrics = loss - push, metrics | push_metrics
    return Outcome(loss, out.student, {**out.memory, **changed}, metrics)

  phases = {0: lambda *inputs: objective(False, *inputs)}
  if retrains:
    phases[start] = lambda *inputs: objective(True, *inputs)
  return Method(
      'ciard', dual.ROLES, tuple(phases.items()), init_memory,
      lambda memory: {'robust': memory['robust']} if changes else {})


def _push(out: dual.Comparison, clean_logits_adv, batch: Batch, *, temperature,
          scale):
  """k L3 as per-example terms float32[B] whose mean is k L3, and its metrics."""
  fooled = 1 - losses.correct(clean_logits_adv, batch.label)
  share = batch.mean(fooled)
  divergence = scale * losses.kl(
      out.logits_adv, clean_logits_adv, student_temperature=temperature,
      classes='mean')
  mean_push = batch.mean(divergence, fooled)
  factor = jnp.where(
      share > 0, push_scale(out.mean_adv, out.mean_clean, mean_push), 0)
  # The step takes the mean over the batch; L3 is the mean over the fooled.
  terms = factor * fooled * divergence / jnp.where(share > 0, share, 1)
  return terms, {
      'loss_push': mean_push, 'push_scale': factor, 'push_share': share}

