"""How far floating point may be off: the outward slack of every bound.

The model is the usual one (Higham 2002, Accuracy and Stability of Numerical
Algorithms, secs. 2.2, 3.1): one operation errs by a factor 1 + d with |d| <= u, and a
sum of n products, in whatever order and with or without fused multiply-adds, by at
most gamma(n) times the sum of the absolute values of its terms.

Besides, a result or an operand smaller than `tiny`, the least normal number, may count
as zero: XLA on CPU does that everywhere, comparisons included. So a product may be off
by `tiny` more, and by `tiny` times either factor. What is stored as a bound is normal
or zero (`normal`), so that only constants and coefficients can be such operands.
"""

import jax
import jax.numpy as jnp
from jax import lax


def unit_roundoff(dtype) -> float:
  """u: the largest relative error of one operation.

  On TPU matrix products at the highest precision are made of several bfloat16 ones,
  hence four times as much there.
  """
  half_ulp = float(jnp.finfo(dtype).eps) / 2
  return 4 * half_ulp if jax.default_backend() == 'tpu' else half_ulp


def gamma(terms: int, dtype) -> float:
  """Bound of the relative error of a sum of products of so many terms.

  n u / (1 - n u) for n = terms + 8: eight operations to spare for the products
  around the sum. The factor 1.01 covers the denominator and the rounding of the
  slack itself up to n u = 0.005, 80,000 terms in float32; beyond, the denominator
  is computed.
  """
  nu = (terms + 8) * unit_roundoff(dtype)
  if nu >= 0.5:
    return float('inf')
  return 1.01 * nu / (1 - nu)


def tiny(terms: int, dtype) -> float:
  """What flushing subnormal numbers to zero may cost a sum of so many terms."""
  return (terms + 8) * float(jnp.finfo(dtype).tiny)


def down(x: jax.Array) -> jax.Array:
  """Below every number whose sum or difference was computed as x."""
  return jnp.nextafter(x, jnp.full_like(x, -jnp.inf)) - 2 * float(
      jnp.finfo(x.dtype).tiny)


def up(x: jax.Array) -> jax.Array:
  """Above every number whose sum or difference was computed as x."""
  return -down(-x)


def subnormal(x: jax.Array) -> jax.Array:
  """bool: whether 0 < |x| < tiny; by the bits, for comparisons may flush x to zero."""
  size = _magnitude_bits(x)
  return (size > 0) & (size < (1 << jnp.finfo(x.dtype).nmant))


def normal(lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The interval with subnormal ends moved outwards, to zero or the least normal."""
  tiny = float(jnp.finfo(lower.dtype).tiny)
  # The sign of a subnormal number survives in its bits, not in comparisons.
  low = jnp.where(subnormal(lower), jnp.where(jnp.signbit(lower), -tiny, 0), lower)
  high = jnp.where(subnormal(upper), jnp.where(jnp.signbit(upper), 0, tiny), upper)
  return low, high


def exponent(x: jax.Array) -> jax.Array:
  """int[...]: k with 2^k <= |x| < 2^(k + 1) where both powers are normal, 0 for 0.

  Elsewhere the nearest k for which 2^k and 2^-k are.
  """
  info = jnp.finfo(x.dtype)
  k = (_magnitude_bits(x) >> info.nmant) - (info.maxexp - 1)
  k = jnp.clip(k.astype(jnp.int32), 3 - info.maxexp, info.maxexp - 3)
  return jnp.where(x == 0, 0, k)


def scaled(x: jax.Array, k: jax.Array) -> jax.Array:
  """x * 2^k, exact unless the result underflows or overflows; |k| <= 2 * `exponent`."""
  half = k // 2
  return x * _power(half, x.dtype) * _power(k - half, x.dtype)


def _power(k, dtype):
  """2^k for normal powers; exp2 of XLA is not exact."""
  info = jnp.finfo(dtype)
  integer = jnp.int32 if info.bits == 32 else jnp.int64
  return lax.bitcast_convert_type(
      (k.astype(integer) + (info.maxexp - 1)) << info.nmant, dtype)


def _magnitude_bits(x):
  integer = jnp.int32 if jnp.finfo(x.dtype).bits == 32 else jnp.int64
  x = lax.stop_gradient(x)
  return lax.bitcast_convert_type(x, integer) & jnp.iinfo(integer).max
