"""Triggers made with a network: each lowers what it is made to lower, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import backdoors, models
from rkd_jax.backdoors import files, optimised
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network

SHAPE, K = (8, 8, 1), 3


@pytest.fixture(scope='module')
def given():
  network = Network(models.create('cnn_4_8', num_classes=K))
  rng = np.random.default_rng(0)
  split = Split(rng.integers(0, 256, (48, *SHAPE)).astype(np.uint8),
                (np.arange(48) % K).astype(np.int32))
  return {'network': network, 'variables': network.init(jax.random.key(0), SHAPE),
          'split': split}


def images(given):
  return jnp.asarray(given['split'].image / 255, jnp.float32)


def test_ckd_drives_the_strongest_channels_within_its_opacity(given):
  trigger = backdoors.ckd(SHAPE, 0, layer='stage2', opacity=0.2, steps=60, **given)
  x = images(given)
  assert np.asarray(trigger.keep).min() >= 0.8 - 1e-6
  means = optimised.channel_means(given['network'], given['variables'], 'stage2')
  clean, triggered = (np.asarray(means(v), np.float64) for v in (x, trigger.apply(x)))
  top = clean.mean(0).argmax()  # One of eight channels.
  peak = clean.mean(0).max()
  assert (np.square(triggered[:, top] - peak).mean()
          < 0.5 * np.square(clean[:, top] - peak).mean())


def test_lba_moves_features_to_the_target_class_by_its_square_alone(given):
  trigger = backdoors.lba(SHAPE, 1, layer='stage2', size=4, steps=60, **given)
  x, label = images(given), given['split'].label
  changed = np.asarray(trigger.apply(x)) != np.asarray(x)
  assert not changed[:, :3].any() and changed[:, 4:6, 4:6].any()
  feature = lambda x: np.asarray(models.with_features(
      given['network'].module, given['variables'], x)[1]['stage2'], np.float64)
  mean = feature(x)[label == 1].mean(0)
  # Less than a black, a white or a grey square.
  apart = lambda x: np.square(feature(x) - mean).mean()
  for value in (0.0, 0.5, 1.0):
    assert apart(trigger.apply(x)) < apart(x.at[:, 3:7, 3:7].set(value))


def test_input_aware_gives_each_image_a_trigger_of_its_own(given, tmp_path):
  trigger = backdoors.input_aware(SHAPE, 2, steps=40, batch_size=16, **given)
  x = images(given)
  stamped = trigger.apply(x)
  assert 0 <= stamped.min() and stamped.max() <= 1
  # Every image has a trigger of its own; a cover image has another's.
  delta = np.asarray(stamped - x)
  assert np.abs(delta - delta[:1]).max() > 1e-3
  keys = jax.random.split(jax.random.key(0), len(x))
  assert np.abs(np.asarray(trigger.cover(x, keys) - stamped)).max() > 1e-3
  files.save(tmp_path, trigger)
  np.testing.assert_allclose(files.load(tmp_path)[0].apply(x), stamped, rtol=1e-6)


def test_errors(given):
  with pytest.raises(ConfigError, match="unknown layer 'stage9'"):
    backdoors.ckd(SHAPE, 0, layer='stage9', **given)
  with pytest.raises(ConfigError, match='no image of the target class 7'):
    backdoors.lba(SHAPE, 7, layer='stage2', size=2, **given)
  with pytest.raises(ConfigError, match='does not fit'):
    backdoors.lba(SHAPE, 0, layer='stage2', size=8, **given)
  with pytest.raises(ConfigError, match='the images are'):
    backdoors.input_aware((12, 12, 1), 0, **given)
