"""Image data sets as arrays, and the pure functions that feed them to a step.

`load(name, ...)` returns a `Dataset` of uint8 arrays on the host. Training keeps
them on the device and works with `augment` (one image, one key) and `batches`
(orders of an epoch, exact evaluation on a tail batch).
"""

from rkd_jax.data import augment, batches
from rkd_jax.data.augment import AUGMENTATIONS
from rkd_jax.data.dataset import Dataset, Split
from rkd_jax.data.registry import describe, load, names

__all__ = [
    'AUGMENTATIONS', 'Dataset', 'Split', 'augment', 'batches', 'describe',
    'load', 'names',
]
