"""How interval training gets through its warm-up (Shi et al. 2021, arXiv:2103.15887).

With the usual initialisations interval bounds explode from layer to layer, and while
eps grows the neurons that cannot change their sign become mostly inactive ones. The
initialisation keeps the width of the intervals, the two terms keep it during the
warm-up, and the balance of active and inactive neurons with it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rkd_jax.bounds.propagation import propagate
from rkd_jax.bounds.reading import read
from rkd_jax.errors import ConfigError

HEAD = 'head'  # The name of the classifier in every network of the registry.
_LEAST = 1e-12  # A width or share below counts as this; keeps gradients finite.


def init(key: jax.Array, params):
  """Parameters with kernels drawn from N(0, 2 pi / fan_in**2), but for the last one.

  Then E|w| = 2 / fan_in, and a layer and its ReLU keep the mean width of intervals
  that all cross 0. The classifier stays as it is, as in their code: logits
  would be too small to learn from.

  Args:
    key: typed PRNG key.
    params: nested dicts; leaves named 'kernel' have the outputs as their last axis,
      and the classifier is named 'head'.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)

  def draw(index, path, leaf):
    if path[-1].key != 'kernel' or path[0].key == HEAD:
      return leaf
    std = math.sqrt(2 * math.pi) / math.prod(leaf.shape[:-1])
    return std * jax.random.normal(
        jax.random.fold_in(key, index), leaf.shape, leaf.dtype)

  return jax.tree.unflatten(
      treedef, [draw(i, path, leaf) for i, (path, leaf) in enumerate(leaves)])


def terms(fn: Callable[[jax.Array], jax.Array], ball, mean: Callable,
          tolerance: float) -> tuple[jax.Array, jax.Array]:
  """(tightness, balance) of the interval bounds of `fn` before its ReLUs, scalars.

  Each term is the mean over the ReLU layers of relu(tau - ratio) / tau, as in
  their public code. The ratio is, for tightness, the mean width of the input over
  that before the layer's ReLU, and for balance, once for the sum and once for the
  variance, that of the centres of active neurons over that of inactive ones or its
  inverse, whichever is smaller.

  Args:
    fn: float[B, ...] -> float[B, K]; its ReLUs are what `jax.nn.relu` is traced to.
    ball: the inputs, see `rkd_jax.bounds`.
    mean: mean over the batch, [B] -> scalar.
    tolerance: tau > 0.

  Raises:
    ConfigError: `fn` has no ReLU.
  """
  graph = read(fn, ball)
  state = propagate(graph, ball, tighten=False)
  overall = lambda x: mean(jnp.mean(x.reshape(len(x), -1), axis=1))
  low, high = ball.hull()
  width = overall(high - low)
  short = lambda ratio: jax.nn.relu(tolerance - ratio) / tolerance
  tightness, balance = [], []
  layers = relu_inputs(graph, state)
  if not layers:
    raise ConfigError('the network has no ReLU, for whose inputs the regularisers are; '
                      'set certified.regularizer to 0')
  for low, high in layers:
    tightness.append(short(width / jnp.maximum(overall(high - low), _LEAST)))
    balance.append(sum(map(short, _balance(low, high, overall))))
  return sum(tightness) / len(tightness), sum(balance) / len(balance)


def relu_inputs(graph, state):
  """(lower, upper) [B, ...] of what enters each ReLU, in order."""
  return [state.bounds[node.operands[0]] for node in graph.nodes
          if node.name == 'max' and len(node.operands) == 1]


def _balance(low, high, overall):
  """The smaller by the larger, for the centres' sums and for their variances."""
  center = (low + high) / 2
  active, inactive = low > 0, high < 0
  square = jnp.square(center - overall(center))
  where = lambda mask, x: overall(jnp.where(mask, x, 0))
  for first, second in ((where(active, center), where(inactive, -center)),
                        (where(active, square), where(inactive, square))):
    yield jnp.minimum(first, second) / jnp.maximum(
        jnp.maximum(first, second), _LEAST)
