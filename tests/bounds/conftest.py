"""Golden values, small networks, points of a set."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_BESIDE = pathlib.Path(__file__).parents[3] / 'shared' / 'golden' / 'bounds.npz'


@pytest.fixture(scope='session')
def golden():
  """Bounds of four small networks by auto_LiRPA 0.7.1."""
  path = pathlib.Path(os.environ.get('RKD_GOLDEN', _BESIDE))
  if not path.is_file():
    pytest.skip(f'no golden bounds in {path}; set RKD_GOLDEN')
  with np.load(path) as arrays:
    return dict(arrays)


@pytest.fixture(scope='session')
def mlp():
  """(fn, float64 NumPy fn): a ReLU network 12-16-16-4 with random weights."""
  rng = np.random.default_rng(0)
  sizes = (12, 16, 16, 4)
  layers = [(rng.normal(size=(n, m)).astype(np.float32) / np.sqrt(n / 2),
             rng.normal(size=m).astype(np.float32) / 4)
            for n, m in zip(sizes[:-1], sizes[1:])]

  def fn(x, maximum=jnp.maximum):
    for i, (weight, bias) in enumerate(layers):
      x = x @ weight + bias
      x = maximum(x, 0) if i < len(layers) - 1 else x
    return x

  def exact(x):
    x = np.asarray(x, np.float64)
    for i, (weight, bias) in enumerate(layers):
      x = x @ weight.astype(np.float64) + bias.astype(np.float64)
      x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x

  fn.exact = exact
  return fn


@pytest.fixture(scope='session')
def points():
  """(ball, n) -> points of each set as float64 [n, B, ...]: half of them corners."""
  def draw(ball, n, seed=0):
    rng = np.random.default_rng(seed)
    low, high = (np.asarray(edge) for edge in ball.hull())
    inside = rng.uniform(size=(n, *low.shape))
    inside[n // 2:] = np.round(inside[n // 2:])
    x = (low + inside * (high - low)).astype(low.dtype)
    x = np.clip(x, low, high)
    if hasattr(ball, 'center'):
      x = np.asarray(jax.vmap(lambda x: jax.vmap(lambda b, z: b.project(z))(ball, x))(x))
    return x.astype(np.float64)

  return draw
