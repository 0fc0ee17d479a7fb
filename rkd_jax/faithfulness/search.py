"""FaithUB by branch and bound: as tight as the time allows."""

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError
from rkd_jax.faithfulness import empirical, objectives, pair
from rkd_jax.faithfulness.pair import Classifier


class Bracket(NamedTuple):
  """What is known of the disagreement D of each example; NumPy arrays.

  Attributes:
    upper: float[B], FaithUB: D is at most that.
    lower: float[B], EmpLB: what is reached at `point`, in float64.
    point: float[B, ...].
    subproblems: int[B], how many were bounded.
    seconds: float[B], without the time that compilation takes.
  """

  upper: np.ndarray
  lower: np.ndarray
  point: np.ndarray
  subproblems: np.ndarray
  seconds: np.ndarray


def branch_and_bound(teacher: Classifier, student: Classifier, ball: InputSet, *,
                     classes: jax.Array | None = None, gap: float = 0.02,
                     timeout_s: float = 60.0, key: jax.Array | None = None,
                     batch: int = 64, steps: int = 5, root_steps: int = 20,
                     restarts: int = 5,
                     progress: Callable[[int, float, float], None] | None = None
                     ) -> Bracket:
  """Splits ReLUs and margins until upper and lower bound meet, or the time is up.

  Each class and sign is an objective of its own; the worst subproblem of all is split
  next. Complete on ReLU networks but for rounding. It compiles and runs on the device
  by itself; not to be called under `jit`.

  Args:
    teacher, student, ball, classes: as in `certified.faith_ub`.
    gap: stops where upper <= (1 + gap) lower + 1e-4.
    timeout_s: for each example.
    key: typed key of the attack; None: key 0.
    batch: subproblems split at a time.
    steps: of optimisation of each batch.
    root_steps: of optimisation before the first split.
    restarts: of the attack, see `empirical.witness`.
    progress: called with (example, upper, lower) now and then.

  Raises:
    ConfigError: timeout_s <= 0, gap < 0, a network without ReLUs; as `faith_ub`.
    UnsupportedPrimitiveError: a network has an operation without bounds.
  """
  if timeout_s <= 0 or gap < 0:
    raise ConfigError(f'timeout_s must be > 0 and gap >= 0, got {timeout_s} and {gap}')
  size = pair.num_classes(teacher, student, ball)
  compiled = Compiled()
  found, seconds = compiled(
      'attack', lambda ball: empirical.witness(
          teacher, student, ball, key=jax.random.key(0) if key is None else key,
          classes=classes, restarts=restarts), ball)
  points = np.array(found.point)
  count = len(points)
  result = Bracket(np.ones(count), empirical.exactly(teacher, student, points, classes),
                   points, np.zeros(count, int), np.full(count, seconds / count))
  exact = lambda point, example: float(empirical.exactly(
      teacher, student, point[None],
      None if classes is None else np.asarray(classes)[example:example + 1])[0])
  search = objectives.Search(teacher, student, ball, size, compiled, batch, steps,
                             root_steps)
  for example in range(count):
    wanted = range(size) if classes is None else (int(classes[example]),)
    one = jax.tree.map(lambda a, i=example: a[i:i + 1], ball)
    _one(search, one, wanted, exact, result, example, gap, timeout_s,
         progress or (lambda *_: None))
  return result


def _one(search, ball, wanted, exact, result, example, gap, timeout_s, progress):
  """Branch and bound on one example; writes into `result`."""
  def goal():
    return (1 + gap) * result.lower[example] + 1e-4

  def improve(point):
    distance = exact(point, example)
    if distance > result.lower[example]:
      result.lower[example], result.point[example] = distance, point

  waiting, ticket, closed = [], itertools.count(), 0.0
  children, seconds = search.start(ball, wanted, goal())
  seconds += result.seconds[example]
  while True:
    result.subproblems[example] += len(children)
    for upper, problem, point in children:
      if point is not None:
        improve(point)
      if upper <= goal() or problem is None:
        closed = max(closed, upper)
      else:
        heapq.heappush(waiting, (-upper, next(ticket), problem))
    upper = max(-waiting[0][0] if waiting else 0.0, closed)
    progress(example, upper, float(result.lower[example]))
    done = not waiting or -waiting[0][0] <= closed or upper <= goal()
    if done or seconds >= timeout_s:
      break
    taken = [heapq.heappop(waiting)[2] for _ in range(min(len(waiting), search.batch))]
    children, spent = search.expand(taken, goal())
    seconds += spent
  result.upper[example], result.seconds[example] = min(upper, 1.0), seconds
