"""How far floating point may be off: the outward slack of every bound.

The model is the usual one (Higham 2002, Accuracy and Stability of Numerical
Algorithms, secs. 2.2, 3.1): one operation errs by a factor 1 + d with |d| <= u, and a
sum of n products, in whatever order and with or without fused multiply-adds, by at
most gamma(n) times the sum of the absolute values of its terms.
"""

import jax
import jax.numpy as jnp


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
