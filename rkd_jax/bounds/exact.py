"""Which intervals are exact: where the backward walk could not do better.

Over a box, the interval of a sum of products is exact if no entry of the input occurs
twice in it. So is that of the first layer of a network, whose walk would cost a row a
neuron. Values that are copies of single input entries (pixels cut into patches, say)
are followed as arrays of indices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds.graph import MOVES, Graph, Ref

_CONSTANT = -1


def exact_values(graph: Graph) -> frozenset[int]:
  """Values whose interval bounds over any box are exact but for rounding."""
  origin = {0: np.arange(np.prod(graph.shapes[0]), dtype=np.int32).reshape(
      graph.shapes[0])}
  exact = {0}
  for node in graph.nodes:
    if not node.linear:
      continue
    copies = all(i in origin for i in node.operands)
    one = len(node.operands) == 1
    if copies and node.name in MOVES:
      moved = _moved(node, [origin[i] for i in node.operands])
      if moved is not None:
        origin[node.out] = moved
        exact.add(node.out)
    elif one and node.name in ('add', 'sub', 'mul', 'div', 'neg') and (
        graph.shapes[node.operands[0]] == node.shape):
      source = node.operands[0]
      if source in exact:
        exact.add(node.out)
      if copies:  # Each entry is still a function of one entry of the input.
        origin[node.out] = origin[source]
    elif one and node.name in MOVES and node.operands[0] in exact:
      exact.add(node.out)
    elif one and copies and _distinct(node, origin[node.operands[0]]):
      exact.add(node.out)
  return frozenset(exact)


def _moved(node, origins):
  """The indices after a move; None if it cannot be carried out on them."""
  values = iter(origins)
  inputs = []
  for given in node.inputs:
    if isinstance(given, Ref):
      inputs.append(next(values))
    elif isinstance(given, jax.core.Tracer):
      if not jnp.issubdtype(given.dtype, jnp.floating):
        return None
      inputs.append(np.full(given.shape, _CONSTANT, np.int32))
    elif jnp.issubdtype(jnp.result_type(given), jnp.floating):
      inputs.append(np.full(jnp.shape(given), _CONSTANT, np.int32))
    else:
      inputs.append(given)
  with jax.ensure_compile_time_eval():
    return np.asarray(node.evaluate(*inputs))


def _distinct(node, origin):
  """Whether each sum that the node forms has an input entry at most once."""
  entries = origin[origin != _CONSTANT]
  if len(np.unique(entries)) == len(entries):
    return True
  if node.name != 'dot_general':
    return False
  ours = 0 if isinstance(node.inputs[0], Ref) else 1
  axes = node.params['dimension_numbers'][0][ours]
  summed = np.moveaxis(origin, axes, range(-len(axes), 0))
  summed = np.sort(summed.reshape(
      -1, int(np.prod([origin.shape[a] for a in axes]))), axis=1)
  same = (summed[:, 1:] == summed[:, :-1]) & (summed[:, 1:] != _CONSTANT)
  return not same.any()
