"""What holds for every network: shapes, taps, modes, precision, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import models
from rkd_jax.errors import ConfigError
from rkd_jax.models import weights

# One cheap member of each family.
SMALL = ('mlp_16_8', 'cnn_4_6', 'cnn_pool_4_6', 'resnet8', 'wide_resnet10_1',
         'pyramidnet8_a6')
BIG = ('resnet18', 'resnet50', 'preact_resnet18', 'mobilenet_v2', 'vgg11',
       'pyramidnet11_a6_bottleneck')
SIZES = ((28, 28, 1), (32, 32, 3), (64, 64, 3))

quick_jit = lambda fn: jax.jit(  # noqa: E731
    fn, compiler_options={'xla_backend_optimization_level': 0})


def filled(like, seed=0):
  """Variables of given shapes, drawn by NumPy: no initialiser is compiled."""
  rng = np.random.default_rng(seed)
  flat = {}
  for path, leaf in weights.flatten(like).items():
    if path.endswith(('/var', '/scale')):
      flat[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    else:
      fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
      flat[path] = (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)
  return weights.build(flat, like, 'test')


def prepared(name, shape=(8, 8, 3), batch=4, **settings):
  module = models.create(name, num_classes=5, **settings)
  images = np.random.default_rng(1).random((batch, *shape)).astype(np.float32)
  return module, filled(models.template(module, shape)), images


@pytest.mark.parametrize('name, shape', [
    *((name, shape) for name in SMALL for shape in ((8, 8, 1), *SIZES)),
    *((name, shape) for name in BIG for shape in ((28, 28, 1), (64, 64, 3)))])
def test_shapes_of_logits_and_features(name, shape):
  module = models.create(name, num_classes=7)
  like = models.template(module, shape)
  images = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
  logits, seen = jax.eval_shape(
      lambda v, x: models.with_features(module, v, x), like, images)
  assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
  assert set(seen) == set(models.feature_names(name))
  assert seen['features'].shape[:1] == (3,) and seen['features'].ndim == 2
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(like))


@pytest.mark.parametrize('name, shapes', [
    ('resnet18', [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)]),
    ('resnet50', [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)]),
    ('preact_resnet18', [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)]),
    ('resnet20', [(32, 16), (32, 16), (16, 32), (8, 64)]),
    ('wide_resnet16_4', [(32, 16), (32, 64), (16, 128), (8, 256)]),
    ('mobilenet_v2', [(32, 32), (32, 24), (16, 32), (8, 96), (4, 320)]),
    ('pyramidnet20_a90', [(32, 16), (32, 46), (16, 76), (8, 106)]),
    ('vgg11', [(32, 64), (16, 128), (8, 256), (4, 512), (2, 512)]),
])
def test_sizes_of_feature_maps_are_those_of_the_papers(name, shapes):
  module = models.create(name, num_classes=10)
  _, seen = jax.eval_shape(
      lambda v, x: models.with_features(module, v, x),
      models.template(module, (32, 32, 3)),
      jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  maps = [seen[key].shape for key in module.feature_names[:-1]]
  assert maps == [(1, size, size, channels) for size, channels in shapes]


@pytest.mark.parametrize('name', SMALL)
def test_a_replaced_feature_changes_all_that_follows_and_nothing_before(name):
  module, variables, images = prepared(name)
  order = module.feature_names

  @quick_jit
  def run(variables, images, replaced):
    seen = []

    def tap(key, feature):
      assert key == order[len(seen)]
      seen.append(feature)  # As it was before this tap replaced it.
      changed = (0.5 * feature + 0.25).astype(feature.dtype)
      return jnp.where(replaced == len(seen) - 1, changed, feature)

    return module.apply(variables, images, tap=tap), seen

  plain, before = run(variables, images, -1)
  assert len(before) == len(order)
  for at in range(len(order)):
    logits, after = run(variables, images, at)
    assert np.abs(logits - plain).max() > 1e-3
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
      difference = np.abs(old - new).max()
      # What a dense network shows as 'features' is its last stage again.
      assert difference < 1e-6 if i <= at else difference > 1e-4, order[i]


def test_features_give_the_logits_through_the_classifier():
  module, variables, images = prepared('resnet8')
  logits, seen = quick_jit(
      lambda v, x: models.with_features(module, v, x))(variables, images)
  head = variables['params']['head']
  by_hand = np.float64(seen['features']) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, by_hand, rtol=1e-5, atol=1e-5)
  averaged = np.float64(seen['stage3']).mean((1, 2))
  np.testing.assert_allclose(seen['features'], averaged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_evaluation_treats_examples_independently_and_gradients_are_finite(name):
  module, variables, images = prepared(name)

  def first_logits(params, images):
    logits = module.apply({**variables, 'params': params}, images)
    return logits[0].sum(), logits

  grad_fn = jax.value_and_grad(first_logits, argnums=(0, 1), has_aux=True)
  (_, logits), (of_params, of_images) = quick_jit(grad_fn)(
      variables['params'], images)
  assert np.all(np.asarray(of_images[1:]) == 0)
  assert np.abs(of_images[0]).max() > 0
  for path, gradient in weights.flatten(of_params).items():
    assert np.all(np.isfinite(gradient)), path
    assert np.abs(gradient).max() > 0, path
  others = np.concatenate([images[:1], np.zeros_like(images[1:])])
  (_, alone), _ = quick_jit(grad_fn)(variables['params'], others)
  np.testing.assert_allclose(alone[0], logits[0], atol=1e-6)


def test_training_mode_depends_on_the_batch_and_evaluation_changes_nothing():
  module, variables, images = prepared('wide_resnet10_1')
  network = models.Network(module)
  logits, updated = quick_jit(network.train)(variables, images)
  assert np.abs(logits - quick_jit(network.predict)(variables, images)).max() > 1e-3
  for old, new in zip(jax.tree.leaves(variables['batch_stats']),
                      jax.tree.leaves(updated['batch_stats']), strict=True):
    assert new.dtype == jnp.float32 and np.abs(old - new).max() > 0


@pytest.mark.parametrize('name', ['cnn_pool_4_6', 'resnet8'])
def test_bfloat16_computes_near_float32_and_keeps_float32_state(name):
  module, variables, images = prepared(name)
  half = models.create(name, num_classes=5, dtype=jnp.bfloat16)
  like = models.template(half, images.shape[1:])
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), like) == jax.tree.map(
      lambda leaf: (leaf.shape, leaf.dtype), variables)
  wanted, full = quick_jit(
      lambda v, x: models.with_features(module, v, x))(variables, images)
  found, seen = quick_jit(
      lambda v, x: models.with_features(half, v, x))(variables, images)
  assert found.dtype == jnp.float32 and np.all(np.isfinite(found))
  assert seen['stage1'].dtype == jnp.bfloat16
  assert seen['features'].dtype == full['features'].dtype == jnp.float32
  # bfloat16 has 8 bits: each layer rounds by up to 2^-9 of its values.
  np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
  assert np.abs(found - wanted).max() > 0
  _, updated = jax.eval_shape(models.Network(half).train, like, images)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))


def test_strict_dtype_promotion_holds_in_bfloat16():
  module, variables, images = prepared('resnet8', dtype=jnp.bfloat16)
  with jax.numpy_dtype_promotion('strict'):
    logits, _ = jax.eval_shape(models.Network(module).train, variables, images)
  assert logits.dtype == jnp.float32


def test_initial_kernels_have_the_scale_of_he():
  network = models.Network(models.create('resnet8', num_classes=10))
  params = quick_jit(lambda key: network.init(key, (8, 8, 3))['params'])(
      jax.random.key(0))
  kernel = np.asarray(params['stage3_block0']['conv2']['kernel'])
  # He et al. 2015: variance 2 / (9 * channels out); 36864 draws.
  assert abs(kernel.std() / (2 / (9 * 64))**0.5 - 1) < 0.02
  assert abs(kernel.mean() / kernel.std()) < 0.02


def test_batch_statistics_over_an_axis_are_those_of_the_whole_batch():
  module, variables, images = prepared('resnet8')
  split = models.create('resnet8', num_classes=5, bn_axis_name='parts')
  wanted, stats = quick_jit(models.Network(module).train)(variables, images)
  parts = images.reshape(2, 2, *images.shape[1:])
  each = jax.vmap(models.Network(split).train, in_axes=(None, 0), axis_name='parts')
  found, updated = quick_jit(each)(variables, parts)
  np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-4)
  for whole, both in zip(jax.tree.leaves(stats['batch_stats']),
                         jax.tree.leaves(updated['batch_stats']), strict=True):
    np.testing.assert_allclose(both[0], whole, atol=1e-5)
    np.testing.assert_array_equal(both[0], both[1])


@pytest.mark.parametrize('name, shape, smallest', [
    ('cnn_4_6_8', (7, 7, 1), '8 x 8'), ('vgg16', (16, 16, 3), '17 x 17'),
    ('resnet18', (4, 9, 3), '5 x 5'), ('mobilenet_v2', (4, 4, 3), '5 x 5'),
    ('wide_resnet10_1', (2, 2, 1), '3 x 3'), ('pyramidnet8_a6', (2, 8, 1), '3 x 3'),
])
def test_images_too_small_are_refused(name, shape, smallest):
  with pytest.raises(ConfigError, match=smallest):
    models.template(models.create(name, num_classes=5), shape)


@pytest.mark.parametrize('name', SMALL)
def test_wrong_images_are_refused(name):
  module = models.create(name, num_classes=5)
  like = models.template(module, (8, 8, 3))

  def predict(shape, dtype=jnp.float32):
    images = jax.ShapeDtypeStruct(shape, dtype)
    jax.eval_shape(models.Network(module).predict, like, images)

  predict((2, 8, 8, 3))
  with pytest.raises(ConfigError, match=r'\[B, H, W, C\], got shape \(8, 8, 3\)'):
    predict((8, 8, 3))
  with pytest.raises(ConfigError, match='divide uint8 images by 255'):
    predict((2, 8, 8, 3), jnp.uint8)
  with pytest.raises(ConfigError, match='another image shape'):
    predict((2, 8, 8, 1))


@pytest.mark.parametrize('name', ['cnn_4_6', 'cnn_pool_4_6'])
def test_a_flattening_network_refuses_another_image_size(name):
  module = models.create(name, num_classes=5)
  like = models.template(module, (8, 8, 3))
  with pytest.raises(ConfigError, match="'dense' 54 values.* made for 24"):
    jax.eval_shape(models.Network(module).predict, like,
                   jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32))


def test_a_network_without_batchnorm_has_empty_statistics():
  network = models.Network(models.create('mlp_4', num_classes=3))
  like = models.template(network.module, (2, 2, 1))
  assert like['batch_stats'] == {}
  logits, after = jax.eval_shape(
      network.train, like, jax.ShapeDtypeStruct((2, 2, 2, 1), jnp.float32))
  assert logits.shape == (2, 3) and after['batch_stats'] == {}
