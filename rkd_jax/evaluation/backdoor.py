"""How far a backdoor works: attack success rate, and what a defence achieved."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.data.batches import padded_batches, to_float
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network, Variables
from rkd_jax.training import parallel


def success_rate(network: Network, variables: Variables, split, trigger,
                 wanted: np.ndarray, *, batch_size: int) -> dict:
  """ASR: how many triggered test images get the label that the attacker wants.

  Images that have that label anyway are left out (BackdoorBench's convention).

  Args:
    network: the network that is judged, in evaluation mode.
    variables: its variables.
    split: clean test images, uint8 `image` [N, H, W, C] and `label` [N].
    trigger: a pytree with `apply(images) -> images` on uint8 images.
    wanted: int[N], the attacker's label of each image.
    batch_size: images at a time.

  Returns:
    {'accuracy': the rate in [0, 1], 'n': images counted, 'correct': successes}; the
    names are those of the accuracies beside it.

  Raises:
    ConfigError: every image has the wanted label.
  """
  counted = np.flatnonzero(np.asarray(split.label) != wanted)
  if not len(counted):
    raise ConfigError(
        f'all {len(wanted)} test images are of the class that the attacker wants: '
        'nothing is left to attack')
  program = _program(network)
  hits = 0
  for indices, mask in zip(*padded_batches(len(counted), batch_size), strict=True):
    chosen = counted[indices]
    hit = program(variables, trigger, split.image[chosen], wanted[chosen])
    hits += int(np.asarray(hit)[mask].sum())
  return {'accuracy': hits / len(counted), 'n': len(counted), 'correct': hits}


@functools.lru_cache(maxsize=16)
def _program(network):
  """Compiled (variables, trigger, images uint8, wanted) -> bool[B]."""

  def judge(variables, trigger, images, wanted):
    triggered = to_float(trigger.apply(images))
    return jnp.argmax(network.predict(variables, triggered), axis=-1) == wanted

  return parallel.compile_fn(judge)


def defence_effectiveness(before: dict[str, float], after: dict[str, float]) -> float:
  """DER = (max(0, dASR) - max(0, dACC) + 1) / 2 in [0, 1].

  dASR and dACC are what success rate and clean accuracy lost; 1 is a backdoor from
  100 to 0 % at no cost, 0.5 is nothing done (arXiv:2307.10062's metric).

  Args:
    before: {'clean': accuracy, 'asr': rate} without the defence.
    after: the same with it.
  """
  lost = {name: max(0.0, before[name] - after[name]) for name in ('asr', 'clean')}
  return (lost['asr'] - lost['clean'] + 1) / 2


def feature_variance(fn: Callable[[jax.Array], dict[str, jax.Array]], images,
                     batch_size: int = 500) -> dict[str, float]:
  """Variance over the images of each feature, averaged over its entries.

  Float64 sums on the host; the batch form of the paper's L_f (its Figure 2).

  Args:
    fn: float images [B, H, W, C] -> {name: feature [B, ...]}.
    images: uint8[N, H, W, C].
    batch_size: images at a time.
  """
  compiled = parallel.compile_fn(lambda images: fn(to_float(images)))
  sums, squares = {}, {}
  for indices, mask in zip(*padded_batches(len(images), batch_size), strict=True):
    for name, feature in compiled(images[indices]).items():
      seen = np.asarray(feature, np.float64)[mask]
      sums[name] = sums.get(name, 0) + seen.sum(0)
      squares[name] = squares.get(name, 0) + np.square(seen).sum(0)
  count = len(images)
  return {name: float(np.mean(squares[name] / count - (sums[name] / count)**2))
          for name in sums}
