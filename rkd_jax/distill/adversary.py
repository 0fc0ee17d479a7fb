"""The inner maximisation of training, common to all adversarial methods."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import attacks
from rkd_jax.distill.method import Batch
from rkd_jax.sections import Attack
from rkd_jax.settings import build

# The two starts in use: anywhere in the ball (Madry et al., ARD), or x plus a
# little noise (TRADES and the code that descends from it: RSLAD, MTARD, CIARD).
UNIFORM = {'start': 'uniform'}
NEARBY = {'start': 'gaussian', 'start_scale': 0.001}

# adversary(student, batch, objective) -> adversarial images
Adversary = Callable[..., Any]


def make_adversary(threat: Attack | Mapping[str, Any], *, epochs: int,
                   start: Mapping[str, Any]) -> Adversary:
  """Builds the PGD attack that makes the training images.

  Args:
    threat: An `Attack`, or what differs from its defaults. `eps_warmup` is the share of
      the training over which both lengths grow: in epoch e, from 0, they are
      multiplied by min(1, (e + 1) / (eps_warmup * epochs)).
    epochs: epochs of the whole training.
    start: `UNIFORM` or `NEARBY`.

  Returns:
    `adversary(student, batch, objective='ce', teacher=None) -> float32[B, H, W, C]`:
    images in the threat's ball around `batch.image` that maximise the objective (see
    `attacks.pgd`) of the student's logits in evaluation mode; with a teacher, of the
    pair (student's logits, teacher's logits). No gradient flows through them.

  Raises:
    ConfigError: an unknown name, or a value out of its range.
  """
  threat = build(Attack, threat, 'attack')

  def adversary(student, batch: Batch, objective='ce', teacher=None):
    return batch.once(lambda: craft(student, batch, objective, teacher))

  def craft(student, batch, objective, teacher):
    eps, step_size = threat.eps, threat.step_size
    if threat.eps_warmup:
      grown = eps_share(threat, epochs, batch.epoch + 1)
      eps, step_size = eps * grown, step_size * grown
    predict = student.frozen().predict
    fn = predict if teacher is None else lambda x: (predict(x), teacher.predict(x))
    return attacks.pgd(
        fn, batch.image, batch.label, key=batch.key,
        norm=threat.norm, eps=eps, step_size=step_size,
        steps=threat.steps, objective=objective, **start)

  return adversary


def disagreement(both) -> jax.Array:
  """KL(T || S), float[B], of (student's logits, teacher's): what AdaAD maximises.

  For `adversary(student, batch, disagreement, teacher)`: the gradient flows into both.
  """
  logits, teacher_logits = both
  return attacks.kl_divergence(teacher_logits, logits)


def eps_share(threat: Attack, epochs: int, passed) -> jax.Array:
  """min(1, passed / (eps_warmup * epochs)), for eps_warmup > 0: float32.

  Args:
    threat: holds `eps_warmup`, see `make_adversary`.
    epochs: epochs of the whole training.
    passed: epochs that count as passed, a number or an array.
  """
  return jnp.minimum(1.0, passed / (threat.eps_warmup * epochs))
