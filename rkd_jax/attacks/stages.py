"""The stages of AutoAttack: which attack, how long, against which classes."""

import dataclasses

from rkd_jax.attacks import arguments, probe
from rkd_jax.attacks.apgd import search as apgd_search
from rkd_jax.attacks.fab import search as fab_search
from rkd_jax.attacks.probe import Outcome
from rkd_jax.attacks.square import search as square_search
from rkd_jax.errors import ConfigError, unknown_name

SETTINGS = ('steps', 'queries', 'restarts', 'eot')
VERSIONS = ('standard', 'plus', 'rand', 'fast')
TARGETS = 9  # The classes of targeted attacks: those with the highest logits.
_L1_RESTARTS, _L1_TARGETS = 5, 5  # Of 'standard' and 'fast', as released for L1.


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage: restarts x targets rounds, each on what is left of the examples.

  Attributes:
    name: as results are listed.
    attack: 'apgd', 'fab' or 'square'.
    loss: of 'apgd', see there.
    steps: of 'apgd' and 'fab'; queries of 'square'.
    restarts: independent runs.
    targets: how many classes are attacked one by one; 0: untargeted.
    eot: draws of a randomised network to average over; 0: it is deterministic.
  """

  name: str
  attack: str
  loss: str = ''
  steps: int = 100
  restarts: int = 1
  targets: int = 0
  eot: int = 0

  def rounds(self) -> list[tuple[int, int]]:
    """(restart, rank of the target or 0) of every round, in order."""
    return [(restart, rank) for rank in range(1, max(self.targets, 1) + 1)
            for restart in range(self.restarts)]


def make(version: str, num_classes: int, *, norm: str = 'linf', steps: int = 100,
         queries: int = 5000, restarts: int | None = None, eot: int = 20
         ) -> tuple[Stage, ...]:
  """The stages of a version for a number of classes, in order.

  Croce and Hein 2020 (arXiv:2003.01690), sec. 6, and the paper's code for 'plus' and
  'rand'. Below four classes the targeted ratio is not defined and the plain difference
  of two logits takes its place; below three the margin that of the ratio.

  Args:
    version: 'standard': APGD-CE, APGD-T, FAB-T, Square. 'plus': APGD-CE and APGD-DLR
      and FAB with five restarts, Square, APGD-T, FAB-T. 'rand': APGD-CE and APGD-DLR on
      means over draws. 'fast': the first two of 'standard', so that its robust accuracy
      is an upper bound of that of 'standard'.
    num_classes: K >= 2.
    norm: in 'l1' one ascent may end far from the best, so 'standard' and 'fast' restart
      APGD-CE five times there and take five targets for APGD-T (arXiv:2103.01208).
    steps: of APGD and FAB.
    queries: of Square.
    restarts: of the untargeted attacks; None: 5 for 'plus' and in L1, else 1.
    eot: draws a gradient for 'rand'.

  Raises:
    ConfigError: unknown version, fewer than two classes, or a count below 1.
  """
  if version not in VERSIONS:
    raise unknown_name('version of AutoAttack', version, VERSIONS)
  if num_classes < 2:
    raise ConfigError(f'fn must tell classes apart, but its logits have {num_classes}')
  for name, count in (('steps', steps), ('queries', queries), ('eot', eot),
                      ('restarts', 1 if restarts is None else restarts)):
    arguments.check_count(name, count, 1)
  targets = min(TARGETS, num_classes - 1)
  sparse = norm == 'l1' and version in ('standard', 'fast')
  many = restarts or (5 if version == 'plus' else _L1_RESTARTS if sparse else 1)
  untargeted = 'dlr' if num_classes > 2 else 'margin'
  ce = Stage('apgd-ce', 'apgd', 'ce', steps, many)
  dlr = Stage('apgd-dlr', 'apgd', untargeted, steps, many)
  apgd_t = Stage('apgd-t', 'apgd',
                 'targeted_dlr' if num_classes > 3 else 'difference', steps, 1,
                 min(targets, _L1_TARGETS) if sparse else targets)
  fab_t = Stage('fab-t', 'fab', steps=steps, targets=targets)
  search = Stage('square', 'square', steps=queries)
  if version == 'plus':
    return (ce, dlr, Stage('fab', 'fab', steps=steps, restarts=many), search, apgd_t,
            fab_t)
  if version == 'rand':
    return tuple(dataclasses.replace(stage, eot=eot) for stage in (ce, dlr))
  return (ce, apgd_t, fab_t, search)[:2 if version == 'fast' else None]


def run(stage: Stage, norm: str, fn, images, labels, targets, keys, eps,
        restart) -> Outcome:
  """One round of a stage on one batch; `eps` and `restart` may be traced."""
  keys = probe.fold(keys, restart)
  given = {'eps': eps, 'norm': norm}
  targets = targets if stage.targets else None
  if stage.attack == 'apgd':
    return apgd_search(fn, images, labels, keys, loss=stage.loss, targets=targets,
                       steps=stage.steps, eot=stage.eot, **given)[0]
  if stage.attack == 'fab':
    return fab_search(fn, images, labels, keys, targets=targets, steps=stage.steps,
                      random=restart > 0, **given)
  return square_search(fn, images, labels, keys, queries=stage.steps, **given)
