"""`x.at[i].set(y)` and its kin, with constant indices, as gathers and choices.

Which update reaches which entry is found by running the scatter itself on the numbers
of the updates, so windows and what lies outside count as JAX counts them. Additions are
linear and stay as they are, with traced indices, too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rkd_jax.bounds.graph import Node, Ref
from rkd_jax.bounds.rewriter import Rewriter, concrete

_MOST_REPEATED = 64  # Updates of one entry.


def subtract(rw: Rewriter, node: Node) -> Ref:
  """Adds the negated updates."""
  operand, indices, updates = node.inputs
  updates = rw.neg(updates, node) if isinstance(updates, Ref) else -updates
  p = node.params
  return rw.emit(
      'scatter-add', lambda x, i, u: lax.scatter_add(
          x, i, u, p['dimension_numbers'], mode=p['mode']),
      operand, indices, updates, linear=True, like=node)


def scatter(rw: Rewriter, node: Node) -> Ref | None:
  """set, multiply, min and max; None for traced indices and for a set that repeats."""
  operand, indices, updates = node.inputs
  rounds = _rounds(rw, node)
  if rounds is None or node.name == 'scatter' and len(rounds) > 1:
    return None
  for sources in rounds:
    hit = sources >= 0
    taken = _take(rw, updates, np.maximum(sources, 0), node)
    operand = _UPDATES[node.name](rw, operand, taken, hit, node)
  return operand if isinstance(operand, Ref) else rw.fixed(operand, node)


def _rounds(rw, node):
  """Arrays like the operand: the number of the update that each entry gets, or -1.

  As many as the entry with the most updates has; None if that is not known.
  """
  operand, indices, updates = node.inputs
  known, p = concrete(indices), node.params
  if known is None or node.name == 'scatter' and not _replaces(p['update_jaxpr']):
    return None
  left = np.arange(np.prod(rw.shape(updates)), dtype=np.int32)
  rounds = []
  with jax.ensure_compile_time_eval():
    while len(rounds) < _MOST_REPEATED:
      sources = np.asarray(lax.scatter_max(
          jnp.full(rw.shape(operand), -1, jnp.int32), jnp.asarray(known),
          jnp.asarray(left.reshape(rw.shape(updates))), p['dimension_numbers'],
          mode=p['mode']))
      if np.all(sources < 0):
        return rounds
      rounds.append(sources)
      left[sources[sources >= 0]] = -1
  return None


def _replaces(jaxpr):
  """Whether a scatter stores the update itself, rather than a function of the entry."""
  if jaxpr is None:
    return True
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return not jaxpr.eqns and list(jaxpr.outvars) == list(jaxpr.invars[1:])


def _take(rw, updates, sources, like):
  if not isinstance(updates, Ref):
    return jnp.asarray(updates, rw.dtype).reshape(-1)[sources]
  return rw.emit('gather', lambda u: u.reshape(-1)[sources], updates, linear=True,
                 like=like)


def _where(rw, hit, yes, no, like):
  if not isinstance(yes, Ref) and not isinstance(no, Ref):
    return jnp.where(hit, yes, no)
  return rw.emit('select_n', lax.select_n, hit, no, yes, linear=True, like=like)


def _set(rw, operand, taken, hit, like):
  return _where(rw, hit, taken, operand, like)


def _multiply(rw, operand, taken, hit, like):
  factor = _where(rw, hit, taken, jnp.ones(hit.shape, rw.dtype), like)
  refs = isinstance(operand, Ref) + isinstance(factor, Ref)
  if not refs:
    return operand * factor
  return rw.emit('mul', jnp.multiply, operand, factor, linear=refs == 1, like=like)


def _extreme(name, function):
  def update(rw, operand, taken, hit, like):
    if isinstance(operand, Ref) or isinstance(taken, Ref):
      found = rw.emit(name, function, operand, taken, like=like)
    else:
      found = function(operand, taken)
    return _where(rw, hit, found, operand, like)
  return update


_UPDATES = {'scatter': _set, 'scatter-mul': _multiply,
            'scatter-max': _extreme('max', jnp.maximum),
            'scatter-min': _extreme('min', jnp.minimum)}
