"""Neural Cleanse: is one class suspiciously easy to reach? (Wang et al. 2019)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rkd_jax import losses
from rkd_jax.data.dataset import Split
from rkd_jax.detox.descent import descend
from rkd_jax.training import parallel, rng

SUSPICIOUS = 2.0  # Anomaly index from which the paper calls a class infected.


class Report(NamedTuple):
  """What was found, one entry a class.

  Attributes:
    size: float[K], L1 norm of the smallest mask found that makes the class win.
    success: float[K], share of images that it turns.
    anomaly: float[K], how many deviations a size lies *below* the median.
    masks: float[K, H, W, 1].
    patterns: float[K, H, W, C].
  """

  size: np.ndarray
  success: np.ndarray
  anomaly: np.ndarray
  masks: np.ndarray
  patterns: np.ndarray

  @property
  def suspects(self) -> list[int]:
    """Classes with an anomaly above `SUSPICIOUS`; empty: nothing was noticed."""
    return [int(k) for k in np.flatnonzero(self.anomaly > SUSPICIOUS)]


def detect(fn: Callable[[jax.Array], jax.Array], split: Split, num_classes: int, *,
           weight: float = 0.02, steps: int = 300, learning_rate: float = 0.1,
           batch_size: int = 64, seed: int = 0) -> Report:
  """Reverse-engineers a trigger for every class and compares their sizes.

  For each class k at once: mask m [H, W, 1] and pattern t minimise
  CE(fn((1 - m) x + m t), k) + weight * |m|_1 (sec. IV-B of "Neural Cleanse", IEEE S&P
  2019); the weight is fixed here, there it is adapted. A clean network's sizes are
  alike; a backdoor's class needs far less.

  Args:
    fn: logits of the network in evaluation mode.
    split: clean images, uint8.
    num_classes: K.
    weight: of the mask's L1 norm.
    steps, learning_rate, batch_size: of Adam, one update for all classes.
    seed: of the starts and batches.

  Returns:
    A `Report`.
  """
  shape = split.image.shape[1:]
  key = rng.stream(seed, 'neural_cleanse')

  def paste(free, image):
    mask, pattern = (jax.nn.sigmoid(free[name]) for name in ('mask', 'pattern'))
    return (1 - mask) * image + mask * pattern

  def one(free, image, k):
    logits = fn(paste(free, image))
    wanted = jnp.full(len(image), k)
    return (jnp.mean(losses.cross_entropy(logits, wanted))
            + weight * jnp.sum(jax.nn.sigmoid(free['mask'])))

  def loss_fn(free, carried, image, label, key):
    del label, key
    # One class after the other: K copies of a big network's features do not fit.
    each = jax.lax.map(lambda pair: one(pair[0], image, pair[1]),
                       (free, jnp.arange(num_classes)))
    return jnp.sum(each), carried

  start = {'mask': jnp.full((num_classes, *shape[:2], 1), -2.0),
           'pattern': jax.random.normal(key, (num_classes, *shape))}
  free, _ = descend(loss_fn, start, (), split, optax.adam(learning_rate), key=key,
                    steps=steps, batch_size=batch_size)
  turned = parallel.compile_fn(lambda free, image, k: jnp.mean(
      jnp.argmax(fn(paste(free, image.astype(jnp.float32) / 255)), -1) == k))
  some = split.image[:500]
  success = np.array([turned(jax.tree.map(lambda leaf, k=k: leaf[k], free), some, k)
                      for k in range(num_classes)])
  masks, patterns = (np.asarray(jax.nn.sigmoid(free[name]))
                     for name in ('mask', 'pattern'))
  size = masks.sum((1, 2, 3))
  return Report(size, success, anomaly_index(size), masks, patterns)


def anomaly_index(size: np.ndarray) -> np.ndarray:
  """(median - size) / (1.4826 * median absolute deviation); float[K].

  1.4826 makes the deviation that of a normal distribution. Where all sizes are
  equal it is 0.
  """
  size = np.asarray(size, np.float64)
  below = np.median(size) - size
  deviation = 1.4826 * np.median(np.abs(below))
  return below / deviation if deviation > 0 else np.zeros_like(size)
