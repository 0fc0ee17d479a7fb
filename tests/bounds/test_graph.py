import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from rkd_jax import bounds
from rkd_jax.bounds import tracing
from rkd_jax.errors import ConfigError, UnsupportedPrimitiveError


def check(fn, shape=(3, 5)):
  """The graph, after comparing it with the function."""
  traced = tracing.trace(fn, shape, jnp.float32)
  x = jax.random.normal(jax.random.key(0), shape)
  found = jax.vmap(lambda x: traced.evaluate(x[None])[0])(x)
  np.testing.assert_allclose(found, fn(x), rtol=1e-5, atol=1e-6)
  return traced


class Net(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(7)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    return nn.Dense(3)(x)


def test_linen():
  module = Net()
  variables = module.init(jax.random.key(0), jnp.zeros((1, 5)))
  check(functools.partial(module.apply, variables))


def test_nnx():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.first, self.second = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
      return self.second(nnx.relu(self.first(x)))

  model = Model(nnx.Rngs(0))
  check(model)
  out = jax.jit(lambda ball: bounds.crown(model, ball))(
      bounds.linf_ball(jnp.zeros((2, 5)), 0.1))
  assert (out.lower <= model(jnp.zeros((2, 5)))).all()


def test_calls_are_inlined():
  weight = jax.random.normal(jax.random.key(1), (5, 5))

  @jax.custom_vjp
  def layer(x):
    return jax.nn.relu(x @ weight)

  layer.defvjp(lambda x: (layer(x), None), lambda _, g: (g,))
  traced = check(lambda x: jax.checkpoint(jax.jit(layer))(layer(x)))
  assert {node.name for node in traced.nodes} == {'dot_general', 'max'}


@pytest.mark.parametrize('reverse', [False, True])
def test_scan_is_unrolled(reverse):
  weights = jax.random.normal(jax.random.key(1), (4, 5, 5)) / 2

  def fn(x):
    x, ys = lax.scan(lambda x, w: ((y := jnp.maximum(x @ w, 0)), y.sum(axis=1)), x,
                     weights, reverse=reverse)
    return jnp.concatenate([x, ys.T], axis=1)

  traced = check(fn)
  assert sum(node.name == 'dot_general' for node in traced.nodes) == 4


def test_constant_control_flow_is_evaluated():
  check(lambda x: x * lax.while_loop(lambda c: c < 5, lambda c: c + 1.5, 0.0)
        + lax.cond(True, lambda x: 2 * x, lambda x: x, x))


def test_what_the_output_does_not_need_may_be_anything():
  def fn(x):
    jnp.argsort(x)
    return 2 * x

  check(fn)


@pytest.mark.parametrize('fn, name', [
    (lambda x: jnp.argsort(x, axis=1) * x, 'sort'),
    (lambda x: lax.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, x), 'while'),
    (lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), 'cond|convert|gt'),
    (lambda x: x * jnp.cumsum(x > 1, axis=1), 'gt|cumsum|convert'),
])
def test_unknown_operations_are_refused_with_their_place(fn, name):
  for method in (bounds.ibp, bounds.crown, bounds.forward):
    with pytest.raises(UnsupportedPrimitiveError, match=name) as error:
      method(fn, bounds.linf_ball(jnp.zeros((2, 5)), 0.1))
    assert 'test_graph.py' in str(error.value)
    assert 'no bound was returned' in str(error.value)


def test_a_function_must_treat_examples_alone():
  other = jnp.ones((4, 3))
  ball = bounds.linf_ball(jnp.zeros((4, 3)), 0.1)
  with pytest.raises(ConfigError, match='batch axis'):
    bounds.ibp(lambda x: x + other, ball)
  with pytest.raises(ConfigError, match='batch axis'):
    bounds.ibp(lambda x: (x, x.sum()), ball)
