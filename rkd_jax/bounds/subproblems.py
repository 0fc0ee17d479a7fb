"""A batch of subproblems of branch and bound: some ReLUs decided, the rest relaxed.

beta-CROWN (Wang et al. 2021, arXiv:2103.06624): a decision s z >= 0 about a neuron's
input z enters the bound through a multiplier b >= 0, as the term - s b z. For any
multipliers and any lines the result is a lower bound on the subproblem's region.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rkd_jax.bounds import linear, rounding
from rkd_jax.bounds.graph import Graph, Node
from rkd_jax.bounds.linear import Facts
from rkd_jax.bounds.propagation import State, known_below

_PROBED = 3  # Neurons of a subproblem that are tried out before one is split.


class Subproblems(NamedTuple):
  """D subproblems of one example. N neurons: those of all ReLUs, one after another.

  Attributes:
    rows: float[D, K], the function of the output that is to be positive.
    constants: float[D], added to it.
    signs: int8[D, N]: 1 where z >= 0, -1 where z <= 0, 0 undecided.
    slopes: float[D, N] in [0, 1], of the lines below undecided neurons.
    multipliers: float[D, N] >= 0.
    lower: float[D], what is proved.
  """

  rows: jax.Array
  constants: jax.Array
  signs: jax.Array
  slopes: jax.Array
  multipliers: jax.Array
  lower: jax.Array


def relu_nodes(graph: Graph) -> list[Node]:
  """The ReLUs, which branch and bound may split."""
  def zero(constant):
    return not isinstance(constant, jax.core.Tracer) and not np.any(np.asarray(constant))

  return [node for node in graph.nodes
          if node.name == 'max' and len(node.operands) == 1
          and zero(node.constants[0])]


def relus_only(graph: Graph) -> bool:
  """Whether every nonlinear equation is a ReLU."""
  return len(relu_nodes(graph)) == sum(not node.linear for node in graph.nodes)


def neurons(graph: Graph) -> int:
  """N: how many there are."""
  return sum(math.prod(node.shape) for node in relu_nodes(graph))


def gather(graph: Graph, values: dict[int, jax.Array]) -> jax.Array:
  """ReLU -> [*shape], as one array [N]."""
  return jnp.concatenate([values[n.out].reshape(-1) for n in relu_nodes(graph)])


def scatter(graph: Graph, flat: jax.Array) -> dict[int, jax.Array]:
  """[N] -> ReLU -> [*shape]."""
  found, start = {}, 0
  for node in relu_nodes(graph):
    size = math.prod(node.shape)
    found[node.out] = flat[start:start + size].reshape(node.shape)
    start += size
  return found


def _decided(graph, state, signs):
  """Bounds with the decisions in them; for one subproblem. l <= u stays true."""
  bounds = dict(state.bounds)
  for node in relu_nodes(graph):
    i, sign = node.operands[0], signs[node.out]
    low, high = bounds[i]
    low = jnp.where(sign > 0, jnp.maximum(low, 0), low)
    high = jnp.where(sign < 0, jnp.minimum(high, 0), high)
    bounds[i] = (jnp.where(sign < 0, jnp.minimum(low, high), low),
                 jnp.where(sign > 0, jnp.maximum(low, high), high))
  return bounds


def _walk(graph, state, ball, row, signs, slopes, multipliers, raised=0.0):
  """(lower bound without the constant, row on the input) of one subproblem.

  `raised` [2, N] is added to the offsets of the lines: the derivative with respect to
  it is the row on the ReLUs' results, its positive and its negative part.
  """
  signs_of, slopes_of, multipliers_of = (
      scatter(graph, a) for a in (signs, slopes, multipliers))
  raised = jax.vmap(lambda r: scatter(graph, r))(
      jnp.broadcast_to(raised, (2, len(slopes))))
  bounds = _decided(graph, state, signs_of)
  offsets, lines, extra = dict(state.facts.offsets), dict(state.facts.slopes), {}
  for node in relu_nodes(graph):
    i = node.operands[0]
    (low, high), lines[node.out] = linear.facts_of(
        node, graph, bounds, state.facts, (slopes_of[node.out], None))
    offsets[node.out] = low + raised[node.out][0], high + raised[node.out][1]
    sign = signs_of[node.out].astype(graph.dtype)
    extra[i] = extra.get(i, 0) - (sign * multipliers_of[node.out])[None]
  found, total = linear.backward(graph, {graph.output: row[None, None]},
                                 Facts(offsets, lines, state.facts.losses), extra=extra)
  on_input = found[0][:, 0]
  return known_below(total + ball.minimum(on_input))[0], on_input[0]


def bound(graph: Graph, state: State, ball, problems: Subproblems):
  """Lower bounds as they are, [D], and rows on the input, [D, ...]."""
  def one(p):
    low, on_input = _walk(graph, state, ball, p.rows, p.signs, p.slopes, p.multipliers)
    return add(low, p.constants), on_input

  return jax.vmap(one)(problems)


def add(low: jax.Array, constant: jax.Array) -> jax.Array:
  """A lower bound plus a constant, rounded down."""
  slack = 4 * float(jnp.finfo(low.dtype).eps) * (jnp.abs(low) + jnp.abs(constant))
  return known_below(low + constant - slack - rounding.tiny(0, low.dtype))


def tighten(graph: Graph, state: State, ball, problems: Subproblems, *, steps: int,
            rate: float, multiplier_rate: float, goal=0.0, cuts: Any = (),
            cut: Callable[[Subproblems, Any], Subproblems] = lambda problems, _: problems
            ) -> tuple[Subproblems, Any]:
  """Optimises lines and multipliers; stops early when all bounds are above the goal.

  Args:
    graph, state, ball: of one example, without batch axis.
    problems: with the lines and multipliers to start from.
    steps: of Adam, at most.
    rate: learning rate of the slopes.
    multiplier_rate: that of the multipliers, in units of the function's own.
    goal: of the bounds; may be traced.
    cuts: further multipliers >= 0 to optimise, [D, ...] each.
    cut: (problems, cuts) -> the problems whose bound is one of `problems`, for any
      cuts >= 0.

  Returns:
    (problems with the best bound of each, the cuts behind it).
  """
  optimizer = optax.multi_transform(
      {'slopes': optax.adam(rate), 'multipliers': optax.adam(multiplier_rate)},
      {'slopes': 'slopes', 'multipliers': 'multipliers', 'cuts': 'multipliers'})

  def value(params):
    given = {k: v for k, v in params.items() if k != 'cuts'}
    low, _ = bound(graph, state, ball, cut(problems._replace(**given), params['cuts']))
    return -jnp.sum(low), low

  def step(carry):
    count, params, moments, best = carry
    (_, low), gradient = jax.value_and_grad(value, has_aux=True)(params)
    best = _better(best, params, low)
    updates, moments = optimizer.update(gradient, moments, params)
    params = optax.apply_updates(params, updates)
    params = {'slopes': jnp.clip(params['slopes'], 0, 1),
              **jax.tree.map(lambda m: jnp.maximum(m, 0),
                             {k: params[k] for k in ('multipliers', 'cuts')})}
    return count + 1, params, moments, best

  params = {'slopes': problems.slopes, 'multipliers': problems.multipliers, 'cuts': cuts}
  first = jnp.full_like(problems.lower, -jnp.inf), params
  _, params, _, best = lax.while_loop(
      lambda carry: (carry[0] < steps) & jnp.any(carry[3][0] <= goal), step,
      (0, params, optimizer.init(params), first))
  lower, best = _better(best, params, value(params)[1])
  cuts = best.pop('cuts')
  return problems._replace(**best, lower=jnp.maximum(lower, problems.lower)), cuts


def _better(best, params, low):
  won = low > best[0]
  keep = lambda new, old: jnp.where(won.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
  return jnp.maximum(low, best[0]), jax.tree.map(keep, params, best[1])


def split(graph: Graph, state: State, ball, problems: Subproblems) -> Subproblems:
  """Both halves of each subproblem, [2 D]: first all z >= 0, then all z <= 0.

  The neuron is chosen as in filtered smart branching (De Palma et al. 2021,
  arXiv:2104.06718): those whose relaxation costs most are tried out, and the one is
  taken whose worse half has the better bound. A subproblem in which every neuron is
  decided or stable comes out unchanged, twice.
  """
  def one(p):
    scores, undecided = _scores(graph, state, ball, p)
    _, candidates = lax.top_k(scores, min(_PROBED, len(scores)))

    def half(index, sign):
      change = jnp.where(undecided[index], sign, p.signs[index]).astype(jnp.int8)
      return p._replace(signs=p.signs.at[index].set(change))

    def worse(index):
      halves = [_walk(graph, state, ball, h.rows, h.signs, h.slopes, h.multipliers)[0]
                for h in (half(index, 1), half(index, -1))]
      return jnp.where(undecided[index], jnp.minimum(*halves), -jnp.inf)

    chosen = candidates[jnp.argmax(jax.vmap(worse)(candidates))]
    return half(chosen, 1), half(chosen, -1)

  positive, negative = jax.vmap(one)(problems)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), positive, negative)


def _scores(graph, state, ball, p):
  """What each neuron's relaxation costs the bound, about; and where it is relaxed."""
  flat = jnp.zeros((2, len(p.slopes)), graph.dtype)
  grown = jax.grad(lambda raised: _walk(
      graph, state, ball, p.rows, p.signs, p.slopes, p.multipliers, raised)[0])(flat)
  bounds = _decided(graph, state, scatter(graph, p.signs))
  low, high = (gather(graph, {n.out: bounds[n.operands[0]][side]
                              for n in relu_nodes(graph)}) for side in (0, 1))
  undecided = (low < 0) & (high > 0) & (p.signs == 0)
  width = jnp.where(undecided, high - low, 1)
  above = -low * high / width  # The chord's height at the kink.
  below = jnp.minimum(-low * p.slopes, high * (1 - p.slopes))
  cost = jnp.abs(grown[1]) * above + jnp.abs(grown[0]) * below
  return jnp.where(undecided, cost, -1), undecided


def undecided(graph: Graph, state: State, problems: Subproblems) -> jax.Array:
  """bool[D]: whether there is a neuron left to split."""
  def one(signs):
    bounds = _decided(graph, state, scatter(graph, signs))
    return jnp.any(jnp.stack([
        jnp.any((bounds[n.operands[0]][0] < 0) & (bounds[n.operands[0]][1] > 0)
                & (scatter(graph, signs)[n.out] == 0)) for n in relu_nodes(graph)]))

  return jax.vmap(one)(problems.signs)
