"""Convolutions and pooling in the forms that XLA runs fast on CPU.

There XLA's convolutions are quick in one form alone (NHWC image, HWIO kernel,
stride 1, one group), and inside a loop body, where attacks live, nothing turns
the gradients that autodiff writes into that form. So each shape is rewritten:
1x1 kernels become matrix products, depthwise ones sums of shifted slices, few channels
products with patches. Strided ones get the gradients of convolutions of stride 1 over
blocks of pixels or of products with patches, and what is left gradients that are such
convolutions themselves.
Everything here takes checked arguments, strides and padding as pairs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.models.conv_plain import plain_conv

# Up to this many input channels patches are cheap, and the convolution itself
# leaves most of each vector register empty.
_FEW_CHANNELS = 8
# From so many channels of a block of pixels a convolution over blocks is quicker than
# patches, unless the kernel has to be padded to whole blocks.
_BLOCK_CHANNELS = 64


def cpu_conv(x, kernel, strides, padding, groups):
  """`conv` of `models.conv`, in the form that fits the shape."""
  if groups > 1:
    if groups == x.shape[-1]:
      return _depthwise(x, kernel, strides, padding)
    return plain_conv(x, kernel, strides, padding, groups)
  if kernel.shape[:2] == (1, 1):
    return _pointwise(x, kernel, strides, padding)
  if x.shape[-1] <= _FEW_CHANNELS:
    return _patches_dot(x, kernel, strides, padding)
  if strides != (1, 1):
    return _strided(*_vary_alike(x, kernel), strides, padding)
  return _same_form(*_vary_alike(x, kernel), padding)


def cpu_max_pool(x, window, strides, padding):
  """`max_pool` of `models.conv`."""
  if window == strides and padding == (0, 0):
    height, width = _sizes(x, window, strides, padding)
    return _max_of_tiles(x[:, :height * window[0], :width * window[1]], window)
  return functools.reduce(
      jnp.maximum, _windows(x, window, strides, padding, -jnp.inf))


def cpu_avg_pool(x, window, strides, padding):
  """`avg_pool` of `models.conv`."""
  slices = _windows(x, window, strides, padding)
  return sum(slices) / (window[0] * window[1])


def _pad(x, rows, columns, value=0.0):
  """Pads height and width by (before, after); negative numbers crop."""
  edges = [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
  return lax.pad(x, jnp.asarray(value, x.dtype), edges)


def _pad_evenly(x, padding, value=0.0):
  return _pad(x, *((p, p) for p in padding), value)


def _sizes(x, window, strides, padding):
  """Height and width of what a window yields."""
  return tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(
      x.shape[1:3], padding, window, strides, strict=True))


def _windows(x, window, strides, padding, value=0.0) -> list[jax.Array]:
  """What each window element sees: kh * kw arrays [B, H', W', C], row by row."""
  size = _sizes(x, window, strides, padding)
  x = _pad_evenly(x, padding, value)
  return [
      lax.slice(
          x, (0, i, j, 0),
          (x.shape[0], i + (size[0] - 1) * strides[0] + 1,
           j + (size[1] - 1) * strides[1] + 1, x.shape[3]),
          (1, *strides, 1))
      for i in range(window[0]) for j in range(window[1])]


def _pointwise(x, kernel, strides, padding):
  x, = _windows(x, (1, 1), strides, padding)
  out = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
  return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _patches_dot(x, kernel, strides, padding):
  """The matrix product of all patches with the kernel.

  The image is first cut into blocks of the size of the stride: a patch is then a
  few runs of neighbouring blocks instead of kh * kw strided slices, which are
  slow to read and, in the gradient, slower to write.
  """
  window, features = kernel.shape[:2], kernel.shape[-1]
  size = _sizes(x, window, strides, padding)
  runs = _runs(window, strides)
  blocks = _blocks(x, window, strides, padding)
  patches, weights = [], []
  for i in range(runs[0]):
    for j in range(runs[1]):
      part = kernel[i * strides[0]:(i + 1) * strides[0],
                    j * strides[1]:(j + 1) * strides[1]]
      seen = blocks[:, i:i + size[0], j:j + size[1], :part.shape[0], :part.shape[1]]
      patches.append(seen.reshape(*seen.shape[:3], -1))
      weights.append(part.reshape(-1, features))
  patches = jnp.concatenate(patches, axis=-1)
  out = patches.reshape(-1, patches.shape[-1]) @ jnp.concatenate(weights)
  return out.reshape(-1, *size, features)


def _runs(window, strides):
  """How many blocks a window covers down and across."""
  return [-(-k // s) for k, s in zip(window, strides, strict=True)]


def _blocks(x, window, strides, padding):
  """The padded image in blocks of the size of the stride: [B, n, m, sh, sw, C]."""
  size, runs = _sizes(x, window, strides, padding), _runs(window, strides)
  counts = [n - 1 + r for n, r in zip(size, runs, strict=True)]
  x = _pad(x, *((p, c * s - n - p) for n, p, c, s in zip(
      x.shape[1:3], padding, counts, strides, strict=True)))
  blocks = x.reshape(-1, counts[0], strides[0], counts[1], strides[1], x.shape[-1])
  return blocks.transpose(0, 1, 3, 2, 4, 5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _strided(x, kernel, strides, padding):
  """A strided convolution, in a form that is quick to transpose, too.

  Who differentiates gets the convolution itself, which is quicker by a third, but whose
  own gradients take ten times as long; who transposes a program (bounds) gets this.
  """
  return _transposable(x, kernel, strides, padding)


def _transposable(x, kernel, strides, padding):
  if _fills_blocks(x, kernel, strides):
    return _blocks_conv(x, kernel, strides, padding)
  return _patches_dot(x, kernel, strides, padding)


def _strided_fwd(x, kernel, strides, padding):
  # XLA would fold the padding into the convolution, which is then slower.
  padded = lax.optimization_barrier(_pad_evenly(x, padding))
  return plain_conv(padded, kernel, strides, (0, 0)), (x, kernel)


def _strided_bwd(strides, padding, residuals, g):
  _, back = jax.vjp(
      lambda x, kernel: _transposable(x, kernel, strides, padding), *residuals)
  return back(g)


_strided.defvjp(_strided_fwd, _strided_bwd)


def _fills_blocks(x, kernel, strides):
  """Whether the kernel is whole blocks with channels enough for `_blocks_conv`."""
  whole = all(k % s == 0 for k, s in zip(kernel.shape[:2], strides, strict=True))
  return whole and strides[0] * strides[1] * x.shape[-1] >= _BLOCK_CHANNELS


def _blocks_conv(x, kernel, strides, padding):
  """A convolution of stride 1 over blocks, whose pixels are channels."""
  window, (channels, features) = kernel.shape[:2], kernel.shape[2:]
  down, across = _runs(window, strides)
  blocks = _blocks(x, window, strides, padding)
  kernel = kernel.reshape(down, strides[0], across, strides[1], channels, features)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(down, across, -1, features)
  return _same_form(*_vary_alike(
      blocks.reshape(*blocks.shape[:3], -1), kernel), (0, 0))


def _depthwise(x, kernel, strides, padding):
  features = kernel.shape[-1]
  if features != x.shape[-1]:  # Output c * m + j reads input c.
    x = jnp.repeat(x, features // x.shape[-1], axis=-1)
  return _shifted_sum(*_vary_alike(x, kernel), strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_sum(x, kernel, strides, padding):
  """Window elements times weights [kh, kw, 1, C], summed in float32."""
  acc = jnp.promote_types(x.dtype, jnp.float32)
  weights = kernel.reshape(-1, kernel.shape[-1]).astype(acc)
  slices = _windows(x, kernel.shape[:2], strides, padding)
  total = sum(s.astype(acc) * w for s, w in zip(slices, weights, strict=True))
  return total.astype(x.dtype)


def _shifted_sum_fwd(x, kernel, strides, padding):
  return _shifted_sum(x, kernel, strides, padding), (x, kernel)


def _shifted_sum_bwd(strides, padding, residuals, g):
  x, kernel = residuals
  return (_shifted_sum_grad_x(x, kernel, strides, padding, g),
          _shifted_sum_grad_kernel(x, kernel, strides, padding, g))


_shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


def _shifted_sum_grad_x(x, kernel, strides, padding, g):
  """As a sum of shifted slices too, one for each position within a stride.

  Row s * b + p of the padded image is seen by row b - t of the result through
  row s * t + p of the kernel; columns likewise.
  """
  acc = jnp.promote_types(x.dtype, jnp.float32)
  runs = [-(-k // s) for k, s in zip(
      kernel.shape[:2], strides, strict=True)]
  first = [p // s for p, s in zip(padding, strides, strict=True)]
  counts = [-(-(p + n) // s) - b for p, n, s, b in zip(
      padding, x.shape[1:3], strides, first, strict=True)]
  g = _pad(g, *((r - 1 - b, b + c - n) for r, b, c, n in zip(
      runs, first, counts, g.shape[1:3], strict=True))).astype(acc)

  def position(p, q):
    terms = [
        g[:, runs[0] - 1 - t:, runs[1] - 1 - u:][:, :counts[0], :counts[1]]
        * kernel[i, j, 0].astype(acc)
        for t, i in enumerate(range(p, kernel.shape[0], strides[0]))
        for u, j in enumerate(range(q, kernel.shape[1], strides[1]))]
    return sum(terms, jnp.zeros((), acc))

  shape = (x.shape[0], *counts, x.shape[-1])
  blocks = jnp.stack([
      jnp.stack([jnp.broadcast_to(position(p, q), shape)
                 for q in range(strides[1])], axis=3)
      for p in range(strides[0])], axis=2)
  whole = blocks.reshape(
      x.shape[0], counts[0] * strides[0], counts[1] * strides[1], x.shape[-1])
  begin = [p - b * s for p, b, s in zip(padding, first, strides, strict=True)]
  return whole[:, begin[0]:, begin[1]:][:, :x.shape[1], :x.shape[2]].astype(x.dtype)


def _shifted_sum_grad_kernel(x, kernel, strides, padding, g):
  """Sums over examples in a loop, each over its rows, at last over columns.

  A sum over all three at once is an order of magnitude slower: XLA does not
  vectorise it, and one example fits into the cache where a batch does not. The
  loop also keeps XLA from computing `x` and `g` anew for each window element.
  """
  acc = jnp.promote_types(x.dtype, jnp.float32)

  def add(total, example):
    x, g = example
    slices = _windows(x[None], kernel.shape[:2], strides, padding)
    return tuple(t + jnp.sum(s[0].astype(acc) * g.astype(acc), axis=0)
                 for t, s in zip(total, slices, strict=True)), None

  zero = jnp.zeros_like(g, acc, shape=g.shape[2:])
  total, _ = lax.scan(
      add, (zero,) * (kernel.shape[0] * kernel.shape[1]), (x, g))
  return jnp.sum(jnp.stack(total), axis=1).reshape(kernel.shape).astype(kernel.dtype)


def _vary_alike(x, kernel):
  """Under `shard_map`: both as varying over the mesh axes that either varies over.

  There the gradients of a custom_vjp must vary just as their arguments do, and
  the kernel's gradient varies as the images do. The selects never select.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return x, kernel
  other = lax.stop_gradient((x, kernel))
  return (jnp.where(False, other[1][0, 0, 0, 0], x),
          jnp.where(False, other[0][0, 0, 0, 0], kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same_form(x, kernel, padding):
  """Stride 1: the convolution and its gradients in the form that is quick."""
  return plain_conv(x, kernel, (1, 1), padding)


def _same_form_fwd(x, kernel, padding):
  return plain_conv(x, kernel, (1, 1), padding), (x, kernel)


def _same_form_bwd(padding, residuals, g):
  x, kernel = residuals
  # The barriers keep XLA from folding the transposes back into the convolutions'
  # dimension numbers. That of the kernel does not change in an attack's loop,
  # and XLA then moves it out of the loop.
  flipped = lax.optimization_barrier(
      jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
  opposite = tuple(k - 1 - p for k, p in zip(
      kernel.shape[:2], padding, strict=True))
  grad_x = plain_conv(g, flipped, (1, 1), opposite)
  # Channels as batch, batch as channels: the sum over examples and pixels is
  # the one that the quick form does over its window and channels.
  x_by_channel = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
  g_as_kernel = lax.optimization_barrier(g.transpose(1, 2, 0, 3))
  grad_kernel = plain_conv(x_by_channel, g_as_kernel, (1, 1), padding)
  return grad_x, grad_kernel.transpose(1, 2, 0, 3)


_same_form.defvjp(_same_form_fwd, _same_form_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_tiles(x, window):
  """Windows that tile the image: its gradient is elementwise, without padding."""
  return functools.reduce(jnp.maximum, _windows(x, window, window, (0, 0)))


def _max_of_tiles_fwd(x, window):
  out = _max_of_tiles(x, window)
  return out, (x, out)


def _max_of_tiles_bwd(window, residuals, g):
  x, out = residuals

  def enlarge(a):
    tiles = jnp.broadcast_to(
        a[:, :, None, :, None],
        (*a.shape[:2], window[0], a.shape[2], window[1], a.shape[3]))
    return tiles.reshape(x.shape)

  winners = sum((s == out).astype(g.dtype)
                for s in _windows(x, window, window, (0, 0)))
  return jnp.where(x == enlarge(out), enlarge(g / winners), 0),


_max_of_tiles.defvjp(_max_of_tiles_fwd, _max_of_tiles_bwd)
