"""Thresholds of rows, exactly and without a sort, which is slow in XLA on CPU."""

import jax.numpy as jnp
from jax import lax

_BITS = 31  # Of a float32 that is not negative; their order is that of the numbers.


def greatest(holds, count: int):
  """The greatest float32 >= 0 of every row at which a condition holds.

  Bisects the bit pattern, so what is found is exact.

  Args:
    holds: float32[count] -> bool[count]; true at 0 and, once false, false beyond.
    count: number of rows.
  """
  def step(i, bits):
    trial = bits | (jnp.int32(1) << (_BITS - 1 - i))
    return jnp.where(holds(lax.bitcast_convert_type(trial, jnp.float32)), trial, bits)

  bits = lax.fori_loop(0, _BITS, step, jnp.zeros(count, jnp.int32))
  return lax.bitcast_convert_type(bits, jnp.float32)
