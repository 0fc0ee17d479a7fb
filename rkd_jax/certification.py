"""`rkd certify`: is a finished student faithful to its teacher, provably?"""

import pathlib
from collections.abc import Collection

import numpy as np

from rkd_jax import comparison, experiment, files, locks
from rkd_jax import config as configuration
from rkd_jax import settings as declarations
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.evaluation import tables
from rkd_jax.report import faithfulness as figures
from rkd_jax.report import provenance
from rkd_jax.stages import certify as stage
from rkd_jax.stages import evaluate, trained
from rkd_jax.stages import teachers as teacher_stage
from rkd_jax.stages.certify import Settings
from rkd_jax.training import parallel
from rkd_jax.training.progress import bar as progress_bar

TABLE = pathlib.Path('tables', 'faithfulness.json')
DELTAS = (0.1, 0.5)


def run(workdir: str | pathlib.Path, settings: Settings | None = None, *,
        students: Collection[str] = (), teacher: str = '', teacher_weights: str = '',
        teacher_model: str = '') -> dict:
  """Certifies the student of a run, or all those of a comparison, or continues.

  Args:
    workdir: of `rkd train` or `rkd compare`, finished.
    settings: what to certify; None: the defaults.
    students: of a comparison, by name; (): all.
    teacher: 'clean' or 'robust', where the run had both; '': robust if there is one.
    teacher_weights, teacher_model: another teacher, a safetensors file and its name in
      the registry.

  Returns:
    The content of `tables/faithfulness.json`: rows for each radius, and of a single run
    the values of every example.

  Raises:
    ConfigError: no finished run, no teacher, a setting out of its range.
    CheckpointError: weights that do not fit, or are not finite.
    UnsupportedPrimitiveError, RkdError: see `stages.certify`.
  """
  settings = declarations.build(Settings, settings or {}, 'certify')
  workdir = files.local_path(workdir, 'workdir')
  config = configuration.read(workdir)
  given = teacher, teacher_weights, teacher_model
  runs = comparison.members(config, workdir, students)
  parallel.enable_compilation_cache()
  with locks.hold(workdir):
    return _run(workdir, config, settings, given, runs)


def _run(workdir, config, settings, given, runs):
  records, curves = {}, {}
  with progress_bar(len(runs) * len(settings.eps) * settings.examples) as progress:
    for (name, seed), folder in runs.items():
      progress.stage(f'certify {name}, seed {seed}')
      with locks.hold(folder):
        found, accuracies = _one(folder, settings, given, progress)
      for eps, values in found.items():
        row = f'{name}, eps {eps}' if len(settings.eps) > 1 else name
        records.setdefault(row, []).append({**accuracies, **summary(values)})
        curves.setdefault(eps, {}).setdefault(name, values)
      if len(runs) > 1:
        _write(folder, config, settings, {
            f'eps {eps}': tables.aggregate([summary(v)]) for eps, v in found.items()},
            found)
  rows = {row: tables.aggregate(of_seeds) for row, of_seeds in records.items()}
  content = _write(workdir, config, settings, rows, found if len(runs) == 1 else None)
  figures.draw(curves, settings.method,
               workdir / 'figures' / 'faithfulness.png')
  return content


def summary(values: dict[str, list]) -> dict[str, float]:
  """What the examples of one run have in common; shares and probabilities."""
  of = {name: np.asarray(value, float) for name, value in values.items()}
  return {
      'EmpLB': of['lower'].mean(), 'FaithUB': of['upper'].mean(),
      'EmpLB, predicted': of['lower_predicted'].mean(),
      'FaithUB, predicted': of['upper_predicted'].mean(),
      **{f'certified {delta}': np.mean(of['upper'] <= delta) for delta in DELTAS},
      'agreement': of['agrees'].mean(), 'seen to differ': of['differs'].mean()}


def _one(workdir, settings, given, progress):
  """({eps: values}, accuracies of the student) of one run."""
  config, dataset, teacher, student = load(workdir, *given)
  found = stage.certify(config, workdir, dataset, teacher, student, settings, progress)
  best = files.read_json(workdir / evaluate.DONE, (
      'the command that started the run makes it again'))['student']['best']
  return found, {name: best[name]['accuracy'] for name in ('clean', 'pgd20')
                 if name in best}


def load(workdir: str | pathlib.Path, teacher: str = '', teacher_weights: str = '',
         teacher_model: str = ''):
  """(config, data set, teacher, student at its best) of a finished run.

  Arguments and errors as in `run`; both networks are `stages.teachers.Teacher`.
  """
  workdir = files.local_path(workdir, 'workdir')
  config = configuration.read(workdir)
  if not (workdir / evaluate.DONE).exists():
    raise ConfigError(f'the run in {workdir} is not finished: continue it with the '
                      'command that started it')
  dataset = experiment.check(config)
  configuration.claim_inputs(workdir, {'data': dataset.fingerprint})
  other = _teacher(config, workdir, dataset, teacher, teacher_weights, teacher_model)
  return config, dataset, other, teacher_stage.Teacher(
      *trained.best_student(config, workdir, dataset, 'float32'))


def _teacher(config, workdir, dataset, name, weights, model):
  if weights or model:
    if not (weights and model):
      raise ConfigError('a teacher from a file needs both --teacher-weights (a '
                        'safetensors file) and --teacher-model (see `rkd list`)')
    spec = configuration.ConfigDict({'run': '', 'weights': weights, 'model': model})
    return teacher_stage.restore('given', spec, dataset, dtype='float32')
  names = list(experiment.teacher_names(config).values())
  if not names:
    raise ConfigError(f'{config.method} has no teacher to compare the student with; '
                      'name one by --teacher-weights and --teacher-model')
  name = name or ('robust' if 'robust' in names else names[0])
  if name not in names:
    raise unknown_name('teacher of this run', name, names)
  config = configuration.ConfigDict(config)
  config.dtype = 'float32'  # Bounds include no other rounding.
  return experiment.restore_teacher(config, workdir, dataset, name)


def _write(workdir, config, settings, rows, examples) -> dict:
  content = {
      'rows': rows, 'data': config.data.name, 'examples': settings.examples,
      'method': settings.method,
      'timeout_s': settings.timeout_s, 'deltas': DELTAS,
      'input_set': 'L-inf ball of radius eps around a test image that the teacher '
                   'classifies correctly, cut with [0, 1]',
      'precision': 'FaithUB: float32, rounded outwards (MILP: to the tolerance of the '
                   'solver); EmpLB: evaluated in float64',
      **({'values': examples} if examples else {}), **provenance.describe()}
  files.write_json(workdir / TABLE, content)
  files.write_text((workdir / TABLE).with_suffix('.md'), tables.markdown(rows) + '\n')
  return content
