"""Convolution and pooling, written the way each backend runs them fast.

On GPU and TPU a convolution is `lax.conv_general_dilated` and XLA does the rest.
On CPU, XLA's convolutions are quick in one form alone (NHWC image, HWIO kernel,
stride 1, one group), and inside a loop body, where attacks live, nothing turns
the gradients that autodiff writes into that form. So each shape is rewritten
there: 1x1 kernels and strided ones become matrix products, depthwise ones sums
of shifted slices, the rest get gradients that are such convolutions themselves.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from rkd_jax.errors import ConfigError

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Below this many input channels the patches of a convolution are cheap and the
# convolution itself leaves most of each vector register empty.
_FEW_CHANNELS = 8
_NO_YNN_CONVOLUTIONS = {
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}


def on_cpu() -> bool:
  """Whether programs are traced for the CPU backend; read here and nowhere else."""
  return jax.default_backend() == 'cpu'


def _pair(value, name: str) -> tuple[int, int]:
  pair = (value, value) if isinstance(value, int) else tuple(value)
  if len(pair) != 2 or not all(isinstance(v, int) and v >= 0 for v in pair):
    raise ConfigError(
        f'{name} must be one integer >= 0 or two of them (height, width), '
        f'got {value!r}')
  return pair


def conv(x: jax.Array, kernel: jax.Array, *, strides=1, padding=0,
         groups: int = 1) -> jax.Array:
  """2-D convolution (cross-correlation) of NHWC images with an HWIO kernel.

  Equal to `lax.conv_general_dilated` to rounding, as are its first derivatives
  with respect to both arguments. On CPU some shapes carry a `custom_vjp`:
  reverse mode may be nested, but forward mode (`jax.jvp`, `jax.linearize`)
  raises TypeError there instead of returning a wrong number.

  Args:
    x: float[B, H, W, C].
    kernel: float[kh, kw, C / groups, F], of the dtype of `x`.
    strides: step of the window, an integer or (height, width).
    padding: zeros on *each* side, as in torch; an integer or (height, width).
    groups: the channels fall into this many blocks that do not mix; `groups=C`
      is a depthwise convolution.

  Returns:
    float[B, (H + 2 padding - kh) // stride + 1, ..., F], of the dtype of `x`.

  Raises:
    ConfigError: the shapes, the strides or the padding do not fit together.
  """
  strides, padding = _pair(strides, 'strides'), _pair(padding, 'padding')
  _check_shapes(x, kernel, strides, padding, groups)
  if not on_cpu():
    return _plain(x, kernel, strides, padding, groups)
  height, width, channels, _ = kernel.shape
  if groups > 1:
    depthwise = groups == x.shape[-1]
    form = _depthwise if depthwise else functools.partial(_plain, groups=groups)
  elif (height, width) == (1, 1):
    form = _pointwise
  elif strides != (1, 1) or channels <= _FEW_CHANNELS:
    form = _patches_dot
  else:
    return _same_form(*_vary_alike(x, kernel), padding)
  return form(x, kernel, strides, padding)


def _check_shapes(x, kernel, strides, padding, groups):
  if x.ndim != 4 or kernel.ndim != 4:
    raise ConfigError(
        f'conv needs images [B, H, W, C] and a kernel [kh, kw, C, F], got '
        f'{x.shape} and {kernel.shape}')
  if min(strides) < 1:
    raise ConfigError(f'strides must be >= 1, got {strides}')
  if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
    raise ConfigError(
        f'images {x.shape} and kernel {kernel.shape} do not fit with '
        f'groups={groups}: the kernel must be [kh, kw, {x.shape[-1]} / groups, F] '
        'with F a multiple of groups; are the images NHWC?')
  for size, pad, window in zip(
      x.shape[1:3], padding, kernel.shape[:2], strict=True):
    if size + 2 * pad < window:
      raise ConfigError(
          f'a {kernel.shape[:2]} kernel does not fit into images of '
          f'{x.shape[1:3]} pixels with padding {padding}')


def _plain(x, kernel, strides, padding, groups=1):
  return lax.conv_general_dilated(
      x, kernel, strides, [(p, p) for p in padding], dimension_numbers=_LAYOUT,
      feature_group_count=groups)


def _pad(x, padding, value=0.0):
  if padding == (0, 0):
    return x
  low_high = [(0, 0), *((p, p) for p in padding), (0, 0)]
  return jnp.pad(x, low_high, constant_values=value)


def _windows(x, window, strides) -> list[jax.Array]:
  """What each window element sees: kh * kw arrays [B, H', W', C], row by row."""
  size = [(n - k) // s + 1 for n, k, s in zip(
      x.shape[1:3], window, strides, strict=True)]
  return [
      lax.slice(
          x, (0, i, j, 0),
          (x.shape[0], i + (size[0] - 1) * strides[0] + 1,
           j + (size[1] - 1) * strides[1] + 1, x.shape[3]),
          (1, *strides, 1))
      for i in range(window[0]) for j in range(window[1])]


def _pointwise(x, kernel, strides, padding):
  x, = _windows(_pad(x, padding), (1, 1), strides)
  out = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
  return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _patches_dot(x, kernel, strides, padding):
  slices = _windows(_pad(x, padding), kernel.shape[:2], strides)
  patches = jnp.concatenate(slices, axis=-1)
  out = (patches.reshape(-1, patches.shape[-1])
         @ kernel.reshape(-1, kernel.shape[-1]))
  return out.reshape(*patches.shape[:-1], kernel.shape[-1])


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
  slices = _windows(_pad(x, padding), kernel.shape[:2], strides)
  total = sum(s.astype(acc) * w for s, w in zip(slices, weights, strict=True))
  return total.astype(x.dtype)


def _shifted_sum_fwd(x, kernel, strides, padding):
  return _shifted_sum(x, kernel, strides, padding), (x, kernel)


def _shifted_sum_bwd(strides, padding, residuals, g):
  x, kernel = residuals
  window = kernel.shape[:2]
  back = _opposite(window, padding)
  # Each barrier ends a fusion: what is read kh * kw times is computed once, and
  # the sums below stay apart.
  g = lax.optimization_barrier(g)
  if strides == (1, 1) and min(back) >= 0:
    grad_x = _shifted_sum(g, jnp.flip(kernel, (0, 1)), (1, 1), back)
  else:
    grad_x, = jax.vjp(
        lambda x: _shifted_sum.fun(x, kernel, strides, padding), x)[1](g)
    grad_x = lax.optimization_barrier(grad_x)
  # A sum over one axis that leaves the channels innermost is vectorised; one
  # over examples, rows and columns at once is not.
  acc = jnp.promote_types(x.dtype, jnp.float32)
  padded = _pad(lax.optimization_barrier(x), padding)
  total = jnp.stack(
      [jnp.sum(s.astype(acc) * g.astype(acc), axis=1)
       for s in _windows(padded, window, strides)], axis=1)
  total = jnp.sum(lax.optimization_barrier(total), axis=0)
  total = jnp.sum(lax.optimization_barrier(total), axis=1)
  return grad_x, total.reshape(kernel.shape).astype(kernel.dtype)


_shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


def _opposite(window, padding):
  """The padding of the convolution that undoes a convolution of stride 1."""
  return tuple(k - 1 - p for k, p in zip(window, padding, strict=True))


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
  return _plain(x, kernel, (1, 1), padding)


def _same_form_fwd(x, kernel, padding):
  return _plain(x, kernel, (1, 1), padding), (x, kernel)


def _same_form_bwd(padding, residuals, g):
  x, kernel = residuals
  # The barriers keep XLA from folding the transposes back into the convolutions'
  # dimension numbers. That of the kernel does not change in an attack's loop,
  # and XLA then moves it out of the loop.
  flipped = lax.optimization_barrier(
      jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
  grad_x = _plain(g, flipped, (1, 1), _opposite(kernel.shape[:2], padding))
  # Channels as batch, batch as channels: the sum over examples and pixels is
  # the one that the quick form does over its window and channels.
  x_by_channel = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
  g_as_kernel = lax.optimization_barrier(g.transpose(1, 2, 0, 3))
  grad_kernel = _plain(x_by_channel, g_as_kernel, (1, 1), padding)
  return grad_x, grad_kernel.transpose(1, 2, 0, 3)


_same_form.defvjp(_same_form_fwd, _same_form_bwd)


def max_pool(x: jax.Array, window, strides=None, padding=0) -> jax.Array:
  """Maximum over windows of NHWC images; what is padded never wins.

  Where several elements of a window are the maximum, the gradient goes to the
  first of them on GPU and TPU and is split among them on CPU.

  Args:
    x: float[B, H, W, C].
    window: size of the window, an integer or (height, width).
    strides: as in `conv`; None is `window`.
    padding: as in `conv`; smaller than the window.

  Returns:
    float[B, (H + 2 padding - window) // stride + 1, ..., C].

  Raises:
    ConfigError: the window does not fit.
  """
  window, strides, padding = _check_pool(x, window, strides, padding)
  if on_cpu():
    slices = _windows(_pad(x, padding, -jnp.inf), window, strides)
    return functools.reduce(jnp.maximum, slices)
  return nn.max_pool(x, window, strides, [(p, p) for p in padding])


def avg_pool(x: jax.Array, window, strides=None, padding=0) -> jax.Array:
  """Mean over windows of NHWC images; padded zeros count as elements.

  Arguments, result and errors as in `max_pool`.
  """
  window, strides, padding = _check_pool(x, window, strides, padding)
  if on_cpu():
    slices = _windows(_pad(x, padding), window, strides)
    return sum(slices) / (window[0] * window[1])
  return nn.avg_pool(x, window, strides, [(p, p) for p in padding])


def _check_pool(x, window, strides, padding):
  window = _pair(window, 'window')
  strides = window if strides is None else _pair(strides, 'strides')
  padding = _pair(padding, 'padding')
  if x.ndim != 4 or min(window) < 1 or min(strides) < 1:
    raise ConfigError(
        'pooling needs images [B, H, W, C], a window and strides >= 1, got '
        f'{x.shape}, {window} and {strides}')
  for size, pad, length in zip(
      x.shape[1:3], padding, window, strict=True):
    if pad >= length or size + 2 * pad < length:
      raise ConfigError(
          f'a {window} window with padding {padding} does not fit into images '
          f'of {x.shape[1:3]} pixels: padding must be smaller than the window, '
          'the window no larger than the padded image')
  return window, strides, padding


class Conv(nn.Module):
  """A convolution layer: parameters `kernel` HWIO and, if asked for, `bias`.

  Attributes:
    features: channels of the result.
    kernel_size, strides, padding, groups: as in `conv`.
    use_bias: adds a bias [features], initially 0.
    dtype: what it computes in, and of its result; None takes that of the input
      and the parameters. The parameters are float32.
    kernel_init: of the kernel [kh, kw, C / groups, features].
  """

  features: int
  kernel_size: int | tuple[int, int] = (3, 3)
  strides: int | tuple[int, int] = 1
  padding: int | tuple[int, int] = 1
  groups: int = 1
  use_bias: bool = False
  dtype: jnp.dtype | None = None
  kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1] // self.groups
    shape = (*_pair(self.kernel_size, 'kernel_size'), channels, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    bias = (self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
            if self.use_bias else None)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    out = conv(x, kernel, strides=self.strides, padding=self.padding,
               groups=self.groups)
    return out if bias is None else out + bias


@functools.cache
def cpu_compiler_options() -> dict[str, str]:
  """Options with which CPU programs that hold convolutions should be compiled.

  On the CPU backend they switch off the convolutions of the YNN library, which
  partly run on one thread. The option is experimental: where the installed
  jaxlib does not know it, and on every other backend, the result is {}.
  """
  if not on_cpu():
    return {}
  try:
    jax.jit(jnp.negative).lower(0.0).compile(_NO_YNN_CONVOLUTIONS)
  except Exception:  # Whatever an unknown release raises, we do without.
    return {}
  return dict(_NO_YNN_CONVOLUTIONS)
