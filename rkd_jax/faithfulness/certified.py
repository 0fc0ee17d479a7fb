"""FaithUB: how far teacher and student can be apart, certified.

Notation as in `rkd_jax.bounds.joint`: p are probabilities, u log-odds.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import bounds
from rkd_jax.bounds import joint
from rkd_jax.bounds.crown import Bounds, Spec
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import unknown_name
from rkd_jax.faithfulness import exact, pair
from rkd_jax.faithfulness.pair import Classifier
from rkd_jax.faithfulness.search import branch_and_bound

PURE = ('margins', 'crown_ibp', 'crown', 'alpha_crown', 'best')
SEARCHES = {'branch_and_bound': branch_and_bound, 'milp': exact.milp}
METHODS = (*PURE, *SEARCHES)
_JOINT = {'crown_ibp': bounds.crown_ibp, 'crown': bounds.crown,
          'alpha_crown': bounds.alpha_crown}


def faith_ub(teacher: Classifier, student: Classifier, ball: InputSet, *,
             method: str = 'alpha_crown', classes: jax.Array | None = None,
             **options: Any) -> jax.Array:
  """An upper bound of D(x) = max over the set and the classes of |p_T - p_S|: float[B].

  Certified, rounding included; at most 1. The definition is this project's reading of
  "Faithful Knowledge Distillation" (arXiv:2306.04431).

  Args:
    teacher, student: pure, float[B, ...] -> logits float[B, K], each example on its
      own. They may be of different architectures.
    ball: the inputs, see `rkd_jax.bounds`.
    method:
      'margins': CROWN of all margins of each network alone, then the exact range of
        the softmax over them.
      'crown_ibp', 'crown', 'alpha_crown': of p_T - p_S, both joined in one graph.
      'best': alpha-CROWN of p_T - p_S, u_T - u_S, u_T and u_S, combined; never above
        'margins', 'crown' and 'alpha_crown' but for rounding.
      'branch_and_bound': see `search.branch_and_bound`.
      'milp': see `exact.milp`; for very small networks.
      All but the last two are pure: they jit, vmap and differentiate.
    classes: int[B], to bound the probability of one class for each example, such as
      the predicted one; None: all classes.
    options: of `bounds.crown` or `bounds.alpha_crown` (such as `steps`, `chunk`), or of
      the search.

  Raises:
    ConfigError: an unknown method, or networks that cannot be compared.
    NonFiniteError: a network's logits are not finite.
    UnsupportedPrimitiveError: a network has an operation without bounds.
  """
  if method not in METHODS:
    raise unknown_name('method of faith_ub', method, METHODS)
  if method in SEARCHES:
    return SEARCHES[method](teacher, student, ball, classes=classes, **options).upper
  return jnp.max(each_class(teacher, student, ball, method=method, classes=classes,
                            **options), axis=1)


def each_class(teacher: Classifier, student: Classifier, ball: InputSet, *,
               method: str, classes: jax.Array | None = None,
               **options: Any) -> jax.Array:
  """Upper bounds of |p_T - p_S| of each class: float[B, K], [B, 1] with `classes`.

  Arguments and errors as in `faith_ub`, for one of the methods in `PURE`.
  """
  size = pair.num_classes(teacher, student, ball)
  if method == 'margins':
    bound = functools.partial(bounds.crown, **options)
    return of_margins(teacher, student, ball, size, classes, bound)
  if method == 'best':
    bound = functools.partial(bounds.alpha_crown, **options)
    return combined(teacher, student, ball, size, classes, bound)
  bound = functools.partial(_JOINT[method], **options)
  return of_probabilities(teacher, student, ball, size, classes, bound)


def of_probabilities(teacher, student, ball, size, classes, bound) -> jax.Array:
  """Bounds of |p_T - p_S|, both networks in one graph: [B, K or 1]."""
  fn = lambda x: _apart(teacher(x), student(x))
  return _largest(bound(fn, ball, _rows(ball, size, classes)))


def _apart(teacher_logits, student_logits):
  """p_T - p_S, written as logistic functions of log-odds, which have tight lines."""
  odds_t, odds_s = joint.log_odds(teacher_logits), joint.log_odds(student_logits)
  return jax.nn.sigmoid(odds_t) - jax.nn.sigmoid(odds_s)


def with_agreement(teacher: Classifier, student: Classifier, ball: InputSet, *,
                   method: str, **options: Any) -> tuple[jax.Array, jax.Array]:
  """(`each_class`, `agreement`): float[B, K], bool[B].

  For 'crown' and 'alpha_crown' the bounds of inner values are computed once for both;
  with the other methods agreement is by CROWN.
  """
  if method not in ('crown', 'alpha_crown'):
    return (each_class(teacher, student, ball, method=method, **options),
            agreement(teacher, student, ball))
  size = pair.num_classes(teacher, student, ball)
  one, margins = pair.rows(ball, size, None), _margins(teacher, ball, size)
  matrix = jnp.zeros((ball.shape[0], 3 * size - 2, 3 * size), ball.dtype)
  matrix = matrix.at[:, :size, :size].set(one.matrix)
  for i, start in ((1, size), (2, 2 * size - 1)):
    rows, columns = slice(start, start + size - 1), slice(i * size, (i + 1) * size)
    matrix = matrix.at[:, rows, columns].set(margins.matrix)

  def fn(x):
    logits_t, logits_s = teacher(x), student(x)
    return jnp.concatenate([_apart(logits_t, logits_s), logits_t, logits_s], axis=1)

  found = _JOINT[method](fn, ball, Spec(matrix, jnp.zeros(matrix.shape[:2], ball.dtype)),
                         **options)
  apart = Bounds(found.lower[:, :size], found.upper[:, :size])
  return _largest(apart), jnp.all(found.lower[:, size:] > 0, axis=1)


def of_margins(teacher, student, ball, size, classes, bound) -> jax.Array:
  """Bounds of |p_T - p_S| from the log-odds of each network alone: [B, K or 1]."""
  spec = _rows(ball, size, classes)
  odds = [bound(lambda x, fn=fn: joint.log_odds(fn(x)), ball, spec)
          for fn in (teacher, student)]
  return _largest(_of_intervals(*odds))


def combined(teacher, student, ball, size, classes, bound) -> jax.Array:
  """The best of what is known of p_T - p_S, u_T - u_S, u_T and u_S: [B, K or 1]."""
  def fn(x):
    odds_t, odds_s = joint.log_odds(teacher(x)), joint.log_odds(student(x))
    return jnp.concatenate([jax.nn.sigmoid(odds_t) - jax.nn.sigmoid(odds_s),
                            odds_t - odds_s, odds_t, odds_s], axis=1)

  found = bound(fn, ball, _rows(ball, size, classes, blocks=4))
  parts = [Bounds(*both) for both in zip(
      *(jnp.split(edge, 4, axis=1) for edge in (found.lower, found.upper)))]
  probabilities, odds, odds_t, odds_s = parts
  banded = jnp.maximum(in_band(odds_t, odds_s, odds.upper),
                       in_band(odds_s, odds_t, -odds.lower))
  banded = jnp.minimum(banded, _largest(_of_intervals(odds_t, odds_s)))
  return jnp.minimum(banded, _largest(probabilities))


def in_band(first: Bounds, second: Bounds, most: jax.Array) -> jax.Array:
  """Upper bound of s(u) - s(v), s the logistic function, where u - v <= most.

  u is within `first`, v within `second`. If the corner (u greatest, v least) is outside
  the band, the maximum is on its edge v = u - most, where s(u) - s(u - most) rises to
  u = most / 2 and falls after it if most >= 0, and the other way round if not. So the
  ends and that point, moved into the segment, are enough.
  """
  corner = first.upper - second.lower <= most
  start = jnp.maximum(first.lower, second.lower + most)
  end = jnp.maximum(jnp.minimum(first.upper, second.upper + most), start)
  height = lambda u: jax.nn.sigmoid(u) - jax.nn.sigmoid(u - most)
  edge = functools.reduce(jnp.maximum, map(
      height, (start, end, jnp.clip(most / 2, start, end))))
  found = jnp.where(corner, jax.nn.sigmoid(first.upper) - jax.nn.sigmoid(second.lower),
                    edge)
  # Each logistic function is off by a few units of its last place, and the rounding of
  # u and v moves it by less than one: |u| s'(u) < 1 / 4.
  found = found + 32 * float(jnp.finfo(found.dtype).eps)
  return jnp.where(jnp.isnan(found), 1, jnp.minimum(found, 1))


def _of_intervals(odds_t: Bounds, odds_s: Bounds) -> Bounds:
  """Interval bounds of p_T - p_S from those of the log-odds."""
  lower, upper = (jnp.concatenate(edges, axis=1) for edges in (
      (odds_t.lower, odds_s.lower), (odds_t.upper, odds_s.upper)))
  half = odds_t.lower.shape[1]
  return bounds.ibp(
      lambda u: jax.nn.sigmoid(u[:, :half]) - jax.nn.sigmoid(u[:, half:]),
      bounds.Box(lower, upper))


def _largest(found: Bounds) -> jax.Array:
  """The largest absolute value, at most 1 as a difference of probabilities is."""
  largest = jnp.maximum(-found.lower, found.upper)
  return jnp.where(jnp.isnan(largest), 1, jnp.minimum(largest, 1))


def _rows(ball, size, classes, blocks: int = 1) -> Spec | None:
  """Rows for a class of each example, in each of several blocks of K outputs."""
  if classes is None:
    return None
  matrix, _ = pair.rows(ball, size, classes)
  eye = jnp.eye(blocks, dtype=ball.dtype)
  matrix = jnp.einsum('rs,bok->brsk', eye, matrix).reshape(len(matrix), blocks, -1)
  return Spec(matrix, jnp.zeros(matrix.shape[:2], ball.dtype))


def agreement(teacher: Classifier, student: Classifier, ball: InputSet, *,
              bound: Callable[..., Bounds] = bounds.crown) -> jax.Array:
  """Where both networks certainly predict the same class on the whole set: bool[B].

  The class is the teacher's in the middle of the set; both networks are certified to
  predict it everywhere. False means unknown.

  Args:
    teacher, student, ball: as in `faith_ub`.
    bound: `bounds.ibp`, `crown_ibp`, `crown` or `alpha_crown`.

  Raises:
    As `faith_ub`.
  """
  size = pair.num_classes(teacher, student, ball)
  spec = _margins(teacher, ball, size)
  lower = [bound(fn, ball, spec, upper=False).lower for fn in (teacher, student)]
  return jnp.all(jnp.concatenate(lower, axis=1) > 0, axis=1)


def _margins(teacher, ball, size) -> Spec:
  """Of the class that the teacher predicts in the middle of the set."""
  label = jnp.argmax(teacher(sum(ball.hull()) / 2), axis=1)
  return bounds.margins(label, size, ball.dtype)
