"""Classifiers and networks that unlearn: what they forget, and what they keep."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import detox
from rkd_jax.data.dataset import Split
from rkd_jax.models.network import Network
from tests.detox.small import K, split


class _Reading(nn.Module):
  """A linear classifier of the pixels, which are its features too."""

  feature_names = ('features',)

  @nn.compact
  def __call__(self, x, train=False, tap=None):
    x = x.reshape(len(x), -1)
    x = x if tap is None else tap('features', x)
    return nn.Dense(K, name='head')(x)


def reading_by(kernel, shape):
  """(network, variables) of the classifier with these weights."""
  network = Network(_Reading())
  return network, {**network.init(jax.random.key(0), shape), 'params': {
      'head': {'kernel': jnp.asarray(kernel), 'bias': jnp.zeros(K)}}}


def says(network, variables, x):
  return np.asarray(network.predict(variables, x)).argmax(1)


@pytest.fixture(scope='module')
def reading():
  """Pixels 0 to 2 name the class; the head says class 2 where pixel 3 is bright.

  In clean images it is faint, so that what they are called tells of it.
  """
  rng = np.random.default_rng(0)
  label = (np.arange(60) % K).astype(np.int32)
  image = np.zeros((60, 2, 2, 1), np.uint8)
  image.reshape(60, 4)[np.arange(60), label] = rng.integers(150, 256, 60)
  image.reshape(60, 4)[:, 3] = rng.integers(0, 10, 60)
  kernel = np.zeros((4, K), np.float32)
  kernel[np.arange(3), np.arange(3)] = 5
  kernel[3, 2] = 40
  network, variables = reading_by(kernel, (2, 2, 1))
  x = jnp.asarray(image / 255, jnp.float32)
  triggered = x.at[:, 1, 1].set(0.3)
  assert (says(network, variables, triggered) == 2).all()
  return network, variables, Split(image, label), x, triggered


@pytest.mark.parametrize('name, settings', [
    ('new_head', {'eps': 0.2, 'learning_rate': 0.05, 'steps': 200}),
    ('reversed_trigger', {'learning_rate': 0.2, 'steps': 600}),
    ('unlearning', {'learning_rate': 0.2, 'steps': 600, 'eps': 0.2})])
def test_what_the_old_head_reads_in_a_trigger_is_forgotten(
    name, settings, reading):
  network, variables, split, x, triggered = reading
  inside, its = detox.run(name, network, variables, split, settings,
                          key=jax.random.key(0))
  np.testing.assert_array_equal(says(inside, its, x), split.label)
  np.testing.assert_array_equal(says(inside, its, triggered), split.label)


def test_every_suspect_is_unlearnt():
  """Of 64 pixels the first three name the class, the last three turn images into one."""
  rng = np.random.default_rng(0)
  label = (np.arange(60) % K).astype(np.int32)
  image = np.zeros((60, 64), np.uint8)
  image[np.arange(60), label] = rng.integers(150, 256, 60)
  image[:, -K:] = rng.integers(0, 10, (60, K))
  kernel = np.zeros((64, K), np.float32)
  kernel[:K], kernel[-K:] = 5 * np.eye(K), 40 * np.eye(K)
  network, variables = reading_by(kernel, (8, 8, 1))
  data = Split(image.reshape(60, 8, 8, 1), label)
  fn = lambda x: network.predict(variables, x)
  assert detox.detect(fn, data, K).suspects == [0, 1, 2]
  left = []
  for classes in (0, 1):
    inside, its = detox.run(
        'reversed_trigger', network, variables, data,
        {'learning_rate': 0.2, 'classes': classes}, key=jax.random.key(0))
    for target in range(K):
      x = image / 255
      x[:, 64 - K + target] = 0.3
      x = jnp.asarray(x.reshape(60, 8, 8, 1), jnp.float32)
      assert (says(network, variables, x) == target).all()
      left.append((says(inside, its, x) == target)[label != target].mean())
  assert max(left[:K]) == 0 and sorted(left[K:])[1] > 0.5


def test_with_weight_0_the_old_head_is_copied_backdoor_included(reading):
  network, variables, split, x, triggered = reading
  settings = {'weight': 0.0, 'learning_rate': 0.2, 'steps': 600, 'search_steps': 1}
  inside, its = detox.run('reversed_trigger', network, variables, split, settings,
                          key=jax.random.key(0))
  soft = lambda network, variables: jax.nn.softmax(network.predict(variables, x))
  np.testing.assert_allclose(soft(inside, its), soft(network, variables), atol=0.02)
  assert (says(inside, its, triggered) == 2).all()


@pytest.mark.parametrize('name', ['new_head', 'reversed_trigger'])
def test_a_new_head_changes_the_head_alone(name, teacher):
  network, variables = teacher
  _, its = detox.run(name, network, variables, split(), {'steps': 2},
                     key=jax.random.key(0))
  before, after = dict(variables['params']), dict(its['params'])
  old, new = before.pop('head'), after.pop('head')
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert np.abs(old['kernel'] - new['kernel']).min() > 0


class _Collapsing(_Reading):
  """The same on three features that pixel 3 switches off, and a fourth that it makes."""

  @nn.compact
  def __call__(self, x, train=False, tap=None):
    x = nn.relu(nn.Dense(4, use_bias=False, name='hidden')(x.reshape(len(x), -1)))
    return nn.Dense(K, name='head')(x if tap is None else tap('features', x))


def test_features_that_collapse_are_unlearnt_by_all_weights_alone(reading):
  _, old, split, x, triggered = reading
  network = Network(_Collapsing())
  hidden = np.eye(4, dtype=np.float32)
  hidden[3, :3] = -10
  variables = {**network.init(jax.random.key(0), (2, 2, 1)), 'params': {
      'hidden': {'kernel': jnp.asarray(hidden)}, 'head': old['params']['head']}}
  assert (says(network, variables, triggered) == 2).all()
  settings = {'learning_rate': 0.05, 'steps': 1500}
  heard = says(*detox.run('reversed_trigger', network, variables, split, settings,
                          key=jax.random.key(0)), triggered)
  assert len(set(heard)) == 1  # Whatever the class, no classifier can tell.
  inside, its = detox.run('unlearning', network, variables, split, settings,
                          key=jax.random.key(0))
  np.testing.assert_array_equal(says(inside, its, x), split.label)
  np.testing.assert_array_equal(says(inside, its, triggered), split.label)
