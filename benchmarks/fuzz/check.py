"""Bounds of random programs on random sets, against points that try to leave them.

A case is a program (a chain of steps and its weights) with a set for each example of a
batch. `CASES` numbers in a row share a chain, which is compiled once: its weights are
arguments then. In the other chains they are constants, the same in all their cases.
"""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds
from rkd_jax.bounds.reading import read
from rkd_jax.errors import ConfigError, UnsupportedPrimitiveError

from . import programs, reference, regions

CASES = 40  # Of one chain.
BATCH, POINTS, ROUNDS = 32, 24, 2
ALPHA_STEPS = 2
METHODS = {
    'ibp': bounds.ibp, 'crown_ibp': bounds.crown_ibp, 'crown': bounds.crown,
    'forward': bounds.forward,
    'alpha_crown': functools.partial(bounds.alpha_crown, steps=ALPHA_STEPS)}
# Of a chain one of these pairs, for each method is a program to be compiled.
GROUPS = (('ibp', 'crown'), ('crown_ibp', 'forward'), ('alpha_crown',))
Real = np.longdouble


@dataclasses.dataclass
class Failure:
  """What was found wrong.

  Attributes:
    number: Number of the case.
    kind: 'violation', 'NaN', 'mixing' (a function of the whole batch that was not
      refused) or 'crash' (an error that is no refusal).
    method: function of `bounds`.
    text: Python that shows it, and the numbers.
  """

  number: int
  kind: str
  method: str
  text: str


@dataclasses.dataclass
class Tally:
  """What a run has done.

  Attributes:
    chains: chains of steps that have bounds.
    programs: these with different weights.
    sets: input sets.
    samples: points whose outputs were compared.
    undefined: points at which a program has no value.
    outputs: pairs of bounds.
    finite: the finite ones of these.
    rules: name of an equation -> chains with finite bounds that hold it.
    refused: reason -> chains.
    failures: in the order in which they were found.
  """

  chains: int = 0
  programs: int = 0
  sets: int = 0
  samples: int = 0
  undefined: int = 0
  outputs: int = 0
  finite: int = 0
  rules: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  failures: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Case:
  """A program, its sets and the first points of each.

  Attributes:
    number: within the chain.
    weights: Weights of the program.
    spec: (C, d) if linear functions C y + d of the outputs are bounded, or None.
    region: the sets.
    x: points [S, B, ...].
    rng: for further ones.
  """

  number: int
  weights: dict
  spec: tuple | None
  region: regions.Region
  x: np.ndarray
  rng: np.random.Generator


class Chain:
  """A chain of steps with all of its cases.

  Args:
    seed: Seed of whatever is drawn; another one begins with other single expressions.
    index: Number of the chain.
  """

  def __init__(self, seed: int, index: int):
    self.seed, self.index = seed, index
    rng = np.random.default_rng([seed, index])
    self.program = programs.draw(rng, index + 30 * seed)
    self.methods = GROUPS[rng.choice(len(GROUPS), p=[0.4, 0.4, 0.2])]
    self.kind = regions.KINDS[rng.integers(len(regions.KINDS))]
    self.traced = rng.uniform() < 0.8
    self.rows = rng.uniform() < 0.2
    self.refused = self.compared = False
    self._compiled = None

  def case(self, number: int) -> Case:
    """The case of this number, 0 to CASES - 1."""
    rng = np.random.default_rng([self.seed, self.index, number])
    region = regions.draw(rng, self.kind, (BATCH, *self.program.shape))
    x = regions.points(rng, region, POINTS)
    weights = {}

    def weigh(step, now):
      weights.update(programs.weigh(rng, step, _size(now)))

    if number and not self.traced:
      weights = self.case(0).weights
    y = self._walk(weights, x, weigh if not weights else lambda step, now: None)
    return Case(number, weights, self._spec(rng, y), region, x, rng)

  def _spec(self, rng, y):
    if not self.rows:
      return None
    matrix = rng.normal(size=(BATCH, 2, y.shape[2])) * 10**rng.uniform(-3, 3)
    constant = rng.normal(size=(BATCH, 2)) * rng.choice([0, 1, min(_size(y), 1e37)])
    return matrix.astype(np.float32), constant.astype(np.float32)

  def true(self, case: Case, x: np.ndarray) -> np.ndarray:
    """What is bounded, [S, B, K], at points [S, B, ...]; NaN where it has no value."""
    y = self._walk(case.weights, x)
    if case.spec is None:
      return y
    matrix, constant = (part.astype(Real) for part in case.spec)
    return np.einsum('bsk,nbk->nbs', matrix, y) + constant

  def _walk(self, weights, x, before=lambda step, now: None):
    values, now = [], x.reshape(-1, *x.shape[2:])
    for step in self.program.steps:
      before(step, now)
      values.append(now)
      now = _real(step, {i: weights[i] for i in step.weights}, now,
                  programs.before(values))
    return now.reshape(*x.shape[:2], -1)

  def bound(self, case: Case, ball) -> dict:
    """Method -> (lower, upper)."""
    if self._compiled is None:
      # NumPy would multiply its arrays itself, rounded, before the bounds see them.
      weights = jax.tree.map(jnp.asarray, case.weights)
      program = self.program if self.traced else (
          lambda _, x: self.program(weights, x))
      self._compiled = jax.jit(lambda w, ball, spec: {
          name: METHODS[name](functools.partial(program, w), ball,
                              spec and bounds.Spec(*spec))[:2]
          for name in self.methods})
    found = self._compiled(case.weights if self.traced else {}, ball, case.spec)
    return {name: [np.asarray(side, Real) for side in pair]
            for name, pair in found.items()}

  def rules(self, weights, ball) -> set:
    graph = read(functools.partial(self.program, weights), ball)
    return {node.name for node in graph.nodes}


def _size(values):
  """About how large they are."""
  size = np.abs(values[np.isfinite(values) & (values != 0)])
  return float(np.clip(np.median(size) if size.size else 1, 1e-300, 1e300))


def _real(step, weights, x, e):
  args = jax.tree.leaves((weights, x, e))
  return reference.evaluate(_jaxpr(step, x.shape), *args)[0]


@functools.lru_cache(maxsize=64)
def _jaxpr(step, shape):
  abstract = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  weights = {i: abstract(s) for i, (_, s) in step.weights.items()}
  return jax.make_jaxpr(step)(weights, abstract(shape), abstract(shape))


def run(seed: int, first: int, count: int, every: int = 1,
        report=lambda failure: None) -> Tally:
  """Cases from number `first` on, until so many programs were compared.

  Args:
    seed: Seed of whatever is drawn.
    first: number of the first case.
    count: programs to compare; refused ones do not count.
    every: Distance from one chain that is taken to the next.
    report: is called with every `Failure`, at most one a chain, kind and method.
  """
  tally, (index, case) = Tally(), divmod(first, CASES)
  while tally.programs < count:
    chain, seen = Chain(seed, index), set()
    while case < CASES and tally.programs < count and not chain.refused:
      for failure in list(_case(chain, case, tally)):
        if (failure.kind, failure.method) not in seen:
          seen.add((failure.kind, failure.method))
          tally.failures.append(shorter(chain, case, failure))
          report(tally.failures[-1])
      case += 1
    index, case = index + every, 0
    if tally.chains % 20 == 0:  # Compiled programs would fill the memory.
      jax.clear_caches()
  return tally


def only(seed: int, number: int, report=lambda failure: None) -> Tally:
  """The case of this number, whatever becomes of it."""
  tally, (index, case) = Tally(), divmod(number, CASES)
  chain = Chain(seed, index)
  for failure in _case(chain, case, tally):
    tally.failures.append(shorter(chain, case, failure))
    report(tally.failures[-1])
  return tally


def _case(chain, number, tally):
  """Failures of one case; counts it."""
  case = chain.case(number)
  tell = functools.partial(_failure, chain, case)
  try:
    ball = case.region.build()
    found = chain.bound(case, ball)
  except (UnsupportedPrimitiveError, ConfigError) as error:
    chain.refused = True
    tally.refused[('mixes: ' if chain.program.mixes else '') + _reason(error)] += 1
    return
  except Exception as error:  # Whatever is no refusal is a fault.
    chain.refused = True
    yield tell('crash', chain.methods[0], 0, f'{type(error).__name__}: {error}'[:500])
    return
  if chain.program.mixes:
    chain.refused = True
    yield tell('mixing', chain.methods[0], 0, 'a function of the whole batch')
    return
  first = not chain.compared
  tally.chains += first
  tally.programs += chain.traced or first
  chain.compared = True
  tally.sets += BATCH
  finite = {name: np.isfinite(lower) & np.isfinite(upper)
            for name, (lower, upper) in found.items()}
  tally.outputs += sum(f.size for f in finite.values())
  tally.finite += sum(int(f.sum()) for f in finite.values())
  if first and all(f.any() for f in finite.values()):
    tally.rules.update(chain.rules(case.weights, ball))
  yield from compare(chain, case, found, tally, tell)


def _reason(error):
  return str(error).split(':')[0][:70]


def compare(chain, case, found, tally, tell):
  """Failures of computed bounds, at most one a method and kind."""
  for name, (lower, upper) in found.items():
    unknown = (np.isnan(lower) | np.isnan(upper)).any(1)
    if unknown.any():
      example = int(np.argmax(unknown))
      yield tell('NaN', name, example, f'[{lower[example]}, {upper[example]}]')
  x, wrong = case.x, set()
  for last in [False] * (ROUNDS - 1) + [True]:
    y = chain.true(case, x)
    tally.samples += y.shape[0] * y.shape[1]
    tally.undefined += int(np.isnan(y).any(2).sum())
    for name, (lower, upper) in found.items():
      outside = np.isfinite(y) & ((y > upper) | (y < lower))
      if outside.any() and name not in wrong:
        wrong.add(name)
        s, b, k = np.argwhere(outside)[0]
        yield tell('violation', name, b, (
            f'output {k}: [{lower[b, k]}, {upper[b, k]}] but {y[s, b, k]} at x =\n'
            f'{np.asarray(x[s, b], float).tolist()}'))
    if not last:
      x = _search(case, x, y)


def _search(case, x, y):
  """Points between random ones and the extreme one of an output, for each example."""
  rng = case.rng
  value = y[:, :, rng.integers(y.shape[2])] * rng.choice([-1, 1])
  best = np.argmax(np.where(np.isnan(value), -np.inf, value), axis=0)
  return regions.closer(rng, case.region, regions.points(rng, case.region, len(x)),
                        x[best, np.arange(x.shape[1])])


def shorter(chain, number, failure):
  """The same failure by the first steps of the chain alone, if they have it."""
  if failure.kind not in ('violation', 'NaN') or chain.rows:
    return failure
  case = chain.case(number)
  for length in range(1, len(chain.program.steps)):
    first = Chain(chain.seed, chain.index)
    first.methods = (failure.method,)
    first.program = dataclasses.replace(
        chain.program, steps=chain.program.steps[:length])
    found = first.bound(case, case.region.build())
    for other in compare(first, case, found, Tally(),
                         functools.partial(_failure, first, case)):
      if other.kind == failure.kind:
        return other
  return failure


def _failure(chain, case, kind, method, example, message):
  steps = f', steps={ALPHA_STEPS}' if method == 'alpha_crown' else ''
  spec = '' if case.spec is None else ', B.Spec({})'.format(', '.join(
      f'jnp.array([{regions.literal(part[example])}], jnp.float32)'
      for part in case.spec))
  call = f'B.{method}(lambda x: fn(w, x), ball{spec}{steps})'
  call = (f'jax.jit(lambda w, ball: {call})(w, ball)' if chain.traced else
          f'jax.jit(lambda ball: {call})(ball)')
  used = {i for step in chain.program.steps for i in step.weights}
  weights = ', '.join(f'{i}: jnp.array({regions.literal(w)}, jnp.float32)'
                      for i, w in case.weights.items() if i in used)
  text = '\n'.join([chain.program.source(), '', f'w = {{{weights}}}',
                    f'ball = {case.region.source(example)}', f'print({call})',
                    *('# ' + line for line in message.splitlines())])
  return Failure(chain.index * CASES + case.number, kind, method, text)
