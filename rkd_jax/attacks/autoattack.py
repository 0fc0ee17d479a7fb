"""AutoAttack: a parameter-free ensemble, each attack on the survivors of those before."""

import dataclasses
import functools
import hashlib
import warnings
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rkd_jax.attacks import ball, compiled, network, sanity, stages
from rkd_jax.attacks.arguments import example_keys
from rkd_jax.attacks.stages import Stage
from rkd_jax.errors import ConfigError, RkdError, unknown_name


@dataclasses.dataclass(frozen=True)
class Report:
  """What a stage did.

  Attributes:
    name: of the stage.
    attacked: examples that were right before it.
    broken: of those.
    robust_accuracy: of all examples, after it.
    seconds: that it ran, without compiling; of batches found in the store, then.
    compile_seconds: that it compiled.
    queries: forward passes, summed over examples; what an example takes after it was
      broken, and padding, does not count.
    gradients: backward passes, likewise.
  """

  name: str
  attacked: int
  broken: int
  robust_accuracy: float
  seconds: float
  compile_seconds: float
  queries: int
  gradients: int


@dataclasses.dataclass(frozen=True)
class Result:
  """What `autoattack` found.

  Attributes:
    robust: {'clean' or stage: bool[N]}, right after all stages up to this one.
    images: float32[N, ...]: misclassified, within the ball and [0, 1]; the clean image
      of every example that was wrong from the start or survived.
    reports: one a stage.
    warnings: reasons to doubt the result; each was also given as a Python warning.
  """

  robust: dict[str, np.ndarray]
  images: np.ndarray
  reports: tuple[Report, ...]
  warnings: tuple[str, ...]

  @property
  def survived(self) -> np.ndarray:
    """bool[N]: right after every stage."""
    return list(self.robust.values())[-1]


def autoattack(fn: Callable, images, labels, *, key, eps, norm: str = 'linf',
               version: str = 'standard', batch_size: int = 500,
               mesh: Mesh | None = None, compile_fn: Callable | None = None,
               progress: Callable[[str, int, int, float], None] | None = None,
               store: MutableMapping[str, dict[str, np.ndarray]] | None = None,
               **settings: Any) -> Result:
  """Robust accuracy against AutoAttack (Croce and Hein 2020, arXiv:2003.01690).

  Runs on the host and compiles one program a stage, for the smallest equal batches of
  at most `batch_size` that hold the stage's examples, up to a quarter padded. Random
  numbers depend on the key, the stage and the position of an example alone, so the
  batch size changes nothing but rounding. An image counts as broken if it is
  misclassified when it is evaluated again, by the program that judged the clean images.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], in evaluation mode; for 'rand'
      (images, keys [B]) -> logits. What a `functools.partial` binds is passed to the
      programs as arguments, and they are kept for other values of it.
    images: float[N, ...], clean, within [0, 1].
    labels: int[N].
    key: a typed key, or one an image, [N].
    eps: radius > 0 in pixel units.
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus', 'rand' or 'fast', see `stages.make`. The robust accuracy
      of 'fast' is an upper bound of that of 'standard'.
    batch_size: examples at a time.
    mesh: a mesh of one axis, over which a batch is shared out.
    compile_fn: what compiles; None: `jax.jit`.
    progress: `progress(stage, done, total, robust accuracy so far)` after a batch.
    store: finished batches by a name that depends on all settings, images, labels and
      the key, but not on `fn`: keep one store a network.
    **settings: of `stages.make`: `steps`, `queries`, `restarts`, `eot`.

  Raises:
    ConfigError: a wrong argument, logits that are not finite, labels that are no class,
      or a function that mixes the examples of a batch.
  """
  ball.check_norm(norm)
  images, labels = sanity.check_arguments(images, labels, eps, norm, batch_size)
  for name in settings:
    if name not in stages.SETTINGS:
      raise unknown_name('setting of AutoAttack', name, stages.SETTINGS)
  stages.make(version, 2, norm=norm, **settings)  # Refuses what it would refuse later.
  draws = settings.get('eot', 20) if version == 'rand' else 0
  network.checked(fn, draws=draws)
  keys = example_keys(key, len(images), 'uniform')
  run = _Run(compiled.as_partial(fn), images, labels, keys, float(eps), norm, batch_size,
             mesh, compile_fn, draws, {} if store is None else store)
  logits = run.judged(np.arange(len(images)), images)
  sanity.check_logits(logits, labels)
  plan = stages.make(version, logits.shape[1], norm=norm, **settings)
  found = run.doubts()
  right = np.argmax(logits, axis=1) == labels
  robust, reports, adversarial = {'clean': right.copy()}, [], images.copy()
  ranks = np.argsort(-np.where(np.arange(logits.shape[1]) == labels[:, None], np.inf,
                               logits), axis=1, kind='stable')
  for stage in plan:
    reports.append(run.stage(stage, right, ranks, adversarial, progress))
    robust[stage.name] = right.copy()
  found += _masking(reports)
  for text in found:
    warnings.warn(f'autoattack: {text}', stacklevel=2)
  return Result(robust, adversarial, tuple(reports), tuple(found))


def _masking(reports):
  last = {report.name: report for report in reports}.get('square')
  if last is None or not last.broken:
    return []
  return [f'Square, which sees no gradient, broke {last.broken} examples that attacks by '
          'gradients did not: gradients may be masked, and robust accuracy too high']


def _judge(draws, fn, images, keys):
  """Logits, for a randomised network their mean over draws."""
  fn = network.checked(fn, draws=draws)
  if not draws:
    return fn(images)
  mean = lambda i, total: total + fn(images, jax.vmap(
      jax.random.fold_in, in_axes=(0, None))(keys, i)) / draws
  shape = jax.eval_shape(fn, images, keys)
  return jax.lax.fori_loop(0, draws, mean, jnp.zeros(shape.shape, shape.dtype))


class _Run:
  """One evaluation: the examples, and how a batch of them gets through a program."""

  def __init__(self, fn, images, labels, keys, eps, norm, batch_size, mesh, compile_fn,
               draws, store):
    self.images, self.labels, self.eps, self.norm = images, labels, eps, norm
    self.mesh, self.draws, self.store = mesh, draws, store
    self.keys = keys
    self.programs = compiled.programs(fn, compile_fn)
    self.fn = fn if mesh is None else jax.device_put(
        fn, NamedSharding(mesh, PartitionSpec()))
    self.step = 1 if mesh is None else mesh.size
    self.batch_size = self._fitting(min(batch_size, len(images)))
    self.identity = hashlib.sha256(repr(
        (images.shape, self.batch_size, eps, norm, draws)).encode())
    for array in (images, labels, np.asarray(jax.random.key_data(keys))):
      self.identity.update(array.tobytes())

  def _fitting(self, count):
    """The batch size, rounded up to a multiple of the devices."""
    return -(-count // self.step) * self.step

  def _size(self, count):
    """The batch size of a stage: equal batches; four sizes an octave, few programs."""
    share = -(-count // -(-count // self.batch_size))
    unit = 1 << max(share.bit_length() - 3, 0)
    return min(self.batch_size, self._fitting(-(-share // unit) * unit))

  def _batch(self, index, size):
    """Indices [size]: padded by repeating the last one, which changes no result."""
    return np.concatenate([index, np.repeat(index[-1:], size - len(index))])

  def _put(self, array):
    if self.mesh is None:
      return jnp.asarray(array)
    return jax.device_put(array, NamedSharding(
        self.mesh, PartitionSpec(self.mesh.axis_names[0])))

  def judged(self, index, images, size=None):
    """Logits float32[n, K] of images, which belong to the examples `index`."""
    size, parts = size or self.batch_size, []
    for start in range(0, len(index), size):
      chunk = index[start:start + size]
      rows = self._batch(np.arange(start, start + len(chunk)), size)
      logits, _, _ = self.programs(
          ('judge', self.draws), functools.partial(_judge, self.draws), self.fn,
          self._put(images[rows]), self._put(self.keys[index[rows]]))
      if np.ndim(logits) != 2 or len(logits) != size:
        raise ConfigError(f'fn must return logits [B, K], got {np.shape(logits)} for '
                          f'B = {size}')
      parts.append(np.asarray(logits, np.float32)[:len(chunk)])
    return np.concatenate(parts)

  def doubts(self):
    """Warnings about the network, from one batch."""
    rows = self._batch(np.arange(self.batch_size), self.batch_size)
    rows = np.minimum(rows, len(self.images) - 1)
    probe = functools.partial(_probe, bool(self.draws))
    seen, _, _ = self.programs(
        ('probe', bool(self.draws)), probe, self.fn, self._put(self.images[rows]),
        self._put(self.labels[rows]), self._put(self.keys[rows]))
    return sanity.judge(*seen, stochastic=bool(self.draws))

  def stage(self, stage: Stage, right, ranks, adversarial, progress) -> Report:
    """One stage; `right` and `adversarial` are changed in place."""
    attacked = int(right.sum())
    totals = {'seconds': 0.0, 'compile_seconds': 0.0, 'queries': 0, 'gradients': 0}
    size = self._size(max(attacked, 1))
    rounds = stage.rounds()
    for number, (restart, rank) in enumerate(rounds):
      left = np.flatnonzero(right)
      for start in range(0, len(left), size):
        index = left[start:start + size]
        self._round(stage, restart, ranks[:, rank], index, size, right, adversarial,
                    totals)
        if progress is not None:
          share = (number + min(start + size, len(left)) / len(left)) / len(rounds)
          progress(stage.name, round(share * attacked), attacked, float(right.mean()))
    return Report(stage.name, attacked, attacked - int(right.sum()),
                  float(right.mean()), **totals)

  def _round(self, stage, restart, targets, index, size, right, adversarial, totals):
    """One round on one batch, or what the store has of it; adds to the totals."""
    name = self.identity.copy()
    name.update(repr((dataclasses.astuple(stage), restart)).encode())
    name.update(targets[index].tobytes() + index.tobytes())
    name = name.hexdigest()[:32]
    found = self.store.get(name)
    if found is None:
      found = self.store[name] = self._attack(stage, restart, targets, index, size)
    broken = found['broken']
    adversarial[index[broken]] = found['images']
    right[index[broken]] = False
    for total in totals:
      totals[total] += found[total].item()

  def _attack(self, stage, restart, targets, index, size):
    rows = self._batch(index, size)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
        self.keys[rows], zlib.crc32(stage.name.encode()))
    outcome, seconds, compiling = self.programs(
        (stage, self.norm), functools.partial(stages.run, stage, self.norm), self.fn,
        self._put(self.images[rows]), self._put(self.labels[rows]),
        self._put(targets[rows].astype(np.int32)), self._put(keys),
        jnp.float32(self.eps), jnp.int32(restart))
    count = len(index)
    outcome = jax.tree.map(lambda a: np.asarray(a)[:count], outcome)
    if not outcome.finite.all():
      example = index[np.argmin(outcome.finite)]
      raise ConfigError(f'fn returned logits that are not finite near example {example} '
                        f'({stage.name}): no attack can judge such a network')
    legal = sanity.check_ball(outcome.images, self.images[index], self.eps, self.norm)
    if not legal.all():
      raise RkdError(f'{stage.name} left the ball or [0, 1] at example '
                     f'{index[np.argmin(legal)]}, which is a bug; please report it')
    logits = self.judged(index, outcome.images)
    broken = outcome.broken & (np.argmax(logits, axis=1) != self.labels[index])
    return {'broken': broken, 'images': outcome.images[broken],
            'queries': outcome.queries.sum(dtype=np.int64),
            'gradients': outcome.gradients.sum(dtype=np.int64),
            'seconds': np.float64(seconds), 'compile_seconds': np.float64(compiling)}


def _probe(stochastic, fn, images, labels, keys):
  return sanity.probe(fn, images, labels, keys, stochastic)
