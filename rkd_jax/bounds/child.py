"""What splitting a problem of branch and bound yields."""

from typing import Any, NamedTuple

import numpy as np


class Child(NamedTuple):
  """A part of a problem.

  Attributes:
    lower: what is proved about it.
    problem: to be split on; None if there is nothing left to split.
    point: an input that may be a counterexample, or None.
  """

  lower: float
  problem: Any
  point: np.ndarray | None
