"""Logits of images of which only a window changed, from what was known before.

`program` inlines a network's program once, `spans` says which part of every layer a
window reaches, `rules` how each operation is done there, and `plan` keeps the layers'
last values.
"""

from rkd_jax.attacks.local.plan import Plan, evaluate, read
from rkd_jax.attacks.local.program import Program

__all__ = ['Plan', 'Program', 'evaluate', 'read']
