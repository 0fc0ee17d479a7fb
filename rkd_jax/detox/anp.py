"""ANP: prune neurons that an adversary of the weights would use (arXiv:2110.14430)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.detox.descent import repeat
from rkd_jax.detox.layers import accuracy
from rkd_jax.errors import ConfigError
from rkd_jax.settings import count, not_negative, positive, share

_STEP = 0.05  # Between the thresholds that are tried.

SUMMARY = 'ANP: prunes the channels that are sensitive to perturbed weights'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `anp`."""

  eps: float = not_negative(0.4, 'Size of the perturbations, relative to the weights.')
  trade_off: float = share(0.2, 'Weight of the loss without perturbations.')
  threshold: float = share(0.95, 'The largest threshold of the masks that is tried.')
  accuracy_loss: float = share(0.1, 'What pruning may cost on the clean images.')
  steps: int = count(2000, 'Updates.', least=0)
  learning_rate: float = positive(0.2, 'Learning rate of SGD on the masks.')
  batch_size: int = count(64, 'Images in a batch.')


def run(network, variables, split, settings: Settings, *, key):
  """Channels whose mask falls below a threshold get weight 0.

  Masks m in [0, 1], one a channel, minimise trade_off * L(m) + (1 - trade_off) *
  max L(m + d, 1 + e), |d|, |e| <= eps, where channel weights are multiplied by m + d
  and biases by 1 + e (their eq. 3 to 5). A channel's weight is the scale of its
  BatchNorm, or the kernel of its convolution in networks without. Of the thresholds
  0.05, 0.1, ... up to `threshold` the last one is taken with which, and with all
  smaller ones, the accuracy on `split` falls by at most `accuracy_loss`.

  Args:
    network, variables: the teacher, in evaluation mode throughout.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches and the perturbations' starts.

  Returns:
    (network, variables).

  Raises:
    ConfigError: a network without channels.
  """
  check(settings, network, variables, split.image.shape[1:])
  flat = traverse_util.flatten_dict(variables['params'])
  channels = channel_weights(flat)
  rest = {name: tree for name, tree in variables.items() if name != 'params'}
  eps, share = settings.eps, settings.trade_off
  tx = optax.sgd(settings.learning_rate, momentum=0.9)

  def loss(mask, noise, image, label):
    params = perturbed(flat, channels, mask, noise)
    logits = network.predict({**rest, 'params': params}, image)
    return jnp.mean(losses.cross_entropy(logits, label))

  def step(state, image, label, key):
    mask, optimizer = state
    draw = lambda path, i: jax.random.uniform(
        jax.random.fold_in(key, i), mask[path].shape, minval=-eps, maxval=eps)
    start = {path: {'weight': draw(path, 2 * i), 'bias': draw(path, 2 * i + 1)}
             for i, path in enumerate(channels)}
    grads = jax.grad(loss, argnums=1)(mask, start, image, label)
    noise = jax.tree.map(
        lambda n, g: jnp.clip(n + eps * jnp.sign(g), -eps, eps), start, grads)
    still = jax.tree.map(jnp.zeros_like, noise)
    objective = lambda mask: (share * loss(mask, still, image, label)
                              + (1 - share) * loss(mask, noise, image, label))
    updates, optimizer = tx.update(jax.grad(objective)(mask), optimizer)
    mask = jax.tree.map(lambda m, u: jnp.clip(m + u, 0, 1), mask, updates)
    return mask, optimizer

  start = {path: jnp.ones(flat[path].shape[-1]) for path in channels}
  mask, _ = repeat(step, (start, tx.init(start)), split, key=key,
                   steps=settings.steps, batch_size=settings.batch_size)
  pruned = lambda threshold: {**rest, 'params': perturbed(flat, channels, {
      path: (m >= threshold).astype(jnp.float32) for path, m in mask.items()})}
  best = variables
  least = accuracy(network, variables, split) - settings.accuracy_loss
  for threshold in np.arange(_STEP, settings.threshold + 1e-9, _STEP):
    tried = pruned(threshold)
    if accuracy(network, tried, split) < least:
      break
    best = tried
  return network, best


def check(settings, network, variables, image_shape) -> None:
  """Raises ConfigError for a network without channels."""
  del settings, network, image_shape
  if not channel_weights(traverse_util.flatten_dict(variables['params'])):
    raise ConfigError('the network has neither BatchNorm nor convolutions to prune')


def channel_weights(flat) -> tuple:
  """Paths of what scales channels: BatchNorm scales, else kernels of convolutions."""
  scales = tuple(path for path in flat if path[-1] == 'scale')
  return scales or tuple(
      path for path, leaf in flat.items() if path[-1] == 'kernel' and leaf.ndim == 4)


def perturbed(flat, channels, mask, noise=None):
  """Nested params with weight * (m + d) and bias * (1 + e) on the channels."""
  found = dict(flat)
  for path in channels:
    change = mask[path] if noise is None else mask[path] + noise[path]['weight']
    found[path] = flat[path] * change
    bias = (*path[:-1], 'bias')
    if noise is not None and bias in flat:
      found[bias] = flat[bias] * (1 + noise[path]['bias'])
  return traverse_util.unflatten_dict(found)
