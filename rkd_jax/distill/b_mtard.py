"""B-MTARD: MTARD with balanced temperatures (Zhao et al. 2024, arXiv:2306.16170)."""

from rkd_jax.distill import dual
from rkd_jax.distill.method import Method

SUMMARY = "B-MTARD: MTARD with the teachers' temperatures driven by their entropies"

DEFAULTS = {**dual.WEIGHT_DEFAULTS, **dual.TEMPERATURE_DEFAULTS}


def make(settings, *, threat, epochs) -> Method:
  """w_a KL(R(x')/tau_r || S(x')) / C + w_n KL(N(x)/tau_n || S(x)) / C.

  The temperatures start at 1 and follow `balance.next_temperatures`; only the
  teachers' logits are divided. All else is MTARD.

  Args:
    settings: those of MTARD, `temperature_step` >= 0, and the range
      `temperature_min` <= 1 <= `temperature_max`.
    threat: see `adversary.make_adversary`.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: an invalid setting or threat.
  """
  return dual.make_balanced(
      'b_mtard', settings, threat=threat, epochs=epochs, temperatures=True)
