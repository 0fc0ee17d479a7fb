"""Recognised functions equal the originals; look-alikes are left alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rkd_jax.bounds import tracing
from rkd_jax.bounds.patterns import recognise
from rkd_jax.models import conv, registry
from rkd_jax.models.network import Network

KEEP = {'axis': -1, 'keepdims': True}
FLAT = (5, 4)  # The input of most functions here.
# Equations that only move numbers.
MOVES = {'reshape', 'slice', 'concatenate', 'squeeze', 'broadcast_in_dim', 'rev',
         'transpose', 'split'}
PREDICATES = {'select_n', 'not', 'and', 'or'}  # These read truth values.


def rewritten(fn, shape=FLAT):
  """(old, new) graph; checks that both are the function, under jit and vmap."""
  old = tracing.trace(fn, shape, jnp.float32)
  new = recognise(old)
  x = 3 * jax.random.normal(jax.random.key(0), (20, 1, *shape[1:]))
  want = jax.vmap(fn)(x)
  got = jax.jit(jax.vmap(new.evaluate))(x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
  for node in new.nodes:
    assert new.shapes[node.out] == node.shape
    if node.name not in PREDICATES:
      assert node.shape == jax.eval_shape(node, *(
          jax.ShapeDtypeStruct(new.shapes[i], jnp.float32) for i in node.operands)).shape
    if node.out in old.shapes:
      assert old.shapes[node.out] == node.shape
  return old, new


def names(fn, shape=FLAT):
  return [n.name for n in rewritten(fn, shape)[1].nodes if n.name not in MOVES]


def by_hand_softmax(x, shift):
  e = jnp.exp(x - shift)
  return e / e.sum(**KEEP)


def max_pool(x, *args, pool=nn.max_pool, size=4):
  return pool(x.reshape(-1, size, size, 2), *args).reshape(len(x), -1)


SINGLE = {
    'softmax': [
        jax.nn.softmax,
        lambda x: jnp.exp(x) / jnp.exp(x).sum(**KEEP),
        lambda x: jnp.exp(x) / jnp.exp(x).sum(1)[:, None],
        lambda x: by_hand_softmax(x, x.max(**KEEP)),
        lambda x: by_hand_softmax(x, x.mean(**KEEP)),
        lambda x: by_hand_softmax(x, 1.5),
        lambda x: jnp.exp(x - x.max(**KEEP)) / jnp.exp(x - x.max(**KEEP)).sum(**KEEP),
        lambda x: jnp.exp(jax.nn.log_softmax(x)),
        lambda x: jax.nn.softmax(x.reshape(-1, 2, 2), (1, 2)).reshape(-1, 4),
        lambda x: jax.nn.softmax(x.reshape(-1, 2, 2), 1).reshape(-1, 4)],
    'log_softmax': [
        jax.nn.log_softmax,
        lambda x: jnp.log(jax.nn.softmax(x)),
        lambda x: x - jax.nn.logsumexp(x, **KEEP),
        lambda x: x - jnp.log(jnp.exp(x).sum(1))[:, None],
        lambda x: jax.nn.log_softmax(x.reshape(-1, 2, 2), 1).reshape(-1, 4)],
    'logsumexp': [
        lambda x: jax.nn.logsumexp(x, **KEEP),
        lambda x: jax.nn.logsumexp(x, axis=1)[:, None],
        lambda x: jnp.log(jnp.exp(x).sum(**KEEP)),
        lambda x: jnp.broadcast_to(jnp.log(jnp.exp(x).sum(**KEEP)), x.shape),
        lambda x: jax.scipy.special.logsumexp(x.reshape(-1, 2, 2), axis=(1, 2))[:, None],
        lambda x: jax.nn.logsumexp(x.reshape(-1, 2, 2), axis=-1),
        lambda x: jax.nn.logsumexp(x.reshape(-1, 2, 2), axis=1)],
    'softplus': [
        jax.nn.softplus, lambda x: jnp.logaddexp(x, 0.), lambda x: jnp.logaddexp(0., x)],
    'leaky_relu': [
        jax.nn.leaky_relu,
        lambda x: jnp.where(x > 0, x, .1 * x),
        lambda x: jnp.where(x <= 0, x * .1, x),
        lambda x: jnp.where(0 < x, x, -x * .1),
        lambda x: jnp.where(~(x >= 0), .1 * x, x),
        lambda x: jnp.where(x >= 0, x, jnp.array([.1, .2, -3, 4]) * x),
        lambda x: jnp.maximum(x, .1 * x), lambda x: jnp.minimum(3 * x, x)],
    'max': [
        jax.nn.relu, lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x < 0, 0, x),
        lambda x: jnp.where(x > 2, x, 2), lambda x: jnp.maximum(x, 0 * x)],
    'min': [lambda x: jnp.where(x > 2, 2, x)],
    'abs': [
        lambda x: jnp.where(x < 0, -x, x), lambda x: jnp.where(x >= 0, x, -1 * x),
        lambda x: jnp.maximum(x, -x), lambda x: abs(-x)],
    'silu': [jax.nn.silu, lambda x: jax.nn.sigmoid(x) * x,
             lambda x: x / (1 + jnp.exp(-x))],
    'gelu': [
        functools.partial(jax.nn.gelu, approximate=False),
        lambda x: 0.5 * x * (1 + lax.erf(x / jnp.sqrt(2.))),
        lambda x: x * (0.5 + 0.5 * lax.erf(x * 0.7071067811865476))],
    'gelu_tanh': [
        jax.nn.gelu,
        lambda x: x * .5 * (1 + jnp.tanh(
            np.sqrt(2 / np.pi) * x * (1 + 0.044715 * x * x)))],
    'logistic': [lambda x: 1 / (1 + jnp.exp(-x))],
    'square': [lambda x: x * jnp.where(jnp.isnan(x), 0., x)],
    'reduce_max': [
        lambda x: x.max(**KEEP),
        lambda x: jnp.maximum(jnp.maximum(x[:, :1], x[:, 1:2]), x[:, 2:3]),
        lambda x: functools.reduce(jnp.maximum, jnp.split(x, 4, axis=1)),
        lambda x: lax.reduce(x, -jnp.inf, lax.max, (1,))[:, None]],
}


@pytest.mark.parametrize(
    'name,number', [(n, i) for n, fns in SINGLE.items() for i in range(len(fns))])
def test_becomes_one_equation(name, number):
  assert names(SINGLE[name][number]) == [name]


def test_params():
  one = lambda fn, name: next(
      n for n in rewritten(fn)[1].nodes if n.name == name)
  cube = lambda f, **kw: lambda x: f(x.reshape(-1, 2, 2), **kw).reshape(len(x), -1)
  assert one(cube(jax.nn.softmax, axis=1), 'softmax').params == {'axes': (1,)}
  assert one(cube(jax.nn.softmax, axis=2), 'softmax').params == {'axes': (2,)}
  assert one(cube(jax.nn.softmax, axis=(1, 2)), 'softmax').params == {'axes': (1,)}
  assert one(cube(jax.nn.logsumexp, axis=1), 'logsumexp').params == {'axes': (1,)}
  assert one(jax.nn.leaky_relu, 'leaky_relu').params['slope'] == np.float32(.01)
  assert not one(jax.nn.gelu, 'gelu_tanh').linear


@pytest.mark.parametrize('fn,expected', [
    (jax.nn.relu6, ['max', 'min']),
    (jax.nn.hard_tanh, ['max', 'min']),
    (jax.nn.log_sigmoid, ['neg', 'softplus', 'neg']),
    (jax.nn.mish, ['softplus', 'tanh', 'mul']),
    (jax.nn.elu, ['min', 'expm1', 'max', 'add']),
    (lambda x: jax.nn.elu(x, .5), ['min', 'expm1', 'mul', 'max', 'add']),
    (lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1), ['max', 'min', 'exp', 'sub', 'add']),
    (jax.nn.selu, ['min', 'expm1', 'mul', 'max', 'add', 'mul']),
    (jax.nn.celu, ['max', 'min', 'expm1', 'add']),
    (lambda x: jnp.logaddexp(x[:, :2], x[:, 2:]), ['sub', 'softplus', 'add']),
    (lambda x: jnp.logaddexp(1., x), ['sub', 'neg', 'softplus', 'add']),
    (lambda x: jnp.where(x < 0, x / 3, x), ['div', 'neg', 'leaky_relu', 'neg']),
    (lambda x: jnp.where(x > 0, 2 * x, .1 * x),
     ['mul', 'max', 'mul', 'mul', 'sub', 'add']),
    (lambda x: jnp.where(x > 1, 2 * x, x + 1),
     ['add', 'max', 'mul', 'add', 'sub', 'add']),
    (lambda x: jnp.where(x > 1, 3 * x - 2, 1), ['max', 'mul', 'sub']),
    (lambda x: x * jax.nn.sigmoid(1.702 * x), ['mul', 'silu', 'div']),
    (lambda x: jnp.where(x > x[:, ::-1], x, x[:, ::-1]), ['max']),
    (lax.erfc, ['erf', 'sub']),
    (lambda x: 2 * x.min(**KEEP), ['neg', 'reduce_max', 'neg', 'mul']),
    (lambda x: functools.reduce(jnp.minimum, jnp.split(x, 4, axis=1)),
     ['neg', 'neg', 'neg', 'neg', 'reduce_max', 'neg']),
    (lambda x: jax.nn.softmax(x / 3), ['div', 'softmax']),
    (lambda x: jax.nn.gelu(2 * x), ['mul', 'gelu_tanh']),
    (lambda x: x * x[:, :1], ['mul']),
])
def test_becomes_known_equations(fn, expected):
  assert names(fn) == expected


@pytest.mark.parametrize('fn,forbidden', [
    (lambda x: jnp.exp(x / 3) / jnp.exp(x).sum(**KEEP), 'softmax'),
    (lambda x: jnp.exp(x - x.min(**KEEP)) / jnp.exp(x - x.max(**KEEP)).sum(**KEEP),
     'softmax'),
    (lambda x: jnp.exp(x) / jnp.exp(x[:, ::-1] * 2).sum(**KEEP), 'softmax'),
    (lambda x: jnp.exp(x) / jnp.exp(x).max(**KEEP), 'softmax'),
    (lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(**KEEP)), 'softmax'),
    # Divided along the wrong axis.
    (lambda x: (jnp.exp(x.reshape(-1, 2, 2)) / jnp.exp(
        x.reshape(-1, 2, 2)).sum(2)[:, None]).reshape(-1, 4), 'softmax'),
    (lambda x: 2 * x - jax.nn.logsumexp(x, **KEEP), 'log_softmax'),
    (lambda x: (x.reshape(-1, 2, 2) - jax.nn.logsumexp(
        x.reshape(-1, 2, 2), axis=2)[:, None]).reshape(-1, 4), 'log_softmax'),
    (lambda x: jnp.where(x > 1, x, .1 * x), 'leaky_relu'),
    (lambda x: jnp.where(x > 0, x, .1 * x + 1), 'leaky_relu'),
    (lambda x: jnp.where(x > 0, x, .1 * x[:, ::-1]), 'leaky_relu'),
    (lambda x: jnp.where(x > 0, x[:, ::-1], 0), 'max'),
    (lambda x: jnp.where(x > 1, x, 0), 'max'),
    (lambda x: jnp.where(x > 0, x, jnp.exp(x)), 'max'),
    (lambda x: x[:, ::-1] * jax.nn.sigmoid(x), 'silu'),
    (lambda x: x * jax.nn.sigmoid(x + 1), 'silu'),
    (lambda x: 0.5 * x * (1 + lax.erf(x)), 'gelu'),
    (lambda x: 0.5 * x * (1 - lax.erf(x / np.sqrt(2))), 'gelu'),
    (lambda x: x * (1 + lax.erf(x / np.sqrt(2))), 'gelu'),
    (lambda x: 0.5 * x[:, ::-1] * (1 + lax.erf(x / np.sqrt(2))), 'gelu'),
    (lambda x: 0.5 * x * (1 + jnp.tanh(0.79 * (x + 0.044715 * x**3))), 'gelu_tanh'),
    (lambda x: jnp.maximum(x, 1.) + jnp.log1p(jnp.exp(-jnp.abs(x))), 'softplus'),
    (lambda x: jnp.maximum(x, 0.) + jnp.log1p(jnp.exp(-jnp.abs(2 * x))), 'softplus'),
])
def test_look_alikes_are_left_alone(fn, forbidden):
  """`rewritten` checks that the function is the same."""
  assert forbidden not in names(fn)


def test_shift_along_another_axis_is_no_shift():
  def fn(x):
    x = x.reshape(-1, 2, 2)
    return jax.nn.softmax(x - x.max(axis=2, keepdims=True), axis=1).reshape(-1, 4)
  assert names(fn) == ['reduce_max', 'sub', 'softmax']


def test_checks_for_nan_and_infinity_are_decided():
  assert names(lambda x: jnp.where(jnp.isnan(x), 0., x)) == []
  assert names(jnp.nan_to_num) == []
  assert names(lambda x: jnp.where(jnp.isfinite(x), x, 0.)) == []
  assert names(lambda x: jnp.maximum(x, -jnp.inf)) == []
  assert 'choose' in names(lambda x: jnp.where(x != 1, x, 2.))


@pytest.mark.parametrize('pool', [
    lambda x: max_pool(x, (2, 2), (2, 2)),
    lambda x: max_pool(x, (3, 3), (2, 2), 'SAME'),
    lambda x: max_pool(x, (3, 2), (2, 1), ((1, 1), (1, 0))),
    lambda x: max_pool(x, 3, 2, 1, pool=conv.max_pool),
    lambda x: max_pool(x, 2, pool=conv.max_pool),
    lambda x: nn.pool(x.reshape(-1, 4, 4, 2), -jnp.inf, lax.max, (2, 2), (1, 1),
                      'SAME').reshape(len(x), -1),
    lambda x: lax.reduce_window(
        x.reshape(-1, 4, 4, 2), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1),
        ((0, 0), (1, 1), (0, 2), (0, 0)), (1, 2, 1, 1), (1, 1, 2, 1)).reshape(len(x), -1),
])
def test_max_pooling(pool):
  old, new = rewritten(pool, (5, 32))
  found = [n.name for n in new.nodes]
  assert found.count('reduce_max') == 1
  assert set(found) <= {'reduce_max', *MOVES}
  for node in new.nodes:  # What is padded never enters.
    assert all(np.isfinite(c).all() for c in node.constants)


def test_min_pooling_and_initial_values():
  found = names(lambda x: max_pool(
      x, (3, 3), (2, 2), 'SAME', pool=nn.pooling.min_pool), (5, 32))
  assert found == ['neg', 'reduce_max', 'neg']
  found = names(lambda x: lax.reduce_window(
      x, 0.5, lambda a, b: jnp.maximum(a, b), (1, 3), (1, 1), 'SAME'))
  assert found == ['reduce_max', 'max']
  assert names(lambda x: max_pool(x, (2, 2), pool=nn.avg_pool), (5, 32)) == [
      'reduce_window_sum', 'div']
  # A window of padding alone has no maximum among real values.
  assert 'reduce_window' in names(lambda x: jnp.maximum(lax.reduce_window(
      x, -jnp.inf, lambda a, b: jnp.maximum(a, b), (1, 2), (1, 1), ((0, 0), (2, 0))),
                                                        -9.))


def test_products_of_bounded_arrays():
  def attention(x):
    q = x.reshape(-1, 3, 2)
    weights = jax.nn.softmax(jnp.einsum('bid,bjd->bij', q, q[..., ::-1]))
    return (weights @ q).reshape(len(x), -1)
  assert names(attention, (5, 6)) == ['mul', 'reduce_sum', 'softmax', 'mul',
                                      'reduce_sum']
  assert names(lambda x: jnp.einsum('bi,bi->b', x, x)[:, None]) == ['square',
                                                                    'reduce_sum']
  big = tracing.trace(lambda x: (x.reshape(-1, 50, 50) @ x.reshape(-1, 50, 50)).reshape(
      len(x), -1), (1, 2500), jnp.float32)
  assert 'dot_general' in [n.name for n in recognise(big).nodes]


def test_operands_of_products_have_one_shape():
  for fn in (lambda x: x * x[:, :1], lambda x: jnp.maximum(x, x[:, :1])):
    node = rewritten(fn)[1].nodes[-1]
    assert {rewritten(fn)[1].shapes[i] for i in node.operands} == {node.shape}


def test_constants_that_are_being_traced():
  """Unknown numbers decide nothing; slopes and literals need not be known."""
  seen = {}

  def outer(slope, threshold, x):
    fns = {'prelu': lambda x: jnp.where(x >= 0, x, slope * x),
           'threshold': lambda x: jnp.where(x > threshold, x, threshold + 0 * x),
           'softplus': jax.nn.softplus, 'gelu': jax.nn.gelu, 'softmax': jax.nn.softmax,
           'logsumexp': lambda x: jax.nn.logsumexp(x, **KEEP)}
    results = []
    for name, fn in fns.items():
      g = recognise(tracing.trace(fn, FLAT, jnp.float32))
      seen[name] = [n.name for n in g.nodes if n.name not in MOVES]
      results.append(g.evaluate(x) - fn(x))
    return results

  x = jax.random.normal(jax.random.key(0), (1, 4))
  for error in jax.jit(outer)(jnp.full(4, .1), 0.5, x):
    np.testing.assert_allclose(error, 0, atol=1e-6)
  assert seen['prelu'] == ['leaky_relu'] and seen['softplus'] == ['softplus']
  assert seen['gelu'] == ['gelu_tanh'] and seen['softmax'] == ['softmax']
  assert seen['logsumexp'] == ['logsumexp'] and 'choose' in seen['threshold']


@pytest.mark.parametrize('name,shape,pools', [
    ('cnn_pool_16_32', (28, 28, 1), 2), ('vgg11', (32, 32, 3), 5)])
def test_networks(name, shape, pools):
  network = Network(registry.create(name, num_classes=10))
  zeros = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda a: jnp.asarray(rng.uniform(0, .1, a.shape), a.dtype), zeros)
  old = tracing.trace(lambda x: network.predict(variables, x), (1, *shape), jnp.float32)
  new = recognise(old)
  found = [n.name for n in new.nodes]
  pooled = [n for n in new.nodes if n.name == 'reduce_max']
  assert len(pooled) <= pools and {n.name for n in new.nodes if not n.linear} <= {
      'max', 'reduce_max'}
  assert all(len(n.operands) == 1 for n in new.nodes if n.name == 'max')
  if name == 'cnn_pool_16_32':
    assert found.count('reduce_max') == pools
  x = jnp.asarray(rng.uniform(size=(1, *shape)), jnp.float32)
  np.testing.assert_allclose(
      jax.jit(new.evaluate)(x), jax.jit(old.evaluate)(x), rtol=1e-5)
