"""Triangle-LP and exact MILP bounds of small ReLU networks, by HiGHS through SciPy.

One program an example: variables for the input, for what nonlinear equations read and
write, and a row for every equation. y = max_k t_k of affine t_k becomes y >= t_k, the
line of CROWN above (the triangle of Ehlers 2017, arXiv:1705.01320), and in the MILP
y <= t_k + M_k (1 - z_k) with binaries z_k (Tjeng et al. 2019, arXiv:1711.07356).

Everything runs on the host in float64, with the weights of the function cast exactly.
The reference for the other methods, and an option where networks are small.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from rkd_jax.bounds import independence, rounding
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.bounds.crown import Bounds, Spec, output_bounds
from rkd_jax.bounds.patterns import recognise
from rkd_jax.bounds.program import build, pieces, segments
from rkd_jax.bounds.propagation import State, propagate
from rkd_jax.bounds.sets import InputSet, L2Ball
from rkd_jax.bounds.tracing import trace
from rkd_jax.errors import ConfigError, RkdError

# Of HiGHS: 1e-7 for rows and reduced costs, 1e-6 for binaries and the absolute gap.
_TOLERANCE = 1e-6
_GAP = 1e-9  # Relative gap at which a search ends; the absolute one ends it as well.


class Exact(NamedTuple):
  """Bounds by branch and bound; [B, K], or [B, S] with a specification.

  Attributes:
    lower: lower <= fn(x) for every x of the set, to the tolerance of the solver.
    upper: from above; None where only lower bounds were asked for.
    optimal: bool, every search for the entry ended: `lower` and `upper` are the least
      and greatest values, to the tolerance.
    argmin: [B, S, ...], the best input found for `lower`, a candidate counterexample;
      in the hull of the set, and in it but for rounding. That of the linear program
      where the search found none in its time.
  """

  lower: jax.Array
  upper: jax.Array | None
  optimal: jax.Array
  argmin: jax.Array


def lp(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
       spec: Spec | None = None, *, upper: bool = True) -> Bounds:
  """Bounds by the triangle linear program on the neuron bounds of CROWN.

  Never looser than `crown`. A certificate: not the solver's objective is returned but
  the bound that its multipliers prove by weak duality, computed with an allowance for
  rounding (Neumaier & Shcherbina 2004, doi:10.1007/s10107-003-0433-3); a solver
  that gives up leaves the bound of CROWN. An LP for each row, side and example.

  Args:
    fn: pure, [B, ...] -> [B, K], each example on its own; of equations linear in
      bounded values, max, min, abs, leaky ReLU and maxima or minima over axes.
    ball: a box or an L1 ball, concrete and finite.
    spec: linear functions of the output to bound instead of the outputs.
    upper: also bounds from above.

  Raises:
    ConfigError: an L2 ball, an infinite set, traced values; or as `crown`.
    UnsupportedPrimitiveError: another nonlinear operation.
  """
  minima, _, _ = _minima(fn, ball, spec, upper)
  return _bounds(minima, ball.dtype, upper)


def milp(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
         spec: Spec | None = None, *, upper: bool = True,
         timeout_s: float | None = None) -> Exact:
  """The least and greatest values, by mixed-integer programming.

  To the tolerance of the solver and not a certificate: HiGHS works to 1e-7 and 1e-6,
  and its dual bound is widened by 1e-6 (1 + sum_k |c_k| max |y_k|), c the row of the
  specification. Never looser than `lp`, whose bound is one. With a time limit the
  bounds are what the search had proved by then, never the best value found.

  Args:
    fn, ball, spec, upper: as in `lp`.
    timeout_s: of each search, one for each row, side and example; > 0. None: none.

  Raises:
    As `lp`; ConfigError for a time limit <= 0.
  """
  if timeout_s is not None and not timeout_s > 0:
    raise ConfigError(f'timeout_s must be > 0 or None, got {timeout_s}')
  search = functools.partial(_search, timeout_s=timeout_s)
  minima, done, points = _minima(fn, ball, spec, upper, search)
  size = minima.shape[1] // 2 if upper else minima.shape[1]
  found = _bounds(minima, ball.dtype, upper)
  low, high = (np.asarray(edge)[:, None] for edge in ball.hull())
  argmin = np.clip(points[:, :size].astype(low.dtype), low, high)
  done = done[:, :size] & done[:, size:] if upper else done
  return Exact(found.lower, found.upper, jnp.asarray(done), jnp.asarray(argmin))


def _minima(fn, ball, spec, upper, search=None):
  """Solves a program for every row of the objective, negated ones after them.

  With `search` for whole numbers, too, where the linear program leaves a gap.

  Returns:
    (lower bounds float64[B, R], whether each is the minimum bool[B, R], where it was
    found float64[B, R, ...]).
  """
  _check(ball)
  independence.check(fn, ball.shape, ball.dtype)
  one = jax.ShapeDtypeStruct((1, *ball.shape[1:]), ball.dtype)
  with jax.default_matmul_precision('highest'):
    typed = jex.jaxpr_as_fun(jax.make_jaxpr(fn)(one))
  with jax.enable_x64(True):
    # The function as it is in its own type, but with everything cast to float64.
    graph = recognise(trace(
        lambda x: typed(x.astype(ball.dtype)), ball.shape, jnp.float64))
    for node in graph.nodes:
      if not node.linear:
        pieces(node, graph)  # Refuses before the long part.
    ball, spec = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (ball, spec))
    (state, known), _ = Compiled()('state', functools.partial(
        _known, graph, upper=upper), ball, spec)
    matrices = segments(graph)
    known = np.concatenate([known.lower, -known.upper] if upper else [known.lower], 1)
    objectives = _objectives(graph, spec, len(known), upper)
    examples = []
    for b, rows in enumerate(zip(*objectives, known)):
      at = jax.tree.map(lambda a, b=b: np.asarray(a[b]),
                        (ball, state.bounds, state.facts))
      programs = [build(graph, matrices, *at, whole=whole)
                  for whole in ((False,) if search is None else (False, True))]
      examples.append([_minimum(programs, graph, search, *row)
                       for row in zip(*rows)])
  minima, done, points = (
      np.array([[row[k] for row in rows] for rows in examples]) for k in range(3))
  return minima, done, points.reshape(*minima.shape, *ball.shape[1:])


def _known(graph, ball, spec, *, upper):
  """What CROWN says of all values, and of the objective."""
  state = propagate(graph, ball, tighten=True)
  return (State(state.bounds, state.facts),
          output_bounds(graph, state, ball, spec, upper))


def _check(ball):
  if isinstance(ball, L2Ball):
    raise ConfigError('lp and milp take a box or an L1 ball, which are polyhedra, and '
                      'no L2 ball; use crown, alpha_crown or verify for that')
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(ball)):
    raise ConfigError('lp and milp run on the host and cannot be traced; call them '
                      'outside of jit, vmap and grad')
  if not all(np.isfinite(edge).all() for edge in ball.hull()):
    raise ConfigError('lp and milp need a finite input set, got an infinite one')


def _objectives(graph, spec, batch, upper):
  """(rows [B, R, K], constants [B, R])."""
  size = graph.shapes[graph.output][1]
  rows, constant = (np.eye(size), np.zeros(size)) if spec is None else spec
  rows = np.broadcast_to(rows, (batch, *np.shape(rows)[-2:]))
  constant = np.broadcast_to(constant, rows.shape[:2])
  signs = (1, -1) if upper else (1,)
  return [np.concatenate([sign * a for sign in signs], 1) for a in (rows, constant)]


def _minimum(programs, graph, search, row, constant, known):
  """(lower bound, whether it is the minimum, input [D]) of a row on the output."""
  bound, done, point = -np.inf, False, None
  for (program, columns), solve in zip(programs, (_solve_lp, search)):
    if point is not None and not program.whole.any():
      break  # Every neuron is stable: the linear program was exact.
    cost = np.zeros(len(program.lower))
    cost[columns[graph.output]] = row
    found, done, x = solve(program, cost)
    bound = max(bound, found)
    point = x[columns[0]] if point is None or x is not None else point
  bound += constant - 2 * np.finfo(float).eps * (abs(bound) + abs(constant))
  return max(known, bound), done, point


def _solve_lp(program, cost):
  """(proved lower bound, whether it was solved, x) of min <cost, x>."""
  equal, matrix = np.isfinite(program.low), program.matrix
  found = scipy.optimize.linprog(
      cost, matrix[~equal], program.high[~equal], matrix[equal],
      program.middle[equal], np.stack([program.lower, program.upper], 1), 'highs')
  _refuse_infeasible(found)
  if found.status != 0:
    return -np.inf, False, np.full(len(cost), np.nan)
  dual = np.zeros(len(program.low))
  dual[equal] = found.eqlin.marginals
  dual[~equal] = np.minimum(found.ineqlin.marginals, 0)
  return _proved(program, cost, dual), True, found.x


def _proved(program, cost, dual):
  """What multipliers of the rows prove: <cost, x> = <dual, A x> + <reduced, x>."""
  reduced = cost - program.matrix.T @ dual
  edge = np.where(dual > 0, program.low, program.high)
  corner = np.where(reduced > 0, program.lower, program.upper)
  sizes = (np.abs(cost) + abs(program.matrix).T @ np.abs(dual)) @ program.largest
  slack = rounding.gamma(sum(program.matrix.shape), np.float64) * (
      sizes + np.abs(dual) @ np.abs(edge))
  return dual @ edge + reduced @ corner - 3 * slack


def _search(program, cost, timeout_s):
  """(lower bound, whether it is the minimum, x or None) with whole numbers."""
  limit = {} if timeout_s is None else {'time_limit': timeout_s}
  equal = np.isfinite(program.low)
  low = np.where(equal, program.middle, -np.inf)
  high = np.where(equal, program.middle, program.high)
  found = scipy.optimize.milp(
      cost, integrality=program.whole, bounds=(program.lower, program.upper),
      constraints=(program.matrix, low, high), options={'mip_rel_gap': _GAP} | limit)
  _refuse_infeasible(found)
  if found.mip_dual_bound is None:
    return -np.inf, False, found.x
  slack = _TOLERANCE * (1 + np.abs(cost) @ program.largest)
  return found.mip_dual_bound - slack, found.status == 0, found.x


def _refuse_infeasible(found):
  if found.status == 2:
    raise RkdError('HiGHS finds no feasible point of a program that has one: are the '
                   f'weights of very different sizes? It says: {found.message}')


def _bounds(minima, dtype, upper):
  """Minima of rows and of negated rows as bounds, rounded outwards."""
  cast = minima.astype(dtype)
  below = np.where(cast.astype(np.float64) > minima,
                   np.nextafter(cast, np.asarray(-np.inf, dtype)), cast)
  low, high = np.split(below, 2, axis=1) if upper else (below, None)
  return Bounds(jnp.asarray(low), jnp.asarray(-high) if upper else None)
