"""Consistency in adversarial training (Tack et al. 2022, arXiv:2103.04623)."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.distill.adversary import UNIFORM, make_adversary
from rkd_jax.distill.method import Method, Outcome
from rkd_jax.sections import Attack
from rkd_jax.settings import not_negative, positive

SUMMARY = 'PGD adversarial training on two augmentations that must be predicted alike'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `consistency`."""

  weight: float = not_negative(1.0, 'Weight of the consistency, lambda in the paper.')
  temperature: float = positive(0.5, 'Temperature T of the compared predictions.')


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """(CE(S(x1'), y) + CE(S(x2'), y)) / 2 + weight JS(S(x1') / T || S(x2') / T).

  x1 and x2 are two augmentations of one image, x1' and x2' maximise CE from uniform
  starts of their own (the paper's variant on PGD-AT). Both go through the student as
  one batch of 2 B, in training mode. Without augmentation (`data.augmentation` 'none')
  only the starts differ, which is not the paper's method.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  weight, temperature = settings.weight, settings.temperature
  adversary = make_adversary(threat, epochs=epochs, start=UNIFORM)

  def objective(student, teachers, memory, batch):
    del teachers
    other_key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch.key, 1)
    pairs = dataclasses.replace(
        batch, image=jnp.concatenate([batch.image, batch.view(1)]),
        label=jnp.tile(batch.label, 2),
        key=jnp.concatenate([batch.key, other_key]))
    logits, student = student.train(adversary(student, pairs))
    one, two = jnp.split(logits, 2)
    loss_adv = (losses.cross_entropy(one, batch.label)
                + losses.cross_entropy(two, batch.label)) / 2
    apart = losses.jensen_shannon(one, two, temperature=temperature)
    return Outcome(loss_adv + weight * apart, student, memory, {
        'loss_adv': loss_adv,
        'loss_consistency': apart,
        'accuracy_adv': losses.correct(one, batch.label)})

  return Method('consistency', (), ((0, objective),))
