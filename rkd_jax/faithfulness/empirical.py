"""EmpLB: a point where teacher and student are far apart, by attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import falsify
from rkd_jax.bounds.crown import Spec
from rkd_jax.bounds.sets import InputSet
from rkd_jax.bounds.tracing import trace
from rkd_jax.errors import ConfigError
from rkd_jax.faithfulness import pair
from rkd_jax.faithfulness.pair import Classifier

KEPT = 0.1  # Share of the descents that is followed to the end.


class Witness(NamedTuple):
  """Where two networks were found to be apart.

  Attributes:
    distance: float[B], max over the classes of |p_T - p_S| at the point.
    point: float[B, ...], in the set.
  """

  distance: jax.Array
  point: jax.Array


def emp_lb(teacher: Classifier, student: Classifier, ball: InputSet, *, key: jax.Array,
           classes: jax.Array | None = None, steps: int = 100,
           restarts: int = 5) -> jax.Array:
  """A lower bound of D(x) = max over the set and the classes of |p_T - p_S|: float[B].

  Both networks are seen at the same point of the set ("Faithful Knowledge
  Distillation", arXiv:2306.04431; the definition is this project's reading). See
  `witness`, which also returns the points.
  """
  return witness(teacher, student, ball, key=key, classes=classes, steps=steps,
                 restarts=restarts).distance


def witness(teacher: Classifier, student: Classifier, ball: InputSet, *, key: jax.Array,
            classes: jax.Array | None = None, steps: int = 100,
            restarts: int = 5) -> Witness:
  """Descent by the gradient's sign on each p_T - p_S and p_S - p_T of its own.

  After a tenth of the steps only the tenth that is furthest goes on: most classes are
  not those that differ most. Pure. The distance is as its floating-point type
  evaluates it; see `exactly`.

  Args:
    teacher, student: pure, float[B, ...] -> logits float[B, K], each example on its
      own.
    ball: the inputs, see `rkd_jax.bounds`.
    key: typed; one is enough.
    classes: int[B], to compare the probabilities of one class for each example, such
      as the predicted one; None: of all classes.
    steps: of each descent, > 0.
    restarts: starts for each class and sign, >= 1; the first is the middle of the set.

  Raises:
    ConfigError: the networks do not have the same classes, or a wrong number.
    NonFiniteError: a network's logits are not finite.
  """
  if steps < 1 or restarts < 1:
    raise ConfigError(f'steps and restarts must be >= 1, got {steps} and {restarts}')
  size = pair.num_classes(teacher, student, ball)
  graph = trace(probabilities_apart(teacher, student), ball.shape, ball.dtype)
  of_classes = pair.rows(ball, size, classes)
  both = Spec(*(jnp.concatenate([a, -a], axis=1) for a in of_classes))
  points, least = falsify.attack(graph, ball, both, key, steps=steps, restarts=restarts,
                                 kept=KEPT)
  return Witness(-least, points)


def probabilities_apart(teacher: Classifier, student: Classifier) -> Classifier:
  """x -> p_T - p_S, float[B, K]."""
  return lambda x: jax.nn.softmax(teacher(x)) - jax.nn.softmax(student(x))


def exactly(teacher: Classifier, student: Classifier, points: np.ndarray,
            classes: np.ndarray | None = None) -> np.ndarray:
  """max over the classes of |p_T - p_S| at points, in float64: float64[B]."""
  points = np.asarray(points, np.float64)
  with jax.enable_x64(True):
    graph = trace(probabilities_apart(teacher, student), points.shape, jnp.float64)
    found = np.abs(np.asarray(jax.vmap(lambda x: graph.evaluate(x[None])[0])(
        jnp.asarray(points))))
  if classes is None:
    return found.max(axis=1)
  return np.take_along_axis(found, np.asarray(classes)[:, None], axis=1)[:, 0]
