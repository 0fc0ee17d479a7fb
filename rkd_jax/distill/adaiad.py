"""AdaIAD: AdaAD's attack with IAD's loss (Huang et al. 2023, CVPR)."""

from rkd_jax.distill import introspection
from rkd_jax.distill.adversary import NEARBY, disagreement, make_adversary
from rkd_jax.distill.method import Method
from rkd_jax.sections import Attack

SUMMARY = "AdaIAD: AdaAD's attack on the disagreement, IAD's distrust of the teacher"

Settings = introspection.Settings


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """T^2 KL(T(x')/T || S(x')/T) + (1 - p_T(y|x')^beta) KL(S(x) || S(x')).

  x' maximises KL(T(x') || S(x')) along the gradients of both networks, from
  x + 0.001 N(0, 1) (Huang et al., "Boosting Accuracy and Robustness of Student Models
  via Adaptive Adversarial Distillation"; arXiv:2106.04928 for the second term). See
  `introspection.make` for alpha and for when the second term is on.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)
  return introspection.make(
      'adaiad', settings, epochs=epochs, target='adv',
      attack=lambda student, teacher, batch: adversary(
          student, batch, disagreement, teacher))
