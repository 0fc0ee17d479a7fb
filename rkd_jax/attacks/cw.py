"""The L-inf attack of Carlini and Wagner: PGD on the margin of the logits."""

from collections.abc import Callable

import jax

from rkd_jax.attacks import arguments, network, objectives
from rkd_jax.attacks.pgd import pgd
from rkd_jax.errors import ConfigError


def cw_linf(fn: Callable, images, labels, *, key, eps, step_size=2 / 255,
            steps: int = 30, kappa: float = 50.0, start: str = 'uniform',
            restarts: int = 1, lower: float = 0.0,
            upper: float = 1.0) -> jax.Array:
  """PGD on `min(max_{j != y} z_j - z_y, kappa)` within an L-inf ball.

  The objective of Carlini and Wagner (2017, arXiv:1608.04644) inside PGD, as the
  tables of adversarial distillation have it (CW-inf: 30 steps, kappa 50). Unlike
  cross-entropy it does not saturate where the network is confident.

  Args:
    fn: images float32[B, ...] -> logits float[B, K], K >= 2.
    images: float[B, ...], clean, within [lower, upper].
    labels: int[B].
    key: a typed key, or one an image, [B]; see `pgd`.
    eps: radius in pixel units; may be traced.
    step_size: length of a step; may be traced. 2/255 goes with eps 8/255.
    steps: number of steps.
    kappa: confidence: once a wrong logit leads by this much, its image rests.
    start: as in `pgd`.
    restarts: as in `pgd`; each example keeps its greatest margin.
    lower: least valid pixel.
    upper: greatest valid pixel.

  Returns:
    float32[B, ...]; no gradient flows out of it.

  Raises:
    ConfigError: a wrong argument, found while tracing.
  """
  arguments.check_box(lower, upper)
  if not arguments.check_number('kappa', kappa) >= 0:
    raise ConfigError(f'kappa must be >= 0, got {kappa}')
  arguments.check_images(images, labels, lower=lower, upper=upper)
  fn = network.checked(fn, labels)
  objective = lambda logits: objectives.margin(logits, labels, kappa=kappa)
  return pgd(fn, images, labels, key=key, eps=eps, step_size=step_size,
             steps=steps, objective=objective, start=start, restarts=restarts,
             lower=lower, upper=upper)
