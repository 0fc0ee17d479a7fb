"""rkd_jax: robust knowledge distillation in JAX.

    import rkd_jax as rkd
    results = rkd.run({'method': 'ciard', ...}, 'runs/mine')

Names are looked up when they are first used, so that `import rkd_jax` is quick
and a part of the library does not load the others.
"""

import importlib

__version__ = '0.1.0'

_MODULES = ('attacks', 'backdoors', 'bounds', 'certification', 'comparison', 'config',
            'data', 'detox', 'distill', 'errors', 'evaluation', 'experiment',
            'faithfulness', 'losses', 'models', 'quickstart', 'report', 'training')
_NAMES = {
    'run': 'rkd_jax.experiment',
    'evaluate': 'rkd_jax.experiment',
    'compare': 'rkd_jax.comparison',
    'default_config': 'rkd_jax.config',
}

__all__ = sorted((*_MODULES, *_NAMES))


def __getattr__(name):
  if name in _MODULES:
    return importlib.import_module(f'rkd_jax.{name}')
  if name in _NAMES:
    attribute = 'run' if name == 'compare' else name
    return getattr(importlib.import_module(_NAMES[name]), attribute)
  raise AttributeError(f'module rkd_jax has no attribute {name!r}')


def __dir__():
  return __all__
