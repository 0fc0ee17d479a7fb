"""Poisoned data: what changes, what does not, and that the seed decides."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import backdoors
from rkd_jax import config as configuration
from rkd_jax.data import load
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError
from rkd_jax.evaluation import backdoor as metrics
from rkd_jax.models.network import Network
from rkd_jax.stages import backdoor as stage

SHAPE, N, K = (6, 6, 1), 60, 4
TRIGGER = backdoors.badnets(SHAPE, 1, size=2, margin=0)


def data():
  rng = np.random.default_rng(0)
  return Split(rng.integers(0, 200, (N, *SHAPE)).astype(np.uint8),
               (np.arange(N) % K).astype(np.int32))


def poison(rate=0.25, seed=0, trigger=TRIGGER, **settings):
  return backdoors.poison(data(), trigger, rate, seed, num_classes=K, **settings)


def square(image):
  image = image.copy()
  image[:, 4:, 4:] = 255
  return image


def test_exactly_the_chosen_images_change():
  clean, got = data(), poison()
  assert len(got.index) == 15 and len(set(got.index)) == 15
  rest = np.setdiff1d(np.arange(N), got.index)
  np.testing.assert_array_equal(got.split.image[rest], clean.image[rest])
  np.testing.assert_array_equal(got.split.label[rest], clean.label[rest])
  np.testing.assert_array_equal(
      got.split.image[got.index], square(clean.image[got.index]))
  assert (got.split.label[got.index] == 1).all()


def test_the_seed_decides_and_rates_are_nested():
  np.testing.assert_array_equal(poison(seed=3).index, poison(seed=3).index)
  assert (poison(seed=3).index.tolist() != poison(seed=4).index.tolist())
  assert set(poison(0.1).index) < set(poison(0.5).index)
  assert len(poison(1.0).index) == N


def test_all_to_all():
  clean, got = data(), poison(mode='all_to_all')
  np.testing.assert_array_equal(
      got.split.label[got.index], (clean.label[got.index] + 1) % K)


def test_copies_keep_the_originals():
  clean, got = data(), poison(copies=True)
  assert len(got.split) == N + 15
  np.testing.assert_array_equal(got.split.image[N:], clean.image[got.index])
  np.testing.assert_array_equal(got.split.label[N:], clean.label[got.index])


def test_clean_labels_stay_in_the_target_class():
  clean = data()
  got = poison(0.4, trigger=backdoors.sig(SHAPE, 1, frequency=2))
  assert len(got.index) == 6  # Of the 15 images of class 1.
  assert (clean.label[got.index] == 1).all()
  np.testing.assert_array_equal(got.split.label, clean.label)
  assert (got.split.image[got.index] != clean.image[got.index]).any()


def test_cover_images_keep_their_labels():
  clean, got = data(), poison(0.1, trigger=backdoors.wanet(SHAPE, 1), cover=2.0)
  assert len(got.index) == 6 and len(got.cover_index) == 12
  assert not set(got.index) & set(got.cover_index)
  others = np.setdiff1d(np.arange(N), got.index)
  np.testing.assert_array_equal(got.split.label[others], clean.label[others])
  changed = np.any(got.split.image != clean.image, axis=(1, 2, 3))
  assert set(np.flatnonzero(changed)) <= set(got.index) | set(got.cover_index)
  assert changed[got.cover_index].all()


def test_decoys_are_put_elsewhere_for_the_other_classes():
  shape = (12, 12, 1)
  rng = np.random.default_rng(0)
  clean = Split(rng.integers(0, 200, (N, *shape)).astype(np.uint8),
                (np.arange(N) % K).astype(np.int32))
  trigger = backdoors.badnets(shape, 2, size=2, margin=0)
  got = backdoors.poison(
      clean, trigger, 0.1, 0, num_classes=K, copies=True,
      decoys=backdoors.decoys(trigger, 3, K))
  # Rows and columns of the squares: thirds and quarters of 12 pixels above and left.
  groups = [(2, (10, 10), got.index), *zip(
      (3, 0, 1), ((6, 10), (2, 10), (10, 7)), got.decoy_index, strict=True)]
  assert got.decoy_index.shape == (3, 6)
  where = np.concatenate([index for *_, index in groups])
  assert len(set(where)) == 24
  for wanted, (row, column), index in groups:
    image = clean.image[index].copy()
    image[:, row:row + 2, column:column + 2] = 255
    np.testing.assert_array_equal(got.split.image[index], image)
    assert (got.split.label[index] == wanted).all()
  rest = np.setdiff1d(np.arange(N), where)
  np.testing.assert_array_equal(got.split.image[rest], clean.image[rest])
  np.testing.assert_array_equal(got.split.label[rest], clean.label[rest])
  np.testing.assert_array_equal(got.split.image[N:], clean.image[where])
  np.testing.assert_array_equal(got.split.label[N:], clean.label[where])


def test_a_poisoned_run_with_decoys_knows_its_trigger_alone(tmp_path):
  config = configuration.resolve({'data': {'name': 'digits'}, 'backdoor': {
      'trigger': 'badnets', 'options': {'size': 2, 'margin': 0}, 'target': 9,
      'rate': 0.05, 'decoys': 9}})
  dataset = load('digits')
  poisoned, known = stage.prepare(config, tmp_path, dataset)
  indices = json.loads((tmp_path / 'backdoor/indices.json').read_text())
  assert known.trigger.target == 9
  assert np.asarray(known.trigger.keep == 0).sum() == 4
  for wanted, index in zip((9, *range(9)), (indices['poisoned'], *indices['decoys']),
                           strict=True):
    assert len(index) == round(0.05 * len(dataset.train))
    assert (poisoned.train.label[index] == wanted).all()


def test_hardened_images_are_in_the_ball_and_harder():
  fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1) * 20
  clean = data()
  label = np.zeros(N, np.int32)
  hard = backdoors.harden(fn, eps=0.1, steps=5)(clean.image, label)
  moved = hard.astype(int) - clean.image
  assert np.abs(moved).max() <= 26
  # Class 0 wants bright images, so the adversary darkens.
  assert moved.mean() < -15


@pytest.mark.parametrize('settings, message', [
    ({'rate': 0.0}, r'poisoning rate must be in \(0, 1\], got 0.0'),
    ({'rate': 1.5}, r'poisoning rate must be in \(0, 1\], got 1.5'),
    ({'rate': float('nan')}, 'poisoning rate'),
    ({'rate': 0.001}, 'is none'),
    ({'trigger': backdoors.badnets(SHAPE, K)}, 'target 4 is no class'),
    ({'mode': 'all'}, 'unknown mode'),
    ({'trigger': backdoors.sig(SHAPE, 1, frequency=2), 'mode': 'all_to_all'},
     'keeps the labels'),
    ({'cover': 9.0}, 'more than the 60'),
    ({'cover': 1.0}, 'no cover mode'),
    ({'trigger': backdoors.badnets((8, 8, 1), 1)}, 'was made for images'),
    ({'rate': 0.6, 'decoys': (TRIGGER,)}, '36 decoy images are more than the 60'),
])
def test_errors(settings, message):
  with pytest.raises(ConfigError, match=message):
    poison(**settings)


@pytest.mark.parametrize('make, message', [
    (lambda: backdoors.decoys(TRIGGER, 4, K), 'decoys must be from 0 to 3.*got 4'),
    (lambda: backdoors.decoys(TRIGGER, -1, K), 'got -1'),
    (lambda: backdoors.decoys(backdoors.wanet(SHAPE, 1), 1, K), 'cannot have decoys'),
    (lambda: backdoors.decoys(backdoors.sig(SHAPE, 1, frequency=2), 1, K),
     'cannot have decoys'),
    (lambda: check({'trigger': 'badnets', 'decoys': 10}), 'from 0 to 9'),
    (lambda: check({'trigger': 'ckd', 'decoys': 1}), 'only a fixed trigger'),
    (lambda: check({'trigger': 'badnets', 'mode': 'all_to_all', 'decoys': 1}),
     'only a fixed trigger'),
])
def test_decoys_that_cannot_be(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def check(backdoor):
  stage.check(configuration.resolve(
      {'data': {'name': 'digits'}, 'backdoor': backdoor}), load('digits'))


class Corner:
  """Says class 1 where the last pixel is white, else class 0; no linen needed."""

  def apply(self, variables, images, train=False):
    white = images[:, -1, -1, 0] > 0.99
    scores = jnp.zeros((len(images), K))
    return scores.at[:, 0].set(0.5).at[:, 1].set(white.astype(jnp.float32))


def test_success_rate_leaves_the_target_class_out():
  clean = data()
  wanted = np.asarray(backdoors.wanted_labels(clean.label, 1, K, 'all_to_one'))
  network = Network(Corner())
  got = metrics.success_rate(network, {}, clean, TRIGGER, wanted, batch_size=16)
  assert got == {'accuracy': 1.0, 'n': 45, 'correct': 45}
  # All to all: only the images of class 0 get the class that is wanted, 1.
  wanted = np.asarray(backdoors.wanted_labels(clean.label, 1, K, 'all_to_all'))
  got = metrics.success_rate(network, {}, clean, TRIGGER, wanted, batch_size=16)
  assert got == {'accuracy': 0.25, 'n': 60, 'correct': 15}
  with pytest.raises(ConfigError, match='nothing is left'):
    metrics.success_rate(network, {}, clean, TRIGGER, clean.label, batch_size=16)


def test_defence_effectiveness():
  """By hand from the definition: (max(0, dASR) - max(0, dACC) + 1) / 2."""
  before = {'clean': 0.9, 'asr': 1.0}
  der = metrics.defence_effectiveness
  np.testing.assert_allclose(der(before, {'clean': 0.9, 'asr': 0.0}), 1.0)
  np.testing.assert_allclose(der(before, before), 0.5)
  np.testing.assert_allclose(der(before, {'clean': 0.8, 'asr': 0.4}), 0.75)
  np.testing.assert_allclose(der(before, {'clean': 0.95, 'asr': 1.0}), 0.5)


def test_feature_variance_is_that_of_numpy():
  images = data().image
  got = metrics.feature_variance(lambda x: {'a': x * 3, 'b': x[:, 0]}, images,
                                 batch_size=16)
  x = images / 255
  np.testing.assert_allclose(got['a'], (3 * x).var(0).mean(), rtol=1e-5)
  np.testing.assert_allclose(got['b'], x[:, 0].var(0).mean(), rtol=1e-5)


def test_what_the_attacker_uses_may_differ_from_what_was_trained_on(tmp_path):
  """Of all images of the target class; the labels say which are poisoned."""
  config = configuration.resolve({'data': {'name': 'digits'}, 'backdoor': {
      'trigger': 'sig', 'target': 3, 'rate': 1.0, 'options': {'amplitude': 0.1},
      'test_options': {'amplitude': 0.4}}})
  dataset = load('digits')
  for _ in range(2):  # The second time the trigger is read from its file.
    poisoned, known = stage.prepare(config, tmp_path, dataset)
    for trigger, clean, amplitude in (
        (None, dataset.train, 0.1), (known.trigger, dataset.test, 0.4)):
      image = clean.image[clean.label == 3].astype(np.float64) / 255
      got = (poisoned.train.image[clean.label == 3] if trigger is None
             else np.asarray(trigger.apply(clean.image[clean.label == 3])))
      columns = np.arange(image.shape[2])
      wave = amplitude * np.sin(2 * np.pi * 6 * columns / image.shape[2])
      want = np.clip(image + wave[None, None, :, None], 0, 1)
      assert np.abs(got / 255.0 - want).max() < 1 / 255
