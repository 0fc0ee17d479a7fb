"""The stage of `rkd evaluate --attack`: a finished student against AutoAttack."""

import dataclasses
import pathlib
import shutil
import warnings
from collections.abc import MutableMapping

import jax
import numpy as np

from rkd_jax import files
from rkd_jax.errors import CheckpointError, unknown_name
from rkd_jax.evaluation import robustness
from rkd_jax.evaluation.ball import Ball
from rkd_jax.models import weights
from rkd_jax.report import provenance
from rkd_jax.stages import build
from rkd_jax.stages.trained import best_student
from rkd_jax.training import parallel, rng

NAMES = tuple(robustness.AUTOATTACK)


class BatchFolder(MutableMapping):
  """Finished batches as files, each there whole or not at all."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def _file(self, name):
    return self.folder / f'{name}.npz'

  def __getitem__(self, name):
    if not self._file(name).exists():
      raise KeyError(name)
    try:
      return files.read_arrays(self._file(name))
    except CheckpointError as error:
      warnings.warn(f'{error}: this batch is attacked again', stacklevel=2)
      raise KeyError(name) from error

  def __setitem__(self, name, arrays):
    files.write_arrays(self._file(name), arrays)

  def __delitem__(self, name):
    self._file(name).unlink()

  def __iter__(self):
    return (path.stem for path in self.folder.glob('*.npz'))

  def __len__(self):
    return sum(1 for _ in self)


def attack(config, workdir: pathlib.Path, dataset, name: str, examples: int,
           save_images: bool, progress, *, norm: str | None = None,
           eps: float | None = None, **settings) -> dict:
  """Attacks the student at its best; writes and returns `tables/<name>.json`.

  In another ball than the run's own its norm and radius follow the name. An interrupted
  attack goes on where it was: finished batches are kept in `tables/<name>.batches/`
  until the table is written.

  Args:
    config: of the run; batches are shared out over `config.devices`.
    workdir: of the run, whose training is finished.
    dataset: of the run.
    name: of `NAMES`.
    examples: of the test split; 0: all.
    save_images: also write `images/<name>.npz`, with `image` float32[N, H, W, C],
      `label` and `index` (in the test split) of the examples that were broken.
    progress: a bar.
    norm, eps: of perturbations; None: those of the run.
    **settings: of `attacks.stages.make`.

  Raises:
    ConfigError: unknown name, or a wrong ball, see `Ball.of`.
  """
  ball = Ball.of(config, norm, eps)
  if name not in NAMES:
    raise unknown_name('attack', name, NAMES)
  progress.stage(f'{name} {config.method}')
  split = build.first(dataset.test, examples)
  student, variables = best_student(config, workdir, dataset)
  stem = name + ball.suffix
  partial = workdir / 'tables' / f'{stem}.batches'
  result = robustness.autoattack(
      student, variables, split, name, eps=ball.eps, norm=ball.norm,
      key=jax.random.fold_in(rng.stream(config.seed, 'evaluate'), len(name)),
      batch_size=min(config.evaluation.batch_size, len(split)),
      mesh=parallel.make_mesh(config.devices),
      store=BatchFolder(partial / weights.fingerprint(variables)[:16]),
      progress=lambda stage, done, total, share: progress.detail(
          f'{stage} {done}/{total}, robust {share:.1%}'), **settings)
  progress.detail('')
  if save_images:
    _save(workdir / 'images' / f'{stem}.npz', result, split)
  table = {
      'method': config.method, 'model': config.model, 'data': config.data.name,
      'seed': config.seed, 'attack': name, 'norm': ball.norm,
      'eps': ball.eps, 'examples': len(split), 'examples_wanted': examples,
      'settings': settings, 'weights': weights.fingerprint(variables),
      'clean': float(result.robust['clean'].mean()),
      'robust': float(result.survived.mean()),
      'stages': [dataclasses.asdict(report) for report in result.reports],
      'warnings': list(result.warnings), **provenance.describe()}
  files.write_json(workdir / 'tables' / f'{stem}.json', table)
  shutil.rmtree(partial, ignore_errors=True)
  return table


def _save(path, result, split):
  broken = result.robust['clean'] & ~result.survived
  files.write_arrays(path, {
      'image': result.images[broken], 'label': split.label[broken],
      'index': np.flatnonzero(broken)})
