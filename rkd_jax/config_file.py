"""Config files: Python with a function `get_config(variant)`, run and checked."""

import importlib.machinery
import importlib.util
import pathlib
import traceback
from typing import Any

from rkd_jax import errors
from rkd_jax.errors import ConfigError


def read(spec: str) -> Any:
  """What the config file `path.py` or `path.py:variant` returns.

  The file defines `get_config(variant)`, which returns what differs from the defaults
  for '' and for each variant that its `VARIANTS` names. A colon in the path is part of
  it where there is such a file.

  Args:
    spec: Path, or path and variant; ~ is the home directory.

  Raises:
    ConfigError: No such file or variant, a file that raises, or one that does not
      return a mapping.
  """
  file, variant = _split(spec)
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(
      'rkd_config', importlib.machinery.SourceFileLoader('rkd_config', str(file))))
  _run(file, module.__spec__.loader.exec_module, module)
  if not callable(getattr(module, 'get_config', None)):
    raise ConfigError(f'{file} has no function get_config(variant)')
  variants = getattr(module, 'VARIANTS', ())
  if not isinstance(variants, list | tuple) or not all(
      isinstance(name, str) for name in variants):
    raise ConfigError(f'{file}: VARIANTS must be a tuple of names, got {variants!r:.80}')
  if variant and variant not in variants:
    raise errors.unknown_name(
        f'variant of {file}', variant, filter(None, variants))
  config = _run(file, module.get_config, variant)
  if not hasattr(config, 'keys'):
    raise ConfigError(f'{file}: get_config must return a mapping of what differs from '
                      f'the defaults, got a {type(config).__name__}')
  return config


def _split(spec: str) -> tuple[pathlib.Path, str]:
  """(the file, the variant); raises ConfigError where there is no such file."""
  path, _, variant = spec.rpartition(':')
  if '/' in variant:  # No variant, but part of the path.
    path = ''
  for name, chosen in ((spec, ''), (path, variant)):
    try:
      file = pathlib.Path(name).expanduser()
      if name and file.is_file():
        return file, chosen
    except (OSError, ValueError, RuntimeError):  # Too long, a null byte, no such home.
      continue
  file = pathlib.Path((path or spec).replace('\0', '?'))
  if len(str(file)) < 200 and file.is_dir():
    raise ConfigError(f'config file {file} is a directory; name a file in it')
  folder = file.parent if len(str(file)) < 200 and file.parent.is_dir() else (
      pathlib.Path('configs'))
  close = errors.nearest(file.name, [p.name for p in folder.glob('*.py')])
  hint = f'; nearest in {folder}: {", ".join(close)}' if close else ''
  raise ConfigError(f'config file {str(file):.200} does not exist{hint}')


def _run(file, fn, argument):
  """`fn(argument)` of the user's code, whatever goes wrong in it as one message."""
  try:
    return fn(argument)
  except KeyboardInterrupt:
    raise
  except SystemExit as error:
    raise ConfigError(f'{file} calls sys.exit({error.code!r}); a config file returns '
                      'settings and exits nowhere') from error
  except BaseException as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(file)]
    line = getattr(error, 'lineno', None) or (lines[-1] if lines else None)
    message = ' '.join(str(error).split())
    raise ConfigError(f'{file}{f", line {line}" if line else ""}: '
                      f'{type(error).__name__}: {message:.200}') from error
