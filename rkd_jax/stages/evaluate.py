"""The evaluation stage: the finished student under attack on the test split."""

import functools
import pathlib
import warnings
from collections.abc import Mapping

from rkd_jax import files
from rkd_jax.evaluation import robustness
from rkd_jax.models import weights
from rkd_jax.report import provenance
from rkd_jax.stages import build, trained
from rkd_jax.stages.backdoor import Backdoor
from rkd_jax.stages.teachers import Teacher
from rkd_jax.training import rng

DONE = pathlib.Path('tables', 'evaluation.json')


def evaluate(config, workdir: pathlib.Path, dataset,
             teachers: Mapping[str, Teacher], progress,
             backdoor: Backdoor | None = None) -> dict:
  """Attacks the student of a finished training; writes and returns the table.

  With the success rate 'asr' of `backdoor`, the run's own, or else of that of a
  teacher.

  Best (by validation) and last checkpoint are both reported. For every teacher
  that the method retrained: its own white-box robustness before and after.
  """
  progress.stage(f'evaluate {config.method}')
  training = trained.record(workdir)
  split = build.first(dataset.test, config.evaluation.examples)
  check = functools.partial(
      robustness.evaluate, split=split,
      key=rng.stream(config.seed, 'evaluate'),
      batch_size=min(config.evaluation.batch_size, len(split)),
      progress=lambda attack, done, total: progress.detail(
          f'{attack} {done}/{total}'))
  results = {
      'method': config.method, 'model': config.model, 'data': config.data.name,
      'seed': config.seed, 'norm': config.attack.norm, 'eps': config.attack.eps,
      'examples': len(split), 'training': training,
      'student': _students(config, workdir, dataset, teachers, training,
                           _with_asr(config, check, split, backdoor, teachers)),
      'retrained_teachers': _retrained(config, workdir, teachers, check),
      **provenance.describe()}
  progress.detail('')
  files.write_json(workdir / DONE, results)
  return results


def kept(workdir: pathlib.Path) -> dict | None:
  """The table of an earlier evaluation of the same weights; None if there is none."""
  results = files.stored_json(workdir / DONE)
  if results is None:
    return None
  was, now = (of.get('weights') for of in (results['training'], trained.record(workdir)))
  if was not in (None, now):
    warnings.warn(f'{workdir / DONE}: of other weights: made again', stacklevel=2)
    return None
  return results


def _with_asr(config, check, split, backdoor, teachers):
  """`check`, whose results also hold the ASR where a backdoor is known."""
  known = [backdoor, *(teacher.backdoor for teacher in teachers.values())]
  known = [one for one in known if one is not None]
  if not known:
    return check

  def both(network, variables, **settings):
    asr = known[0].success(
        network, variables, split, min(config.evaluation.batch_size, len(split)))
    return {**check(network, variables, **settings), 'asr': asr}

  return both


def _students(config, workdir, dataset, teachers, training, check):
  """{'best': accuracies, 'last': accuracies}."""
  student = build.make_network(config.model, dataset, config.dtype)
  template = weights.template(student.module, dataset.image_shape)
  source = teachers.get('robust') or teachers.get('teacher')
  specs = robustness.specs_from(
      _attacks(config, transfer=source is not None), config.attack)

  def attacked(when):
    return check(
        student, trained.load(workdir, 'student', when, template),
        specs=specs, source=source and (source.network, source.variables))

  best = attacked('best')
  same = training['best_step'] == training['last_step']
  return {'best': best, 'last': best if same else attacked('last')}


def _retrained(config, workdir, teachers, check):
  """{role: {'before': accuracies, 'after': accuracies}}."""
  specs = robustness.specs_from(
      _attacks(config, transfer=False), config.attack)
  found = {}
  for role, teacher in teachers.items():
    if trained.weights_file(workdir, role, 'last').exists():
      after = trained.load(workdir, role, 'last', teacher.variables)
      found[role] = {
          'before': check(teacher.network, teacher.variables, specs=specs),
          'after': check(teacher.network, after, specs=specs)}
  return found


def _attacks(config, *, transfer: bool) -> list[str]:
  return [name for name in config.evaluation.attacks
          if transfer or name != 'transfer']
