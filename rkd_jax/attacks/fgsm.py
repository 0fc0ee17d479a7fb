"""The fast gradient sign method: one step to the edge of the ball."""

from collections.abc import Callable

import jax

from rkd_jax.attacks.pgd import pgd


def fgsm(fn: Callable, images, labels, *, eps, norm: str = 'linf',
         objective: str | Callable = 'ce', lower: float = 0.0,
         upper: float = 1.0) -> jax.Array:
  """One step of length `eps` from the clean image, without a random start.

  Goodfellow et al. 2015 (arXiv:1412.6572), sec. 4; for 'l2' along the normalised
  gradient. Exact for a network that is linear in its input.

  Args:
    fn: images float32[B, ...] -> logits float[B, K]; see `pgd`.
    images: float[B, ...], clean, within [lower, upper].
    labels: int[B]; may be None if `objective` is a callable.
    eps: radius and length of the step, in pixel units; may be traced.
    norm: 'linf' or 'l2'.
    objective: 'ce', 'margin' or `objective(fn_output) -> float[B]`.
    lower: least valid pixel.
    upper: greatest valid pixel.

  Returns:
    float32[B, ...]; no gradient flows out of it.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  return pgd(fn, images, labels, key=None, eps=eps, step_size=eps, steps=1,
             norm=norm, objective=objective, start='none', lower=lower,
             upper=upper)
