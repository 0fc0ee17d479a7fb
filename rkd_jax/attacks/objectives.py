"""What an attack maximises: per-example objectives of a network's output."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.attacks import arguments
from rkd_jax.errors import ConfigError, unknown_name


def cross_entropy(logits, labels):
  """`-log softmax(logits)[label]`, float[B], in nats.

  Its gradient vanishes in float32 where the network is very confident and
  right; `margin` does not saturate.

  Args:
    logits: float[B, K].
    labels: int[B] in [0, K).

  Raises:
    ConfigError: no labels, or another number of them.
  """
  one_hot = _one_hot(labels, logits)
  true = jnp.sum(jnp.where(one_hot, logits, 0), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - true


def margin(logits, labels, *, kappa=None):
  """`max_{j != y} z_j - z_y`, float[B]: above 0 where the label has lost.

  The objective of Carlini and Wagner (2017, arXiv:1608.04644), f_6.

  Args:
    logits: float[B, K], K >= 2.
    labels: int[B] in [0, K).
    kappa: confidence. Given, the margin is clamped to at most `kappa`, beyond
      which there is no gradient.

  Raises:
    ConfigError: no labels, another number of them, or K < 2.
  """
  one_hot = _one_hot(labels, logits)
  if logits.shape[-1] < 2:
    raise ConfigError(
        f'margin compares classes, but the logits {logits.shape} have only one')
  true = jnp.sum(jnp.where(one_hot, logits, 0), axis=-1)
  other = jnp.max(jnp.where(one_hot, -jnp.inf, logits), axis=-1)
  value = other - true
  return value if kappa is None else jnp.minimum(value, kappa)


def dlr(logits, labels):
  """Difference of logits ratio, float[B]: above 0 where the label has lost.

  `-(z_y - max_{j != y} z_j) / (z_1st - z_3rd)`, z sorted in decreasing order (Croce
  and Hein 2020, arXiv:2003.01690, eq. 6). Unlike cross-entropy it changes neither by
  a shift nor by a scale of the logits. At most 1.

  Args:
    logits: float[B, K], K >= 3.
    labels: int[B] in [0, K).

  Raises:
    ConfigError: no labels, another number of them, or K < 3.
  """
  top = _top(logits, 3, 'dlr')
  return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits, labels, targets):
  """`-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)`, float[B].

  Eq. 7 of the same paper: above 0 where the target class beats the label.

  Args:
    logits: float[B, K], K >= 4.
    labels: int[B] in [0, K).
    targets: int[B] in [0, K), other than the labels.

  Raises:
    ConfigError: no labels, another number of them, or K < 4.
  """
  top = _top(logits, 4, 'targeted dlr')
  scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY
  return difference(logits, labels, targets) / scale


def difference(logits, labels, targets):
  """`z_t - z_y`, float[B]; arguments as for `targeted_dlr`, K >= 2."""
  return (jnp.sum(jnp.where(_one_hot(targets, logits), logits, 0), axis=-1)
          - jnp.sum(jnp.where(_one_hot(labels, logits), logits, 0), axis=-1))


def kl_divergence(reference_logits, logits):
  """KL(softmax(reference_logits) || softmax(logits)), float[B], in nats.

  In log space: finite, with finite gradients, for all finite logits. Gradients
  flow into both arguments (AdaAD, Huang et al., CVPR 2023, attacks through both).

  Args:
    reference_logits: float[B, K].
    logits: float[B, K].

  Raises:
    ConfigError: the shapes differ.
  """
  if reference_logits.shape != logits.shape:
    raise ConfigError(
        f'reference logits {reference_logits.shape} and logits {logits.shape} '
        'must match; do both networks have the same num_classes and batch?')
  reference_log_probs = jax.nn.log_softmax(reference_logits)
  log_probs = jax.nn.log_softmax(logits)
  return jnp.sum(
      jnp.exp(reference_log_probs) * (reference_log_probs - log_probs), axis=-1)


def kl_to(reference_logits) -> Callable:
  """Objective `logits -> KL(softmax(reference_logits) || softmax(logits))`.

  What TRADES and RSLAD attack: the reference is the student's or the teacher's
  output on the clean images. No gradient flows into the reference.

  Args:
    reference_logits: float[B, K], in the order of the batch that is attacked.
  """
  reference_logits = lax.stop_gradient(reference_logits)
  return lambda logits: kl_divergence(reference_logits, logits)


_TINY = 1e-12  # In the denominators of the ratios, as in the paper's code.


def _top(logits, count, name):
  """The greatest logits in decreasing order, float[B, count]."""
  if logits.shape[-1] < count:
    raise ConfigError(f'{name} compares {count} classes, but the logits '
                      f'{logits.shape} have only {logits.shape[-1]}')
  return lax.top_k(logits, count)[0]


NAMED = {'ce': cross_entropy, 'margin': margin}


def resolve(objective: str | Callable, labels) -> Callable:
  """A name or a callable as a callable `network output -> float[B]`.

  Raises:
    ConfigError: unknown name.
  """
  if callable(objective):
    return objective
  if objective not in NAMED:
    raise unknown_name('objective', objective, NAMED)
  return lambda logits: NAMED[objective](logits, labels)


def _one_hot(labels, logits):
  """bool[B, K], true at the labels."""
  if labels is None:
    raise ConfigError('this objective compares with labels, got None')
  shape = getattr(logits, 'shape', None)
  if shape is None or len(shape) != 2 or shape[:1] != np.shape(labels):
    raise ConfigError(
        f'fn must return logits [B, K] for labels {list(np.shape(labels))}, got '
        f'{type(logits).__name__ if shape is None else shape}; give a callable '
        'objective for any other output')
  labels = arguments.check_classes('labels', labels, shape)
  arguments.check_below('labels', labels, shape[1])
  return labels[:, None] == jnp.arange(shape[1])[None]
