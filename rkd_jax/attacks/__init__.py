"""Attacks on any logits function: pure functions of images, labels and a key."""

from rkd_jax.attacks.cw import cw_linf
from rkd_jax.attacks.fgsm import fgsm
from rkd_jax.attacks.objectives import cross_entropy, kl_divergence, kl_to, margin
from rkd_jax.attacks.pgd import pgd
from rkd_jax.attacks.threat import l2_norm, project, random_start

__all__ = ['cross_entropy', 'cw_linf', 'describe', 'fgsm', 'kl_divergence', 'kl_to',
           'l2_norm', 'margin', 'pgd', 'project', 'random_start']


def describe() -> list[tuple[str, str]]:
  """(name, first line of the documentation) of every attack."""
  return [(attack.__name__, attack.__doc__.partition('\n')[0])
          for attack in (fgsm, pgd, cw_linf)]
