"""FaithUB by mixed-integer programming: the reference for very small networks.

Softmax is not piecewise linear, but each p_c is a chain of functions of one variable:
log-sum-exp(a, b) = max(a, b) + f(|a - b|) with f(t) = log(1 + exp(-t)), one class after
the other, and the logistic function at the end. f and the logistic function are
interpolated at knots that hold the error of each below a given one.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds
from rkd_jax.bounds import joint
from rkd_jax.bounds.crown import Spec
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError
from rkd_jax.faithfulness import empirical, pair
from rkd_jax.faithfulness.pair import Classifier
from rkd_jax.faithfulness.search import Bracket


def milp(teacher: Classifier, student: Classifier, ball: InputSet, *,
         classes: jax.Array | None = None, error: float = 2e-3,
         timeout_s: float | None = None) -> Bracket:
  """Bounds of D(x) by HiGHS: upper - D <= 2 x what interpolation costs, if it ends.

  To the tolerance of the solver, not a certificate, see `bounds.milp`. A program for
  each class, sign and example.

  Args:
    teacher, student, ball, classes: as in `certified.faith_ub`; networks and sets that
      `bounds.milp` takes.
    error: of each interpolation, > 0. p_c of K classes is off by at most
      error (1 + (K - 2) / 4), D by twice that, which is added.
    timeout_s: of each program.

  Raises:
    ConfigError: error <= 0; as `faith_ub` and `bounds.milp`.
  """
  if not error > 0:
    raise ConfigError(f'error must be > 0, got {error}')
  size, start = pair.num_classes(teacher, student, ball), time.monotonic()

  def fn(x):
    return _probabilities(teacher(x), error) - _probabilities(student(x), error)

  spec = pair.rows(ball, size, classes)
  spec = Spec(*(jnp.concatenate([a, -a], axis=1) for a in spec))
  found = bounds.milp(fn, ball, spec, upper=False, timeout_s=timeout_s)
  upper = (np.max(-np.asarray(found.lower, np.float64), axis=1)
           + 2 * error * (1 + (size - 2) / 4))
  points = np.asarray(found.argmin)
  reached = np.stack([empirical.exactly(teacher, student, points[:, row], classes)
                      for row in range(points.shape[1])], axis=1)
  best = np.argmax(reached, axis=1)
  every = np.arange(len(best))
  seconds = np.full(len(best), (time.monotonic() - start) / len(best))
  return Bracket(np.minimum(upper, 1), reached[every, best], points[every, best],
                 np.zeros(len(best), int), seconds)


def _probabilities(logits, error):
  margins = joint.margins(logits)
  total = margins[:, :, 0]
  for other in range(1, margins.shape[2]):
    further = margins[:, :, other]
    total = jnp.maximum(total, further) + _interpolated(
        jnp.abs(total - further), lambda t: math.log1p(math.exp(-t)),
        _knots(error, _bend_of_softplus))
  return _interpolated(-total, lambda u: 1 / (1 + math.exp(-u)),
                       _knots(error, _bend_of_logistic, symmetric=True))


def _interpolated(x, fn, knots):
  """The function that is linear between knots and constant outside of them."""
  heights = [float(fn(k)) for k in knots]
  slopes = [0.0, *(np.diff(heights) / np.diff(knots)), 0.0]
  total = jnp.full_like(x, heights[0])
  for knot, bend in zip(knots, np.diff(slopes)):
    total = total + float(bend) * jnp.maximum(x - knot, 0)
  return total


def _knots(error: float, bend, symmetric: bool = False) -> list[float]:
  """Knots between which interpolation is off by at most `error`.

  h**2 / 8 times the greatest second derivative bounds it; beyond the last knot, and
  before the first, what is left of either function is smaller than `error`.

  Args:
    error: > 0.
    bend: (low, high) -> the greatest second derivative there, for 0 <= low <= high.
    symmetric: knots on both sides of 0 rather than from 0 on.
  """
  knots, end = [0.0], -math.log(math.expm1(error))
  while knots[-1] < end:
    left, step = knots[-1], math.sqrt(8 * error / bend(knots[-1], math.inf))
    while (longer := 1.1 * step)**2 / 8 * bend(left, left + longer) <= error:
      step = longer
      if left + step >= end:
        break
    knots.append(left + step)
  return [-k for k in knots[:0:-1]] + knots if symmetric else knots


def _bend_of_softplus(low, high):
  """Greatest f'' = s (1 - s) on [low, high], low >= 0: it falls."""
  del high
  return 1 / (2 + 2 * math.cosh(low))


def _bend_of_logistic(low, high):
  """Greatest |s''| = s (1 - s) |1 - 2 s| on [low, high], low >= 0.

  It rises to its only maximum at log(2 + sqrt(3)) and falls after it.
  """
  top = math.log(2 + math.sqrt(3))
  at = min(max(top, low), high)
  return math.tanh(at / 2) / (2 + 2 * math.cosh(at))
