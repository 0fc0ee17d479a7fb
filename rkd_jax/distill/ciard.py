"""CIARD: cyclic iterative distillation from two teachers (arXiv:2509.12633).

The student learns from a robust teacher R on adversarial images and from a
clean teacher N on clean ones, is pushed away from N where N falls for the
student's adversarial image, and R is retrained on those images meanwhile. Every
part has its switch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax import losses
from rkd_jax.distill import balance, dual, retraining
from rkd_jax.distill import settings as checks
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Batch, Method, Outcome
from rkd_jax.models.network import BoundNetwork
from rkd_jax.training.schedules import first_epoch

SUMMARY = 'CIARD: two teachers; a push off the fooled one, the robust one retrained'

DEFAULTS = {
    'weights': 'mtard',
    'weight_adv': 1.0,
    'weight_clean': 1.0,
    **dual.WEIGHT_DEFAULTS,
    'temperatures': True,
    **dual.TEMPERATURE_DEFAULTS,
    'push': True,
    'push_temperature': 5.0,
    'teacher_batch_norm': 'train',
    'retrain': True,
    'retrain_from': 50 / 300,
    'retrain_learning_rate': 1e-4,
    'retrain_momentum': 0.1,
    'retrain_weight_decay': 2e-4,
}


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


def make(settings, *, threat, epochs) -> Method:
  """w_a L1 + w_n L2 - k L3, and SGD on CE(R(x'), y) for the robust teacher.

  L1 = KL(R(x') / tau_r || S(x')) / C and L2 = KL(N(x) / tau_n || S(x)) / C, see
  `dual.make_compare`; L3 = KL(N(x') || S(x') / push_temperature) / C, averaged
  over the examples whose x' the clean teacher gets wrong (0 where there is
  none), k from `push_scale`. x' maximises CE(S(x'), y) from x + 0.001 N(0, 1).

  Args:
    settings:
      weights: 'mtard' (the published tables) or 'fixed' (the public code's last
        commit) with `weight_adv` and `weight_clean`, both >= 0.
      weight_step, kl_scale: as in MTARD; the scale is on L1, L2 and L3.
      temperatures: whether tau_r and tau_n move as in B-MTARD, by
        `temperature_step` within [`temperature_min`, `temperature_max`].
      push, push_temperature: the third term.
      teacher_batch_norm: 'train' (published) or 'eval', of the robust teacher;
        see `retraining.forward_in`. The clean teacher is in evaluation mode.
      retrain: whether the robust teacher is retrained, from the share
        `retrain_from` of the training on; see `retraining.make_retrain`.
    threat: see `adversary.make_adversary`.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: an invalid setting or threat.
  """
  _check(settings)
  compare = dual.make_compare(
      settings, epochs=epochs,
      fixed_weights=(settings['weight_adv'], settings['weight_clean']))
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)
  forward = retraining.forward_in(settings['teacher_batch_norm'])
  init_optimizer, retrain = retraining.make_retrain(
      settings, epochs=epochs, forward=forward)
  start = first_epoch(settings['retrain_from'], epochs)
  retrains = settings['retrain'] and start < epochs
  changes = retrains or settings['teacher_batch_norm'] == 'train'

  def init_memory(teachers):
    memory = dual.init_memory(
        weights=settings['weights'] == 'mtard',
        temperatures=settings['temperatures'])
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
    if settings['push']:
      push, push_metrics = _push(
          out, teachers['clean'].predict(image_adv), batch,
          temperature=settings['push_temperature'], scale=settings['kl_scale'])
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


def _check(settings):
  checks.one_of(settings, 'weights', ('mtard', 'fixed'))
  checks.one_of(settings, 'teacher_batch_norm', ('train', 'eval'))
  checks.non_negative(
      settings, 'weight_adv', 'weight_clean', 'retrain_weight_decay')
  checks.positive(settings, 'push_temperature', 'retrain_learning_rate')
  checks.between(
      settings, 'retrain_from', 'retrain_momentum', upper_open=True)
