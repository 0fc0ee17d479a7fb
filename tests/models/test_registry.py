"""Names, sizes, parameter counts and the errors for what cannot be built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import models
from rkd_jax.errors import ConfigError

CIFAR = (32, 32, 3)


def count(name, num_classes=10, image_shape=CIFAR):
  variables = models.template(
      models.create(name, num_classes=num_classes), image_shape)
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables['params']))


def mlp_count(widths, inputs, classes):
  sizes = [inputs, *widths, classes]
  return sum(a * b + b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def padded_resnet_count(depth, classes):
  """He et al. 2015, section 4.2: 6n + 2 layers, shortcuts without parameters."""
  n = (depth - 2) // 6
  total = 27 * 16 + 2 * 16
  for previous, width in ((16, 16), (16, 32), (32, 64)):
    total += 9 * previous * width + (2 * n - 1) * 9 * width**2 + 2 * n * 2 * width
  return total + 64 * classes + classes


def wide_resnet_count(depth, k, classes):
  """Zagoruyko and Komodakis 2016, table 1, projections where widths change."""
  n, total, previous = (depth - 4) // 6, 27 * 16, 16
  for width in (16 * k, 32 * k, 64 * k):
    total += 9 * previous * width + (2 * n - 1) * 9 * width**2
    total += 2 * previous + (2 * n - 1) * 2 * width
    total += previous * width if previous != width else 0
    previous = width
  return total + 2 * previous + previous * classes + classes


def vgg_count(plan, classes):
  total, previous = 0, 3
  for width in plan:
    total += 9 * previous * width + 2 * width
    previous = width
  return total + previous * classes + classes


@pytest.mark.parametrize('name, published', [
    # The torch definitions customary for CIFAR, 10 classes.
    ('resnet18', 11_173_962),
    ('resnet34', 21_282_122),
    ('resnet50', 23_520_842),
    ('preact_resnet18', 11_171_146),
    ('mobilenet_v2', 2_296_922),
    # He et al. 2015, table 6, gives 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
    ('resnet20', 269_722),
    ('resnet56', 853_018),
    ('resnet110', 1_727_962),
    # Zagoruyko and Komodakis 2016, table 4: 36.5M; TRADES' WRN-34-10: 46.16M.
    ('wide_resnet28_10', 36_479_194),
    ('wide_resnet34_10', 46_160_474),
])
def test_published_parameter_counts(name, published):
  assert count(name) == published


@pytest.mark.slow
@pytest.mark.parametrize('name, published', [
    # Han et al. 2017, table 4, gives 3.8M, 28.3M and 26.6M in rounded numbers.
    ('pyramidnet110_a84', 3_904_446),
    ('pyramidnet110_a270', 28_485_477),
    ('pyramidnet200_a240_bottleneck', 26_752_702),
])
def test_published_parameter_counts_of_deep_pyramids(name, published):
  assert count(name) == published


@pytest.mark.parametrize('name, wanted', [
    ('mlp_256_256', mlp_count((256, 256), 3072, 10)),
    ('mlp_5', mlp_count((5,), 3072, 10)),
    # 4 x 4 convolutions: 32 -> 16 -> 8 pixels, then 100 units.
    ('cnn_16_32', 48 * 16 + 16 + 256 * 32 + 32 + mlp_count((100,), 64 * 32, 10)),
    ('cnn_pool_16_32', 27 * 16 + 16 + 144 * 32 + 32 + mlp_count((100,), 64 * 32, 10)),
    ('resnet8', padded_resnet_count(8, 10)),
    ('resnet44', padded_resnet_count(44, 10)),
    ('wide_resnet10_1', wide_resnet_count(10, 1, 10)),
    ('wide_resnet28_4', wide_resnet_count(28, 4, 10)),
    ('vgg11', vgg_count((64, 128, 256, 256, 512, 512, 512, 512), 10)),
    ('vgg16', vgg_count((64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6, 10)),
    ('vgg19', vgg_count((64,) * 2 + (128,) * 2 + (256,) * 4 + (512,) * 8, 10)),
])
def test_parameter_counts_by_formula(name, wanted):
  assert count(name) == wanted


def test_formulas_give_the_published_counts():
  assert padded_resnet_count(56, 10) == 853_018
  assert wide_resnet_count(34, 10, 10) == 46_160_474


def test_classes_and_channels_change_the_ends_alone():
  assert count('resnet18', 100) - count('resnet18', 10) == 90 * 513
  assert count('resnet20', 10, (28, 28, 1)) == count('resnet20') - 2 * 9 * 16


def test_every_listed_name_is_built_and_belongs_to_a_described_family():
  patterns = [pattern for pattern, _ in models.describe()]
  assert len(set(models.names())) == len(models.names())
  for name in models.names():
    assert models.create(name, num_classes=10).num_classes == 10
    assert any(name.startswith(pattern.split('<')[0]) for pattern in patterns)
  assert all(line and '\n' not in line for _, line in models.describe())


def test_a_module_is_a_value():
  first, second = (models.create('wide_resnet16_4', num_classes=10) for _ in 'ab')
  assert first == second and hash(first) == hash(second)
  assert first != models.create('wide_resnet16_4', num_classes=11)


@pytest.mark.parametrize('name, nearest', [
    ('resnet_18', 'resnet18'), ('wide_resnet28', 'wide_resnet28_4'),
    ('wrn_34_10', 'wide_resnet34_10'), ('mobilenet', 'mobilenet_v2'),
    ('vgg16_bn', 'vgg16'), ('mlp', 'mlp_'), ('resnet18 ', 'resnet18'),
])
def test_unknown_names_get_the_nearest(name, nearest):
  with pytest.raises(ConfigError, match=nearest) as caught:
    models.create(name, num_classes=10)
  assert repr(name) in str(caught.value)


@pytest.mark.parametrize('name, valid', [
    ('wide_resnet27_4', r'6 n \+ 4: 10, 16, 22, 28'),
    ('wide_resnet4_4', r'6 n \+ 4'),
    ('wide_resnet28_0', '>= 1'),
    ('resnet19', r'18, 34, 50, 101, 152, or 6 n \+ 2: 8, 14, 20'),
    ('resnet2', r'6 n \+ 2'),
    ('preact_resnet50', '18 or 34'),
    ('pyramidnet111_a84', r'6 n \+ 2'),
    ('pyramidnet111_a84_bottleneck', '111.* 9 n \\+ 2: 11, 20'),
    ('pyramidnet110_a0', '>= 1'),
    ('vgg12', '11, 13, 16, 19'),
    ('mlp_16_0', '>= 1'),
    ('cnn_0', '>= 1'),
])
def test_sizes_that_cannot_be_built_say_what_can(name, valid):
  with pytest.raises(ConfigError, match=valid) as caught:
    models.create(name, num_classes=10)
  assert repr(name) in str(caught.value)


@pytest.mark.parametrize('settings, word', [
    ({'num_classes': 1}, '>= 2'), ({'num_classes': 2.0}, 'integer'),
    ({'num_classes': 10, 'dtype': jnp.int32}, 'floating'),
])
def test_other_settings_are_checked(settings, word):
  with pytest.raises(ConfigError, match=word):
    models.create('resnet18', **settings)
