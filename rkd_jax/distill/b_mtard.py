"""B-MTARD: MTARD with balanced temperatures (Zhao et al. 2024, arXiv:2306.16170)."""

import dataclasses

from rkd_jax.distill import dual
from rkd_jax.distill.method import Method
from rkd_jax.sections import Attack

SUMMARY = "B-MTARD: MTARD with the teachers' temperatures driven by their entropies"


@dataclasses.dataclass(frozen=True)
class Settings(dual.Temperatures, dual.Weights):
  """Settings of `b_mtard`."""


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """w_a KL(R(x')/tau_r || S(x')) / C + w_n KL(N(x)/tau_n || S(x)) / C.

  The temperatures start at 1 and follow `balance.next_temperatures`; only the
  teachers' logits are divided. All else is MTARD.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  return dual.make_balanced(
      'b_mtard', settings, threat=threat, epochs=epochs, temperatures=True)
