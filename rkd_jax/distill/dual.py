"""Two teachers, one student: what MTARD, B-MTARD and CIARD have in common."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rkd_jax import losses
from rkd_jax.distill import balance
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Batch, Method, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import BoundNetwork
from rkd_jax.settings import not_negative, positive, share
from rkd_jax.training.schedules import step_shape

ROLES = ('clean', 'robust')


@dataclasses.dataclass(frozen=True)
class Weights:
  """Settings of balanced loss weights."""

  weight_step: float = share(0.025, 'How far the loss weights move in a step.')
  kl_scale: float = positive(
      1.0, 'Factor of all KL: 1 for 10 classes, 10 for 100 in the public code.')


@dataclasses.dataclass(frozen=True)
class Temperatures:
  """Settings of temperatures that follow the teachers' entropies."""

  temperature_step: float = not_negative(
      0.001, 'How far both temperatures move in a step.')
  temperature_min: float = positive(1.0, 'Their smallest value.')
  temperature_max: float = positive(10.0, 'Their largest value.')

  def check(self) -> None:
    """Raises ConfigError where the range leaves out the start."""
    if not self.temperature_min <= 1 <= self.temperature_max:
      raise ConfigError(
          'temperature_min <= 1 <= temperature_max must hold, since both temperatures '
          f'start at 1; got {self.temperature_min} and {self.temperature_max}')


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The student beside both teachers, on one batch.

  Attributes:
    loss: float32[B], w_a L1 + w_n L2 of each example.
    student: with the running statistics of both of its forward passes.
    memory: the balance after this step.
    metrics: for the log.
    logits_adv: float32[B, K], the student's on x'; gradients flow.
    mean_adv, mean_clean: L1 and L2 of the batch; no gradient.
  """

  loss: jax.Array
  student: BoundNetwork
  memory: dict[str, Any]
  metrics: dict[str, jax.Array]
  logits_adv: jax.Array
  mean_adv: jax.Array
  mean_clean: jax.Array


def init_memory(*, weights: bool, temperatures: bool) -> dict[str, Any]:
  """The state of whichever parts of the balance move."""
  memory = {}
  if weights:
    memory['weights'] = balance.init_weights()
  if temperatures:
    memory['temperatures'] = balance.init_temperatures()
  return memory


def make_compare(settings: Weights, *, epochs: int,
                 fixed_weights: tuple[float, float] | None = None) -> Callable:
  """Builds the comparison of the student with both teachers.

  L1 = kl_scale KL(softmax(R(x') / tau_r) || softmax(S(x'))) / C and
  L2 = kl_scale KL(softmax(N(x) / tau_n) || softmax(S(x))) / C. The loss has the
  weights *after* this step's update, and the temperatures *before* it, as in
  the public code. The student forwards run in training mode, first x', then x.
  The step sizes of both rules are multiplied by 0.1 after 215/300, 260/300 and
  285/300 of the training.

  Args:
    settings: `Weights`, with `Temperatures` where the memory has them.
    epochs: epochs of the whole training.
    fixed_weights: (w_a, w_n) where the memory has no weights.

  Returns:
    `compare(student, memory, batch, image_adv, robust_logits, clean_logits)
    -> Comparison`: the robust teacher's logits on x', the clean one's on x; no
    gradient flows into either.
  """
  scale = settings.kl_scale

  def compare(student, memory, batch: Batch, image_adv, robust_logits,
              clean_logits) -> Comparison:
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    tau = memory.get('temperatures', {'robust': 1.0, 'clean': 1.0})
    loss_adv = scale * losses.kl(
        logits_adv, robust_logits, teacher_temperature=tau['robust'],
        classes='mean')
    loss_clean = scale * losses.kl(
        logits, clean_logits, teacher_temperature=tau['clean'], classes='mean')
    mean_adv = jax.lax.stop_gradient(batch.mean(loss_adv))
    mean_clean = jax.lax.stop_gradient(batch.mean(loss_clean))
    metrics = {
        'loss_adv': loss_adv,
        'loss_clean': loss_clean,
        'accuracy_adv': losses.correct(logits_adv, batch.label),
        'accuracy_clean': losses.correct(logits, batch.label)}

    fall = step_shape(batch.epoch, epochs)
    memory = dict(memory)
    if 'weights' in memory:
      weight_adv, weight_clean, memory['weights'] = balance.next_weights(
          memory['weights'], mean_adv, mean_clean,
          step_size=fall * settings.weight_step)
      metrics |= {'weight_adv': weight_adv, 'weight_clean': weight_clean}
    else:
      weight_adv, weight_clean = fixed_weights
    if 'temperatures' in memory:
      metrics |= {'tau_robust': tau['robust'], 'tau_clean': tau['clean']}
      memory['temperatures'] = balance.next_temperatures(
          tau, batch.mean(losses.entropy(robust_logits, temperature=tau['robust'])),
          batch.mean(losses.entropy(clean_logits, temperature=tau['clean'])),
          step_size=fall * settings.temperature_step,
          lower=settings.temperature_min, upper=settings.temperature_max)
    loss = weight_adv * loss_adv + weight_clean * loss_clean
    return Comparison(loss, student, memory, metrics, logits_adv, mean_adv,
                      mean_clean)

  return compare


def make_balanced(name: str, settings: Weights, *, threat, epochs,
                  temperatures: bool) -> Method:
  """MTARD, or B-MTARD with `temperatures`: the comparison and nothing else.

  x' maximises CE(S(x'), y) from x + 0.001 N(0, 1); both teachers stay in
  evaluation mode.
  """
  compare = make_compare(settings, epochs=epochs)
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    image_adv = adversary(student, batch)
    out = compare(student, memory, batch, image_adv,
                  teachers['robust'].predict(image_adv),
                  teachers['clean'].predict(batch.image))
    return Outcome(out.loss, out.student, out.memory, out.metrics)

  def start(teachers):
    del teachers
    return init_memory(weights=True, temperatures=temperatures)

  return Method(name, ROLES, ((0, objective),), start)
