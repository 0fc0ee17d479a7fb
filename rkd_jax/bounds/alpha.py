"""alpha-CROWN: the free lines of the relaxations, optimised (Xu et al. 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rkd_jax.bounds.ascent import ascend, starts
from rkd_jax.bounds.crown import (
    Bounds,
    Spec,
    output_bounds,
    output_rows,
    tighter,
    two_sided,
    walk_output,
)
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.propagation import CHUNK, State, propagate
from rkd_jax.bounds.pytrees import any_shape
from rkd_jax.bounds.reading import read
from rkd_jax.bounds.sets import InputSet
from rkd_jax.errors import ConfigError


@any_shape
def alpha_crown(fn: Callable[[jax.Array], jax.Array], ball: InputSet,
                spec: Spec | None = None, *, upper: bool = True, steps: int = 20,
                optimizer: optax.GradientTransformation | None = None,
                shared: bool = False, intermediate: bool = False,
                chunk: int = CHUNK) -> Bounds:
  """CROWN with optimised lines (arXiv:2011.13824); never looser than `crown`.

  Whatever line is chosen in the allowed range is sound, so gradient ascent on the
  bounds themselves may stop anywhere; the best of all steps is returned, entry by
  entry.

  Args:
    fn, ball, spec, upper, chunk: as in `crown.crown`.
    steps: of the optimiser, >= 1. Each costs about three backward walks.
    optimizer: of the choices in [0, 1]; None: Adam, its learning rate decaying
      exponentially from 0.25 to a tenth.
    shared: one choice for all rows of a side instead of one for each (less memory,
      looser).
    intermediate: also optimises the lines behind the bounds of each open neuron, of
      its own, layer after layer. Each step then costs about three times `crown`.

  Returns, raises: as `crown.crown`; also ConfigError for steps < 1.
  """
  if steps < 1:
    raise ConfigError(f'steps must be >= 1, got {steps}; for none use crown')
  graph = read(fn, ball)
  state = propagate(graph, ball, tighten=True, chunk=chunk,
                    steps=steps if intermediate else 0, optimizer=optimizer)
  rows = output_rows(graph, spec, upper)
  best, _ = optimise(graph, state, ball, rows, spec is None, steps=steps,
                     optimizer=optimizer,
                     groups=(2 if upper else 1) if shared else None)
  return tighter(output_bounds(graph, state, ball, spec, upper),
                 two_sided(best, spec, upper))


def optimise(graph: Graph, state: State, ball: InputSet, rows: jax.Array,
             same_rows: bool, *, steps: int,
             optimizer: optax.GradientTransformation | None = None,
             groups: int | None = None) -> tuple[jax.Array, dict[int, Any]]:
  """Lower bounds of rows on the output, and the last choices behind them.

  Args:
    graph, state, ball, rows, same_rows: as in `crown.walk_output`.
    steps, optimizer: as in `alpha_crown`.
    groups: rows that share choices fall into so many blocks; None: none share.

  Returns:
    (float[B, R], value -> choices [B, R or groups, *shape]).
  """
  count = rows.shape[-3]
  groups = groups or count

  def bound(choices):
    of_rows = jax.tree.map(lambda c: jnp.repeat(c, count // groups, axis=1), choices)
    return walk_output(graph, state, ball, rows, same_rows, of_rows)

  first = jax.vmap(lambda bounds: starts(graph, bounds, groups))(state.bounds)
  return ascend(bound, first, steps, optimizer)
