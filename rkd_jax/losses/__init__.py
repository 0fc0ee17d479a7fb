"""Per-example losses: float[B], in nats; the caller owns weights and means."""

from rkd_jax.losses.distillation import (
    correct,
    cross_entropy,
    entropy,
    jensen_shannon,
    kl,
    softened_kl,
)

__all__ = ['correct', 'cross_entropy', 'entropy', 'jensen_shannon', 'kl',
           'softened_kl']
