"""Backdoor attacks: triggers as pytrees with a pure `apply`, and poisoned data.

    trigger = rkd.backdoors.badnets(image_shape=(32, 32, 3), target=0)
    triggered = trigger.apply(images)
    data = rkd.backdoors.poison(split, trigger, rate=0.1, seed=0, num_classes=10)
"""

from rkd_jax.backdoors import generated, optimised, stamps, warping
from rkd_jax.backdoors.decoy import decoys
from rkd_jax.backdoors.generated import input_aware
from rkd_jax.backdoors.optimised import ckd, lba
from rkd_jax.backdoors.poisoning import (
    Poisoned,
    harden,
    poison,
    stamped,
    wanted_labels,
)
from rkd_jax.backdoors.stamps import badnets, blended, lc, sig
from rkd_jax.backdoors.trigger import Trigger, check_share, check_target
from rkd_jax.backdoors.warping import wanet

FIXED = {fn.__name__: fn for fn in (badnets, blended, sig, lc, wanet)}
TRAINED = {fn.__name__: fn for fn in (input_aware, ckd, lba)}
NAMES = (*FIXED, *TRAINED)
SETTINGS = {'badnets': stamps.BadNets, 'blended': stamps.Blended, 'sig': stamps.Sig,
            'lc': stamps.Lc, 'wanet': warping.WaNet,
            'input_aware': generated.InputAware, 'ckd': optimised.Ckd,
            'lba': optimised.Lba}
# These are made with the help of a clean network trained before.
NEED_SOURCE = ('lc', *TRAINED)
# Cover images for each poisoned one, as published.
COVER = {'wanet': 2.0, 'input_aware': 1.0}

__all__ = ['COVER', 'FIXED', 'NAMES', 'NEED_SOURCE', 'SETTINGS', 'TRAINED', 'Poisoned',
           'Trigger', 'badnets', 'blended', 'check_share', 'check_target', 'ckd',
           'decoys', 'describe', 'harden', 'input_aware', 'lba', 'lc', 'poison', 'sig',
           'stamped', 'wanet', 'wanted_labels']


def describe() -> list[tuple[str, str]]:
  """(name, first line of the documentation) of every trigger."""
  return [(name, fn.__doc__.partition('\n')[0])
          for name, fn in {**FIXED, **TRAINED}.items()]
