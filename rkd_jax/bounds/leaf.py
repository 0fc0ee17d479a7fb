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
from rkd_jax.bounds.subproblems import Subproblems


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


def solve(linear_map, problem: Subproblems, active: np.ndarray, low: np.ndarray,
          high: np.ndarray):
  """(point, multipliers [N]) of the linear program; (None, multipliers) if it failed.

  Args:
    linear_map: (active [N], x) -> (value, Jacobian) of `affine`, compiled.
    problem: one subproblem, without the leading axis.
    active: bool[N].
    low, high: the box of inputs.
  """
  center = np.clip(np.zeros_like(low), low, high)
  (inputs, output), (of_inputs, of_output) = linear_map(active, center)
  inputs, output = np.asarray(inputs, np.float64), np.asarray(output, np.float64)
  of_inputs = np.asarray(of_inputs, np.float64).reshape(len(inputs), -1)
  of_output = np.asarray(of_output, np.float64).reshape(len(output), -1)
  signs = np.asarray(problem.signs, np.float64)
  decided = signs != 0
  row = np.asarray(problem.rows, np.float64)
  shift = lambda value, slope: value - slope @ center.reshape(-1).astype(np.float64)
  # s z >= 0 is written -s z <= 0; the marginals are then <= 0.
  result = scipy.optimize.linprog(
      row @ of_output, A_ub=-(signs[:, None] * of_inputs)[decided],
      b_ub=(signs * shift(inputs, of_inputs))[decided],
      bounds=np.stack([low.reshape(-1), high.reshape(-1)], axis=1), method='highs')
  multipliers = np.zeros(len(signs))
  if result.status != 0:
    return None, multipliers
  multipliers[decided] = np.maximum(-result.ineqlin.marginals, 0)
  return result.x.reshape(low.shape), multipliers
