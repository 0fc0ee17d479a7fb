"""A subproblem with every ReLU decided: a linear program, and its proof.

HiGHS solves it to its tolerances. What is certified does not rest on them: the dual
values become the multipliers of an ordinary bound.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from rkd_jax.bounds import subproblems
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import State
from rkd_jax.bounds.subproblems import Subproblems

_PENALTY = 1e3  # For breaking constraints, in units of the function by that of a neuron.


def affine(graph: Graph, active: jax.Array, x: jax.Array):
  """Inputs of all ReLUs [N] and the output [K] at x, with each ReLU's side fixed.

  Args:
    graph: whose nonlinear equations are all ReLUs.
    active: bool[N], where the ReLU is the identity; elsewhere it is 0.
    x: one example, without batch axis.
  """
  sides = subproblems.scatter(graph, active)
  values, inputs = {0: x[None]}, {}
  for node in graph.nodes:
    operands = [values[i] for i in node.operands]
    if node.out in sides:
      inputs[node.out] = operands[0]
      values[node.out] = jnp.where(sides[node.out], operands[0], 0)
    else:
      values[node.out] = node(*operands)
  return subproblems.gather(graph, inputs), values[graph.output][0]


def sides(graph: Graph, state: State, problem: Subproblems) -> np.ndarray:
  """bool[N]: which ReLUs are the identity in a subproblem that leaves none open."""
  low = subproblems.gather(graph, {node.out: state.bounds[node.operands[0]][0]
                                   for node in subproblems.relu_nodes(graph)})
  return np.where(problem.signs == 0, np.asarray(low) >= 0, problem.signs > 0)


def solve(linear_map, problem: Subproblems, active: np.ndarray, low: np.ndarray,
          high: np.ndarray, places: np.ndarray | None = None,
          ranges: np.ndarray | None = None):
  """(point, multipliers [N], cuts [2, M]) of the linear program.

  Its constraints are elastic: breaking them costs, so that there is a solution, and a
  proof, where no input fulfils them all. The point is None if the solver failed.

  Args:
    linear_map: (active [N], x) -> (value, Jacobian) of `affine`, compiled.
    problem: one subproblem, without the leading axis.
    active: bool[N].
    low, high: the box of inputs.
    places, ranges: outputs [M] and their least and greatest values [2, M], constraints
      like the decisions; the cuts are their multipliers.
  """
  center = np.clip(np.zeros_like(low), low, high)
  (inputs, output), (of_inputs, of_output) = linear_map(active, center)
  inputs, output = np.asarray(inputs, np.float64), np.asarray(output, np.float64)
  of_inputs = np.asarray(of_inputs, np.float64).reshape(len(inputs), -1)
  of_output = np.asarray(of_output, np.float64).reshape(len(output), -1)
  signs = np.asarray(problem.signs, np.float64)
  decided = signs != 0
  places = np.zeros(0, int) if places is None else places
  ranges = np.zeros((2, 0)) if ranges is None else np.asarray(ranges, np.float64)
  row = np.asarray(problem.rows, np.float64)
  shift = lambda value, slope: value - slope @ center.reshape(-1).astype(np.float64)
  offset = shift(output, of_output)[places]
  # s z >= 0 is written -s z <= 0; the marginals are then <= 0.
  matrix = np.concatenate([-(signs[:, None] * of_inputs)[decided], -of_output[places],
                           of_output[places]])
  most = np.concatenate([(signs * shift(inputs, of_inputs))[decided],
                         offset - ranges[0], ranges[1] - offset])
  elastic = -np.ones((len(most), 1))
  box = np.stack([low.reshape(-1), high.reshape(-1)], axis=1)
  result = scipy.optimize.linprog(
      np.append(row @ of_output, _PENALTY), A_ub=np.hstack([matrix, elastic]), b_ub=most,
      bounds=np.concatenate([box, [[0, np.inf]]]), method='highs')
  multipliers, cuts = np.zeros(len(signs)), np.zeros((2, len(places)))
  if result.status != 0:
    return None, multipliers, cuts
  found = np.maximum(-result.ineqlin.marginals, 0)
  count = int(decided.sum())
  multipliers[decided] = found[:count]
  return result.x[:-1].reshape(low.shape), multipliers, found[count:].reshape(2, -1)
