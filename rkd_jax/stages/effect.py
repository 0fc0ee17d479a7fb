"""Settings that would change nothing in a run: an error, not a silence.

A setting counts as given where it differs from its default. One that a base config
shares is fine as long as any run of the experiment uses it; one that was written for a
single student or teacher has to have an effect there. The section `attack` is the threat
of the whole experiment, and every method takes of it what it needs.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rkd_jax import config as configuration
from rkd_jax import distill
from rkd_jax import settings as declarations
from rkd_jax.errors import ConfigError
from rkd_jax.stages import build

# What a comparison's base holds for whichever of its students and variants want it.
_SHARED = ('teachers.', 'detox.', 'single_teacher')


class Idle(NamedTuple):
  """Why a setting has no effect.

  Attributes:
    reason: For the message.
    switch: Dotted name of the setting in the same section that turns it off; '' where
      something else does.
  """

  reason: str
  switch: str = ''


_OF_TRAIN = dict.fromkeys(('compare.students', 'compare.seeds'), Idle(
    '`rkd train` trains one student; `rkd compare` trains those of config.compare'))
_OF_COMPARE = {'seed': Idle('`rkd compare` takes its seeds from config.compare.seeds')}


def check(base: Any, runs: Iterable[Any], *, compared: bool) -> None:
  """Raises ConfigError for a setting of `base` that none of the runs uses.

  Args:
    base: The complete config that was given.
    runs: Complete configs of all runs that it starts, teachers included.
    compared: Whether `rkd compare` starts them.
  """
  if not compared:
    _check_transfer(base)
  found = [(run, idle(run)) for run in runs]
  elsewhere = _OF_TRAIN if not compared else _OF_COMPARE
  for key in given(base):
    if compared and key.startswith(('compare.', *_SHARED)):
      continue
    ours = configuration.value(base, key)
    # A teacher's config does not take everything over, such as the student's detox.
    used = [key not in one and (compared or configuration.value(run, key) == ours)
            for run, one in found]
    if not any(used) or key in elsewhere:
      reasons = [one[key] for _, one in found if key in one]
      raise _error(f'config.{key}', base, key, elsewhere.get(key) or reasons[0])


def _check_transfer(config):
  ours = config.evaluation.attacks
  usual = configuration.default_config().evaluation.attacks
  if 'transfer' in ours and ours != usual and not build.crafts_transfers(config):
    raise ConfigError(
        "config.evaluation.attacks holds 'transfer', which has no effect: method "
        f'{config.method!r} has no robust or single teacher to craft images on')


def check_student(changes: Mapping[str, Any], run: Any, where: str) -> None:
  """Raises ConfigError for a change, of one student, that has no effect on it.

  Where the changes turn something off themselves, as a sweep does, they mean it.

  Args:
    changes: What was laid over a config.
    run: The complete config that came of it.
    where: What the changes are, for the message.
  """
  _check_part(changes, run, where, lambda found: _holds(changes, found.switch))


def check_teacher(changes: Mapping[str, Any], run: Any, where: str) -> None:
  """As `check_student`, but what the config around them turns off may stay."""
  _check_part(changes, run, where,
              lambda found: found.switch and not _holds(changes, found.switch))


def _check_part(changes, run, where, spared):
  unused, complete = idle(run), configuration.resolve(changes)
  for key in given(complete):
    if key in unused and not spared(unused[key]):
      raise _error(f'{where}.{key}', complete, key, unused[key])


def _holds(changes, key):
  for name in key.split('.'):
    if not key or name not in changes:
      return False
    changes = changes[name]
  return True


def _error(name, config, key, found):
  return ConfigError(
      f'{name} = {declarations.shown(configuration.value(config, key))} has no effect: '
      f'{found.reason}. Leave it out, or change what it depends on')


def given(config: Any) -> list[str]:
  """Dotted names of the settings that differ from their defaults."""
  defaults = configuration.default_config()
  return [key for key in _keys(configuration.declared())
          if configuration.value(config, key) != configuration.value(defaults, key)]


def _keys(known, prefix=''):
  for name, kind in known.items():
    if isinstance(kind, type):
      yield from _keys(declarations.rules(kind), f'{prefix}{name}.')
    else:
      yield prefix + name


def idle(config: Any) -> dict[str, Idle]:
  """{dotted setting: why it has no effect} in a run of a complete config."""
  found = {}
  for name, kind in configuration.declared().items():
    if not isinstance(kind, type):
      continue
    if name in distill.METHODS and name != config.method:
      reason = Idle(f'config.method is {config.method!r}')
      found |= {f'{name}.{key}': reason for key in declarations.rules(kind)}
      continue
    for key, other in declarations.idle(kind, config[name]).items():
      found[f'{name}.{key}'] = Idle(
          f'config.{name}.{other} is {config[name][other]!r}', f'{name}.{other}')
  return found | _by_method(config) | _by_data(config)


def _by_method(config) -> dict[str, Idle]:
  """What the method decides: which teachers there are, and whether it attacks."""
  method, found = build.make_method(config), {}
  taught = tuple(dict.fromkeys(build.teacher_names(config).values()))
  who = f'method {config.method!r}'
  learns = f'{who} learns from {" and ".join(taught) or "no teacher"}'
  if 'teacher' not in method.roles:
    found['single_teacher'] = Idle(learns)
  for name, spec in config.teachers.items():
    if name not in taught:
      found |= {f'teachers.{name}.{key}': Idle(learns) for key in spec}
    elif not spec.weights:
      reason = Idle(f'config.teachers.{name}.weights is not set')
      found |= {f'teachers.{name}.{key}': reason for key in ('model', 'trigger')}
  if config.detox.method and config.detox.teacher not in taught:
    reason = Idle(f'{learns}, but config.detox.teacher is {config.detox.teacher!r}')
    found |= {f'detox.{key}': reason for key in config.detox}
  if not method.adversarial:
    found['validation.attack'] = Idle(f'{who} makes no robust student')
  return found


def _by_data(config) -> dict[str, Idle]:
  if config.data.name == 'digits':
    return {'data.data_dir': Idle("the data set 'digits' comes with scikit-learn")}
  return {}
