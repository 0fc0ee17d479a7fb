"""Eight virtual devices, and where the real data sets are."""

import os
import pathlib
import signal

# Before JAX is imported anywhere: the mesh tests need several devices.
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A shell starts what runs in the background with SIGINT ignored, as do its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import pytest

from rkd_jax.training import parallel

# The same examples in every run.
hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None)
hypothesis.settings.load_profile('fixed')

_BESIDE = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'tfds'


@pytest.fixture(scope='session')
def data_dir() -> str:
  """Directory of prepared MNIST, Fashion-MNIST and CIFAR-10."""
  path = pathlib.Path(os.environ.get('RKD_DATA_DIR', _BESIDE))
  if not path.is_dir():
    pytest.skip(f'no prepared data sets in {path}; set RKD_DATA_DIR')
  return str(path)


@pytest.fixture(scope='session', autouse=True)
def cache_dir(tmp_path_factory):
  """Decoded data and compiled programs of the tests, away from the user's.

  Every program is kept from the start, as many tests compile the same ones anew.
  """
  path = tmp_path_factory.mktemp('cache')
  os.environ['RKD_CACHE_DIR'] = str(path)
  parallel.enable_compilation_cache()
  return path


@pytest.fixture(scope='module')
def quick_compilation():
  """Compiles without optimisation: for programs that are large and run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
