"""The settings of an experiment: every key, its default, and how they merge."""

import ast
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rkd_jax import config_file, distill, errors, files, sections, settings
from rkd_jax.errors import ConfigError

# Stands in `teachers.*.run` for the directory of the run whose config it is.
WORKDIR = '{workdir}'
FILE = 'config.json'  # In the directory of a run.
# What a run makes once that file is there, and continues from or returns.
_MADE = ('checkpoints', 'weights', 'tables', 'detox')
_REMEDY = ('put it back from a copy (the line "digest" may be deleted to take the file '
           'as it is), or start over in another directory')
INPUTS = 'inputs'  # In that file: digests of what the run was made from.


@functools.cache
def declared() -> Mapping[str, Any]:
  """{key: its rule, or the class of its section}, those of all methods included."""
  return {**settings.rules(sections.Experiment),
          **{name: module.Settings for name, module in distill.METHODS.items()}}


@functools.cache
def _defaults() -> dict:
  return {**settings.defaults(sections.Experiment),
          **{name: distill.defaults(name) for name in distill.METHODS}}


def default_config() -> ConfigDict:
  """Every key with its default; a config file holds what differs from it."""
  return ConfigDict(_defaults())


def resolve(config: Any = None) -> ConfigDict:
  """A complete config: the defaults with `config` laid over them.

  Args:
    config: a ConfigDict or mapping that holds any part of the keys.

  Raises:
    ConfigError: a key that does not exist (the nearest ones are named), a value that
      its setting does not take, or two values that do not go together.
  """
  resolved = default_config()
  overlay(resolved, {} if config is None else config)
  for name, kind in declared().items():
    if isinstance(kind, type) and hasattr(kind, 'check'):
      settings.build(kind, resolved[name], f'config.{name}')
  return resolved


def overlay(config: ConfigDict, changes: Any) -> None:
  """Lays nested `changes` over `config`, in place; raises as `resolve` does."""
  _assign(config, read_changes(changes))


def read_changes(changes: Any) -> dict[str, Any]:
  """Nested changes with each value in the type of its setting; raises as `resolve`."""
  return _read(changes, declared(), 'config')


def _read(changes, known, where):
  if not hasattr(changes, 'keys'):
    raise ConfigError(f'{where} holds keys ({", ".join(known)}), got the value '
                      f'{settings.shown(changes)}')
  found = {}
  for name in changes:
    if name not in known:
      close = errors.nearest(name, known) or sorted(known)
      raise ConfigError(f'{where}.{name} does not exist; nearest: '
                        + ', '.join(f'{where}.{c}' for c in close))
    full, kind = f'{where}.{name}', known[name]
    if isinstance(kind, type):
      found[name] = _read(changes[name], settings.rules(kind), full)
    else:
      found[name] = _read_part(kind(changes[name], full), full)
  return found


def _read_part(value, where):
  """The value, read once more where it holds part of a config itself."""
  if where.endswith('.overrides'):
    return _read(value, declared(), where)
  if where.endswith('.compare.students'):
    return tuple((name, _read(changes, declared(), f'{where}[{name!r}]'))
                 for name, changes in value)
  return value


def _assign(config, changes):
  for name, value in changes.items():
    if isinstance(value, dict) and isinstance(config.get(name), ConfigDict):
      _assign(config[name], value)
    else:
      config[name] = value


def load_file(spec: str) -> ConfigDict:
  """The config of a file `path.py` or `path.py:variant`, complete.

  Raises:
    ConfigError: see `config_file.read` and `resolve`.
  """
  return resolve(config_file.read(spec))


def apply_flags(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """Applies `--config.a.b=value` arguments in place and returns the config.

  Raises:
    ConfigError: another argument, an unknown key or a value of a wrong type.
  """
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    if not argument.startswith('--'):
      raise ConfigError(f'unexpected argument {argument!r}; settings are '
                        '--config.KEY=VALUE')
    name, equals, value = argument.removeprefix('--').partition('=')
    if not name.startswith('config.'):
      raise ConfigError(
          f'unknown argument --{name}; settings are --config.KEY=VALUE')
    if not equals:
      if not rest or rest[0].startswith('--'):
        raise ConfigError(f'--{name} needs a value: --{name}=VALUE')
      value = rest.pop(0)
    changes = _parsed(value, _default_of(name))
    for part in reversed(name.split('.')[1:]):
      changes = {part: changes}
    overlay(config, changes)
  return config


def _default_of(name):
  """The default of a key, for its type; None where there is no such key."""
  node = _defaults()
  for part in name.split('.')[1:]:
    node = node.get(part) if isinstance(node, dict) else None
  return node


def _parsed(text: str, default: Any) -> Any:
  """What the text of a flag stands for; the text itself where it is nothing else."""
  if isinstance(default, str):
    return text
  if isinstance(default, bool) and text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    pass
  try:
    return float(text)  # 'nan' and 'inf', which are then refused by name.
  except ValueError:
    return text


def value(config: Any, key: str) -> Any:
  """The value of a dotted key."""
  for name in key.split('.'):
    config = config[name]
  return config.to_dict() if isinstance(config, ConfigDict) else config


def to_dict(config: ConfigDict) -> dict:
  """The config as plain JSON types."""
  return json.loads(config.to_json())


def differing_keys(one: dict, other: dict, path: str = '') -> list[str]:
  """Dotted names of the keys in which two nested dictionaries differ."""
  found = []
  for name in sorted({*one, *other}):
    full = f'{path}.{name}' if path else name
    a, b = one.get(name), other.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      found += differing_keys(a, b, full)
    elif a != b:
      found.append(f'{full} ({a!r} there, {b!r} now)')
  return found


def read(workdir: str | pathlib.Path) -> ConfigDict:
  """The config of the run or comparison in a directory.

  A key that is newer than the run has its default.

  Raises:
    ConfigError: There is none, or it has keys or types that this version does not know.
    CheckpointError: The file is damaged, or was edited.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.is_file():
    raise ConfigError(
        f'{workdir} holds no run ({FILE} is missing); --workdir is the directory that '
        '`rkd train` or `rkd compare` was given')
  content = files.read_json(path, _REMEDY)
  content.pop(INPUTS, None)
  try:
    return resolve(content)
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}. Was it written by another version?') from error


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Writes `config.json`, or checks that the directory is of this config.

  Raises:
    ConfigError: the directory holds a run of another config, or one of which no config
      is there.
  """
  path = workdir / FILE
  wanted = to_dict(config)
  if path.exists():
    keys = differing_keys(to_dict(read(workdir)), wanted)
    if keys:
      raise ConfigError(
          f'{workdir} holds a run with another config: {"; ".join(keys)}. '
          'Use another --workdir, or delete that one to start over')
    return
  found = [name for name in _MADE if (workdir / name).exists()]
  if found:
    raise ConfigError(
        f'{workdir} holds {" and ".join(found)}, but no {FILE} that says of which '
        f'config they are: put {FILE} back, or use another --workdir')
  files.write_json(path, wanted)


def claim_inputs(workdir: pathlib.Path, inputs: dict[str, str]) -> None:
  """Notes digests of what a run is made from, or checks that they are what was noted.

  Args:
    workdir: Directory of the run, with its `config.json`.
    inputs: {setting: digest of what it leads to}, such as {'data': ...}.

  Raises:
    ConfigError: Data or weights were exchanged since the run began.
  """
  path = workdir / FILE
  content = files.read_json(path, _REMEDY)
  noted = content.get(INPUTS, {})
  changed = [name for name, digest in inputs.items() if noted.get(name, digest) != digest]
  if changed:
    names = ', '.join(f'config.{name}' for name in changed)
    raise ConfigError(
        f'{workdir}: the content behind {names} is not what this run began with: put the '
        'old content back, or use another --workdir')
  if not noted.keys() >= inputs.keys():
    files.write_json(path, {**content, INPUTS: {**noted, **inputs}})
