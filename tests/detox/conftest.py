"""The teacher that the defences are tried on."""

import jax
import pytest

from rkd_jax import models
from rkd_jax.models.network import Network
from tests.detox.small import SHAPE, K


@pytest.fixture(scope='module')
def teacher():
  network = Network(models.create('cnn_3_4', num_classes=K))
  return network, network.init(jax.random.key(0), SHAPE)
