"""CFD: faithful distillation with a certified bound of the disagreement in the loss."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import bounds
from rkd_jax.bounds import joint
from rkd_jax.distill import certified, fd
from rkd_jax.distill.adversary import eps_share
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative, one_of

SUMMARY = 'CFD: FD and an upper bound of how far student and teacher can be apart'

BOUNDS = {'ibp': bounds.ibp, 'crown_ibp': bounds.crown_ibp}


@dataclasses.dataclass(frozen=True)
class Settings(fd.Settings):
  """Settings of `cfd`."""

  kappa: float = not_negative(0.3, 'Weight of the certified term.')
  bound: str = one_of(
      'ibp', BOUNDS, 'The bound of both networks joined. The tighter one trains a '
      "student whose other bounds stay wide: 'ibp' ends with the tighter FaithUB.")
  ramp: str = one_of(
      'smooth', certified.RAMPS, 'How eps and kappa grow, as in `certified`.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """FD + kappa mean_c -log(1 - tanh(W_c / 4)).

  W_c is a certified upper bound of |u_T,c - u_S,c|, the difference of the two
  networks' log-odds of class c over the ball (`bounds.joint.logit_gaps`), so that
  tanh(W_c / 4) is one of |p_T,c - p_S,c|. Its logarithm grows linearly where the bound
  itself has saturated, and has a gradient there. eps of the bound and kappa grow
  over the share `eps_warmup` of the training, step by step. The student is bounded in
  evaluation mode.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: an invalid setting or threat, or a student with BatchNorm.
  """
  faithful = fd.objective(settings, threat, epochs)
  method = BOUNDS[settings.bound]

  def objective(student, teachers, memory, batch):
    outcome = faithful(student, teachers, memory, batch)
    share = 1.0
    if threat.eps_warmup:
      share = certified.ramp_share(
          settings.ramp, eps_share(threat, epochs, batch.progress))
    ball = certified.BALLS[threat.norm](
        batch.image, jnp.float32(threat.eps) * share, lower=0.0, upper=1.0)
    gaps = joint.logit_gaps(teachers['teacher'].predict, student.predict, ball, method)
    # -log(1 - tanh(w / 4)) = log(1 + e^(w / 2)) - log 2.
    loss = jnp.mean(jax.nn.softplus(gaps / 2) - jnp.log(2.0), axis=1)
    return Outcome(outcome.loss + settings.kappa * share * loss, outcome.student,
                   outcome.memory, {**outcome.metrics, 'loss_certified': loss,
                                    'apart': jnp.max(jnp.tanh(gaps / 4), axis=1)})

  return Method('cfd', ('teacher',), ((0, objective),), init_student=_refuse_batch_norm)


def _refuse_batch_norm(key, variables):
  del key
  if jax.tree.leaves(variables['batch_stats']):
    raise ConfigError('cfd ' + certified.NO_BATCH_NORM)
  return variables
