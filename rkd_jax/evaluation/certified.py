"""Verified accuracy: examples on which no perturbation whatever can succeed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rkd_jax import bounds

# Kind of evaluation -> the bound it rests on, from the loosest and fastest on.
KINDS = {'certified_ibp': bounds.ibp, 'certified_crown_ibp': bounds.crown_ibp,
         'certified_crown': bounds.crown}
# CROWN walks back only neurons that are open in some example of the batch, in chunks
# whose memory is bounded, so that a small batch is faster.
LARGEST_BATCH = {'certified_crown': 25}
_BALLS = {'linf': bounds.linf_ball, 'l2': bounds.l2_ball}


def verified(fn: Callable[[jax.Array], jax.Array], images: jax.Array,
             labels: jax.Array, *, eps, kind: str, norm: str = 'linf') -> jax.Array:
  """Where the label's logit is the largest over the whole ball, provably: bool[B].

  False means unknown. Rounding is accounted for, see `rkd_jax.bounds`.

  Args:
    fn: float[B, ...] -> float[B, K], a network in evaluation mode.
    images: float[B, ...] in [0, 1].
    labels: int[B].
    eps: radius in pixel units; the ball is cut with [0, 1].
    kind: a key of `KINDS`.
    norm: 'linf' or 'l2'.

  Raises:
    UnsupportedPrimitiveError: the network has an operation without bounds.
  """
  ball = _BALLS[norm](images, eps, lower=0.0, upper=1.0)
  num_classes = jax.eval_shape(fn, images).shape[-1]
  found = KINDS[kind](fn, ball, bounds.margins(labels, num_classes), upper=False)
  return jnp.all(found.lower > 0, axis=1)
