"""What should make a reader doubt a robust accuracy, looked for before the attack."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.attacks import arguments, objectives
from rkd_jax.errors import ConfigError

_TOLERANCE = 1e-3  # Of the greatest logit; rounding stays far below it.
_SMALL = 1e-3  # A spread of logits in which float32 leaves few gradients.


def check_arguments(images, labels, eps, norm, batch_size):
  """(float32[N, ...], int32[N]) on the host.

  Raises:
    ConfigError: images that are integer, not finite or outside [0, 1], labels that are
      no class numbers, no example, eps <= 0, or a batch size below 1.
  """
  images, labels = map(np.asarray, arguments.check_images(images, labels))
  if images.ndim < 2 or not images.size:
    raise ConfigError(f'images must be [N, ...] with N >= 1, got {images.shape}')
  arguments.check_size('eps', eps, above_zero=True)
  arguments.check_radius('eps', eps, norm, images.shape)
  arguments.check_count('batch_size', batch_size, 1)
  return images, labels


def check_logits(logits, labels):
  """Refuses logits [N, K] that no attack can use, and labels that are none of them."""
  if not np.isfinite(logits).all():
    example, unit = np.argwhere(~np.isfinite(logits))[0]
    raise ConfigError(f'fn returns {logits[example, unit]} as logit {unit} of example '
                      f'{example}: is a NaN among the weights, or an overflow?')
  arguments.check_below('labels', labels, logits.shape[1])


def probe(fn, images, labels, keys, stochastic):
  """What `judge` needs, of one batch: logits thrice and which gradients are zero.

  The logits of the images, once more, and with the second half of the batch inverted.
  """
  call = (lambda x: fn(x, keys)) if stochastic else fn
  logits = call(images)
  # Another call, which the compiler must not merge with the first one.
  again = call(jax.lax.optimization_barrier(images))
  half = len(images) // 2
  others = call(jnp.concatenate([images[:half], 1 - images[half:]]))[:half]
  total = lambda x: jnp.sum(objectives.cross_entropy(call(x), labels))
  gradient = jax.grad(total)(images).reshape(len(images), -1)
  return logits, again, others, jnp.all(gradient == 0, axis=1)


def judge(logits, again, others, zero, *, stochastic: bool) -> list[str]:
  """Warnings about a network, each with what it means.

  Raises:
    ConfigError: an example's logits depend on the rest of the batch.
  """
  logits, again, others, zero = map(np.asarray, (logits, again, others, zero))
  tolerance = _TOLERANCE * max(np.abs(logits).max(), 1e-6)
  found = []
  if np.abs(logits - again).max() > tolerance:
    found.append('fn is random: two calls on the same images differ. A gradient is then '
                 "only a sample; use version='rand' with a function of (images, keys)")
  elif np.abs(others - logits[:len(others)]).max(initial=0) > tolerance:
    raise ConfigError(
        'fn mixes examples: logits of the first half of a batch change with the second '
        'half. Is BatchNorm in training mode? Attacks need each example by itself')
  sums = np.abs(logits.sum(axis=1) - 1).max()
  if logits.min() >= 0 and logits.max() <= 1 and sums < 1e-3:
    found.append('fn returns probabilities, it seems (rows in [0, 1] that sum to 1). '
                 'Their gradients vanish where the network is sure: return the logits')
  elif np.ptp(logits, axis=1).max() < _SMALL:
    found.append(f'the logits of an example lie within {np.ptp(logits, axis=1).max():.1e}'
                 ' of each other: gradients of cross-entropy are then lost in rounding. '
                 'Scale the logits up, which changes no decision')
  if zero.any():
    found.append(f'the gradient of cross-entropy is zero for {zero.mean():.0%} of the '
                 'examples. Gradients are masked (a very confident network, rounding, a '
                 'step function): robust accuracy may be too high; look at Square')
  if not stochastic and logits.shape[1] < 4:
    found.append(f'{logits.shape[1]} classes are too few for the targeted ratio of '
                 'logits (4); the plain difference of two logits is attacked instead')
  return found


def check_ball(images_adv, images, eps, norm):
  """Whether images [N, ...] are in the ball and in [0, 1], bool[N], in float64."""
  axes = tuple(range(1, images.ndim))
  box = ((images_adv >= 0) & (images_adv <= 1)).all(axis=axes)
  if norm == 'linf':  # As float32 evaluates it, which is what is promised.
    return box & (np.abs(images_adv - images).max(axis=axes) <= np.float32(eps))
  offset = np.abs(images_adv.astype(np.float64) - images)
  size = offset.sum(axis=axes) if norm == 'l1' else np.sqrt((offset**2).sum(axis=axes))
  return box & (size <= float(np.float32(eps)))
