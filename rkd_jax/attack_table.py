"""`rkd evaluate --attack`: the student of a run, or all of a comparison, in a table."""

import pathlib
from collections.abc import Collection
from typing import Any

from rkd_jax import comparison, experiment, files, locks
from rkd_jax import config as configuration
from rkd_jax.evaluation import tables
from rkd_jax.evaluation.ball import Ball
from rkd_jax.report import provenance
from rkd_jax.stages import trained


def run(config, workdir: str | pathlib.Path, name: str, *, examples: int,
        students: Collection[str] = (), save_images: bool = False,
        norm: str | None = None, eps: float | None = None, **settings: Any) -> dict:
  """Attacks every student at its best, or what is left of them.

  Args:
    config: of `workdir`.
    workdir: of `rkd train` or `rkd compare`, finished.
    name: of `stages.attack.NAMES`.
    examples: of the test split; 0: all.
    students: of a comparison, by name; (): all.
    save_images, norm, eps, **settings: as in `experiment.attack`.

  Returns:
    {student: {'clean' and each stage: accuracy, over the seeds of a comparison}}. A
    comparison has it in `tables/<name>.json` and `.md`, too, and every student the
    table of `experiment.attack`. A student of a comparison that has such a table, of the
    same examples and settings, is not attacked again.

  Raises:
    ConfigError: see `comparison.members` and `experiment.attack`.
  """
  workdir = files.local_path(workdir, 'workdir')
  ball = Ball.of(config, norm, eps)
  runs = comparison.members(config, workdir, students)
  with locks.hold(workdir):
    return _run(config, workdir, name, ball, examples, runs, save_images, settings)


def _run(config, workdir, name, ball, examples, runs, save_images, settings):
  records = {}
  for (student, _), folder in runs.items():
    table = _finished(folder / 'tables' / f'{name}{ball.suffix}.json', examples, settings)
    if folder == workdir or save_images or not table:
      its = config if folder == workdir else configuration.read(folder)
      its.evaluation = config.evaluation
      table = experiment.attack(its, folder, name, examples=examples,
                                save_images=save_images, norm=ball.norm, eps=ball.eps,
                                **settings)
    records.setdefault(student, []).append(_accuracies(table))
  if not config.compare.students:
    return {'student (best)': _accuracies(table)}
  rows = {student: tables.aggregate(of_seeds) for student, of_seeds in records.items()}
  path = workdir / 'tables' / f'{name}{ball.suffix}.json'
  files.write_json(path, {
      'rows': rows, 'attack': name, 'data': config.data.name, 'eps': ball.eps,
      'norm': ball.norm, 'examples': table['examples'], 'settings': settings,
      **provenance.describe()})
  files.write_text(path.with_suffix('.md'), tables.markdown(rows) + '\n')
  return rows


def _finished(path, examples, settings) -> dict | None:
  """The table of an earlier attack with the same settings on the same weights."""
  table = files.stored_json(path)
  if table is None:
    return None
  weights = trained.record(path.parents[1]).get('weights', {}).get('student-best')
  same = (table['settings'], table['examples_wanted']) == (settings, examples) and (
      table.get('weights') in (None, weights))
  return table if same else None


def _accuracies(table) -> dict[str, float]:
  return {'clean': table['clean']} | {
      stage['name']: stage['robust_accuracy'] for stage in table['stages']}
