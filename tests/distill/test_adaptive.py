"""The adaptive attacker: cross-entropy plus the variance of the stages, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import distill, models
from rkd_jax.distill.method import Batch
from rkd_jax.models.network import BoundNetwork, Network


def test_loss_is_cross_entropy_plus_the_mean_variance_of_the_stages():
  shape, size = (8, 8, 1), 6
  network = Network(models.create('cnn_3_4', num_classes=3))
  student = BoundNetwork(network, network.init(jax.random.key(0), shape))
  rng = np.random.default_rng(0)
  batch = Batch(
      image=jnp.asarray(rng.uniform(size=(size, *shape)), jnp.float32),
      label=jnp.arange(size) % 3, key=jax.random.split(jax.random.key(0), size),
      step=jnp.int32(0), epoch=jnp.int32(0), progress=jnp.float32(0))
  method = distill.make('adaptive', {'weight': 2.0}, threat={}, epochs=1)
  out = method.objective_at(0)(student, {}, {}, batch)
  logits, seen = models.with_features(network.module, student.variables, batch.image)
  z, label = np.asarray(logits, np.float64), np.asarray(batch.label)
  varies = [np.asarray(seen[name], np.float64).var(0).mean()
            for name in ('stage1', 'stage2')]
  wanted = np.log(np.exp(z).sum(1)) - z[np.arange(size), label] + 2 * np.mean(varies)
  np.testing.assert_allclose(out.loss, wanted, rtol=1e-4)
