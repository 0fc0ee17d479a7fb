"""The same adversarial images however the attack is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rkd_jax import attacks

B, K = 16, 5
IMAGES = np.random.default_rng(0).uniform(size=(B, 3, 2, 2)).astype(np.float32)
LABELS = np.arange(B) % K
W1 = np.random.default_rng(1).normal(size=(12, 16)).astype(np.float32)
W2 = np.random.default_rng(2).normal(size=(16, K)).astype(np.float32)


def mlp(images):
  return jnp.tanh(images.reshape(len(images), -1) @ W1) @ W2


def attack(norm, restarts=1):
  """Random starts for 'linf' only: compiling them takes most of the time."""
  return functools.partial(attacks.pgd, mlp, step_size=0.025, steps=4, norm=norm,
                           start='uniform' if norm == 'linf' else 'none',
                           restarts=restarts)


def keys():
  return jax.random.split(jax.random.key(7), B)


@functools.cache
def compiled(norm, restarts=1):
  return np.asarray(jax.jit(attack(norm, restarts))(
      IMAGES, LABELS, key=keys(), eps=0.1))


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_eager(norm):
  eager = attack(norm)(IMAGES, LABELS, key=keys(), eps=0.1)
  np.testing.assert_allclose(eager, compiled(norm), atol=1e-6)


@pytest.mark.parametrize('norm,restarts', [('linf', 3), ('l2', 1)])
def test_one_example_at_a_time(norm, restarts):
  def single(image, label, key):
    return attack(norm, restarts)(image[None], label[None], key=key[None], eps=0.1)[0]

  mapped = jax.jit(jax.vmap(single))(IMAGES, LABELS, keys())
  np.testing.assert_allclose(mapped, compiled(norm, restarts), atol=1e-6)


@pytest.mark.parametrize('norm,devices', [('linf', 8), ('l2', 4)])
def test_mesh(norm, devices):
  if jax.device_count() < devices:
    pytest.skip(f'{devices} devices wanted, {jax.device_count()} there')
  mesh = jax.make_mesh((devices,), ('batch',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:devices])
  shared = NamedSharding(mesh, PartitionSpec('batch'))
  run = jax.jit(attack(norm), out_shardings=shared)
  adv = run(*jax.device_put((IMAGES, LABELS), shared),
            key=jax.device_put(keys(), shared), eps=0.1)
  assert len(adv.sharding.device_set) == devices
  np.testing.assert_allclose(adv, compiled(norm), atol=1e-6)


def test_shard_map():
  if jax.device_count() < 4:
    pytest.skip(f'4 devices wanted, {jax.device_count()} there')
  mesh = jax.make_mesh((4,), ('batch',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:4])
  spec = PartitionSpec('batch')
  run = jax.jit(jax.shard_map(
      lambda images, labels, key: attack('linf', 3)(images, labels, key=key, eps=0.1),
      mesh=mesh, in_specs=spec, out_specs=spec))
  np.testing.assert_allclose(run(IMAGES, LABELS, keys()), compiled('linf', 3),
                             atol=1e-6)


def test_one_key_is_folded_with_the_position():
  key = jax.random.key(3)
  each = jnp.stack([jax.random.fold_in(key, i) for i in range(B)])
  start = functools.partial(attacks.pgd, mlp, IMAGES, LABELS, eps=0.1, step_size=0.1,
                            steps=0)
  np.testing.assert_array_equal(start(key=key), start(key=each))


def test_an_example_does_not_depend_on_its_neighbours():
  part = slice(5, 9)
  few = jax.jit(attack('linf'))(IMAGES[part], LABELS[part], key=keys()[part], eps=0.1)
  np.testing.assert_allclose(few, compiled('linf')[part], atol=1e-6)


def test_traced_radius_is_the_same_as_a_python_number():
  fixed = jax.jit(lambda: attack('linf')(IMAGES, LABELS, key=keys(), eps=0.1))()
  np.testing.assert_allclose(fixed, compiled('linf'), atol=1e-6)
