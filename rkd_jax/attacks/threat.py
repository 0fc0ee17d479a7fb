"""What an adversary may do to an image: norm balls, projections, random starts.

A threat is a ball of radius `eps` around the clean image, in the L-inf or L2
norm, cut with the box `[lower, upper]` of valid pixels. Everything here works on
batches [B, ...], treats examples independently and computes in float32.
Subnormal numbers count as zero, as they do on most accelerators.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.errors import ConfigError, unknown_name

NORMS = ('linf', 'l2')
STARTS = ('uniform', 'gaussian', 'none')
GAUSSIAN_SCALE = 1e-3  # Of TRADES (arXiv:1901.08573) and CIARD (arXiv:2509.12633).

_ULP = float(jnp.finfo(jnp.float32).eps)  # 2**-23


def check_norm(norm: str) -> None:
  """Refuses a norm that is not in `NORMS`."""
  if norm not in NORMS:
    raise unknown_name('norm', norm, NORMS)


def project(images_adv, images, *, eps, norm, lower=0.0, upper=1.0):
  """Moves images into the ball around the clean ones, then into the box.

  The result is in the box, and in the ball in floating point: for 'linf'
  `abs(result - images) <= eps` holds for every pixel as float32 evaluates it. For
  'l2' the ball is narrowed by the relative `2**-23 * (sqrt(D) + 16)` (D pixels: 8e-6
  at 32x32x3), which is more than the rounding of the norm, so the norm is <= eps
  in exact arithmetic and as float32 evaluates it. Projecting again changes nothing.

  For 'l2' this is the nearest point of the ball, clipped. Clipping only moves a
  pixel towards the clean one, which is in the box, so the ball still holds.

  Args:
    images_adv: float32[B, ...].
    images: float32[B, ...], the clean images, within [lower, upper].
    eps: radius >= 0, in pixel units; Python number or traced scalar.
    norm: 'linf' or 'l2'.
    lower: least valid pixel, may be -inf.
    upper: greatest valid pixel, may be inf.

  Returns:
    float32[B, ...]; no gradient flows out of it.

  Raises:
    ConfigError: unknown norm.
  """
  check_norm(norm)
  images_adv, images, eps = lax.stop_gradient(
      (images_adv, images, jnp.asarray(eps, jnp.float32)))
  if norm == 'linf':
    low, high = interval(images, eps)
  else:
    low, high = _l2_interval(images_adv, images, eps)
  return jnp.clip(images_adv, jnp.maximum(low, lower), jnp.minimum(high, upper))


def interval(images, radius):
  """Least and greatest float32 within `radius` of `images`, both inclusive.

  `images + radius` may round away from `images`. Its lower neighbour is then at
  most the exact sum, so its distance, which rounds monotonically, is at most
  `radius`. One neighbour is therefore always enough.
  """
  high = images + radius
  low = images - radius
  return (jnp.where(images - low > radius, jnp.nextafter(low, jnp.inf), low),
          jnp.where(high - images > radius, jnp.nextafter(high, -jnp.inf), high))


def _l2_interval(images_adv, images, eps):
  """Per-pixel interval that `images_adv` is clipped to, for the L2 ball.

  Shrinking an offset d to s * d is clipping to the images +- s * |d|; written as
  an interval it rounds towards the clean image. Twice narrowed: an offset that
  was shrunk is found inside the radius when it is projected again.
  """
  offset = images_adv - images
  norm = l2_norm(offset)
  slack = _ULP * (math.sqrt(math.prod(images.shape[1:])) + 16)
  radius = eps * (1 - slack)
  factor = radius * (1 - slack) / jnp.where(norm > 0, norm, 1)
  low, high = interval(images, jnp.abs(offset) * factor)
  inside = norm <= radius
  return jnp.where(inside, -jnp.inf, low), jnp.where(inside, jnp.inf, high)


def rows(values):
  """[B, ...] as [B, D], for sums and maxima over each example.

  XLA would fold the reshape into them, and on CPU, with its default options, a reduction
  over several axes of which the last has one channel takes fifty times as long.
  """
  return lax.optimization_barrier(values.reshape(len(values), -1))


def l2_norm(values):
  """Euclidean norm of each example, float32[B, 1, ...], without over- or underflow.

  Scaled by the greatest magnitude, because squares of small gradients are zero in
  float32. Summed in about sqrt(D) blocks of sqrt(D), which bounds the relative
  error by `2**-24 * (sqrt(D) + 8)` in whatever order the backend adds.
  """
  flat = rows(values)
  size = flat.shape[1]
  block = math.isqrt(size - 1) + 1
  largest = jnp.max(jnp.abs(flat), axis=1)
  unit = flat / jnp.where(largest > 0, largest, 1)[:, None]
  padded = jnp.pad(unit, ((0, 0), (0, -size % block)))
  # XLA would merge the two sums into one without the barrier.
  blocks = lax.optimization_barrier(
      jnp.sum(jnp.square(padded).reshape(len(flat), -1, block), axis=2))
  norm = largest * jnp.sqrt(jnp.sum(blocks, axis=1))
  return norm.reshape(-1, *(1,) * (values.ndim - 1))


def ascent(gradient, *, norm):
  """Direction of steepest ascent of unit length in the norm, float32[B, ...].

  The sign for 'linf', the normalised gradient for 'l2'. A zero gradient gives
  zero, so the image stays where it is.
  """
  check_norm(norm)
  if norm == 'linf':
    return jnp.sign(gradient)
  # Scaled first: a norm near the end of float32's range would lose the quotient.
  flat = rows(gradient)
  largest = jnp.max(jnp.abs(flat), axis=1, keepdims=True)
  unit = flat / jnp.where(largest > 0, largest, 1)
  return (unit / jnp.maximum(l2_norm(unit), 1)).reshape(gradient.shape)


def random_start(images, keys, *, kind, eps, norm, scale=None, lower=0.0,
                 upper=1.0):
  """Where an attack starts, projected into the ball and the box.

  Args:
    images: float32[B, ...], clean.
    keys: typed PRNG keys [B]; None for the kind 'none'.
    kind: 'uniform' (in the ball, by volume), 'gaussian' (`images + scale *
      N(0, 1)`) or 'none' (the clean images).
    eps: radius, Python number or traced scalar.
    norm: 'linf' or 'l2'.
    scale: standard deviation of 'gaussian' in pixel units; None: 0.001.
    lower: least valid pixel.
    upper: greatest valid pixel.

  Returns:
    float32[B, ...]; no gradient flows out of it.

  Raises:
    ConfigError: unknown kind or norm, or a scale that the kind does not use.
  """
  check_norm(norm)
  if kind not in STARTS:
    raise unknown_name('start', kind, STARTS)
  if scale is not None and kind != 'gaussian':
    raise ConfigError(f'start_scale {scale} has no effect with start {kind!r}; '
                      "leave it out or use start='gaussian'")
  if kind == 'none':
    noise = jnp.zeros_like(images)
  elif kind == 'gaussian':
    noise = (GAUSSIAN_SCALE if scale is None else scale) * normal(keys, images)
  else:
    noise = jnp.asarray(eps, jnp.float32) * _in_unit_ball(keys, images, norm)
  return project(images + noise, images, eps=eps, norm=norm, lower=lower,
                 upper=upper)


def normal(keys, images):
  """Standard normal noise, float32[B, ...]."""
  return _draw(jax.random.normal, keys, images.shape)


def _in_unit_ball(keys, images, norm):
  """Uniform in the unit ball of the norm, float32[B, ...]."""
  if norm == 'linf':
    return 2 * _draw(jax.random.uniform, keys, images.shape) - 1
  # The first D coordinates of a uniform point on the unit sphere of D + 2
  # dimensions are uniform in the unit ball of D.
  size = math.prod(images.shape[1:])
  sphere = ascent(_draw(jax.random.normal, keys, (len(images), size + 2)), norm='l2')
  return sphere[:, :size].reshape(images.shape)


def _draw(sampler, keys, shape):
  """One sample an example. Flat, as threefry on several axes compiles slowly."""
  size = math.prod(shape[1:])
  return jax.vmap(lambda key: sampler(key, (size,), jnp.float32))(keys).reshape(shape)
