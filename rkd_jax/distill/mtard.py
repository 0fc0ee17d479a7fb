"""MTARD: two teachers under balanced loss weights (Zhao et al., ECCV 2022)."""

from rkd_jax.distill import dual
from rkd_jax.distill.method import Method
from rkd_jax.sections import Attack

SUMMARY = 'MTARD: a clean and a robust teacher under balanced loss weights'

Settings = dual.Weights


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """w_a KL(R(x') || S(x')) / C + w_n KL(N(x) || S(x)) / C.

  The weights start at 1/2 and follow `balance.next_weights`; the attack and the
  order of things are in `dual`.

  Args:
    settings: Those declared above.
    threat: What its attack may do, see `adversary.make_adversary`.
    epochs: epochs of the whole training.
  """
  return dual.make_balanced(
      'mtard', settings, threat=threat, epochs=epochs, temperatures=False)
