"""Every network of the registry has bounds, and they hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import bounds
from rkd_jax.bounds import tracing
from rkd_jax.models import registry
from rkd_jax.models.network import Network

pytestmark = pytest.mark.usefixtures('quick_compilation')

SMALL = {'mlp_8': (8, 8, 1), 'cnn_3_4': (8, 8, 1), 'cnn_pool_3_4': (8, 8, 1)}
DEEP = {'resnet8': (8, 8, 3), 'wide_resnet10_1': (8, 8, 3), 'pyramidnet8_a6': (8, 8, 3)}
LARGE = {'resnet18': (8, 8, 3), 'preact_resnet18': (8, 8, 3), 'vgg11': (32, 32, 3),
         'mobilenet_v2': (8, 8, 3), 'pyramidnet11_a9_bottleneck': (8, 8, 3),
         'resnet50': (8, 8, 3)}


def network(name, shape):
  """(fn, variables) with BatchNorm statistics as after some training."""
  net = Network(registry.create(name, num_classes=4))
  x = jax.random.uniform(jax.random.key(1), (16, *shape))

  @jax.jit
  def trained():
    variables = net.init(jax.random.key(0), shape)
    for _ in range(2):
      _, variables = net.train(variables, x)
    return variables

  return net.predict, trained()


def check(name, shape, methods, radii=(0.0, 1e-3)):
  fn, variables = network(name, shape)
  x = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
  bound = jax.jit(lambda v, b: {
      m: getattr(bounds, m)(functools.partial(fn, v), b) for m in methods})
  evaluate = exact(fn, variables, x.shape)
  for eps in radii:
    ball = bounds.linf_ball(x, eps, lower=0.0, upper=1.0)
    found = bound(variables, ball)
    outputs = evaluate(ball)
    for method, b in found.items():
      low, high = np.asarray(b.lower, np.float64), np.asarray(b.upper, np.float64)
      assert not (np.isnan(low) | np.isnan(high)).any(), method
      # Float32 overflows in many layers with a large eps, and in fifty by the widths that
      # rounding alone makes: no bound then, but a true one.
      assert name in LARGE and eps > 1e-3 or name == 'resnet50' or (
          np.isfinite(low).all() and np.isfinite(high).all()), (method, eps)
      assert (outputs >= low).all() and (outputs <= high).all(), (method, eps)
    if 'crown' in methods and 'ibp' in methods:
      slack = 1e-5 * (1 + np.abs(found['ibp'].lower))
      assert (found['crown'].lower >= found['ibp'].lower - slack).all()


def exact(fn, variables, shape):
  """`ball -> [n, B, K]`, the network in float64 at points and corners of the set."""
  share = np.random.default_rng(1).uniform(size=(20, *shape))
  share[10:] = np.round(share[10:])
  with jax.enable_x64(True):
    traced = tracing.trace(functools.partial(fn, variables), shape, jnp.float64)
    network = jax.jit(jax.vmap(jax.vmap(lambda x: traced.evaluate(x[None])[0])))

  def evaluate(ball):
    low, high = np.asarray(ball.lower, np.float64), np.asarray(ball.upper, np.float64)
    with jax.enable_x64(True):
      return np.asarray(network(jnp.asarray(low + share * (high - low))))

  return evaluate


@pytest.mark.parametrize('name', list(SMALL))
def test_small_networks(name):
  check(name, SMALL[name], ('ibp', 'crown_ibp', 'crown'), (0.0, 1e-3, 0.1, 1.0))


@pytest.mark.parametrize('name', list(DEEP))
def test_deep_networks(name):
  check(name, DEEP[name], ('ibp', 'crown_ibp'), (0.0, 1e-3, 0.1, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize('name', list(DEEP))
def test_deep_networks_with_a_walk_for_every_layer(name):
  check(name, DEEP[name], ('ibp', 'crown'))


@pytest.mark.slow
@pytest.mark.parametrize('name', list(LARGE))
def test_large_networks(name):
  check(name, LARGE[name], ('ibp', 'crown_ibp'), (0.0, 1e-3, 0.1, 1.0))


def test_both_lists_cover_the_registry():
  """A family that is new must be bounded, too."""
  families = {pattern.partition('<')[0] for pattern, _ in registry.describe()}
  for family in families:
    assert any(name.startswith(family) for name in (*SMALL, *DEEP, *LARGE)), family
