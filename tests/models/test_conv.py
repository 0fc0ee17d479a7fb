"""Convolutions and pooling against their definitions in float64 NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rkd_jax.errors import ConfigError
from rkd_jax.models import conv as conv_lib
from rkd_jax.models.conv import Conv, avg_pool, conv, max_pool

# One of each rewrite, at its edges: (H, W, C, F, groups, kernel, strides, padding).
SHAPES = {
    'same_form': (6, 5, 12, 7, 1, (3, 3), 1, 1),
    'same_form_valid': (6, 5, 12, 7, 1, (3, 3), 1, 0),
    'same_form_padded_beyond': (5, 4, 12, 7, 1, (3, 3), 1, 3),
    'same_form_uneven': (6, 5, 12, 3, 1, (5, 2), 1, (2, 0)),
    'same_form_kernel_of_image_size': (4, 4, 12, 3, 1, (4, 4), 1, 0),
    'few_channels': (7, 6, 3, 5, 1, (3, 3), 1, 1),
    'strided': (7, 6, 12, 5, 1, (3, 3), 2, 1),
    'strided_even_kernel': (8, 8, 1, 5, 1, (4, 4), 2, 1),
    'stride_beyond_kernel': (9, 8, 4, 5, 1, (2, 2), (3, 4), 0),
    'blocks': (8, 6, 16, 5, 1, (4, 4), 2, 1),
    'blocks_uneven': (9, 7, 12, 5, 1, (4, 6), (2, 3), (1, 2)),
    'pointwise': (5, 4, 6, 8, 1, (1, 1), 1, 0),
    'pointwise_strided': (5, 4, 6, 8, 1, (1, 1), 2, 0),
    'pointwise_padded': (5, 4, 6, 8, 1, (1, 1), 1, 1),
    'depthwise': (6, 5, 4, 4, 4, (3, 3), 1, 1),
    'depthwise_valid': (6, 5, 4, 4, 4, (3, 3), 1, 0),
    'depthwise_strided': (7, 6, 4, 4, 4, (3, 3), 2, 1),
    'depthwise_padded_beyond': (4, 4, 4, 4, 4, (3, 3), 1, 3),
    'depthwise_multiplier': (6, 5, 3, 6, 3, (3, 3), 1, 1),
    'grouped': (6, 5, 6, 9, 3, (3, 3), 1, 1),
}


def pair(value):
  return value if isinstance(value, tuple) else (value, value)


def conv_by_hand(x, kernel, strides, padding, groups, g):
  """(result, gradient of sum(result * g) for x, for the kernel), float64 loops."""
  (sh, sw), (ph, pw) = pair(strides), pair(padding)
  kh, kw, inputs, features = kernel.shape
  outputs = features // groups
  padded = np.pad(x.astype(np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
  kernel, g = kernel.astype(np.float64), g.astype(np.float64)
  out = np.zeros(g.shape)
  grad_padded, grad_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
  for row in range(g.shape[1]):
    for column in range(g.shape[2]):
      area = np.s_[:, row * sh:row * sh + kh, column * sw:column * sw + kw]
      for group in range(groups):
        ins = np.s_[group * inputs:(group + 1) * inputs]
        outs = np.s_[group * outputs:(group + 1) * outputs]
        seen, weights = padded[area][..., ins], kernel[..., outs]
        sent = g[:, row, column, outs]
        out[:, row, column, outs] = np.einsum('bijc,ijcf->bf', seen, weights)
        grad_padded[area][..., ins] += np.einsum('bf,ijcf->bijc', sent, weights)
        grad_kernel[..., outs] += np.einsum('bijc,bf->ijcf', seen, sent)
  height, width = x.shape[1:3]
  return out, grad_padded[:, ph:ph + height, pw:pw + width], grad_kernel


def example(shape, seed=0, batch=2):
  """Random (x, kernel, g) and the arguments of `conv` for a row of SHAPES."""
  height, width, channels, features, groups, window, strides, padding = shape
  size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(
      (height, width), pair(padding), window, pair(strides), strict=True)]
  rng = np.random.default_rng(seed)
  x, kernel, g = (rng.standard_normal(s).astype(np.float32) for s in (
      (batch, height, width, channels), (*window, channels // groups, features),
      (batch, *size, features)))
  return x, kernel, g, {'strides': strides, 'padding': padding, 'groups': groups}


def with_gradients(x, kernel, g, **arguments):
  """What `conv_by_hand` returns, of `conv` under test."""
  @jax.jit  # A fresh function: nothing traced for another backend is reused.
  def run(x, kernel, g):
    out, vjp = jax.vjp(lambda x, kernel: conv(x, kernel, **arguments), x, kernel)
    return out, *vjp(g)
  return run(x, kernel, g)


@pytest.fixture(params=['cpu', 'other'])
def backend(request, monkeypatch):
  """Both code paths; the one for other backends runs on this one as well."""
  monkeypatch.setattr(conv_lib, 'on_cpu', lambda: request.param == 'cpu')


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_conv_and_gradients_match_definition(shape, backend):
  x, kernel, g, arguments = example(shape)
  expected = conv_by_hand(x, kernel, **arguments, g=g)
  for found, wanted in zip(
      with_gradients(x, kernel, g, **arguments), expected, strict=True):
    assert found.shape == wanted.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('name', [
    'same_form', 'strided', 'blocks', 'pointwise', 'depthwise'])
def test_bfloat16_keeps_its_dtype_and_precision(name):
  x, kernel, g, arguments = example(SHAPES[name])
  rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in (x, kernel, g)]
  expected = conv_by_hand(
      *(a.astype(np.float64) for a in rounded[:2]), **arguments, g=rounded[2])
  for found, wanted in zip(
      with_gradients(*rounded, **arguments), expected, strict=True):
    assert found.dtype == jnp.bfloat16
    # One rounding of the result, 2^-9, and as much again in between.
    np.testing.assert_allclose(
        found.astype(np.float32), wanted, rtol=2**-7, atol=2**-7 * np.abs(wanted).max())


@pytest.mark.parametrize('name', [
    'same_form', 'same_form_uneven', 'strided', 'blocks', 'pointwise', 'depthwise',
    'depthwise_strided'])
def test_reverse_mode_nests(name):
  """The gradient penalty's gradient, against float64 differences."""
  x, kernel, g, arguments = example(SHAPES[name])
  direction = np.random.default_rng(1).standard_normal(kernel.shape)

  def penalty(kernel):  # Of the gradient for the images.
    values = lambda x: jnp.sum(jnp.sin(conv(x, kernel, **arguments)) * g)
    return jnp.sum(jax.grad(values)(x) ** 2)

  def penalty_by_hand(kernel):
    out, _, _ = conv_by_hand(x, kernel, **arguments, g=g)
    _, grad_x, _ = conv_by_hand(x, kernel, **arguments, g=g * np.cos(out))
    return np.sum(grad_x ** 2)

  step = 1e-5
  slope = (penalty_by_hand(kernel + step * direction)
           - penalty_by_hand(kernel - step * direction)) / (2 * step)
  found = np.sum(np.asarray(jax.jit(jax.grad(penalty))(kernel)) * direction)
  np.testing.assert_allclose(found, slope, rtol=1e-3)


@pytest.mark.parametrize('name', ['same_form', 'blocks', 'depthwise'])
def test_forward_mode_is_refused_and_never_wrong(name):
  x, kernel, _, arguments = example(SHAPES[name])
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(lambda x: conv(x, kernel, **arguments), (x,), (x,))


@pytest.mark.parametrize('name', ['same_form', 'strided', 'blocks', 'depthwise'])
def test_vmap_over_images_and_kernels(name):
  examples = [example(SHAPES[name], seed) for seed in range(3)]
  arguments = examples[0][3]
  x, kernel, g = (np.stack([e[i] for e in examples]) for i in range(3))
  found = jax.vmap(lambda *a: with_gradients(*a, **arguments))(x, kernel, g)
  for i in range(3):
    expected = conv_by_hand(x[i], kernel[i], **arguments, g=g[i])
    for one, wanted in zip(found, expected, strict=True):
      np.testing.assert_allclose(one[i], wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
@pytest.mark.parametrize('name', [
    'same_form', 'strided', 'blocks', 'depthwise', 'pointwise'])
@pytest.mark.parametrize('layout', ['jit', 'shard_map'])
def test_a_mesh_gives_the_same_gradients(name, layout):
  x, kernel, g, arguments = example(SHAPES[name], batch=4)
  expected = conv_by_hand(x, kernel, **arguments, g=g)
  mesh = jax.make_mesh((2,), ('d',), axis_types=(AxisType.Auto,))
  split, whole = PartitionSpec('d'), PartitionSpec()
  fn = lambda x, kernel, g: with_gradients(x, kernel, g, **arguments)
  if layout == 'shard_map':  # The kernel's gradient is summed over the mesh.
    fn = jax.shard_map(fn, mesh=mesh, in_specs=(split, whole, split),
                       out_specs=(split, split, whole))
  x, g = (jax.device_put(a, NamedSharding(mesh, split)) for a in (x, g))
  kernel = jax.device_put(kernel, NamedSharding(mesh, whole))
  for found, wanted in zip(jax.jit(fn)(x, kernel, g), expected, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='rewrites are for the CPU')
def test_no_slow_convolution_in_an_attack_loop():
  """In compiled loop bodies every convolution has the layout that is quick."""
  kernels = [jnp.ones(s) for s in (
      (3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 1, 16), (1, 1, 16, 16), (3, 3, 16, 8),
      (4, 4, 16, 16))]

  def network(x):
    x = jnp.sin(conv(x, kernels[0], padding=1))
    x = jnp.sin(conv(x, kernels[1], padding=1))
    x = jnp.sin(conv(x, kernels[2], padding=1, groups=16))
    x = jnp.sin(conv(x, kernels[3]))
    x = jnp.sin(conv(max_pool(x, 2), kernels[4], strides=2, padding=1))
    return conv(jnp.tile(x, 2), kernels[5], strides=2, padding=1)

  def attack(x):
    gradient = jax.grad(lambda x: jnp.sum(network(x) ** 2))
    return lax.fori_loop(0, 3, lambda _, x: x + 0.1 * jnp.sign(gradient(x)), x)

  compiled = jax.jit(attack).lower(jnp.ones((2, 8, 8, 3))).compile(
      conv_lib.cpu_compiler_options())
  labels = re.findall(r'convolution\(.*dim_labels=(\S+?)[,\s]', compiled.as_text())
  assert labels and set(labels) == {'b01f_01io->b01f'}, labels


def pool_by_hand(x, window, strides, padding, reduce, fill):
  x = np.pad(x.astype(np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)),
             constant_values=fill)
  size = [(n - window) // strides + 1 for n in x.shape[1:3]]
  return np.stack([np.stack([
      reduce(x[:, i * strides:i * strides + window, j * strides:j * strides + window],
             axis=(1, 2)) for j in range(size[1])], 1) for i in range(size[0])], 1)


@pytest.mark.parametrize('window, strides, padding', [
    (2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_pooling_matches_definition(window, strides, padding, backend):
  x = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)
  np.testing.assert_allclose(
      max_pool(x, window, strides, padding),
      pool_by_hand(x, window, strides, padding, np.max, -np.inf), rtol=1e-6)
  np.testing.assert_allclose(
      avg_pool(x, window, strides, padding),
      pool_by_hand(x, window, strides, padding, np.mean, 0), rtol=1e-5, atol=1e-6)


def test_max_pool_gradient(backend):
  """To the maximum where it is unique; of ties no more and no less than 1 in all."""
  x = np.random.default_rng(0).permutation(72).reshape(2, 6, 6, 1).astype(np.float32)
  windows = x.reshape(2, 3, 2, 3, 2, 1)
  expected = windows == windows.max(axis=(2, 4), keepdims=True)
  total = lambda x: jnp.sum(max_pool(x, 2))
  np.testing.assert_array_equal(jax.grad(total)(x), expected.reshape(x.shape))
  ties = jax.grad(total)(jnp.zeros((1, 4, 4, 1)))
  np.testing.assert_allclose(ties.reshape(2, 2, 2, 2).sum(axis=(1, 3)), 1)
  padded = jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1)))(jnp.zeros((1, 5, 5, 1)))
  assert np.isfinite(padded).all() and np.sum(padded) == pytest.approx(9)


def test_layer_parameters_and_precision():
  layer = Conv(5, (3, 2), strides=2, padding=1, use_bias=True, dtype=jnp.bfloat16)
  x = jnp.ones((2, 6, 6, 4))
  variables = layer.init(jax.random.key(0), x)
  shapes = jax.tree.map(lambda p: (p.shape, p.dtype), variables['params'])
  assert shapes == {'kernel': ((3, 2, 4, 5), jnp.float32), 'bias': ((5,), jnp.float32)}
  assert layer.apply(variables, x).dtype == jnp.bfloat16
  params = {'kernel': jnp.ones((3, 2, 4, 5)), 'bias': jnp.arange(5.)}
  out = Conv(5, (3, 2), padding=0, use_bias=True).apply({'params': params}, x)
  np.testing.assert_array_equal(out, np.broadcast_to(24 + np.arange(5), out.shape))


@pytest.mark.parametrize('change, message', [
    ({'kernel': (3, 3, 5, 8)}, 'do not fit'),
    ({'groups': 3}, 'do not fit'),
    ({'x': (4, 4, 4)}, 'images'),
    ({'strides': 0}, 'strides'),
    ({'padding': -1}, 'padding'),
    ({'padding': (1, 2, 3)}, 'padding'),
    ({'kernel': (7, 7, 4, 8)}, '7, 7'),
])
def test_wrong_arguments_are_named(change, message):
  arguments = {'x': (2, 4, 4, 4), 'kernel': (3, 3, 4, 8), 'strides': 1,
               'padding': 1, 'groups': 1, **change}
  x, kernel = jnp.ones(arguments.pop('x')), jnp.ones(arguments.pop('kernel'))
  with pytest.raises(ConfigError, match=message):
    conv(x, kernel, **arguments)


def test_pooling_refuses_windows_that_do_not_fit():
  with pytest.raises(ConfigError, match='window'):
    max_pool(jnp.ones((1, 2, 2, 1)), 3)
  with pytest.raises(ConfigError, match='padding'):
    avg_pool(jnp.ones((1, 4, 4, 1)), 2, padding=2)


def test_unknown_compiler_options_are_left_out(monkeypatch):
  monkeypatch.setattr(
      conv_lib, '_NO_YNN_CONVOLUTIONS', {'xla_cpu_no_such_option': 'x'})
  conv_lib.cpu_compiler_options.cache_clear()
  assert conv_lib.cpu_compiler_options() == {}
  conv_lib.cpu_compiler_options.cache_clear()


def test_compiler_options_compile_here():
  compiled = jax.jit(jnp.cos).lower(1.0).compile(conv_lib.cpu_compiler_options())
  np.testing.assert_allclose(compiled(1.0), np.cos(1.0), rtol=1e-6)
