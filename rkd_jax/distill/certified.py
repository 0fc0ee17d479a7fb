"""Certified training: the student minimises a bound of its worst-case loss."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import bounds, losses
from rkd_jax.distill import ibp_warmup
from rkd_jax.distill.adversary import eps_share
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative, one_of, positive, share
from rkd_jax.training import schedules

SUMMARY = 'certified training: cross-entropy of bounds on the worst-case logits'

BOUNDS = ('ibp', 'crown_ibp')
INITS = ('ibp', 'network')
RAMPS = ('linear', 'smooth')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `certified`."""

  bound: str = one_of('ibp', BOUNDS, 'What the margins are bounded by.')
  beta_end: float = share(
      0.0, 'Weight of CROWN-IBP beside IBP at the end; 0, plain IBP, is best on MNIST.',
      when={'bound': ('crown_ibp',)})
  kappa_start: float = share(1.0, 'Weight of the clean loss at the start.')
  kappa_end: float = share(
      0.0, 'Weight of the clean loss at the end: 0.5 for Gowal et al., later work 0.')
  ramp: str = one_of(
      'smooth', RAMPS, "How eps grows: 'smooth' starts as a fourth power and is linear "
      'from a quarter of the way.')
  init: str = one_of(
      'ibp', INITS, "Initialisation: 'ibp' is that of Shi et al. for deep networks.")
  regularizer: float = not_negative(
      0.5, 'Weight lambda of the terms of Shi et al. at the start.')
  tolerance: float = positive(
      0.5, 'Tolerance tau of these terms.', when={'regularizer': True})

BALLS = {'linf': bounds.linf_ball, 'l2': bounds.l2_ball}
NO_BATCH_NORM = (
    'bounds the network in evaluation mode, where the statistics of BatchNorm are '
    'constants that it cannot train; use a network without it, such as cnn_16_32 or '
    'mlp_256_256')
_TURN, _POWER = 0.25, 4  # Of the smooth ramp, as in auto_LiRPA.


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """kappa CE(S(x), y) + (1 - kappa) CE(z, y) + lambda (tightness + balance).

  z are the worst-case logits over the ball of radius eps around x: 0 for the label,
  minus the certified margin for every other class (Gowal et al. 2018,
  arXiv:1810.12715). While eps grows over the share `eps_warmup` of the
  training, kappa goes from `kappa_start` to `kappa_end`, beta from 1 to `beta_end`
  and lambda from `regularizer` to 0, all as eps does, step by step; afterwards a
  program without what is then off is compiled. Nothing is attacked. The student runs
  in evaluation mode throughout.

  Args:
    settings: Those declared above.
    threat: `norm`, `eps` and `eps_warmup`, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  phases = [(schedules.first_epoch(threat.eps_warmup, epochs),
             _objective(settings, threat, lambda batch: None))]
  if phases[0][0]:
    phases.insert(0, (0, _objective(
        settings, threat, lambda batch: ramp_share(
            settings.ramp, eps_share(threat, epochs, batch.progress)))))
  return Method('certified', (), tuple(phases), attacks=False,
                init_student=_init(settings))


def ramp_share(ramp: str, share):
  """Share of eps at a share of its warm-up, both in [0, 1].

  'smooth' is a s**4 up to s = 1/4, then a line; both its value and its slope are
  continuous, which determines a.
  """
  if ramp == 'linear':
    return share
  scale = 1 / ((1 - _TURN) * _POWER * _TURN**(_POWER - 1) + _TURN**_POWER)
  middle = scale * _TURN**_POWER
  line = middle + (1 - middle) * (share - _TURN) / (1 - _TURN)
  return jnp.where(share < _TURN, scale * share**_POWER, line)


def worst_logits(margins: jax.Array, labels: jax.Array) -> jax.Array:
  """Logits whose difference to that of the label is minus the margins: [B, K].

  Args:
    margins: float[B, K - 1], as ordered by `bounds.margins`.
    labels: int[B].
  """
  others = jnp.arange(margins.shape[1] + 1)
  column = jnp.where(others < labels[:, None], others, others - 1)
  gathered = jnp.take_along_axis(
      margins, jnp.clip(column, 0, margins.shape[1] - 1), axis=1)
  return jnp.where(others == labels[:, None], 0, -gathered)


def mixed_margins(fn, ball, spec, *, bound: str, beta) -> jax.Array:
  """Lower bounds of the rows of `spec`, beta CROWN-IBP + (1 - beta) IBP: [B, S].

  Args:
    fn, ball, spec: as in `bounds.ibp`.
    bound: one of `BOUNDS`; 'ibp' is IBP whatever beta is.
    beta: in [0, 1]; may be traced. CROWN-IBP is left out where it is the number 0.
  """
  found = bounds.ibp(fn, ball, spec, upper=False).lower
  if bound == 'ibp' or (not isinstance(beta, jax.Array) and not beta):
    return found
  tight = bounds.crown_ibp(fn, ball, spec, upper=False).lower
  return beta * tight + (1 - beta) * found


def _init(settings):
  def init_student(key, variables):
    if jax.tree.leaves(variables['batch_stats']):
      raise ConfigError('certified training ' + NO_BATCH_NORM)
    if settings.init == 'ibp':
      return {**variables, 'params': ibp_warmup.init(key, variables['params'])}
    return variables

  return init_student


def _objective(settings, threat, share_at):
  """The objective; `share_at(batch)` is the share of eps, None after the warm-up."""

  def objective(student, teachers, memory, batch):
    del teachers
    share = share_at(batch)
    kappa, beta = settings.kappa_end, settings.beta_end
    if share is not None:
      kappa = settings.kappa_start + share * (kappa - settings.kappa_start)
      beta = 1 + share * (beta - 1)
    eps = jnp.float32(threat.eps) * (1.0 if share is None else share)
    ball = BALLS[threat.norm](batch.image, eps, lower=0.0, upper=1.0)
    logits = student.predict(batch.image)
    margins = mixed_margins(
        student.predict, ball, bounds.margins(batch.label, logits.shape[1]),
        bound=settings.bound, beta=beta)
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss_worst = losses.cross_entropy(
        worst_logits(margins, batch.label), batch.label)
    loss = kappa * loss_clean + (1 - kappa) * loss_worst
    metrics = {
        'loss_clean': loss_clean, 'loss_worst': loss_worst, 'eps': eps,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_verified': jnp.all(margins > 0, axis=1).astype(jnp.float32)}
    if share is not None and settings.regularizer:
      tightness, balance = ibp_warmup.terms(
          student.predict, ball, batch.mean, settings.tolerance)
      loss += settings.regularizer * (1 - share) * (tightness + balance)
      metrics |= {'tightness': tightness, 'balance': balance}
    return Outcome(loss, student, memory, metrics)

  return objective
