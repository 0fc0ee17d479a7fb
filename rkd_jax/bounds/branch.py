"""Verification: a proof, a counterexample, or the time is up."""

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import alpha, falsify
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.crown import Spec
from rkd_jax.bounds.input_search import InputSearch
from rkd_jax.bounds.pytrees import Flat
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.relu_search import ReluSearch
from rkd_jax.bounds.sets import Box, InputSet
from rkd_jax.bounds.subproblems import relu_nodes
from rkd_jax.errors import ConfigError, ContradictionError, unknown_name

SPLITS = ('auto', 'relu', 'input')
FEW_INPUTS = 8  # Up to so many, halving the input beats deciding ReLUs.


class Verification(NamedTuple):
  """What is known about each example; NumPy arrays.

  Attributes:
    status: str[B]: 'verified' (every row of the specification is positive on the
      whole set), 'falsified' or 'unknown'.
    counterexample: float[B, ...], a point of the set with a row <= 0, NaN where there
      is none. Checked in float64.
    lower: float[B], what is proved about the least row; -inf where nothing is.
    subproblems: int[B], how many were bounded.
    seconds: float[B].
  """

  status: np.ndarray
  counterexample: np.ndarray
  lower: np.ndarray
  subproblems: np.ndarray
  seconds: np.ndarray


def verify(fn: Callable[[jax.Array], jax.Array], ball: InputSet, spec: Spec, *,
           timeout_s: float = 60.0, key: jax.Array | None = None, batch: int = 64,
           steps: int = 5, root_steps: int = 40, attack_steps: int = 50,
           restarts: int = 10, split_on: str = 'auto',
           progress: Callable[[int, float, int], None] | None = None) -> Verification:
  """Decides whether every row of a specification is positive on every set.

  First an attack, then alpha-CROWN, both on all examples at once; what they leave
  open goes, one by one, through branch and bound: on the ReLUs (beta-CROWN), or on the
  input. On networks whose only nonlinear equations are ReLUs and on boxes it is
  complete: given time, it ends with 'verified' or 'falsified', unless the least row is
  within rounding of zero.

  It compiles and runs on the device by itself; not to be called under `jit`.

  Args:
    fn: as in `crown.crown`.
    ball: the inputs, B examples.
    spec: what is to be positive, for example `margins(labels, K)`.
    timeout_s: for each example, without the time that compilation takes.
    key: typed key of the attack's starts; None: key 0.
    batch: subproblems split at a time.
    steps: of optimisation of each batch of subproblems.
    root_steps: of optimisation of intermediate bounds before the first split.
    attack_steps, restarts: of the attack on each row.
    split_on: 'relu', 'input' (boxes only), or 'auto': the input if it has at most 8
      entries or the function has no ReLU.
    progress: called with (example, its proved bound, open subproblems) now and then.

  Raises:
    ConfigError: timeout_s <= 0, or shapes that do not fit.
    UnsupportedPrimitiveError: as `crown.crown`.
    ContradictionError: a point of the set is below a bound that was proved for it.
  """
  if timeout_s <= 0:
    raise ConfigError(f'timeout_s must be > 0, got {timeout_s}')
  if split_on not in SPLITS:
    raise unknown_name('split_on', split_on, SPLITS)
  flat = Flat(fn, ball)
  fn, ball = flat, flat.ball
  graph = read(fn, ball)
  size = graph.shapes[graph.output][1]
  if spec.matrix.shape[::2] != (ball.shape[0], size):
    raise ConfigError(f'the specification is for {spec.matrix.shape} [B, S, K], but '
                      f'there are B = {ball.shape[0]} examples, K = {size} outputs')
  if not ball.shape[0]:
    return _Run(fn, graph, ball, spec, timeout_s, progress).result
  run = _Run(fn, graph, ball, spec, timeout_s, progress)
  run.attack(jax.random.key(0) if key is None else key, attack_steps, restarts)
  run.first_bounds()
  search = _search(graph, ball, split_on, run.compiled, batch, steps, root_steps)
  if search is not None:
    for example in np.flatnonzero(run.result.status == 'unknown'):
      run.branch(int(example), search)
  return run.result._replace(counterexample=flat.inputs(run.result.counterexample))


def _search(graph, ball, split_on, compiled, batch, steps, root_steps):
  """What splits, None if nothing can."""
  few = np.prod(graph.shapes[0]) <= FEW_INPUTS
  boxed = isinstance(ball, Box)
  if split_on == 'auto':
    split_on = 'input' if boxed and (few or not relu_nodes(graph)) else 'relu'
  if split_on == 'input' and not boxed:
    raise ConfigError("split_on='input' halves boxes; this set is a "
                      f"{type(ball).__name__}: use split_on='relu'")
  if split_on == 'input':
    return InputSearch(graph, compiled, batch)
  return (ReluSearch(graph, compiled, batch, steps, root_steps)
          if relu_nodes(graph) else None)


class _Run:
  """The results so far, and what it takes to get on."""

  def __init__(self, fn, graph, ball, spec, timeout_s, progress):
    self.fn, self.graph, self.ball, self.spec = fn, graph, ball, spec
    self.timeout_s, self.progress = timeout_s, progress or (lambda *_: None)
    self.compiled = Compiled()
    count = ball.shape[0]
    self.result = Verification(
        np.full(count, 'unknown', '<U9'),
        np.full(ball.shape, np.nan, ball.dtype), np.full(count, -np.inf),
        np.zeros(count, int), np.zeros(count))
    self.exact = np.full(count, np.inf)  # The least row at the counterexample.

  def attack(self, key, steps, restarts):
    (points, least), seconds = self.compiled('attack', lambda ball, spec: falsify.attack(
        self.graph, ball, spec, key, steps=steps, restarts=restarts),
        self.ball, self.spec)
    self.result.seconds[:] += seconds / len(least)
    for example in np.flatnonzero(np.asarray(least) <= 0):
      self.falsified(example, np.asarray(points[example]))

  def falsified(self, example, point) -> bool:
    """Whether a point really is a counterexample; notes it if so."""
    one = jax.tree.map(lambda a: np.asarray(a[example]), self.ball)
    exact = falsify.exactly(self.fn, point, self.spec.matrix[example],
                            self.spec.constant[example])
    if not exact <= 0 or not one.contains(point):
      return False
    self.result.status[example] = 'falsified'
    self.result.counterexample[example] = point
    self.exact[example] = exact
    self.proved(example, self.result.lower[example])
    return True

  def proved(self, example, lower):
    """Notes a lower bound.

    Raises:
      ContradictionError: the counterexample is below.
    """
    if lower > self.exact[example]:
      raise ContradictionError(
          f'example {example} has an input whose least row is '
          f'{float(self.exact[example])!r} in float64, below the bound {float(lower)!r} '
          'that was proved for all: one of them is wrong. Does the function give the '
          'same result each time, in float32 and in float64? If so please report it')
    self.result.lower[example] = max(self.result.lower[example], lower)

  def first_bounds(self):
    lower, seconds = self.compiled('alpha', lambda ball, spec: alpha.alpha_crown(
        self.fn, ball, spec, upper=False).lower, self.ball, self.spec)
    lower = np.asarray(jnp.min(lower, axis=1))
    for example, low in enumerate(lower):
      self.proved(example, low)
    self.result.seconds[:] += seconds / len(lower)
    proved = (lower > 0) & (self.result.status == 'unknown')
    self.result.status[proved] = 'verified'

  def branch(self, example, search):
    """Branch and bound on one example, the worst subproblems first."""
    one = jax.tree.map(lambda a: a[example:example + 1], (self.ball, self.spec))
    result, waiting, ticket = self.result, [], itertools.count()
    closed = np.inf  # Least bound of subproblems that are not split any more.
    children, seconds = search.start(*one)
    seconds += result.seconds[example]
    while True:
      result.subproblems[example] += len(children)
      for lower, problem, point in children:
        if point is not None and self.falsified(example, point):
          break
        if lower > 0 or problem is None:
          closed = min(closed, lower)
        else:
          heapq.heappush(waiting, (lower, next(ticket), problem))
      bound = min(waiting[0][0] if waiting else np.inf, closed)
      if (not waiting or seconds >= self.timeout_s
          or result.status[example] == 'falsified'):
        break
      self.progress(example, bound, len(waiting))
      taken = [heapq.heappop(waiting)[2]
               for _ in range(min(len(waiting), search.batch))]
      children, spent = search.expand(taken)
      seconds += spent
    result.seconds[example] = seconds
    if result.status[example] != 'falsified':
      self.proved(example, bound)
      if result.lower[example] > 0:
        result.status[example] = 'verified'
