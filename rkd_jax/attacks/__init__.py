"""Attacks on any logits function: pure functions of images, labels and a key."""

from rkd_jax.attacks.apgd import apgd
from rkd_jax.attacks.autoattack import autoattack
from rkd_jax.attacks.cw import cw_linf
from rkd_jax.attacks.fab import fab
from rkd_jax.attacks.fgsm import fgsm
from rkd_jax.attacks.foreign import from_torch
from rkd_jax.attacks.objectives import (
    cross_entropy,
    dlr,
    kl_divergence,
    kl_to,
    margin,
    targeted_dlr,
)
from rkd_jax.attacks.pgd import pgd
from rkd_jax.attacks.square import square
from rkd_jax.attacks.threat import l2_norm, project, random_start

__all__ = ['apgd', 'autoattack', 'cross_entropy', 'cw_linf', 'describe', 'dlr', 'fab',
           'fgsm', 'from_torch', 'kl_divergence', 'kl_to', 'l2_norm', 'margin', 'pgd',
           'project', 'random_start', 'square', 'targeted_dlr']


def describe() -> list[tuple[str, str]]:
  """(name, first line of the documentation) of every attack."""
  return [(attack.__name__, attack.__doc__.partition('\n')[0])
          for attack in (fgsm, pgd, cw_linf, apgd, fab, square, autoattack)]
