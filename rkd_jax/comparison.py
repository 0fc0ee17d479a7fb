"""Several students of the same teachers, over several seeds, in one table."""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from rkd_jax import config as configuration
from rkd_jax import experiment, files, locks, settings
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.evaluation import tables
from rkd_jax.report import figures, provenance
from rkd_jax.stages import effect
from rkd_jax.training import parallel
from rkd_jax.training.progress import bar as progress_bar

TABLE = pathlib.Path('tables', 'comparison.json')


def run(config: Any, workdir: str | pathlib.Path) -> dict:
  """Trains and attacks every student of `config.compare`, or what is left.

  For each seed the teachers are trained once, then every student with its
  changes laid over the config. All of them are ordinary runs below `workdir`.

  Returns:
    The content of `tables/comparison.json`: for each row and column mean,
    standard deviation (ddof 1) and the values of the single seeds.

  Raises:
    ConfigError: no students are named, or see `experiment.run`.
  """
  config = configuration.resolve(config)
  workdir = files.local_path(workdir, 'workdir')
  if not config.compare.students:
    raise ConfigError('config.compare.students is empty: name each student '
                      'and what to change for it, ((name, {key: value}), ...)')
  check_students(config)
  plans = {seed: plan_of(config, workdir, seed) for seed in config.compare.seeds}
  first = plans[config.compare.seeds[0]]
  if not (workdir / configuration.FILE).exists():  # Else it goes on.
    check_effect(config, first)
  check_plan(first)  # Other seeds change nothing else.
  # Most rows, and all seeds, have the same teachers.
  distinct = {(str(sub.teachers), str(experiment.teacher_names(sub))): sub
              for plan in plans.values() for sub, _ in plan.values()}
  for sub in distinct.values():
    experiment.check_teachers(sub)
  with locks.hold(workdir):
    configuration.claim(workdir, config)
    return _write(config, workdir, _records(plans))


def _records(plans):
  """{row: {seed: values}} of all runs, which are made or continued."""
  parallel.enable_compilation_cache()
  total = sum(experiment.cost(sub) for plan in plans.values()
              for sub, _ in plan.values())
  records = {}
  with progress_bar(total) as progress:
    for seed, plan in plans.items():
      for name, (sub, folder) in plan.items():
        progress.label(f'seed {seed}, {name}: ')
        result = experiment.run_checked(sub, folder, progress)
        for row, values in _rows(name, result).items():
          records.setdefault(row, {})[seed] = values
  return records


def members(config, workdir: pathlib.Path, students: Collection[str] = ()
            ) -> dict[tuple[str, int], pathlib.Path]:
  """{(name, seed): directory} of a comparison's students, or of a single run.

  Args:
    config: of `workdir`.
    workdir: of `rkd compare`, or of `rkd train`.
    students: by name; (): all.

  Raises:
    ConfigError: a name that is no student's, or names although it is a single run.
  """
  if not config.compare.students:
    if students:
      raise ConfigError(f'{workdir} is a single run; students are chosen of a comparison')
    return {(config.method, config.seed): workdir}
  names = [name for name, _ in config.compare.students]
  for name in students:
    if name not in names:
      raise unknown_name('student of this comparison', name, names)
  return {(name, seed): workdir / f'seed{seed}' / 'students' / name
          for seed in config.compare.seeds for name in students or names}


# What all rows of a table have in common, so that they can be compared.
_COMMON = ('seed', 'data.name', 'data.data_dir', 'data.test_examples', 'attack.norm',
           'attack.eps', 'evaluation.examples', 'compare.students', 'compare.seeds')


def check_students(config) -> None:
  """Raises ConfigError for students that do not belong into one table."""
  for name, changes in config.compare.students:
    where = f'config.compare.students[{name!r}]'
    if name in [f'{teacher} teacher' for teacher in config.teachers]:
      raise ConfigError(f'{where}: this is the name of the row of a teacher; choose '
                        'another one')
    sub = configuration.resolve(config)
    configuration.overlay(sub, changes)
    for key in _COMMON:
      ours, theirs = (configuration.value(of, key) for of in (config, sub))
      if ours != theirs:
        raise ConfigError(
            f'{where} changes {key} from {settings.shown(ours)} to '
            f'{settings.shown(theirs)}, but all rows of a table share it; run another '
            'comparison')
    for teacher, spec in config.teachers.items():
      if experiment.is_trained(spec) and sub.teachers[teacher] != spec:
        raise ConfigError(
            f'{where} changes teachers.{teacher}, but all students share the teachers '
            'that the comparison trains; change config.teachers')


def check_effect(config, plan: Mapping[str, tuple[Any, pathlib.Path]]) -> None:
  """Raises ConfigError for a setting that changes nothing in a comparison.

  Args:
    config: complete.
    plan: Plan of one seed, see `plan_of`.
  """
  for name, changes in config.compare.students:
    effect.check_student(changes, plan[name][0], f'config.compare.students[{name!r}]')
  for teacher, spec in config.teachers.items():
    if f'{teacher} teacher' in plan:
      effect.check_teacher(spec.overrides, plan[f'{teacher} teacher'][0],
                           f'config.teachers.{teacher}.overrides')
  runs = [run for sub, _ in plan.values() for run in experiment.runs_of(sub)]
  effect.check(config, runs, compared=True)


def check_plan(plan: Mapping[str, tuple[Any, pathlib.Path]]) -> None:
  """Raises as `experiment.check` does of every run of a seed."""
  models = {name.removesuffix(' teacher'): sub.model for name, (sub, _) in plan.items()
            if name.endswith(' teacher')}
  for sub, _ in plan.values():
    experiment.check(sub, models)


def plan_of(config, workdir: pathlib.Path, seed: int
            ) -> dict[str, tuple[Any, pathlib.Path]]:
  """{name: (config, directory)} of one seed, teachers first."""
  base = configuration.resolve(config)
  base.seed = seed
  base.compare = configuration.default_config().compare
  root = workdir / f'seed{seed}'
  students = {}
  for name, changes in config.compare.students:
    students[name] = configuration.resolve(base)
    configuration.overlay(students[name], changes)
  wanted = {teacher for sub in students.values()
            for teacher in experiment.teacher_names(sub).values()}
  trained = {teacher: root / 'teachers' / teacher for teacher in sorted(wanted)
             if experiment.is_trained(base.teachers[teacher])}
  found = {f'{teacher} teacher': (experiment.teacher_config(base, teacher), folder)
           for teacher, folder in trained.items()}
  for name, sub in students.items():
    folder = root / 'students' / name
    for teacher, source in trained.items():
      sub.teachers[teacher].overrides = {}
      # Seen from the student, so that the whole comparison can be moved.
      sub.teachers[teacher].run = os.path.join(
          configuration.WORKDIR, os.path.relpath(source, folder))
    found[name] = (sub, folder)
  return found


def _rows(name: str, result: dict) -> dict[str, dict[str, float]]:
  """Table rows of one run: the student, and teachers that it retrained."""
  rows = {name: _accuracies(result['student']['best'])}
  rows[name]['clean (last)'] = result['student']['last']['clean']['accuracy']
  if 'pgd20' in result['student']['last']:
    rows[name]['pgd20 (last)'] = result['student']['last']['pgd20']['accuracy']
  for role, moments in result['retrained_teachers'].items():
    rows[f'{role} teacher after {name}'] = _accuracies(moments['after'])
  return rows


def _accuracies(results: dict) -> dict[str, float]:
  return {name: entry['accuracy'] if isinstance(entry, dict) else entry
          for name, entry in results.items()}


def _write(config, workdir, records) -> dict:
  """Aggregates the seeds; writes the table and its picture."""
  rows = {row: tables.aggregate(list(by_seed.values()))
          for row, by_seed in records.items()}
  content = {
      'data': config.data.name, 'eps': config.attack.eps,
      'norm': config.attack.norm, 'seeds': list(config.compare.seeds),
      'rows': rows, **provenance.describe()}
  files.write_json(workdir / TABLE, content)
  files.write_text((workdir / TABLE).with_suffix('.md'), tables.markdown(rows) + '\n')
  figures.draw_comparison(content, workdir / 'figures' / 'comparison.png')
  return content
