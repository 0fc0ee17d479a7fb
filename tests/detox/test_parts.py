"""Pieces of the defences against their definitions, in float64 NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rkd_jax import detox, models
from rkd_jax.data.dataset import Split
from rkd_jax.detox import anp, ft_sam, i_bau, layers, universal
from rkd_jax.detox.descent import repeat
from rkd_jax.errors import ConfigError
from rkd_jax.losses import features
from rkd_jax.models import masked
from rkd_jax.models.network import Network
from tests.detox.small import SHAPE, K, split


def test_masked_features_feed_what_follows(teacher):
  """Against the same network, continued by hand in NumPy from its second stage."""
  network, variables = teacher
  x = jnp.asarray(split(4).image / 255, jnp.float32)
  rng = np.random.default_rng(1)
  mask, reference = rng.uniform(size=(2, 2, 2, 4))
  inside, its = masked.wrap(network, variables, {'stage2': {
      'mask': jnp.asarray(mask, jnp.float32),
      'reference': jnp.asarray(reference, jnp.float32)}})
  _, seen = models.with_features(network.module, variables, x)
  feature = (1 - mask) * np.asarray(seen['stage2'], np.float64) + mask * reference
  p = variables['params']
  hidden = np.maximum(
      feature.reshape(4, -1) @ p['dense']['kernel'] + p['dense']['bias'], 0)
  wanted = hidden @ p['head']['kernel'] + p['head']['bias']
  np.testing.assert_allclose(inside.predict(its, x), wanted, rtol=1e-3, atol=1e-4)
  got = models.with_features(inside.module, its, x)[1]
  np.testing.assert_allclose(got['stage2'], feature, rtol=1e-4, atol=1e-5)
  module, own = masked.unwrap(inside.module, its)
  assert module == network.module
  jax.tree.map(np.testing.assert_array_equal, own, variables)


def test_masks_cascade(teacher):
  """A mask of 1 at the first stage makes all images alike from there on."""
  network, variables = teacher
  x = jnp.asarray(split(4).image / 255, jnp.float32)
  inside, its = masked.wrap(network, variables, {
      'stage1': {'mask': jnp.ones(3), 'reference': jnp.full(3, 0.3)},
      'stage2': {'mask': jnp.full(4, 0.5), 'reference': jnp.zeros(4)}})
  seen = models.with_features(inside.module, its, x)[1]
  np.testing.assert_allclose(seen['stage1'], 0.3, rtol=1e-6)
  np.testing.assert_allclose(
      seen['stage2'], np.broadcast_to(seen['stage2'][:1], (4, 2, 2, 4)), rtol=1e-6)
  with pytest.raises(ConfigError, match='no tapped layer'):
    masked.wrap(network, variables, {'stage3': {'mask': 0, 'reference': 0}})


def test_averages_are_those_of_numpy(teacher):
  network, variables = teacher
  data = split(30)
  got = layers.average(network, variables, data.image, batch_size=8)
  seen = models.with_features(
      network.module, variables, jnp.asarray(data.image / 255, jnp.float32))[1]
  for name in network.module.feature_names:
    np.testing.assert_allclose(
        got[name], np.asarray(seen[name], np.float64).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('over, axes', [
    ('batch', 0), ('spatial', (1, 2)), ('channel', 3)])
def test_variance(over, axes):
  x = np.random.default_rng(0).normal(size=(5, 2, 3, 4))
  np.testing.assert_allclose(
      features.variance(jnp.asarray(x, jnp.float32), over), x.var(axes).mean(),
      rtol=1e-5)
  assert features.variance(jnp.ones((5, 4)), 'spatial') == 0


def test_negative_response_is_the_truncated_mean():
  """Against scipy's truncated normal distribution."""
  mean, std = np.array([0.0, 1.0, -2.0, 0.3]), np.array([1.0, 0.8, 0.5, 2.0])
  wanted = stats.truncnorm.mean(-np.inf, -mean / std, loc=mean, scale=std)
  got = features.negative_response(
      jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
  np.testing.assert_allclose(got, wanted, rtol=1e-4)
  # Practically never negative: three deviations below zero, as in the public code.
  assert features.negative_response(jnp.float32(10.0), jnp.float32(1.0)) == -3


def test_overhaul_counts_what_it_should():
  teacher = jnp.array([[2.0, -5.0, -5.0, -0.5]])
  student = jnp.array([[1.0, -3.0, -0.5, 0.5]])
  # Targets 2, -1, -1, -0.5: (1)^2, undercut: 0, (0.5)^2, (1)^2.
  np.testing.assert_allclose(features.overhaul(student, teacher, -1.0), [2.25])


def test_attention_by_hand():
  rng = np.random.default_rng(0)
  s, t = rng.normal(size=(2, 2, 3, 3, 4))
  def attended(f):
    q = (f**2).mean(-1).reshape(2, -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)
  wanted = ((attended(s) - attended(t))**2).mean(1)
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  np.testing.assert_allclose(features.attention(f32(s), f32(t)), wanted, rtol=1e-4)
  # Blind to scale and to the number of channels.
  np.testing.assert_allclose(
      features.attention(f32(s), f32(np.concatenate([3 * s, 3 * s], -1))), 0, atol=1e-9)
  with pytest.raises(ConfigError, match='one size'):
    features.attention(f32(s), f32(t[:, :2]))


def test_worst_nearby_maximises_the_linear_loss_in_its_ellipsoid():
  rng = np.random.default_rng(0)
  w = {'a': jnp.asarray(rng.normal(size=5)), 'b': jnp.asarray(rng.normal(size=3))}
  g = {'a': jnp.asarray(rng.normal(size=5)), 'b': jnp.asarray(rng.normal(size=3))}
  found = ft_sam.worst_nearby(w, g, 0.7)
  flat = lambda tree: np.concatenate([np.asarray(v) for v in tree.values()])
  step = flat(found) - flat(w)
  # In the ellipsoid || step / |w| || <= rho, and no random point of it is better.
  np.testing.assert_allclose(np.linalg.norm(step / np.abs(flat(w))), 0.7, rtol=1e-5)
  for _ in range(200):
    other = rng.normal(size=8)
    other *= 0.7 / np.linalg.norm(other)
    assert flat(g) @ (np.abs(flat(w)) * other) <= flat(g) @ step + 1e-9


def test_hypergradient_of_a_quadratic():
  """min_w of 0.5 |A d(w)|^2 with d(w) = w / (1 - c): known in closed form."""
  matrix = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
  w, c = jnp.array([0.5, -1.0, 2.0]), 0.5
  loss = lambda w, d: 0.5 * jnp.sum(jnp.square(matrix @ d)) + jnp.sum(w)
  follow = lambda w, d: c * d + w
  delta = w / (1 - c)
  got = i_bau.hypergradient(loss, follow, w, delta, 40)
  np.testing.assert_allclose(
      got, matrix.T @ matrix @ delta / (1 - c) + 1, rtol=1e-4)
  np.testing.assert_allclose(i_bau.hypergradient(loss, follow, w, delta, 0), 1.0)


def test_moved_stays_in_the_radius():
  settings = i_bau.Settings(inner_rate=1.0, radius=1.5)
  delta = jnp.zeros(2)
  for _ in range(3):
    delta = i_bau.moved(lambda d: d @ jnp.array([3.0, 4.0]), delta, settings)
  np.testing.assert_allclose(delta, [0.9, 1.2], rtol=1e-5)


def test_channels_of_anp():
  flat = {('conv', 'kernel'): jnp.ones((2, 2, 1, 3)), ('conv', 'bias'): jnp.ones(3),
          ('head', 'kernel'): jnp.ones((3, 2))}
  assert anp.channel_weights(flat) == (('conv', 'kernel'),)
  assert anp.channel_weights({**flat, ('bn', 'scale'): jnp.ones(3)}) == (
      ('bn', 'scale'),)
  mask = {('conv', 'kernel'): jnp.array([1.0, 0.0, 0.5])}
  noise = {('conv', 'kernel'): {'weight': jnp.array([0.1, 0.2, 0.0]),
                                'bias': jnp.array([0.0, -0.5, 0.0])}}
  got = anp.perturbed(flat, (('conv', 'kernel'),), mask, noise)
  np.testing.assert_allclose(got['conv']['kernel'][0, 0, 0], [1.1, 0.2, 0.5], rtol=1e-6)
  np.testing.assert_allclose(got['conv']['bias'], [1, 0.5, 1])
  np.testing.assert_allclose(got['head']['kernel'], 1)


def test_universal_perturbations_descend_to_their_classes():
  fn = lambda x: x.reshape(len(x), -1)[:, :K] * 10  # Class k reads pixel k.
  images, labels = jnp.full((6, *SHAPE), 0.5), jnp.arange(6) % K
  classes = universal.assign(labels, K, jax.random.key(0))
  assert not (classes == labels).any() and (classes < K).all()
  deltas = jnp.zeros((K, *SHAPE))
  for _ in range(4):
    deltas = universal.ascend(fn, images, classes, deltas, eps=0.3, step_size=0.1)
  for k in set(np.asarray(classes).tolist()):
    pixels = np.asarray(deltas[k]).reshape(-1)[:K]
    np.testing.assert_allclose(pixels[k], 0.3, rtol=1e-5)
    np.testing.assert_allclose(np.delete(pixels, k), -0.3, rtol=1e-5)


def test_repeat_is_the_python_loop():
  def step(state, image, label, key):
    del key
    return state + image.sum() + label.sum()
  data = split(1)  # One example, so that every batch is known.
  got = repeat(step, jnp.float32(0), data, steps=5, batch_size=3,
               key=jax.random.key(0))
  np.testing.assert_allclose(
      got, 5 * (data.image.astype(float).sum() / 255 + data.label.sum()), rtol=1e-5)


@pytest.mark.parametrize('name', sorted(detox.METHODS))
def test_defences_keep_what_they_should(name, teacher):
  """Finite, other logits, another teacher left as it was; by structure."""
  network, variables = teacher
  before = jax.tree.map(np.array, variables)
  few = {'steps': 2, 'batch_size': 8}
  if name == 'i_bau':
    few |= {'rounds': 1, 'inner_steps': 2}
  after_network, after = detox.run(
      name, network, variables, split(), few, key=jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, before, variables)
  x = jnp.asarray(split().image / 255, jnp.float32)
  logits = after_network.predict(after, x)
  assert np.isfinite(logits).all() and logits.shape == (30, K)
  if name != 'anp':  # Two steps prune nothing.
    assert np.abs(logits - network.predict(variables, x)).max() > 1e-5
  if name == 'masks':
    own = masked.unwrap(after_network.module, after)[1]
    jax.tree.map(np.testing.assert_array_equal, own, variables)
    for found in after[masked.COLLECTION].values():
      assert 0 <= found['mask'].min() and found['mask'].max() <= 0.05


@pytest.mark.parametrize('name, settings, message', [
    ('mask', {}, "unknown defence 'mask': did you mean 'masks'"),
    ('masks', {'capp': 1.0}, "did you mean 'cap'"),
    ('masks', {'cap': 'x'}, 'masks.cap must be a number'),
    ('masks', {'cap': 1.5}, r'cap must be in \[0, 1\]'),
    ('masks', {'variance': 'all_'}, 'masks.variance: unknown value'),
    ('masks', {'layers': 'stage9'}, "the teacher has no tapped layer 'stage9'"),
    ('gates', {'eps': -1.0}, r'eps must be in \[0, 1\]'),
    ('gates', {'penalty': -1.0}, 'penalty must be >= 0'),
    ('new_head', {'weight': -1.0}, 'weight must be >= 0'),
    ('new_head', {'restart_every': 0}, 'restart_every must be >= 1'),
    ('reversed_trigger', {'weight': -1.0}, 'weight must be >= 0'),
    ('reversed_trigger', {'temperature': 0.0}, 'temperature must be > 0'),
    ('reversed_trigger', {'classes': K + 1}, 'from 0 to the 3 classes'),
    ('reversed_trigger', {'search_steps': 0}, 'search_steps must be >= 1'),
    ('reversed_trigger', {'eps': -0.1}, r'eps must be in \[0, 1\]'),
    ('unlearning', {'restart_every': 0}, 'restart_every must be >= 1'),
    ('nad', {'beta': -1.0}, 'beta'),
    ('anp', {'threshold': 2.0}, 'threshold'),
    ('ft_sam', {'rho': -1.0}, 'rho'),
    ('i_bau', {'radius': 0.0}, 'radius'),
    ('fine_pruning', {'accuracy_loss': 2.0}, 'accuracy_loss'),
])
def test_errors(name, settings, message, teacher):
  with pytest.raises(ConfigError, match=message):
    detox.run(name, *teacher, split(), settings, key=jax.random.key(0))


def test_anp_needs_channels():
  network = Network(models.create('mlp_4', num_classes=K))
  with pytest.raises(ConfigError, match='neither BatchNorm nor convolutions'):
    detox.run('anp', network, network.init(jax.random.key(0), SHAPE), split(), {},
              key=jax.random.key(0))


def test_masks_lower_the_variance_as_far_as_the_cap_lets_them(teacher):
  """Pure variance: every mask goes to the cap, so variances fall by (1 - cap)^2."""
  network, variables = teacher
  data = split()
  inside, its = detox.run(
      'masks', network, variables, data,
      {'cap': 0.5, 'weight': 1e4, 'layers': 'stage2', 'steps': 150,
       'learning_rate': 0.3}, key=jax.random.key(0))
  x = jnp.asarray(data.image / 255, jnp.float32)
  before = features.variance(
      models.with_features(network.module, variables, x)[1]['stage2'])
  after = features.variance(models.with_features(inside.module, its, x)[1]['stage2'])
  np.testing.assert_allclose(after / before, 0.25, rtol=0.02)


def test_fine_pruning_stops_in_time():
  """Channel i alone says class i; only the two that no image needs may go."""
  class Passing(nn.Module):
    feature_names = ('stage1',)

    @nn.compact
    def __call__(self, x, train=False, tap=None):
      head = self.param('head', nn.initializers.ones, (1,))
      x = x if tap is None else tap('stage1', x)
      return jnp.mean(x, (1, 2)) * head

  image = np.zeros((20, 2, 2, 5), np.uint8)
  # Not class 0, which a tie would be counted for.
  label = 2 + np.arange(20, dtype=np.int32) % 3
  image[np.arange(20), :, :, label] = 100 + 10 * label[:, None, None]
  image[..., :2] = np.array([3, 2])
  network = Network(Passing())
  variables = network.init(jax.random.key(0), (2, 2, 5))
  inside, its = detox.run('fine_pruning', network, variables, Split(image, label),
                          {'steps': 0, 'accuracy_loss': 0.1}, key=jax.random.key(0))
  np.testing.assert_array_equal(
      its[masked.COLLECTION]['stage1']['mask'], [1, 1, 0, 0, 0])
