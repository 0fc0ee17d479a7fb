"""The step: the same numbers on one device, on a mesh and in a scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rkd_jax import attacks, losses
from rkd_jax.distill.method import Batch, Outcome
from rkd_jax.models.network import Network
from rkd_jax.training import parallel, rng, state, step

SHAPE = (4, 4, 1)


class Tiny(nn.Module):
  """Dense, BatchNorm, ReLU, dense."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x.reshape(len(x), -1))
    x = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(x)
    return nn.Dense(3)(nn.relu(x))


def objective(student, teachers, memory, batch):
  """A robust loss with everything that a method may use."""
  targets = teachers['teacher'].predict(batch.image)
  image_adv = batch.image + 0.05 * jnp.sign(jax.vmap(
      lambda key: jax.random.normal(key, SHAPE))(batch.key))
  logits, student = student.train(image_adv)
  loss = losses.cross_entropy(logits, batch.label) + losses.kl(logits, targets)
  memory = {'mean': 0.9 * memory['mean'] + batch.mean(loss)}
  return Outcome(loss, student, memory, {'epoch': batch.epoch})


@pytest.fixture
def parts():
  random = np.random.default_rng(0)
  network = Network(Tiny())
  data = {'image': random.integers(0, 256, (64, *SHAPE), dtype=np.uint8),
          'label': random.integers(0, 3, 64, dtype=np.int32)}
  order = random.permutation(64).reshape(4, 16).astype(np.int32)
  frozen = {'teacher': network.init(jax.random.key(5), SHAPE)}
  tx = optax.sgd(0.1, momentum=0.9)

  def fresh():
    return state.create(network, SHAPE, tx, {'mean': jnp.zeros(())},
                        init_key=jax.random.key(1), train_key=jax.random.key(2))

  built = step.make_train_step(
      objective, Batch, network, {'teacher': network}, tx,
      augment=lambda key, image: image, steps_per_epoch=2)
  return fresh, frozen, data, order, step.make_scan(built)


def run(parts, mesh):
  fresh, frozen, data, order, scan = parts
  compiled = parallel.compile_scan(scan, mesh)
  return compiled(parallel.replicate(fresh(), mesh),
                  parallel.replicate(frozen, mesh),
                  parallel.replicate(data, mesh), order)


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)
          if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


@pytest.mark.parametrize('count', [2, 8])
def test_mesh_gives_the_numbers_of_one_device(parts, count):
  single, single_metrics = run(parts, parallel.make_mesh(1))
  shared, shared_metrics = run(parts, parallel.make_mesh(count))
  for a, b in zip(leaves(single), leaves(shared), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
  np.testing.assert_allclose(single_metrics['loss'], shared_metrics['loss'],
                             rtol=1e-5)


def test_same_layout_is_bitwise_repeatable(parts):
  for mesh in (None, parallel.make_mesh(8)):
    one, other = run(parts, mesh)[0], run(parts, mesh)[0]
    for a, b in zip(leaves(one), leaves(other), strict=True):
      np.testing.assert_array_equal(a, b)


def test_scan_is_the_steps_one_after_another(parts):
  fresh, frozen, data, order, scan = parts
  whole, metrics = run(parts, None)
  compiled = parallel.compile_scan(scan, None)
  current, losses_seen = fresh(), []
  for row in order:
    current, m = compiled(current, frozen, data, row[None])
    losses_seen.append(float(m['loss'][0]))
  np.testing.assert_allclose(losses_seen, metrics['loss'], rtol=1e-6)
  for a, b in zip(leaves(whole), leaves(current), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(metrics['epoch'], [0, 0, 1, 1])


def test_update_is_sgd_on_the_mean_loss(parts):
  """One step against the definition: momentum SGD on a gradient by hand."""
  fresh, frozen, data, order, scan = parts
  start = fresh()
  batch = {k: data[k][order[0]] for k in data}
  keys = jax.vmap(lambda i: jax.random.fold_in(
      jax.random.fold_in(start.key, 0), i))(order[0])
  keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
  noise = jax.vmap(lambda k: jax.random.normal(k, SHAPE))(keys)
  image = batch['image'] / np.float32(255)
  teacher = Tiny().apply(frozen['teacher'], image)

  def loss(params):
    logits, _ = Tiny().apply(
        {**start.variables, 'params': params}, image + 0.05 * jnp.sign(noise),
        train=True, mutable=['batch_stats'])
    log_s, log_t = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher)
    ce = -log_s[np.arange(16), batch['label']]
    return jnp.mean(ce + jnp.sum(jnp.exp(log_t) * (log_t - log_s), -1))

  grads = jax.grad(loss)(start.variables['params'])
  expected = jax.tree.map(lambda p, g: np.asarray(p - 0.1 * g),
                          start.variables['params'], grads)
  after, _ = parallel.compile_scan(scan, None)(start, frozen, data, order[:1])
  for a, b in zip(jax.tree.leaves(expected),
                  jax.tree.leaves(after.variables['params']), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_keys_depend_on_step_and_example_alone():
  key = jax.random.key(3)
  whole = rng.example_keys(key, 7, jnp.arange(10))
  part = rng.example_keys(key, 7, jnp.array([9, 4]))
  data = jax.random.key_data
  np.testing.assert_array_equal(data(whole)[jnp.array([9, 4])], data(part))
  other = rng.example_keys(key, 8, jnp.arange(10))
  rows = np.concatenate([data(whole), data(other)])
  assert len(np.unique(rows, axis=0)) == 20


def test_streams_differ_by_name_and_seed():
  names = ('init', 'order', 'train', 'evaluate', 'validate')
  seen = {tuple(np.asarray(jax.random.key_data(rng.stream(seed, name))))
          for seed in range(3) for name in names}
  assert len(seen) == 15


def test_pgd_inside_the_step_agrees_on_a_mesh(parts):
  """Through PGD, sign flips at rounding allow small differences only."""
  fresh, frozen, data, order, _ = parts
  network = Network(Tiny())

  def robust(student, teachers, memory, batch):
    del teachers
    adv = attacks.pgd(student.frozen().predict, batch.image, batch.label,
                      key=batch.key, eps=0.1, step_size=0.03, steps=5)
    logits, student = student.train(adv)
    return Outcome(losses.cross_entropy(logits, batch.label), student, memory)

  scan = step.make_scan(step.make_train_step(
      robust, Batch, network, {'teacher': network}, optax.sgd(0.1, momentum=0.9),
      augment=lambda key, image: image, steps_per_epoch=2))
  parts = (fresh, frozen, data, order, scan)
  one, other = run(parts, None)[1]['loss'], run(parts, parallel.make_mesh(8))[1]['loss']
  np.testing.assert_allclose(one, other, atol=2e-3)


def test_views_are_other_augmentations_of_the_same_examples(parts):
  """An augmentation that adds a number of the key; views are drawn by example alone."""
  fresh, frozen, data, order, _ = parts
  network = Network(Tiny())

  def seen(student, teachers, memory, batch):
    del teachers
    logits, student = student.train(batch.image)
    shifts = [255 * (view - batch.image) for view in (
        batch.view(1), batch.view(1), batch.view(2))]
    return Outcome(losses.cross_entropy(logits, batch.label), student, memory, {
        'one': shifts[0].mean(), 'spread': shifts[0].std(axis=(1, 2, 3)).max(),
        'again': jnp.abs(shifts[0] - shifts[1]).max(),
        'other': (shifts[0] != shifts[2]).mean()})

  scan = step.make_scan(step.make_train_step(
      seen, Batch, network, {'teacher': network}, optax.sgd(0.1, momentum=0.9),
      augment=lambda key, image: image // 2 + jax.random.randint(
          key, (), 0, 100).astype(image.dtype), steps_per_epoch=2))
  _, metrics = run((fresh, frozen, data, order[:1], scan), None)
  assert abs(metrics['one'][0]) > 0.5 and metrics['other'][0] > 0.8
  assert metrics['again'][0] == 0
  assert metrics['spread'][0] < 1e-3  # One number an example: the pixels are its own.


def test_devices_and_batch_sizes_that_do_not_fit():
  with pytest.raises(ValueError, match='devices = 9, but 8 cpu'):
    parallel.make_mesh(9)
  with pytest.raises(ValueError, match='batch_size 12 does not divide by the 8'):
    parallel.check_batch_size(12, parallel.make_mesh(8))
