"""A network followed where a window of its images changed, against the network itself."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import models
from rkd_jax.attacks import local
from rkd_jax.attacks.local.spans import Span
from rkd_jax.models import conv
from rkd_jax.models.network import Network

pytestmark = pytest.mark.usefixtures('quick_compilation')
B = 3


class Plain(nn.Module):
  """Flax's own layers, of odd shapes."""

  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Conv(6, (3, 3))(x - 0.5))
    x = nn.avg_pool(x, (2, 2), (2, 2))
    x = nn.silu(nn.Conv(8, (5, 4), strides=(2, 1), padding=((2, 1), (0, 3)))(x))
    x = x * jnp.linspace(0, 1, x.shape[1])[:, None, None] + x / (1 + x**2)
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    return nn.Dense(5)(x.reshape(len(x), -1))


class Residual(nn.Module):
  """A shortcut that is read at other places than what it is added to."""

  @nn.compact
  def __call__(self, x):
    y = nn.Conv(4, (5, 5))(x)
    y = nn.Conv(6, (3, 3), strides=(2, 2), padding=1)(nn.relu(y))
    y = y + nn.Conv(6, (1, 1), strides=(2, 2), padding=0)(x)
    y = jnp.maximum(y, 0.1 * y)
    y = nn.max_pool(nn.Conv(6, (3, 3), feature_group_count=3)(y), (2, 2), (2, 2)) - y[
        :, ::2, ::2]
    return nn.Dense(5)(jnp.mean(y, axis=(1, 2)))


def network(name, shape):
  """(function, its logits' scale is about 1)."""
  if name in ('plain', 'residual'):
    module = {'plain': Plain, 'residual': Residual}[name]()
    variables = module.init(jax.random.key(0), jnp.zeros((1, *shape)))
    return lambda images: module.apply(variables, images)
  net = Network(models.create(name, num_classes=5))
  variables = net.init(jax.random.key(0), shape)
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  variables = jax.tree.map(  # Biases and statistics that are not 0 and 1.
      lambda a: a + 0.1 * jax.random.uniform(next(keys), a.shape) * (a.ndim == 1),
      variables)
  return lambda images: net.predict(variables, images)


@pytest.mark.parametrize('name,shape,side,most', [
    ('plain', (17, 20, 2), (3, 3), 0.5), ('plain', (17, 20, 2), (2, 5), 0.5),
    ('residual', (16, 16, 3), (3, 2), 0.6), ('cnn_4_8', (28, 28, 1), (3, 3), 0.3),
    ('cnn_pool_4_8', (28, 28, 1), (4, 4), 0.3), ('mlp_16_16', (12, 12, 2), (2, 2), 0.2),
    ('resnet8', (32, 32, 3), (3, 3), 0.5), ('wide_resnet10_1', (32, 32, 3), (2, 2), 0.6)])
def test_logits_and_layers_follow(name, shape, side, most):
  """At every corner and many other places, one change after another."""
  fn = network(name, shape)
  plan = local.Plan.of(local.read(fn, (B, *shape)), side)
  assert 0 < plan.cost < most
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(B, *shape)).astype(np.float32)

  @jax.jit
  def follow(layers, delta, place, where):
    logits, keep = plan.follow(layers, delta, place)
    return logits, keep(where)

  direct, start = jax.jit(fn), jax.jit(plan.start)
  logits, layers = start(images)
  np.testing.assert_allclose(logits, direct(images), rtol=1e-4, atol=1e-5)
  ends = [n - k for n, k in zip(shape, side)]
  corners = [(0, 0), (0, ends[1]), (ends[0], 0), tuple(ends)]
  inner = [tuple(rng.integers(0, np.add(ends, 1))) for _ in range(20)]
  for place in corners + inner:
    delta = rng.normal(size=(B, *side, shape[2])).astype(np.float32) * 0.3
    where = rng.uniform(size=B) < 0.5
    logits, layers = follow(layers, delta, tuple(map(np.int32, place)), where)
    changed = images.copy()
    changed[:, place[0]:place[0] + side[0], place[1]:place[1] + side[1]] += delta
    np.testing.assert_allclose(logits, direct(changed), rtol=1e-4, atol=2e-5)
    images = np.where(where[:, None, None, None], changed, images)
  for number, value in start(images)[1].items():
    np.testing.assert_allclose(layers[number], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('fn', [
    lambda x: jnp.cumsum(x.reshape(len(x), -1), axis=1)[:, ::40],
    lambda x: jnp.sort(x, axis=1)[:, :, 0, 0],
    lambda x: jnp.where(x > 0.5, x, 2 * x).sum(axis=(1, 3)),
    lambda x: x.astype(jnp.bfloat16).astype(jnp.float32).max(axis=(2, 3)),
    lambda x: (x.reshape(-1, 2) @ jnp.ones((2, 3))).reshape(len(x), -1)[:, :5],
    lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.roll(x, 1, 1) * 2, x)[:, :, 3, 0],
    lambda x: jax.pure_callback(lambda x: np.asarray(x)[:, 0, :, 0], jax.ShapeDtypeStruct(
        (len(x), 9), jnp.float32), x),
    lambda x: x.transpose(0, 2, 1, 3).reshape(len(x), -1) @ jnp.ones((144, 4)),
    lambda x: jnp.concatenate([x[:, 1], x[:, 2]], axis=1)[..., 0],
    lambda x: jnp.zeros((len(x), 4))])
def test_what_no_rule_is_known_for(fn):
  images = np.random.default_rng(1).uniform(size=(B, 8, 9, 2)).astype(np.float32)
  plan = local.Plan.of(local.read(fn, images.shape), (2, 3))
  _, layers = plan.start(images)
  delta = np.full((B, 2, 3, 2), 0.4, np.float32)
  logits, _ = plan.follow(layers, delta, (np.int32(5), np.int32(1)))
  images[:, 5:7, 1:4] += delta
  np.testing.assert_allclose(logits, fn(images), rtol=1e-5)


def test_cost_is_the_share_of_the_products():
  """Of a dense layer the rows of the window; of a convolution the pixels it reaches."""
  dense = lambda x: x.reshape(len(x), -1) @ jnp.ones((10 * 12 * 2, 7))
  plan = local.Plan.of(local.read(dense, (B, 10, 12, 2)), (3, 4))
  assert plan.cost == pytest.approx(12 / 120)
  kernel = jnp.ones((3, 3, 2, 5))
  twice = lambda x: conv.conv(conv.conv(x, kernel, padding=1), jnp.ones(
      (3, 3, 5, 5)), padding=1).sum(axis=(1, 2))
  plan = local.Plan.of(local.read(twice, (B, 10, 12, 2)), (2, 2))
  assert plan.cost == pytest.approx((16 * 2 + 36 * 5) / (120 * 2 + 120 * 5))
  assert local.Plan.of(local.read(lambda x: x[:, 0, :, 0], (B, 10, 12, 2)),
                       (2, 2)).cost == 1


@pytest.mark.parametrize('kernel,stride,padding', [
    (3, 1, 1), (4, 2, 1), (1, 2, 0), (5, 3, 0), (2, 2, 0), (3, 2, 2), (7, 1, 3)])
def test_spans(kernel, stride, padding):
  """By enumeration: no position that sees the window is left out."""
  length, size = 11, 3
  out = (length + 2 * padding - kernel) // stride + 1
  seen = [set(range(i * stride - padding, i * stride - padding + kernel))
          for i in range(out)]
  span = Span.window(size, length).slid(kernel, stride, padding, out)
  most = 1
  for place in range(length - size + 1):
    reached = [i for i in range(out) if seen[i] & set(range(place, place + size))]
    most = max(most, reached[-1] - reached[0] + 1 if reached else 1)
    held = range(span.first[place], span.first[place] + span.size)
    assert set(reached) <= set(held) and 0 <= held[0] and held[-1] < out
  assert span.size == most


def test_reading_changes_no_other_program():
  """What a user has jitted is traced anew, and stays as it is on this backend."""
  kernel = jnp.ones((4, 4, 16, 8))
  fn = jax.jit(lambda x: conv.conv(x, kernel, strides=2, padding=1).sum(axis=(1, 2)))
  shape = jax.ShapeDtypeStruct((B, 12, 12, 16), jnp.float32)
  read = str(local.read(fn, shape.shape).operations)
  after = str(jax.make_jaxpr(fn)(shape))
  assert 'conv_general_dilated' in read and 'custom_vjp' not in read
  assert ('custom_vjp' in after) == conv.on_cpu()
  with pytest.raises(RuntimeError), conv.plain():
    raise RuntimeError
  assert conv.on_cpu() == (jax.default_backend() == 'cpu')


def test_square_follows_its_windows(monkeypatch):
  """The same images as by whole forward passes, and no verdict that these deny."""
  square = importlib.import_module('rkd_jax.attacks.square')
  fn = network('cnn_4_8', (28, 28, 1))
  images = jnp.asarray(np.random.default_rng(2).uniform(size=(6, 28, 28, 1)), jnp.float32)
  labels = jnp.argmax(fn(images), axis=1)
  keys = jax.random.split(jax.random.key(0), 6)

  def run(cost):
    monkeypatch.setattr(square, '_FOLLOWED_COST', cost)
    return jax.jit(lambda x: square.search(
        fn, x, labels, keys, eps=0.03, norm='linf', queries=900))(images)

  whole, followed = run(0.0), run(0.6)
  np.testing.assert_allclose(followed.images, whole.images, atol=1e-6)
  np.testing.assert_array_equal(followed.queries, whole.queries)
  np.testing.assert_array_equal(followed.broken, whole.broken)
  np.testing.assert_array_equal(
      followed.broken, jnp.argmax(fn(followed.images), axis=1) != labels)
  assert 0 < whole.broken.sum() < 6
  assert ((whole.queries > 250) & (whole.queries < 900)).any()
