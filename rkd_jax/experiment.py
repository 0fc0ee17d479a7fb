"""An experiment: its stages in order, each of them resumable.

data (poisoned, where this run is an attacker's) -> teachers (restored, or trained in
a run of their own, and detoxified) -> student -> evaluation on the test split ->
figures. Every stage leaves a file when it is
finished and is not run again when the file is there, so the same command
continues whatever was interrupted.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from rkd_jax import config as configuration
from rkd_jax import files, locks
from rkd_jax.errors import unknown_name
from rkd_jax.report import figures
from rkd_jax.stages import attack as attack_stage
from rkd_jax.stages import backdoor as backdoor_stage
from rkd_jax.stages import build, effect, trained
from rkd_jax.stages import check as stage_check
from rkd_jax.stages import detect as detect_stage
from rkd_jax.stages import detoxify as detox_stage
from rkd_jax.stages import evaluate as evaluation_stage
from rkd_jax.stages import train as training_stage
from rkd_jax.stages.build import teacher_names
from rkd_jax.stages.teachers import Teacher, restore
from rkd_jax.training import parallel
from rkd_jax.training.progress import bar as progress_bar


def run(config: Any = None, workdir: str | pathlib.Path = 'runs/rkd') -> dict:
  """Runs a whole experiment, or what is left of it.

  Args:
    config: what differs from `rkd_jax.default_config()`.
    workdir: where its files are; made if absent, continued if present.

  Returns:
    The content of `tables/evaluation.json`.

  Raises:
    ConfigError: a setting is wrong, or `workdir` is of another config.
    DataError, CheckpointError, NonFiniteError: see there.
  """
  config, workdir = configuration.resolve(config), files.local_path(workdir, 'workdir')
  check(config)
  if not (pathlib.Path(workdir) / configuration.FILE).exists():  # Else it goes on.
    check_effect(config)
  check_teachers(config)
  parallel.enable_compilation_cache()
  with progress_bar(cost(config)) as progress:
    return run_checked(config, workdir, progress)


def run_checked(config, workdir: pathlib.Path, progress) -> dict:
  """`run` of a complete config that went through `check` and `check_teachers`.

  It advances the bar `progress` by `cost(config)`.
  """
  with locks.hold(workdir):
    configuration.claim(workdir, config)
    return _run(config, workdir, progress)


def _run(config, workdir, progress):
  for name in dict.fromkeys(teacher_names(config).values()):
    if is_trained(config.teachers[name]):
      run_checked(teacher_config(config, name), _folder(workdir, name), progress)
  dataset = build.load_data(config)
  source = None
  if backdoor_stage.needs_source(config):
    run_checked(_source_config(config), workdir / 'source', progress)
    source = _source(config, workdir, dataset)
  teachers = _restore(config, workdir, dataset, progress)
  poisoned, backdoor = backdoor_stage.prepare(config, workdir, dataset, source)
  training_stage.train(
      config, workdir, poisoned, teachers, progress,
      start=backdoor_stage.start_weights(config, dataset, source))
  if backdoor is None:  # A method may have made one.
    backdoor = backdoor_stage.known(workdir / backdoor_stage.FOLDER, dataset)
  results = evaluation_stage.kept(workdir)
  drawn = results is not None and figures.is_whole(workdir / figures.TRAINING)
  if results is None:
    results = evaluation_stage.evaluate(
        config, workdir, dataset, teachers, progress, backdoor)
  if not drawn:
    figures.draw_run(workdir)
  return results


def evaluate(config: Any, workdir: str | pathlib.Path) -> dict:
  """Attacks the student of a finished run (again), as `config.evaluation` says.

  Raises:
    ConfigError: the run's training is not finished.
  """
  config, workdir, dataset = _finished(config, workdir)
  with locks.hold(workdir), progress_bar() as progress:
    return evaluation_stage.evaluate(
        config, workdir, dataset, _restore(config, workdir, dataset, progress),
        progress, backdoor_stage.known(workdir / backdoor_stage.FOLDER, dataset))


def attack(config: Any, workdir: str | pathlib.Path, name: str, *, examples: int = 0,
           save_images: bool = False, norm: str | None = None,
           eps: float | None = None, **settings: Any) -> dict:
  """AutoAttack of the student of a finished run; the content of `tables/<name>.json`.

  In another ball than the run's the files are called `<name>_<norm>_<eps>`.

  Args:
    config: of the run.
    workdir: of the run.
    name: 'autoattack', 'autoattack_plus' or 'autoattack_fast'.
    examples: of the test split; 0: all.
    save_images: also write the adversarial images to `images/<name>.npz`.
    norm: 'linf', 'l2' or 'l1'; None: that of the run.
    eps: radius in the norm; None: that of the run.
    **settings: `steps`, `queries`, `restarts`, of `attacks.stages.make`.

  Raises:
    ConfigError: unknown name or norm, a radius that is none or is missing, or the run's
      training is not finished.
  """
  if name not in attack_stage.NAMES:
    raise unknown_name('attack', name, attack_stage.NAMES)
  config, workdir, dataset = _finished(config, workdir, examples)
  with locks.hold(workdir), progress_bar() as progress:
    return attack_stage.attack(
        config, workdir, dataset, name, examples, save_images, progress, norm=norm,
        eps=eps, **settings)


def detect(config: Any, workdir: str | pathlib.Path, *, examples: int = 1000,
           **settings: Any) -> dict:
  """Does the network of a finished run look backdoored? `tables/detect.json`.

  Args:
    config: of the run.
    workdir: of the run.
    examples: clean training images to search with; 0: all.
    **settings: of `detox.detect`.

  Raises:
    ConfigError: the run's training is not finished, or `examples` is negative.
  """
  config, workdir, dataset = _finished(config, workdir, examples)
  with locks.hold(workdir), progress_bar() as progress:
    return detect_stage.detect(config, workdir, dataset, examples, progress, **settings)


def _finished(config, workdir, examples=0):
  """(config, workdir, data set) of a trained run, of which `examples` are wanted."""
  if examples < 0:
    raise configuration.ConfigError(f'examples must be >= 0 (0: all), got {examples}')
  config, workdir = configuration.resolve(config), files.local_path(workdir, 'workdir')
  _check_trained(workdir)
  dataset = check(config)
  configuration.claim_inputs(workdir, {'data': dataset.fingerprint})
  parallel.enable_compilation_cache()
  return config, workdir, dataset


def _check_trained(workdir):
  if not (workdir / trained.DONE).exists():
    raise configuration.ConfigError(
        f'the training in {workdir} is not finished: continue it with the '
        '`rkd train` command that started it')


def check(config, known: Mapping[str, str] | None = None):
  """Finds what is wrong with a config and those of its teachers.

  Args:
    config: complete.
    known: {teacher: name of its model} of runs that are not there yet.

  Returns the data set; raises as `run` does, before anything is written.
  """
  models = {}
  for role, name in teacher_names(config).items():
    model = _teacher_model(config, name) or (known or {}).get(name)
    if model:
      models[role] = model
  dataset = stage_check.check(config, models)
  for name in dict.fromkeys(teacher_names(config).values()):
    if is_trained(config.teachers[name]):
      check(teacher_config(config, name))
  return dataset


def _teacher_model(config, name) -> str:
  """The model of a teacher; '' where that is not known yet."""
  spec = config.teachers[name]
  if is_trained(spec):
    return teacher_config(config, name).model
  if spec.run and (pathlib.Path(spec.run) / configuration.FILE).is_file():
    return configuration.read(spec.run).model
  return spec.model if spec.weights else ''


def check_teachers(config) -> None:
  """Raises as `stages.teachers.restore` does of a teacher that is there already.

  Those that are trained for this experiment, or for its comparison, are not.
  """
  for name in dict.fromkeys(teacher_names(config).values()):
    spec = config.teachers[name]
    if is_trained(spec):
      check_teachers(teacher_config(config, name))
    elif configuration.WORKDIR not in spec.run:
      restore(name, spec, build.load_data(config), dtype=config.dtype)


def check_effect(config) -> None:
  """Raises ConfigError for a setting that changes nothing in `run` of a config."""
  effect.check(config, runs_of(config), compared=False)


def runs_of(config) -> list:
  """The configs of all trainings of `run`: the student, its teachers and the source.

  Raises:
    ConfigError: a change, made to train a teacher, that has no effect there.
  """
  found = [config]
  if backdoor_stage.needs_source(config):
    found.append(_source_config(config))
  for name in dict.fromkeys(teacher_names(config).values()):
    if is_trained(config.teachers[name]):
      sub = teacher_config(config, name)
      effect.check_teacher(config.teachers[name].overrides, sub,
                           f'config.teachers.{name}.overrides')
      found += runs_of(sub)
  return found


def is_trained(spec) -> bool:
  """Whether `config.teachers[name]` is trained first; a run or weights would do."""
  return bool(spec.overrides) and not (spec.run or spec.weights)


def teacher_config(config, name: str):
  """The config with which `config.teachers[name]` is trained."""
  defaults = configuration.default_config()
  sub = configuration.resolve(config)
  for group in ('teachers', 'compare', 'backdoor', 'detox'):
    sub[group] = defaults[group]
  configuration.overlay(sub, config.teachers[name].overrides)
  return sub


def _folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """Directory of a teacher that is trained as part of this experiment."""
  return workdir / 'teachers' / name


def restore_teacher(config, workdir: pathlib.Path, dataset, name: str) -> Teacher:
  """The teacher `config.teachers[name]` as it was before the student was trained."""
  spec = configuration.ConfigDict(config.teachers[name])
  if is_trained(spec):
    spec.run = str(_folder(workdir, name))
  spec.run = spec.run.replace(configuration.WORKDIR, str(workdir))
  return restore(name, spec, dataset, dtype=config.dtype)


def _restore(config, workdir, dataset, progress) -> dict[str, Teacher]:
  """The teachers by role, those trained for this experiment among them.

  The one that `config.detox` names is detoxified.
  """
  found = {role: restore_teacher(config, workdir, dataset, name)
           for role, name in teacher_names(config).items()}
  configuration.claim_inputs(workdir, {'data': dataset.fingerprint} | {
      f'teachers.{name}': found[role].fingerprint
      for role, name in teacher_names(config).items()})
  if config.detox.method:
    for role, name in teacher_names(config).items():
      if name == config.detox.teacher:
        found[role] = detox_stage.detoxify(
            config, workdir, dataset, found[role], progress)
  return found


def _source_config(config):
  """The config of the clean network that a trigger is made with."""
  sub = configuration.resolve(config)
  sub.backdoor = configuration.default_config().backdoor
  sub.method = 'standard'
  return sub


def _source(config, workdir, dataset):
  """(network, variables) of that network, once it is trained."""
  spec = configuration.ConfigDict({'run': str(workdir / 'source'), 'weights': ''})
  teacher = restore('source', spec, dataset, dtype=config.dtype)
  return teacher.network, teacher.variables


def cost(config: Any) -> int:
  """Cost of a whole experiment in passes over a batch, as a bar counts them."""
  config = configuration.resolve(config)
  source = (cost(_source_config(config)) if backdoor_stage.needs_source(config) else 0)
  return source + build.training_passes(config) + sum(
      cost(teacher_config(config, name))
      for name in teacher_names(config).values()
      if is_trained(config.teachers[name]))


def table(results: dict) -> dict[str, dict[str, float]]:
  """Rows of a run's results for `evaluation.tables`: accuracies by attack."""
  rows = {f'student ({when})': entry
          for when, entry in results['student'].items()}
  for role, moments in results['retrained_teachers'].items():
    for when, entry in moments.items():
      rows[f'{role} teacher {when}'] = entry
  return {row: {name: value['accuracy'] if isinstance(value, dict) else value
                for name, value in entry.items()}
          for row, entry in rows.items()}
