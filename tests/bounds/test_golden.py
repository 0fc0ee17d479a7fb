"""Agreement with auto_LiRPA 0.7.1 on four small networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rkd_jax import bounds

ACTIVATIONS = {'mlp_relu': jax.nn.relu, 'cnn_relu': jax.nn.relu, 'mlp_tanh': jnp.tanh,
               'mlp_sigmoid': jax.nn.sigmoid}
METHODS = {'IBP': bounds.ibp, 'CROWN-IBP': bounds.crown_ibp, 'CROWN': bounds.crown}
EPS = (0.01, 0.05, 0.2)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def network(arrays, name, x):
  weight = lambda layer: jnp.asarray(arrays[f'{name}/w/{layer}.weight'])
  bias = lambda layer: jnp.asarray(arrays[f'{name}/w/{layer}.bias'])
  act = ACTIVATIONS[name]

  def conv(x, layer, stride, pad):
    x = lax.conv_general_dilated(
        x, weight(layer), (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=('NCHW', 'OIHW', 'NCHW'))
    return act(x + bias(layer)[:, None, None])

  if name == 'cnn_relu':
    x = conv(conv(x, 0, 2, 1), 2, 1, 0)
    return x.reshape(len(x), -1) @ weight(5).T + bias(5)
  x = x.reshape(len(x), -1)
  for layer in (1, 3):
    x = act(x @ weight(layer).T + bias(layer))
  return x @ weight(5).T + bias(5)


def bound(golden, name, method):
  """`eps -> bounds` of one network by one method."""
  x = jnp.asarray(golden[f'{name}/x'], jnp.float64)
  compiled = jax.jit(functools.partial(
      METHODS[method], functools.partial(network, golden, name)))
  return lambda eps: compiled(bounds.linf_ball(x, eps))


@pytest.mark.parametrize('name', ['mlp_relu', 'cnn_relu'])
@pytest.mark.parametrize('method', list(METHODS))
def test_relu_networks_agree(golden, name, method):
  of_eps = bound(golden, name, method)
  for eps in EPS:
    found = of_eps(eps)
    lower, upper = golden[f'{name}/{method}/{eps}']
    np.testing.assert_allclose(found.lower, lower, atol=1e-10)
    np.testing.assert_allclose(found.upper, upper, atol=1e-10)


@pytest.mark.parametrize('name', ['mlp_tanh', 'mlp_sigmoid'])
def test_smooth_networks(golden, name):
  """Interval bounds agree; lines are another choice, on average no looser."""
  of_eps = {method: bound(golden, name, method) for method in METHODS}
  for eps in EPS:
    found = of_eps['IBP'](eps)
    lower, upper = golden[f'{name}/IBP/{eps}']
    np.testing.assert_allclose(found.lower, lower, atol=1e-9)
    np.testing.assert_allclose(found.upper, upper, atol=1e-9)
    for method in ('CROWN-IBP', 'CROWN'):
      found = of_eps[method](eps)
      lower, upper = golden[f'{name}/{method}/{eps}']
      ours, theirs = np.mean(found.upper - found.lower), np.mean(upper - lower)
      assert ours <= 1.001 * theirs, (method, eps, ours, theirs)
