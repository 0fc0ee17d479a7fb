"""From arrays and numbers to input sets, rounded outwards.

What comes in another type than the set's (float64 from NumPy, Python numbers) is between
two numbers of it. Ends of boxes and radii go to the outer one; a center goes to the
nearest, and what it moved by is added to the radius.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import rounding
from rkd_jax.bounds.sets import Box, L1Ball, L2Ball, around
from rkd_jax.errors import ConfigError


def box(lower: Any, upper: Any) -> Box:
  """All x between two arrays float[B, ...], rounded outwards.

  Raises:
    ConfigError: shapes or types differ, not float32 or float64, lower > upper, or NaN.
  """
  lower, upper = _floats('lower', lower), _floats('upper', upper)
  if lower.shape != upper.shape or lower.dtype != upper.dtype:
    raise ConfigError(f'lower {lower.shape} {lower.dtype} and upper {upper.shape} '
                      f'{upper.dtype} must be alike')
  _refuse(lower > upper, f'lower > upper, by up to {_largest(lower, upper)}')
  dtype = _stored(lower.dtype)
  return Box(*rounding.normal(_below(lower, dtype), _above(upper, dtype)))


def linf_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
              upper: Any = jnp.inf) -> Box:
  """All x with |x - images| <= eps in every entry, cut with [lower, upper].

  Args:
    images: float32 or float64[B, ...], finite, within [lower, upper].
    eps: Radius >= 0, or one for each example, [B], or for each entry: an array with as
      many axes as `images` that broadcasts to them, 0 where nothing may change. May be
      traced.
    lower: Least valid value (0.0 for pixels), a number or an array like `images`.
    upper: Greatest valid value.

  Raises:
    ConfigError: images of another type, NaN, infinite or outside [lower, upper]; eps < 0.
  """
  center, eps, lower, upper = _ball(images, eps, lower, upper, lambda moved: moved,
                                    each_entry=True)
  return Box(*around(
      center, eps.reshape(*eps.shape, *(1,) * (center.ndim - eps.ndim)), lower, upper))


def l2_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
            upper: Any = jnp.inf) -> L2Ball:
  """All x with ||x - images||_2 <= eps, cut with [lower, upper]; see `linf_ball`.

  There is one radius for an example. To keep some entries as they are, cut them:
  lower = upper = images there.
  """
  return L2Ball(*_ball(images, eps, lower, upper, _norm(2)))


def l1_ball(images: Any, eps: Any, *, lower: Any = -jnp.inf,
            upper: Any = jnp.inf) -> L1Ball:
  """All x with ||x - images||_1 <= eps, cut with [lower, upper]; see `l2_ball`."""
  return L1Ball(*_ball(images, eps, lower, upper, _norm(1)))


def _ball(images, eps, lower, upper, moved_by, each_entry=False):
  given = _floats('images', images)
  _refuse(_of(given).isinf(given), 'images has infinite entries')
  dtype = _stored(given.dtype)
  lower, upper = _edge('lower', lower), _edge('upper', upper)
  _refuse((given < lower) | (given > upper),
          f'images outside the box, in [{_least(given)}, {_most(given)}]: are they '
          'scaled to [0, 1]?')
  center = jnp.asarray(given.astype(dtype))
  eps = _radius(eps, center, each_entry)
  if given.dtype != dtype:
    moved = _above(moved_by(abs(given - given.astype(dtype))), dtype)
    moved = rounding.normal(moved, moved)[1]
    eps = eps.reshape(*eps.shape, *(1,) * (moved.ndim - eps.ndim))
    eps = jnp.where(moved > 0, rounding.up(eps + moved), eps)
  lower, upper = (jnp.broadcast_to(edge, center.shape) for edge in rounding.normal(
      _below(lower, dtype), _above(upper, dtype)))
  return center, eps, lower, upper


def _norm(order):
  def norm(moved):
    sizes = moved.reshape(len(moved), -1)
    # Rounded up: a sum of n terms errs by less than n units of its type.
    more = 1 + 4 * (sizes.shape[1] + 8) * float(jnp.finfo(sizes.dtype).eps)
    return _of(sizes).linalg.norm(sizes, order, axis=1) * more
  return norm


def _floats(name, values):
  """NumPy arrays as they are, so that float64 is still there to be rounded outwards."""
  values = values if isinstance(values, jax.Array) else np.asarray(values)
  if not jnp.issubdtype(values.dtype, jnp.floating) or values.ndim < 1:
    raise ConfigError(f'{name} must be floating point with a batch axis, got '
                      f'{values.dtype} {values.shape}; divide pixels by 255')
  if jnp.finfo(values.dtype).bits < 32:
    raise ConfigError(f'{name} is {values.dtype}: bounds are computed in float32 or '
                      f'float64. {name}.astype(float32) is exact; the function must '
                      'compute in float32 as well')
  _refuse(_of(values).isnan(values), f'{name} has NaN')
  return values


def _edge(name, values):
  """A cut: a number or an array of any real type."""
  if isinstance(values, jax.Array):
    return values
  values = np.asarray(values)
  if values.dtype.kind not in 'fiu':
    raise ConfigError(f'{name} must be a real number or an array of them, got {values!r}')
  return values if values.dtype.kind == 'f' else values.astype(np.float64)


def _stored(dtype):
  """The type of the set: float32 unless float64 is enabled."""
  return jnp.dtype(jax.dtypes.canonicalize_dtype(
      dtype if dtype.itemsize <= 8 else np.float64))


def _below(values, dtype):
  """The greatest number of a type that is not above."""
  xp, cast = _of(values), values.astype(dtype)
  least = xp.asarray(-np.inf, dtype)
  return jnp.asarray(xp.where(cast > values, xp.nextafter(cast, least), cast))


def _above(values, dtype):
  return -_below(-values, dtype)


def _radius(eps, center, each_entry):
  """float[B], or like the center, rounded up; a subnormal one would count as none."""
  if not isinstance(eps, jax.Array):
    eps = np.asarray(eps, np.float64)
  shape = center.shape[:1]
  if each_entry and eps.ndim == center.ndim > 1 and all(
      n in (1, m) for n, m in zip(eps.shape, center.shape)):
    shape = center.shape
  elif eps.shape not in ((), shape):
    hint = (f' or one for each entry, with the {center.ndim} axes of the images'
            if each_entry else
            '; to keep entries as they are, cut them: lower = upper = images there')
    raise ConfigError(f'eps must be one number or one for each example, '
                      f'({center.shape[0]},){hint}; got shape {eps.shape}')
  _refuse(~(eps >= 0), f'eps must be >= 0, got {eps}')
  eps = _above(eps, center.dtype)
  return jnp.broadcast_to(rounding.normal(eps, eps)[1], shape)


def _of(values):
  """The library of an array."""
  return jnp if isinstance(values, jax.Array) else np


def _refuse(wrong, message):
  """Raises where values are known; traced ones are the caller's business."""
  if not isinstance(wrong, jax.core.Tracer) and bool(_of(wrong).any(wrong)):
    raise ConfigError(message)


def _value(function, *arrays):
  if any(not a.size for a in arrays):
    return None
  try:
    return float(function(*arrays))
  except jax.errors.ConcretizationTypeError:
    return None


def _least(values):
  return _value(_of(values).min, values)


def _most(values):
  return _value(_of(values).max, values)


def _largest(lower, upper):
  return _value(lambda a, b: (a - b).max(), lower, upper)
