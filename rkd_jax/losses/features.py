"""Per-example distances between features, and how much features vary."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.stats import norm

from rkd_jax.errors import ConfigError

VARIANCES = ('batch', 'spatial', 'channel')


def plain(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference of each example's features (FitNets): float[B].

  Args:
    student: float[B, ...].
    teacher: the same shape; no gradient flows into it.

  Raises:
    ConfigError: shapes differ.
  """
  _check_same(student, teacher)
  return _mean(jnp.square(student - lax.stop_gradient(teacher)))


def attention(student: jax.Array, teacher: jax.Array, *, power: float = 2.0
              ) -> jax.Array:
  """Mean squared difference of normalised attention maps: float[B].

  A map is the mean over channels of |f|^p, as a vector of length 1 (Zagoruyko and
  Komodakis 2017, arXiv:1612.03928, eq. 2). Numbers of channels may differ.

  Args:
    student: float[B, h, w, C].
    teacher: float[B, h, w, C']; no gradient flows into it.
    power: p.

  Raises:
    ConfigError: not feature maps, or of different sizes.
  """
  if student.ndim != 4 or student.shape[:3] != teacher.shape[:3]:
    raise ConfigError(f'attention maps need features [B, h, w, C] of one size, got '
                      f'{student.shape} and {teacher.shape}')

  def attended(feature):
    energy = jnp.mean(jnp.abs(feature)**power, axis=-1).reshape(len(feature), -1)
    squares = jnp.sum(jnp.square(energy), axis=1, keepdims=True)
    return energy * lax.rsqrt(squares + 1e-12)

  return _mean(jnp.square(attended(student) - lax.stop_gradient(attended(teacher))))


def overhaul(student: jax.Array, teacher: jax.Array, margin) -> jax.Array:
  """Partial L2 distance before the ReLU (Heo et al. 2019, arXiv:1904.01866): float[B].

  With t~ = max(t, margin): sum of (s - t~)^2 where s > t~ or t~ > 0 (eq. 3): a
  negative response of the teacher only has to be undercut.

  Args:
    student: float[B, ...], after its connector.
    teacher: the same shape, before the ReLU; no gradient flows into it.
    margin: <= 0, broadcast to a feature; see `negative_response`.

  Raises:
    ConfigError: shapes differ.
  """
  _check_same(student, teacher)
  target = lax.stop_gradient(jnp.maximum(teacher, margin))
  counts = (student > target) | (target > 0)
  squares = jnp.where(counts, jnp.square(student - target), 0)
  return jnp.sum(squares, axis=tuple(range(1, student.ndim)))


def negative_response(mean: jax.Array, std: jax.Array) -> jax.Array:
  """E[z | z < 0] of z ~ N(mean, std^2): the margin of a channel (OFD, eq. 4).

  A BatchNorm with `bias` and `scale` gives mean = bias and std = |scale|. Where
  P(z < 0) < 0.001 it is -3 std, as in the public code.

  Args:
    mean: float[C].
    std: float[C], >= 0.
  """
  std = jnp.maximum(jnp.abs(std), 1e-12)
  ratio = mean / std
  share = norm.cdf(-ratio)
  density = jnp.exp(-jnp.square(ratio) / 2) / math.sqrt(2 * math.pi)
  expected = mean - std * density / jnp.maximum(share, 1e-3)
  return jnp.where(share > 1e-3, expected, -3 * std)


def variance(feature: jax.Array, over: str = 'batch') -> jax.Array:
  """How much a feature varies, a scalar: RobustKD's L_f.

  Args:
    feature: float[B, ..., C].
    over: 'batch': over the examples, averaged over positions and channels;
      'spatial': over the positions; 'channel': over the channels, both averaged
      over the rest. A feature without positions has no spatial variance: 0.

  Raises:
    ConfigError: `over` is unknown.
  """
  if over not in VARIANCES:
    raise ConfigError(f'variance must be one of {VARIANCES}, got {over!r}')
  axes = {'batch': (0,), 'spatial': tuple(range(1, feature.ndim - 1)),
          'channel': (feature.ndim - 1,)}[over]
  return jnp.mean(jnp.var(feature, axis=axes)) if axes else jnp.zeros(())


def _mean(values):
  return jnp.mean(values.reshape(len(values), -1), axis=1)


def _check_same(student, teacher):
  if student.shape != teacher.shape:
    raise ConfigError(
        f'features of student {student.shape} and teacher {teacher.shape} must '
        'match; a connector makes the channels equal, the sizes must be')
