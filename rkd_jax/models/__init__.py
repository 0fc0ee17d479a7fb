"""Networks: by name, with named features, as pure functions, to and from files."""

from rkd_jax.models.network import BoundNetwork, Network
from rkd_jax.models.registry import create, describe, feature_names, names
from rkd_jax.models.taps import Tap, with_features
from rkd_jax.models.torch_weights import from_torch, read_torch
from rkd_jax.models.weights import load, save, template

__all__ = [
    'BoundNetwork', 'Network', 'Tap', 'create', 'describe', 'feature_names',
    'from_torch', 'load', 'names', 'read_torch', 'save', 'template',
    'with_features',
]
