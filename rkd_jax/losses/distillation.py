"""What a student pays for an example: cross-entropy, KL to a teacher, entropy.

All functions take logits and stay in log space, so that logits of any finite
size give finite values and finite gradients.
"""

import numbers

import jax
import jax.numpy as jnp
from jax import lax

from rkd_jax.errors import ConfigError

CLASS_REDUCTIONS = ('sum', 'mean')


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Per-example -log softmax(logits)[label], in nats.

  Args:
    logits: float[B, K].
    labels: int[B] in [0, K).

  Returns:
    float[B], >= 0.

  Raises:
    ConfigError: the shapes are not [B, K] and [B].
  """
  _check_labels(logits, labels)
  log_probs = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def kl(student_logits: jax.Array, teacher_logits: jax.Array, *,
       student_temperature=1.0, teacher_temperature=1.0,
       classes: str = 'sum', teacher_gradient: bool = False) -> jax.Array:
  """Per-example KL(softmax(t / T_t) || softmax(s / T_s)), in nats.

  The two temperatures are separate because B-MTARD and CIARD divide the
  teacher's logits alone, and CIARD's push term the student's alone. No T**2
  factor is applied: see `softened_kl`.

  Args:
    student_logits: float[B, K].
    teacher_logits: float[B, K].
    student_temperature: T_s > 0, a number or a (possibly traced) scalar.
    teacher_temperature: T_t > 0, likewise.
    classes: 'sum' is the divergence; 'mean' divides it by K. The latter is what
      PyTorch's `KLDivLoss` computes by default, and so what the published code
      of ARD, RSLAD, MTARD and CIARD minimises.
    teacher_gradient: whether a gradient flows into `teacher_logits`, as TRADES
      has it; False for a teacher.

  Returns:
    float[B], >= 0 up to rounding.

  Raises:
    ConfigError: shapes differ, a temperature that is a Python number is <= 0
      (traced ones are not checked), or `classes` is unknown.
  """
  if student_logits.shape != teacher_logits.shape:
    raise ConfigError(
        f'student_logits {student_logits.shape} and teacher_logits '
        f'{teacher_logits.shape} must match; do both models have the same '
        'num_classes?')
  _check_temperature('student_temperature', student_temperature)
  _check_temperature('teacher_temperature', teacher_temperature)
  if classes not in CLASS_REDUCTIONS:
    raise ConfigError(
        f'classes must be one of {CLASS_REDUCTIONS}, got {classes!r}')
  if not teacher_gradient:
    teacher_logits = lax.stop_gradient(teacher_logits)
  log_s = jax.nn.log_softmax(student_logits / student_temperature)
  log_t = jax.nn.log_softmax(teacher_logits / teacher_temperature)
  reduce = jnp.sum if classes == 'sum' else jnp.mean
  return reduce(jnp.exp(log_t) * (log_t - log_s), axis=-1)


def softened_kl(student_logits: jax.Array, teacher_logits: jax.Array, *,
                temperature=1.0, classes: str = 'sum') -> jax.Array:
  """Per-example T**2 KL(softmax(t / T) || softmax(s / T)), in nats.

  Args:
    student_logits: float[B, K].
    teacher_logits: float[B, K]; no gradient flows into it.
    temperature: T > 0, a number or a scalar. The factor T**2 makes the gradient
      scale independent of T (Hinton et al. 2015, arXiv:1503.02531, sec. 2).
    classes: see `kl`.

  Returns:
    float[B], >= 0 up to rounding.

  Raises:
    ConfigError: see `kl`.
  """
  return temperature**2 * kl(
      student_logits, teacher_logits, student_temperature=temperature,
      teacher_temperature=temperature, classes=classes)


def entropy(logits: jax.Array, *, temperature=1.0) -> jax.Array:
  """Per-example Shannon entropy of softmax(logits / T), in nats.

  Args:
    logits: float[B, K].
    temperature: T > 0, a number or a scalar.

  Returns:
    float[B] in [0, log K]; differentiable in both arguments.

  Raises:
    ConfigError: a temperature that is a Python number is <= 0.
  """
  _check_temperature('temperature', temperature)
  log_probs = jax.nn.log_softmax(logits / temperature)
  return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def jensen_shannon(one_logits: jax.Array, other_logits: jax.Array, *,
                   temperature=1.0) -> jax.Array:
  """Per-example Jensen-Shannon divergence of two predictions, in nats.

  (KL(p || m) + KL(q || m)) / 2 with p = softmax(one / T), q = softmax(other / T) and
  m = (p + q) / 2. Symmetric; gradients flow into both.

  Args:
    one_logits: float[B, K].
    other_logits: float[B, K].
    temperature: T > 0, a number or a scalar. No T**2 factor is applied.

  Returns:
    float[B] in [0, log 2], up to rounding.

  Raises:
    ConfigError: shapes differ, or a temperature that is a Python number is <= 0.
  """
  if one_logits.shape != other_logits.shape:
    raise ConfigError(f'logits {one_logits.shape} and {other_logits.shape} must match')
  _check_temperature('temperature', temperature)
  log_p = jax.nn.log_softmax(one_logits / temperature)
  log_q = jax.nn.log_softmax(other_logits / temperature)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  terms = jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
  return jnp.sum(terms, axis=-1) / 2


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1.0 where the largest logit is the label's, else 0.0: float32[B].

  Ties go to the lowest class index. No gradient.

  Raises:
    ConfigError: the shapes are not [B, K] and [B].
  """
  _check_labels(logits, labels)
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _check_labels(logits, labels):
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ConfigError(
        f'logits must be [B, K] and labels [B], got {logits.shape} and '
        f'{labels.shape}; labels are class indices, not one-hot vectors')


def _check_temperature(name, temperature):
  if isinstance(temperature, numbers.Real) and temperature <= 0:
    raise ConfigError(f'{name} must be > 0, got {temperature}')
