"""The settings of an experiment: every key, its default, and how they merge."""

import importlib.util
import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rkd_jax import distill, errors, files
from rkd_jax.errors import ConfigError

# Stands in `teachers.*.run` for the directory of the run whose config it is.
WORKDIR = '{workdir}'
FILE = 'config.json'  # In the directory of a run.
_REMEDY = ('put it back from a copy (the line "digest" may be deleted to take the file '
           'as it is), or start over in another directory')
INPUTS = 'inputs'  # In that file: digests of what the run was made from.

# Below these keys a config holds part of the config of another run, or arguments
# of a function, whose keys are checked where they are used.
_FREE = ('teachers.clean.overrides', 'teachers.robust.overrides',
         'teachers.poisoned.overrides', 'backdoor.options', 'backdoor.test_options',
         'detox.options')


def default_config() -> ConfigDict:
  """Every key with its default; a config file holds what differs from it."""
  config = ConfigDict({
      'seed': 0,
      'devices': 0,  # How many to share a batch out over; 0: all.
      'model': 'cnn_16_32',
      'dtype': 'float32',  # Of the computation; 'bfloat16' on accelerators.
      'method': 'rslad',
      'data': {
          'name': 'digits',
          'data_dir': '',  # Prepared TFDS directory, npz file or image folder.
          'validation': 0.1,  # Share of the training images held out.
          'train_examples': 0,  # Use so many only; 0: all.
          'test_examples': 0,
          'augmentation': 'none',
      },
      'attack': {  # The inner maximisation while training.
          'norm': 'linf',
          'eps': 8 / 255,
          'step_size': 2 / 255,
          'steps': 10,
          'eps_warmup': 0.0,  # Share of the training in which eps grows from 0.
      },
      'optimizer': {
          'name': 'sgd',
          'learning_rate': 0.1,
          'momentum': 0.9,
          'nesterov': False,
          'weight_decay': 2e-4,
          'clip_norm': 0.0,  # Global gradient norm to clip to; 0: off.
      },
      'schedule': {
          'name': 'cosine',
          'warmup': 0.0,  # Share of the training.
          'milestones': (215 / 300, 260 / 300, 285 / 300),  # For 'step'.
          'factor': 0.1,
          'start': 0.5,  # For 'ciard': share after which the rate falls.
      },
      'averaging': {  # Of the student's weights; the average is what is judged.
          'name': 'none',  # 'ema' (every step) or 'swa' (every epoch's end).
          'decay': 0.995,  # For 'ema'.
          'start': 0.5,  # Share of the training after which it starts.
      },
      'awp': {  # Adversarial weight perturbation, around any method.
          'gamma': 0.0,  # Relative to each layer's weights, 0.005 to 0.01; 0: off.
          'start': 0.0,  # Share of the training after which it starts.
      },
      'train': {
          'epochs': 10,
          'batch_size': 128,
          'scan_steps': 32,  # At most so many steps in one compiled call.
          'checkpoint_every': 1,  # Epochs.
      },
      'validation': {
          'every': 1,  # Epochs.
          'examples': 1000,  # At most; 0: all.
          'attack': 'pgd10',
      },
      'backdoor': {  # Poisons the training data of this run.
          'trigger': '',  # See `rkd list`; '': off.
          'options': {},  # Arguments of the trigger, such as {'size': 4}.
          'test_options': {},  # Those that differ when it is used, not trained on.
          'target': 0,
          'mode': 'all_to_one',  # Or 'all_to_all'.
          'rate': 0.1,  # In (0, 1]; of the target class's images for clean labels.
          'cover': -1.0,  # Cover images for each poisoned one; < 0: as published.
          'hardening': 8 / 255,  # For lc: L-inf radius in which images are made hard.
          'copies': False,  # Keep the clean originals of poisoned images too.
          'decoys': 0,  # Other classes with a trigger each, so that none stands out.
          'layer': 'stage2',  # For ckd and lba: whose features they are made for.
          'start': '',  # Weights to start from: a safetensors file, or 'source'.
      },
      'teachers': {'clean': _teacher(), 'robust': _teacher(),
                   'poisoned': _teacher()},
      'single_teacher': 'robust',  # Who teaches where a method has one teacher.
      'detox': {  # What is done to a teacher before anybody learns from it.
          'method': '',  # See `rkd list`; '': nothing.
          'options': {},  # Settings of the method.
          'teacher': 'poisoned',  # Which of the teachers.
          'share': 0.05,  # Of the training images: the clean data that it takes.
      },
      'evaluation': {
          'attacks': ('clean', 'fgsm', 'pgd20', 'pgd20_small', 'cw30',
                      'transfer'),
          'examples': 0,  # Of the test split; 0: all.
          'batch_size': 500,
      },
      'compare': {  # For `rkd compare`: several students of the same teachers.
          'students': (),  # ((name, what to change in this config), ...)
          'seeds': (0, 1, 2),
      },
  })
  for name in distill.METHODS:
    config[name] = dict(distill.defaults(name))
  return config


def _teacher() -> dict:
  return {
      'run': '',  # Directory of a finished run ('{workdir}': of this one),
      'weights': '',  # or a safetensors file,
      'model': '',  # with the model it is of,
      'overrides': {},  # or, without these, what to change here to train it.
      'trigger': '',  # With `weights`: a directory `backdoor` of another run.
  }


def resolve(config: Any = None) -> ConfigDict:
  """A complete config: the defaults with `config` laid over them.

  Args:
    config: a ConfigDict or mapping that holds any part of the keys.

  Raises:
    ConfigError: a key that does not exist (the nearest ones are named) or a
      value of another type than the default's.
  """
  resolved = default_config()
  overlay(resolved, config or {})
  return resolved


def overlay(config: ConfigDict, changes: Any, path: str = '') -> None:
  """Lays nested `changes` over `config`, in place; see `resolve`."""
  if path in _FREE:
    for name in changes:
      config[name] = changes[name]
    return
  for name in changes:
    full = f'{path}.{name}' if path else name
    if name not in config:
      close = errors.nearest(name, config) or sorted(config)
      raise ConfigError(
          f'config.{full} does not exist; nearest: '
          + ', '.join(f'config.{path + "." if path else ""}{c}' for c in close))
    value, default = changes[name], config[name]
    if isinstance(default, ConfigDict):
      if not hasattr(value, 'keys'):
        raise ConfigError(f'config.{full} holds keys '
                          f'({", ".join(default)}), got the value {value!r}')
      overlay(default, value, full)
    else:
      config[name] = _cast(full, value, default)


def _cast(path: str, value: Any, default: Any) -> Any:
  wanted = type(default)
  if wanted is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if wanted is tuple and isinstance(value, list):
    return tuple(value)
  if type(value) is not wanted:
    raise ConfigError(f'config.{path} must be {wanted.__name__} like its '
                      f'default {default!r}, got {value!r}')
  return value


def load_file(spec: str) -> ConfigDict:
  """The config of a file `path.py` or `path.py:variant`, complete.

  The file defines `get_config(variant)`, which returns what differs from the
  defaults for '' and for each variant that its docstring names.
  """
  path, _, variant = spec.partition(':')
  file = pathlib.Path(path)
  if not file.is_file():
    folder = file.parent if file.parent.is_dir() else pathlib.Path('configs')
    close = errors.nearest(file.name, [p.name for p in folder.glob('*.py')])
    hint = f'; nearest in {folder}: {", ".join(close)}' if close else ''
    raise ConfigError(f'config file {path} does not exist{hint}')
  module_spec = importlib.util.spec_from_file_location('rkd_config', file)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{path} has no function get_config(variant)')
  variants = getattr(module, 'VARIANTS', ())
  if variant and variant not in variants:
    raise errors.unknown_name(
        f'variant of {path}', variant, filter(None, variants))
  return resolve(module.get_config(variant))


def apply_flags(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """Applies `--config.a.b=value` arguments in place and returns the config.

  Raises:
    ConfigError: another argument, an unknown key or a value of a wrong type.
  """
  names = [arg.removeprefix('--').partition('=')[0] for arg in arguments
           if arg.startswith('--')]
  for name in names:
    if not name.startswith('config.'):
      raise ConfigError(
          f'unknown argument --{name}; settings are --config.KEY=VALUE')
    _check_exists(config, name.removeprefix('config.'))
  argv = ['rkd', *arguments]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, lock_config=False, sys_argv=argv)
  try:
    rest = values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error
  if len(rest) > 1:
    raise ConfigError(f'unexpected argument {rest[1]!r}; settings are '
                      '--config.KEY=VALUE')
  return config


def _check_exists(config: ConfigDict, path: str) -> None:
  node, seen = config, 'config'
  for part in path.split('.'):
    if not isinstance(node, ConfigDict) or part not in node:
      known = list(node) if isinstance(node, ConfigDict) else []
      close = errors.nearest(part, known) or sorted(known)
      raise ConfigError(f'config.{path} does not exist; nearest: '
                        + ', '.join(f'{seen}.{c}' for c in close))
    node, seen = node[part], f'{seen}.{part}'


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
    ConfigError: the directory holds a run of another config, or other files.
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
