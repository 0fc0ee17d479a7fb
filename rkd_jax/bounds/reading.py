"""From a function and a set of inputs to the graph that is bounded."""

from collections.abc import Callable

import jax

from rkd_jax.bounds import independence
from rkd_jax.bounds.graph import Graph
from rkd_jax.bounds.patterns import recognise
from rkd_jax.bounds.sets import InputSet
from rkd_jax.bounds.tracing import trace


def read(fn: Callable[[jax.Array], jax.Array], ball: InputSet) -> Graph:
  """The graph of `fn` for inputs like those of `ball`, known functions recognised.

  Raises:
    As `independence.check` and `tracing.trace`.
  """
  independence.check(fn, ball.shape, ball.dtype)
  return recognise(trace(fn, ball.shape, ball.dtype))
