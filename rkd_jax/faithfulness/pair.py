"""A teacher and a student that are to be compared: what must hold before."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds.crown import Spec
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError, NonFiniteError

Classifier = Callable[[jax.Array], jax.Array]


def num_classes(teacher: Classifier, student: Classifier, ball: InputSet) -> int:
  """K, the same for both.

  Raises:
    ConfigError: the networks' logits are not [B, K] of one K.
    NonFiniteError: a network has NaN or infinite logits in the middle of a set; not
      looked for while something is being traced.
  """
  middle = sum(ball.hull()) / 2
  shapes = {name: jax.eval_shape(fn, middle).shape
            for name, fn in (('teacher', teacher), ('student', student))}
  for name, shape in shapes.items():
    if len(shape) != 2 or shape[0] != ball.shape[0] or shape[1] < 2:
      raise ConfigError(f'the {name} maps {ball.shape} to {shape}; logits [B, K >= 2] '
                        'are wanted, one row for each example')
  if shapes['teacher'] != shapes['student']:
    raise ConfigError(
        f"the teacher has {shapes['teacher'][1]} classes, the student "
        f"{shapes['student'][1]}; they must have been trained for the same ones")
  for name, fn in (('teacher', teacher), ('student', student)):
    if not isinstance(middle, jax.core.Tracer):
      logits = fn(middle)
      if not isinstance(logits, jax.core.Tracer) and not np.isfinite(logits).all():
        raise NonFiniteError(f'the {name} has logits that are not finite: are there '
                             'NaN or infinite numbers among its weights?')
  return shapes['teacher'][1]


def rows(ball: InputSet, size: int, classes: jax.Array | None) -> Spec:
  """The rows that stand for p_T - p_S of the classes in question: [B, K or 1, K].

  Args:
    ball: the inputs.
    size: K.
    classes: int[B], one for each example; None: all of them.
  """
  eye = jnp.eye(size, dtype=ball.dtype)
  if classes is None:
    matrix = jnp.broadcast_to(eye, (ball.shape[0], size, size))
  else:
    matrix = eye[jnp.asarray(classes)][:, None]
  return Spec(matrix, jnp.zeros(matrix.shape[:2], ball.dtype))
