"""IAD: introspective adversarial distillation (Zhu et al. 2022, arXiv:2106.04928)."""

from rkd_jax.distill import introspection
from rkd_jax.distill.adversary import UNIFORM, make_adversary
from rkd_jax.distill.method import Method
from rkd_jax.sections import Attack

SUMMARY = "IAD: the teacher's clean prediction, and the student's own where that fails"

Settings = introspection.Settings


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """T^2 KL(T(x)/T || S(x')/T) + (1 - p_T(y|x')^beta) KL(S(x) || S(x')).

  The variant IAD-I; see `introspection.make` for alpha, for when the second term is
  on and for the order of things. x' maximises CE(S(x'), y) from a uniform start.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  adversary = make_adversary(threat, epochs=epochs, start=UNIFORM)
  return introspection.make(
      'iad', settings, epochs=epochs, target='clean',
      attack=lambda student, teacher, batch: adversary(student, batch))
