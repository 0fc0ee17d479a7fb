"""Is one class suspiciously easy to reach? Two searches that miss different triggers.

A small patch is not what a network responds to that was poisoned by a warp, a sinusoid
or a faint pattern over the whole image; a perturbation of small L-inf norm is not what
one responds to that was poisoned by a patch. The backdoor's class needs less of both
than the others do. An attacker may make all of them easy, so a patch that is much smaller
than those of clean networks is suspicious by itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rkd_jax.data.dataset import Split
from rkd_jax.detox import neural_cleanse, universal
from rkd_jax.training import rng

# Between clean and poisoned networks, see docs/backdoors_results.md: an anomaly above, or
# a patch of less than this share of the pixels that turns so many images.
SUSPICIOUS, SMALL, _TURNS = 3.0, 0.025, 0.9
# The least deviations, else classes that are all alike are told apart by noise: a share
# of the median size, and nats.
_LEAST_SIZE, _LEAST_REACH = 0.2, 0.5


class Report(NamedTuple):
  """What was found, one entry a class.

  Attributes:
    size: float[K], L1 norm of the smallest patch found, see `neural_cleanse.reverse`.
    success: float[K], share of images that it turns.
    reach: float[K], mean log p_k under a perturbation, see `universal.reach`.
    masks: float[K, H, W, 1], of the patches.
    patterns: float[K, H, W, C], of the patches.
  """

  size: np.ndarray
  success: np.ndarray
  reach: np.ndarray
  masks: np.ndarray
  patterns: np.ndarray

  @property
  def anomaly(self) -> np.ndarray:
    """float[K], how many deviations a class lies below the median in size and -reach."""
    return (anomaly_index(self.size, _LEAST_SIZE * np.median(self.size))
            + anomaly_index(-self.reach, _LEAST_REACH))

  @property
  def nearest(self) -> np.ndarray:
    """Classes from the greatest anomaly down: int[K]."""
    return np.argsort(-self.anomaly, kind='stable')

  @property
  def suspects(self) -> list[int]:
    """Classes with an anomaly above `SUSPICIOUS`, or a patch of less than `SMALL`; empty:
    nothing was noticed."""
    small = (self.size < SMALL * self.masks[0].size) & (self.success >= _TURNS)
    return [int(k) for k in np.flatnonzero(small | (self.anomaly > SUSPICIOUS))]

  def attacked(self, count: int = 0) -> list[int]:
    """What to take for the attacker's classes: the `count` that stand out most; 0: the
    suspects, or one class where there are none."""
    first = [int(k) for k in self.nearest]
    return first[:count] if count else self.suspects or first[:1]


def detect(fn: Callable[[jax.Array], jax.Array], split: Split, num_classes: int, *,
           eps: float = 0.1, seed: int = 0, **settings) -> Report:
  """Searches the smallest patch and a universal perturbation for every class.

  Args:
    fn: logits of the network in evaluation mode.
    split: clean images, uint8.
    num_classes: K.
    eps: of the perturbations, L-inf, in pixel units.
    seed: of the starts and batches.
    **settings: of `neural_cleanse.reverse`: `weight`, `steps`, `learning_rate`,
      `batch_size`.
  """
  found = neural_cleanse.reverse(
      fn, split, num_classes, key=rng.stream(seed, 'neural_cleanse'), **settings)
  reach = universal.reach(
      fn, split, num_classes, eps=eps, key=rng.stream(seed, 'universal'))
  return Report(found.size, found.success, reach, found.masks, found.patterns)


def anomaly_index(size: np.ndarray, least: float = 0.0) -> np.ndarray:
  """(median - size) / max(1.4826 * median absolute deviation, least); float[K].

  1.4826 makes the deviation that of a normal distribution. Where all sizes are
  equal it is 0.
  """
  size = np.asarray(size, np.float64)
  below = np.median(size) - size
  deviation = max(1.4826 * np.median(np.abs(below)), least)
  return below / deviation if deviation > 0 else np.zeros_like(size)
