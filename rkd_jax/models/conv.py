"""Convolution and pooling, written the way each backend runs them fast.

On GPU and TPU it is XLA's own operation; on CPU it is what `conv_cpu` makes of it.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from rkd_jax.errors import ConfigError
from rkd_jax.models.conv_cpu import cpu_avg_pool, cpu_conv, cpu_max_pool
from rkd_jax.models.conv_plain import plain_conv

_NO_YNN_CONVOLUTIONS = {
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}


_plain = contextvars.ContextVar('plain', default=False)


def on_cpu() -> bool:
  """Whether programs are traced for the CPU backend; read here and nowhere else."""
  return jax.default_backend() == 'cpu' and not _plain.get()


@contextlib.contextmanager
def plain():
  """Within it programs are traced as for other backends, for those who read them.

  On CPU they are traced at the highest precision, too, which changes nothing there but
  keeps jax.jit from taking a program that was traced here for another outside.
  """
  if not on_cpu():
    yield
    return
  token = _plain.set(True)
  try:
    with jax.default_matmul_precision('highest'):
      yield
  finally:
    _plain.reset(token)


def forward(fn: Callable, x: jax.Array) -> jax.Array:
  """`fn(x)` as who differentiates it computes it.

  On CPU strided convolutions are then quicker; without derivatives `conv` takes a form
  that may be transposed as well.
  """
  return jax.vjp(fn, x)[0]


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
  if on_cpu():
    return cpu_conv(x, kernel, strides, padding, groups)
  return plain_conv(x, kernel, strides, padding, groups)


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


def max_pool(x: jax.Array, window, strides=None, padding=0) -> jax.Array:
  """Maximum over windows of NHWC images; what is padded never wins.

  Where several elements of a window are the maximum, the gradient goes to the
  first of them on GPU and TPU and is split among them on CPU. On CPU, windows
  that tile the image have a `custom_vjp`: see `conv` on forward mode.

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
    return cpu_max_pool(x, window, strides, padding)
  return nn.max_pool(x, window, strides, [(p, p) for p in padding])


def avg_pool(x: jax.Array, window, strides=None, padding=0) -> jax.Array:
  """Mean over windows of NHWC images; padded zeros count as elements.

  Arguments, result and errors as in `max_pool`.
  """
  window, strides, padding = _check_pool(x, window, strides, padding)
  if on_cpu():
    return cpu_avg_pool(x, window, strides, padding)
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
