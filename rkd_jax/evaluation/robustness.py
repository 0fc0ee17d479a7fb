"""Accuracy under attack: which attacks, which examples survive, how many."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import attacks
from rkd_jax.data.batches import padded_batches, to_float
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.evaluation import certified
from rkd_jax.models.network import Network, Variables
from rkd_jax.training import parallel

# Kinds that stand for a version of AutoAttack.
AUTOATTACK = {'autoattack': 'standard', 'autoattack_plus': 'plus',
              'autoattack_fast': 'fast'}
KINDS = ('clean', 'fgsm', 'pgd', 'cw', 'transfer', *AUTOATTACK, *certified.KINDS)
_PAPER_EPS = 8 / 255  # The radius that the papers' step sizes belong to.


@dataclasses.dataclass(frozen=True)
class AttackSpec:
  """One attack of an evaluation.

  Attributes:
    kind: 'clean' (no attack), 'fgsm', 'pgd' (cross-entropy), 'cw' (PGD on the
      margin), 'transfer' ('pgd' on the source network: a black-box attack), one of
      `AUTOATTACK`, or one of `certified.KINDS`: all attacks at once, by a bound.
    eps: radius in pixel units; unused by 'clean'.
    step_size: length of a step; for 'pgd', 'cw' and 'transfer'.
    steps: number of steps; likewise.
    restarts: random starts, of which each example keeps its best.
    norm: 'linf' or 'l2'.
  """

  kind: str
  eps: float = 0.0
  step_size: float = 0.0
  steps: int = 0
  restarts: int = 1
  norm: str = 'linf'

  def __post_init__(self):
    if self.kind not in KINDS:
      raise unknown_name('kind of attack', self.kind, KINDS)


def standard_attacks(eps: float, norm: str = 'linf') -> dict[str, AttackSpec]:
  """The attacks of the tables of adversarial distillation, by name.

  As in CIARD (arXiv:2509.12633) and B-MTARD: steps of 2/255 and .003 at eps 8/255,
  scaled in proportion to other radii. 'pgd10' is the cheap one for validation.

  Args:
    eps: radius in pixel units.
    norm: 'linf' or 'l2'.
  """
  step_size = eps / 4
  make = functools.partial(AttackSpec, eps=eps, norm=norm)
  return {
      'clean': AttackSpec('clean'),
      'fgsm': make('fgsm'),
      'pgd10': make('pgd', step_size=step_size, steps=10),
      'pgd20': make('pgd', step_size=step_size, steps=20),
      'pgd20_small': make('pgd', step_size=eps * .003 / _PAPER_EPS, steps=20),
      'cw30': make('cw', step_size=step_size, steps=30),
      'transfer': make('transfer', step_size=step_size, steps=20),
      **{kind: make(kind) for kind in (*AUTOATTACK, *certified.KINDS)},
  }


def specs_from(names: Iterable[str],
               threat: Mapping[str, Any]) -> dict[str, AttackSpec]:
  """The named standard attacks at the threat's radius, in the order given.

  Args:
    names: of `standard_attacks`.
    threat: holds 'eps' and 'norm'; what else it holds is of the training.

  Raises:
    ConfigError: unknown name.
  """
  known = standard_attacks(threat['eps'], threat['norm'])
  for name in names:
    if name not in known:
      raise unknown_name('attack', name, known)
  return {name: known[name] for name in names}


def correct(network: Network, variables: Variables, split, spec: AttackSpec, *,
            key: jax.Array, batch_size: int,
            source: tuple[Network, Variables] | None = None,
            progress: Callable[[int, int], None] | None = None) -> np.ndarray:
  """Which examples the network classifies correctly under an attack.

  Every example draws from `fold_in(key, its index)`, so the batch size changes
  nothing but rounding. One program is compiled for a network and kind of attack; it
  serves all radii, steps, batches and variables.

  Args:
    network: the network that is judged, in evaluation mode.
    variables: its variables.
    split: holds `image` uint8[N, H, W, C] and `label` int32[N] (NumPy).
    spec: the attack.
    key: typed PRNG key.
    batch_size: examples attacked at a time, fewer for some certified bounds; the last
      batch is padded.
    source: (network, variables) that 'transfer' attacks; unused by others.
    progress: `progress(examples done, N)`, called after every batch.

  Returns:
    bool[N], NumPy.

  Raises:
    ConfigError: 'transfer' without a source, images that are not uint8, or an
      attack that is wrongly specified.
  """
  if split.image.dtype != np.uint8:
    raise ConfigError(
        f'images must be uint8 pixels, got {split.image.dtype}')
  total = len(split.label)
  if spec.kind in AUTOATTACK:
    return _autoattacked(network, variables, split, spec, key, batch_size,
                         progress).survived
  source_network, source_variables = _source(spec, source)
  program = _program(network, source_network, spec.kind, spec.norm, spec.restarts)
  lengths = {'eps': spec.eps, 'step_size': spec.step_size, 'steps': spec.steps}
  batch_size = min(batch_size, certified.LARGEST_BATCH.get(spec.kind, batch_size))
  result = np.zeros(total, bool)
  done = 0
  for indices, mask in zip(*padded_batches(total, batch_size), strict=True):
    judged = program(variables, source_variables, split.image[indices],
                     split.label[indices], indices, key, lengths)
    result[indices[mask]] = np.asarray(judged)[mask]
    done += int(mask.sum())
    if progress is not None:
      progress(done, total)
  return result


def _autoattacked(network, variables, split, spec, key, batch_size, progress):
  """AutoAttack by a specification, with the progress of `correct`."""
  total = len(split.label)
  return autoattack(
      network, variables, split, spec.kind, eps=spec.eps, norm=spec.norm, key=key,
      batch_size=batch_size, progress=progress and (
          lambda stage, done, left, share: progress(total - left + done, total)))


def autoattack(network: Network, variables: Variables, split, name: str, *, eps: float,
               norm: str, key: jax.Array, batch_size: int,
               mesh: jax.sharding.Mesh | None = None, store=None,
               progress: Callable[..., None] | None = None, **settings: Any):
  """`attacks.autoattack` of a network on a split; `name` is of `AUTOATTACK`.

  Examples draw as in `correct`; the other arguments and the result are those of
  `attacks.autoattack`. A batch is shared out over the devices of `mesh`.
  """
  total = len(split.label)
  # The same numbers as `to_float` gives: both are correctly rounded.
  images = split.image.astype(np.float32) / np.float32(255)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(total))
  return attacks.autoattack(
      functools.partial(network.predict, variables), images, split.label, key=keys,
      eps=eps, norm=norm, version=AUTOATTACK[name], batch_size=batch_size, mesh=mesh,
      store=store, compile_fn=parallel.compile_fn, progress=progress, **settings)


def evaluate(network: Network, variables: Variables, split,
             specs: Mapping[str, AttackSpec], *, key: jax.Array, batch_size: int,
             source: tuple[Network, Variables] | None = None,
             progress: Callable[[str, int, int], None] | None = None) -> dict:
  """Accuracy under every attack, and what follows from them together.

  An attack's random numbers depend on its name and the key alone, not on which
  other attacks there are.

  Args:
    network: the network that is judged, in evaluation mode.
    variables: its variables.
    split: as for `correct`, with at least one example.
    specs: attacks by name, see `specs_from`.
    key: typed PRNG key.
    batch_size: as for `correct`.
    source: (network, variables) for 'transfer'.
    progress: `progress(name, examples done, N)`, called after every batch.

  Returns:
    {name: {'accuracy': in [0, 1], 'n': int, 'correct': int}} for every attack, with
    'stages', a dict for each `attacks.autoattack.Report`, where it is AutoAttack; and
    for 'worst': the examples that are right under all attacks, certified bounds
    aside (they are below the true robust accuracy, attacks above). Where both are
    there, 'w_robust': the float (clean + pgd20) / 2, the papers' W-Robust.

  Raises:
    ConfigError: nothing to evaluate, or see `correct`.
  """
  if not specs or not len(split.label):
    raise ConfigError(f'nothing to evaluate: {len(split.label)} examples, attacks '
                      f'{list(specs)}; wanted at least one of each')
  survived, reports = {}, {}
  for name, spec in specs.items():
    its_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    its_progress = progress and functools.partial(progress, name)
    if spec.kind in AUTOATTACK:
      found = _autoattacked(network, variables, split, spec, its_key, batch_size,
                            its_progress)
      survived[name], reports[name] = found.survived, found.reports
    else:
      survived[name] = correct(
          network, variables, split, spec, batch_size=batch_size, source=source,
          key=its_key, progress=its_progress)
  survived['worst'] = np.logical_and.reduce([
      right for name, right in survived.items()
      if specs[name].kind not in certified.KINDS] or list(survived.values()))
  results = {name: {'accuracy': float(np.mean(right)), 'n': len(right),
                    'correct': int(np.sum(right))}
             for name, right in survived.items()}
  for name, stages in reports.items():
    results[name]['stages'] = [dataclasses.asdict(stage) for stage in stages]
  if 'clean' in specs and 'pgd20' in specs:
    results['w_robust'] = (
        results['clean']['accuracy'] + results['pgd20']['accuracy']) / 2
  return results


def _source(spec, source):
  if spec.kind != 'transfer':
    return None, None  # So that all white-box calls share one program.
  if source is None:
    raise ConfigError("attack 'transfer' needs source=(network, variables), the "
                      'network to craft the images on, usually the robust teacher')
  return source


@functools.lru_cache(maxsize=64)
def _program(network, source_network, kind, norm, restarts):
  """Compiled (variables, source variables, images, labels, index, key, lengths)
  -> bool[B]; the lengths are the attack's 'eps', 'step_size' and 'steps'."""

  def judge(variables, source_variables, images, labels, index, key, lengths):
    images = to_float(images)
    fn = functools.partial(network.predict, variables)
    attacked = fn if source_network is None else functools.partial(
        source_network.predict, source_variables)
    if kind in certified.KINDS:
      return certified.verified(
          fn, images, labels, eps=lengths['eps'], kind=kind, norm=norm)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
    adv = _attack(attacked, images, labels, keys, kind, norm, restarts, lengths)
    return jnp.argmax(fn(adv), axis=-1) == labels

  return parallel.compile_fn(judge)


def _attack(fn, images, labels, keys, kind, norm, restarts, lengths):
  """The adversarial images of one attack, float32[B, ...]."""
  if kind == 'clean':
    return images
  if kind == 'fgsm':
    return attacks.fgsm(fn, images, labels, eps=lengths['eps'], norm=norm)
  settings = {'key': keys, 'restarts': restarts, **lengths}
  if kind == 'cw' and norm == 'linf':
    return attacks.cw_linf(fn, images, labels, **settings)
  objective = 'margin' if kind == 'cw' else 'ce'
  return attacks.pgd(fn, images, labels, norm=norm, objective=objective, **settings)
