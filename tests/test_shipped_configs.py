"""Every shipped config and variant passes the checks that go before a run."""

import pathlib

import numpy as np
import pytest

from rkd_jax import comparison, data, experiment, quickstart
from rkd_jax import config as configuration
from rkd_jax.data.dataset import Dataset, Split

ROOT = pathlib.Path(__file__).parents[1]
SHAPES = {'mnist': (28, 28, 1), 'fashion_mnist': (28, 28, 1), 'cifar10': (32, 32, 3),
          'cifar100': (32, 32, 3), 'digits': (8, 8, 1)}
LARGE = ('ciard_cifar10', 'compare_cifar10', 'robustkd_cifar10')
# Of the many tables of one file, one for each kind of table.
KINDS = ('fashion_mnist_badnets', 'fashion_mnist_lc', 'fashion_mnist_ckd', 'mnist_adba',
         'cifar10', 'smoke')


def is_large(name, variant):
  if name == 'robustkd_small':
    return not variant.startswith(KINDS)
  return name in LARGE and variant != 'smoke'


def shipped(*, large):
  for path in sorted((ROOT / 'configs').glob('*.py')):
    namespace = {}
    exec(path.read_text(), namespace)  # noqa: S102
    for variant in namespace['VARIANTS']:
      if is_large(path.stem, variant) == large:
        yield f'{path}:{variant}'


@pytest.fixture(autouse=True)
def blank_images(monkeypatch):
  """Data sets of the right shapes and numbers, without their files."""
  def load(name, *, data_dir, validation, train_examples, test_examples):
    classes = 100 if name == 'cifar100' else 10
    split = lambda count: Split(np.zeros((count, *SHAPES[name]), np.uint8),
                                np.arange(count, dtype=np.int32) % classes)
    held = round(50_000 * validation)
    return Dataset(name, classes, tuple(map(str, range(classes))), SHAPES[name],
                   split(train_examples or 50_000 - held), split(held),
                   split(test_examples or 10_000))
  monkeypatch.setattr(data, 'load', load)
  experiment.build._load_data.cache_clear()
  yield
  experiment.build._load_data.cache_clear()


def check(config):
  config = configuration.resolve({**config, 'devices': 1})
  if config.compare.students:
    plan = comparison.plan_of(config, ROOT, config.compare.seeds[0])
    comparison.check_students(config)
    comparison.check_effect(config, plan)
    comparison.check_plan(plan)
  else:
    experiment.check_effect(config)
    experiment.check(config)


@pytest.mark.parametrize(
    'spec', list(shipped(large=False)), ids=lambda s: s.rpartition('/')[2])
def test_the_checks_pass(spec):
  check(configuration.load_file(spec))


@pytest.mark.parametrize('config', [quickstart.CONFIG, quickstart.BACKDOOR])
def test_the_checks_pass_of_the_quickstart(config):
  check(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    'spec', list(shipped(large=True)), ids=lambda s: s.rpartition('/')[2])
def test_the_checks_pass_of_the_others(spec):
  check(configuration.load_file(spec))
