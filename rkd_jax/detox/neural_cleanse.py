"""Neural Cleanse: the smallest patch that turns images to a class (Wang et al. 2019)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rkd_jax import losses
from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.detox.descent import descend
from rkd_jax.training import parallel


class Patches(NamedTuple):
  """What was found, one entry a class.

  Attributes:
    size: float[K], L1 norm of the smallest mask found that makes the class win.
    success: float[K], share of images that it turns.
    masks: float[K, H, W, 1].
    patterns: float[K, H, W, C].
  """

  size: np.ndarray
  success: np.ndarray
  masks: np.ndarray
  patterns: np.ndarray


def paste(image: jax.Array, mask: jax.Array, pattern: jax.Array) -> jax.Array:
  """(1 - m) x + m t: images [B, H, W, C] under a patch, or under one each."""
  return (1 - mask) * image + mask * pattern


def reverse(fn: Callable[[jax.Array], jax.Array], split: Split, num_classes: int, *,
            weight: float = 0.02, steps: int = 300, learning_rate: float = 0.1,
            batch_size: int = 64, key: jax.Array) -> Patches:
  """Reverse-engineers a trigger for every class.

  For each class k at once: mask m [H, W, 1] and pattern t minimise
  CE(fn((1 - m) x + m t), k) + weight * |m|_1 (sec. IV-B of "Neural Cleanse", IEEE S&P
  2019); the weight is fixed here, there it is adapted.

  Args:
    fn: logits of the network in evaluation mode.
    split: clean images, uint8.
    num_classes: K.
    weight: of the mask's L1 norm.
    steps, learning_rate, batch_size: of Adam, one update for all classes.
    key: of the starts and batches.
  """
  shape = split.image.shape[1:]

  def pasted(free, image):
    return paste(image, *(jax.nn.sigmoid(free[name]) for name in ('mask', 'pattern')))

  def one(free, image, k):
    logits = fn(pasted(free, image))
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
      jnp.argmax(fn(pasted(free, to_float(image))), -1) == k))
  some = split.image[:500]
  success = np.array([turned(jax.tree.map(lambda leaf, k=k: leaf[k], free), some, k)
                      for k in range(num_classes)])
  masks, patterns = (np.asarray(jax.nn.sigmoid(free[name]))
                     for name in ('mask', 'pattern'))
  return Patches(masks.sum((1, 2, 3)), success, masks, patterns)
